"""Where fits start, on posteriors whose scale, shape or modes are awkward."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_emf as emf

from pymc_emf.model.program import Program
from pymc_emf.variational.options import Options
from pymc_emf.variational.points import evaluate_prior, initial_point
from pymc_emf.variational.prepare import prepare
from pymc_emf.variational.search import _choose
from pymc_emf.variational.start import _gate_sensitivity

quiet = {"progressbar": False}


def check_moments(draws, mean, covariance):
    """Within a tenth of a standard deviation, and a tenth of each."""
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(0) - mean) < 0.1 * sd).all()
    assert (np.abs(draws.std(0) / sd - 1) < 0.1).all()


# a flat prior has no draws to start from, but the same search
@pytest.mark.parametrize("prior", ["wide", pytest.param("flat", marks=pytest.mark.slow)])
def test_unscaled_and_correlated_covariates(prior):
    """Coefficients of size 1e5 beside 1e-3, whose posterior is known."""
    rng = np.random.default_rng(0)
    year = 1950 + np.arange(20.0)
    x = np.column_stack([np.ones(20), year, 1e6 + 3e4 * (year - 1950) + 1e3 * rng.normal(size=20)])
    y = x @ [-2e5, 100.0, 1e-3] + 30.0 * rng.normal(size=20)
    with pm.Model() as model:
        if prior == "flat":
            beta = pm.Flat("beta", shape=3)
        else:
            beta = pm.Normal("beta", 0.0, 1e6, shape=3)
        pm.Normal("y", pt.constant(x) @ beta, 30.0, observed=y)
    # least squares, with the prior as further rows
    rows = np.vstack([x / 30.0, np.eye(3) / (np.inf if prior == "flat" else 1e6)])
    q, r = np.linalg.qr(rows)
    mean = np.linalg.solve(r, q.T @ np.append(y / 30.0, np.zeros(3)))
    root = np.linalg.inv(r)
    approx = emf.fit(1000, model=model, random_seed=0, **quiet)
    draws = approx.sample(20_000, random_seed=1).posterior["beta"].values[0]
    check_moments(draws, mean, root @ root.T)
    # not only along the axes
    whitened = (draws - mean) @ np.linalg.inv(root).T
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3), atol=0.1)
    assert approx.pareto_k < 0.7


def test_the_initial_point_is_that_of_pymc():
    with pm.Model() as model:
        pm.Dirichlet("shares", np.ones(3))
        rate = pm.Gamma("rate", 2.0, 1.0, initval=3.0)
        pm.Uniform("below", 0.0, rate)
        pm.LKJCholeskyCov("chol", n=3, eta=1.0, sd_dist=pm.Exponential.dist(1.0))
        pm.GaussianRandomWalk("walk", steps=4, init_dist=pm.Normal.dist())
        pm.Normal("drawn", 0.0, 1e3, shape=3, initval="prior")
    program = Program(model)
    point, theirs = initial_point(program), model.initial_point()
    assert point.keys() == theirs.keys()
    drawn, theirs_drawn = point.pop("drawn"), theirs.pop("drawn")
    assert drawn.shape == theirs_drawn.shape and np.abs(drawn).min() > 0
    np.testing.assert_array_equal(drawn, initial_point(program)["drawn"])
    for name, value in theirs.items():
        np.testing.assert_allclose(point[name], value, atol=1e-12, err_msg=name)


def test_a_gate_moves_no_faster_than_its_posterior_allows():
    with pm.Model() as model:
        wide = pm.Normal("wide", 0.0, 1e6)
        narrow = pm.Normal("narrow", 0.0, 1.0)
        pm.Normal("y", wide, 1.0, observed=[5e5, 5e5 + 1])
        pm.StudentT("z", 4, mu=narrow, sigma=1.0, observed=[0.5, 1.0])
    method = emf.EMFApprox(model, layers="full_rank", random_seed=0)
    approx = method.fit(1000, **quiet)
    draws = approx.sample(20_000, random_seed=1).posterior["wide"].values[0]
    check_moments(draws[:, None], np.array([5e5 + 0.5]), np.array([[0.5]]))


@pytest.fixture(scope="module")
def walk():
    """A random walk of unknown step seen through unknown noise: a spike in density at no step."""
    rng = np.random.default_rng(1)
    level = 1000 + np.cumsum(30.0 * rng.normal(size=12))
    with pm.Model() as model:
        step = pm.HalfNormal("step", 500)
        sigma = pm.HalfNormal("sigma", 500)
        start = pm.Normal.dist(1000, 1000)
        x = pm.GaussianRandomWalk("x", sigma=step, init_dist=start, shape=12)
        pm.Normal("y", x, sigma, observed=level + 100.0 * rng.normal(size=12))
    return model


@pytest.mark.slow  # two fits of a walk; that the best candidate wins is tested below
def test_never_worse_than_the_cold_start(walk):
    options = {"layers": "full_rank", "random_seed": 0} | quiet
    cold = emf.fit(1000, model=walk, warm_start=False, **options)
    warm = emf.fit(1000, model=walk, **options)
    assert warm.warm_start.elbos[warm.warm_start.chosen] == max(warm.warm_start.elbos.values())
    old, new = cold.elbo(20_000, random_seed=1), warm.elbo(20_000, random_seed=1)
    assert new.mean > old.mean - 3 * (old.se + new.se) - 0.05


def test_candidates_and_modes():
    """Two wells, of which the deeper is found."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0, shape=2)
        pm.Potential("wells", pt.logaddexp(-200 * (x[0] - 1) ** 2, 3 - 200 * (x[0] + 1) ** 2))
    approx = emf.fit(500, model=model, random_seed=0, **quiet)
    start = approx.warm_start
    assert {"prior", "scores", "mode"} <= set(start.elbos)
    assert max(start.elbos.values()) > start.elbos["prior"] + 2
    by_depth = sorted(elbo for name, elbo in start.elbos.items() if name != "prior")
    assert by_depth[-1] > by_depth[0] + 2 or len(by_depth) == 1  # of the wells
    # the well's curvature and the prior's
    draws = approx.sample(10_000, random_seed=0).posterior["x"].values[0, :, :1]
    check_moments(draws, np.array([-400 / 401]), np.array([[1 / 401]]))


def test_elbos_next_to_which_a_nat_is_nothing():
    assert _choose({"prior": -1e30, "scores": -1e20, "bypass": np.nan}) == "scores"
    assert _choose({"prior": -np.inf, "scores": np.nan}) == "prior"


def test_densities_that_overflow_together(monkeypatch):
    """Where the log density is minus infinity, the embedded model may have no derivative either."""
    with pm.Model() as model:
        pm.Normal("x")
    approx = emf.EMFApprox(model, layers="affine").approx
    terms = np.array([-np.inf, -1.0]), np.array([np.inf, 0.5])
    target = approx.objective.target
    monkeypatch.setattr(target, "evaluate_many", lambda values, noise: (noise[:2], *terms))
    _, log_density = evaluate_prior(approx.objective, approx.values, np.random.default_rng(0))
    np.testing.assert_array_equal(log_density, [np.nan, -0.5])


def test_draws_without_a_density_make_no_rates():
    """At a third of them the derivative in the gate is not a number."""
    with pm.Model() as model:
        pm.Potential("often", pt.sqrt(1.0 - pm.Normal("x", 0.5, 2.0)))
    rng = np.random.default_rng(0)
    prepared = prepare(Program(model), Options(layers="affine"), rng)
    (sensitivity,) = _gate_sensitivity(prepared.objective, prepared.initial, rng)
    assert np.isfinite(sensitivity).all()
