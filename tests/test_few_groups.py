"""A hierarchy of fewer elements than those whose structure is always asked for."""

from dataclasses import replace

import numpy as np
import pymc as pm
import pytest

from scipy import stats

import pymc_emf as emf

from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.presets import SPARSE_FROM, STEERED_FROM
from pymc_emf.layers.subset import Subset
from pymc_emf.model.program import Program
from pymc_emf.variational import conclude, prepare, train
from pymc_emf.variational.options import Options
from pymc_emf.variational.start import find_start

GROUPS = 190
ERRORS = np.random.default_rng(1).uniform(0.3, 0.7, GROUPS)
OBSERVED = 1 + np.sqrt(0.8**2 + ERRORS**2) * np.random.default_rng(0).normal(size=GROUPS)


def make_model(observed=OBSERVED, errors=ERRORS):
    with pm.Model() as model:
        level = pm.Normal("level", 0, 2)
        spread = pm.HalfNormal("spread", 1)
        means = pm.Normal("means", level, spread, shape=len(observed))
        pm.Normal("y", means, errors, observed=observed)
    return model


def exact(observed=OBSERVED, errors=ERRORS):
    """Mean, standard deviation and skewness of level and log spread, by quadrature."""
    level, log_spread = np.meshgrid(np.linspace(0, 2, 300), np.linspace(-4, 1, 300))
    variance = np.exp(2 * log_spread)[..., None] + errors**2
    log_density = -((observed - level[..., None]) ** 2 / variance + np.log(variance)).sum(-1) / 2
    log_density += log_spread - np.exp(2 * log_spread) / 2 - (level / 2) ** 2 / 2
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    of_both = []
    for x in (level, log_spread):
        mean = (weights * x).sum()
        sd = np.sqrt((weights * (x - mean) ** 2).sum())
        of_both.append((mean, sd, (weights * (x - mean) ** 3).sum() / sd**3))
    return of_both


def check_moments(approx, known):
    posterior = approx.sample(4000, random_seed=0).posterior
    draws = posterior["level"].to_numpy(), np.log(posterior["spread"].to_numpy())
    for found, (mean, sd, skewness) in zip(draws, known, strict=True):
        assert abs(found.mean() - mean) < 0.1 * sd
        assert abs(np.log(found.std() / sd)) < 0.1
        assert stats.skew(found.ravel()) == pytest.approx(skewness, abs=0.25)


@pytest.fixture(scope="module")
def approx():
    assert STEERED_FROM < GROUPS + 2 <= SPARSE_FROM
    with make_model():
        return pm.fit(method=emf.EMFApprox(), random_seed=1, progressbar=False)


def test_needs_no_step(approx):
    assert approx.stopping == ("converged", 0)
    assert approx.diagnose(random_seed=0).advice.startswith("Use it")


def test_is_right(approx):
    check_moments(approx, exact())


def test_the_start_is_checked_once(monkeypatch):
    """What is known of it is the verdict."""

    def again(*args):
        raise AssertionError

    monkeypatch.setattr(conclude, "check", again)
    observed, errors = OBSERVED[:40], 1.2 * ERRORS[:40]
    approx = emf.fit(model=make_model(observed, errors), random_seed=1, progressbar=False)
    assert approx.stopping == ("converged", 0)
    assert np.isfinite(approx.pareto_k)
    known = exact(observed, errors)
    assert known[1][2] < -0.4  # the log spread is skewed
    check_moments(approx, known)


def test_groups_of_which_the_data_tell_much(monkeypatch):
    """Are closer to normal than their noise."""
    observed, errors = OBSERVED[:40], np.full(40, 0.02)
    model = make_model(observed, errors)
    rng = np.random.default_rng(0)
    prepared = prepare.prepare(Program(model), Options(), rng)
    assert prepared.closed == set(range(2, 42))
    approx = emf.fit(model=model, random_seed=1, progressbar=False)
    check_moments(approx, exact(observed, errors))
    assert not prepare.prepare(Program(make_model()), Options(), rng).closed


def prepare_layers(layers):
    program, rng = Program(make_model()), np.random.default_rng(0)
    return prepare.prepare(program, Options(layers=layers), rng).objective.layers


@pytest.mark.parametrize("layers", ["iaf", "maf"])
@pytest.mark.parametrize("near", [True, False])
def test_structure_is_used_where_a_normal_comes_close(layers, near, monkeypatch):
    if not near:
        monkeypatch.setattr(prepare, "CLOSE_SD", 0.0)
    made = prepare_layers(layers)
    assert isinstance(made[-1], emf.ConditionalAffine) == near
    assert isinstance(made[-1], LowerTriangular) != near
    assert isinstance(made[0], Subset) == near


def test_a_file_says_which_layers(approx, tmp_path, monkeypatch):
    approx.save(tmp_path / "fit")
    monkeypatch.setattr(prepare, "CLOSE_SD", 0.0)
    again = emf.load(tmp_path / "fit", model=make_model())
    assert again.elbo(random_seed=0).mean == approx.elbo(random_seed=0).mean


def test_what_is_off_after_the_correction_takes_steps(approx, monkeypatch):
    prepared, rng = approx.prepared, np.random.default_rng(0)
    started, objective = find_start(prepared, rng), approx.objective
    assert train.end_at_start(prepared, started, 0.01, rng) is not None
    assert train.end_at_start(prepared, started, 1e-6, rng) is None
    first = objective.layers[0]
    assert isinstance(first, Subset)

    def corrected(objective, values, rng, precision):
        own = objective.own(values, first.layer.variables)
        moved = first.layer.preceded_by(own, np.array([0.0, 0.15]), np.eye(2))
        return objective.replace(values, first.layer.variables, moved)

    with monkeypatch.context() as patch:
        judge = train.judge
        patch.setattr(train, "judge", lambda *a, **k: replace(judge(*a, **k), missed=5.0))
        assert train.end_at_start(prepared, started, 0.01, rng) is None  # a verdict is not good
    monkeypatch.setattr(train, "correct_common", corrected)
    assert train.end_at_start(prepared, started, 0.01, rng) is None
    monkeypatch.setattr(train, "correct_common", lambda *args: None)
    assert train.end_at_start(prepared, started, 0.01, rng) is None
