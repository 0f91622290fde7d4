"""A hierarchy of fewer elements than those whose structure is always asked for."""

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.presets import SPARSE_FROM, STEERED_FROM
from pymc_emf.layers.subset import Subset
from pymc_emf.model.program import Program
from pymc_emf.variational import prepare, train
from pymc_emf.variational.options import Options
from pymc_emf.variational.start import find_start

GROUPS = 190
ERRORS = np.random.default_rng(1).uniform(0.3, 0.7, GROUPS)
OBSERVED = 1 + np.sqrt(0.8**2 + ERRORS**2) * np.random.default_rng(0).normal(size=GROUPS)


def make_model():
    with pm.Model() as model:
        level = pm.Normal("level", 0, 2)
        spread = pm.HalfNormal("spread", 1)
        means = pm.Normal("means", level, spread, shape=GROUPS)
        pm.Normal("y", means, ERRORS, observed=OBSERVED)
    return model


def exact():
    """Means and standard deviations of the level and of the log spread, by quadrature."""
    level, log_spread = np.meshgrid(np.linspace(0, 2, 300), np.linspace(-3, 1, 300))
    variance = np.exp(2 * log_spread)[..., None] + ERRORS**2
    log_density = -((OBSERVED - level[..., None]) ** 2 / variance + np.log(variance)).sum(-1) / 2
    log_density += log_spread - np.exp(2 * log_spread) / 2 - (level / 2) ** 2 / 2
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    of_both = []
    for x in (level, log_spread):
        mean = (weights * x).sum()
        of_both.append((mean, np.sqrt((weights * (x - mean) ** 2).sum())))
    return of_both


@pytest.fixture(scope="module")
def approx():
    assert STEERED_FROM < GROUPS + 2 <= SPARSE_FROM
    with make_model():
        return pm.fit(method=emf.EMFApprox(), random_seed=1, progressbar=False)


def test_needs_no_step(approx):
    assert approx.stopping == ("converged", 0)
    assert approx.diagnose(random_seed=0).advice.startswith("Use it")


def test_is_right(approx):
    posterior = approx.sample(4000, random_seed=0).posterior
    draws = posterior["level"].to_numpy(), np.log(posterior["spread"].to_numpy())
    for found, (mean, sd) in zip(draws, exact(), strict=True):
        assert abs(found.mean() - mean) < 0.1 * sd
        assert abs(np.log(found.std() / sd)) < 0.1


def prepare_layers(layers):
    program, rng = Program(make_model()), np.random.default_rng(0)
    return prepare.prepare(program, Options(layers=layers), rng).objective.layers


@pytest.mark.parametrize("layers", ["iaf", "maf"])
@pytest.mark.parametrize("near", [True, False])
def test_structure_is_used_where_a_normal_comes_close(layers, near, monkeypatch):
    if not near:
        monkeypatch.setattr(prepare, "NEAR", 0.0)
    made = prepare_layers(layers)
    assert isinstance(made[-1], emf.ConditionalAffine) == near
    assert isinstance(made[-1], LowerTriangular) != near
    assert isinstance(made[0], Subset) == near


def test_a_file_says_which_layers(approx, tmp_path, monkeypatch):
    approx.save(tmp_path / "fit")
    monkeypatch.setattr(prepare, "NEAR", 0.0)
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

    monkeypatch.setattr(train, "correct_common", corrected)
    assert train.end_at_start(prepared, started, 0.01, rng) is None
    monkeypatch.setattr(train, "correct_common", lambda *args: None)
    assert train.end_at_start(prepared, started, 0.01, rng) is None
