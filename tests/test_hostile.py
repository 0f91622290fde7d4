"""Inputs that nobody should give: each is answered by the documented error or the right posterior.

Most are refused before anything is compiled.
"""

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.exceptions import BadStartError, DiscreteVariableError
from pymc_emf.variational.points import point_in_noise, prior_scales

quiet = {"layers": "affine", "progressbar": False}


def line(observed=(0.0, 1.0)):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("x", 0, 1), 1.0, observed=np.asarray(observed))
    return model


@pytest.fixture(scope="module")
def fitted():
    return emf.fit(20, model=line(), random_seed=1, **quiet)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n": 0}, ValueError, "n must be a positive integer, got 0"),
        ({"n": -5}, ValueError, "n must be a positive integer, got -5"),
        ({"n": 10.5}, ValueError, "n must be a positive integer, got 10.5"),
        ({"n": "10"}, ValueError, "n must be a positive integer, got '10'"),
        ({"n": True}, ValueError, "n must be a positive integer, got True"),
        ({"n": np.nan}, ValueError, "n must be a positive integer, got nan"),
        ({"obj_n_mc": 0}, ValueError, "obj_n_mc must be a positive integer"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be a positive integer"),
        ({"tol": -1.0}, ValueError, "tol must be None or a non-negative number"),
        ({"tol": np.nan}, ValueError, "tol must be None or a non-negative number"),
        ({"tol": "fine"}, TypeError, "tol must be a number, got 'fine'"),
        ({"total_grad_norm_constraint": 0}, ValueError, "total_grad_norm_constraint must be posi"),
        ({"total_grad_norm_constraint": "x"}, TypeError, "total_grad_norm_constraint must be a n"),
        ({"random_seed": "abc"}, ValueError, "random_seed must be .* got 'abc'"),
        ({"random_seed": 1.5}, ValueError, "random_seed must be .* got 1.5"),
        ({"random_seed": -1}, ValueError, "random_seed must be .* got -1"),
        ({"random_seed": [1, 2]}, ValueError, r"random_seed must be .* got \[1, 2\]"),
        ({"gate_init": 0.0}, ValueError, "gate_init must lie strictly between 0 and 1"),
        ({"gate_init": np.nan}, ValueError, "gate_init must lie strictly between 0 and 1"),
        ({"layers": 3}, TypeError, "layers must be a name, a layer"),
        ({"callbacks": 3}, TypeError, "callbacks must be a list of functions"),
        ({"callbacks": [3]}, TypeError, "callbacks must be a list of functions"),
        ({"checkpoint": "/nowhere/fit"}, FileNotFoundError, "no folder /nowhere"),
        ({"devices": "gpu"}, TypeError, "devices must be JAX devices"),
        ({"start": 3.0}, TypeError, "start must be a dict"),
        ({"start": {"z": 1.0}}, ValueError, "'z', which is none of the model's free variables: x"),
        ({"start": {"x": [1.0, 2.0]}}, ValueError, r"start of x must have shape \(\), got \(2,\)"),
        ({"start": {"x": np.nan}}, BadStartError, "x lies outside of its support; give one"),
        ({"start": {"x": np.inf}}, BadStartError, "x lies outside of its support; give one"),
        ({"start": {"x": 1j}}, TypeError, "The start of x must be of real numbers"),
        ({"model": "line"}, TypeError, "model must be a pm.Model, got 'line'"),
        ({"model": pm.Model()}, TypeError, "no free random variables"),
    ],
)
def test_arguments(options, error, said):
    with pytest.raises(error, match=said):
        emf.fit(**{"n": 10, "model": line()} | quiet | options)


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda a: a.sample(0), ValueError, "draws must be a positive integer, got 0"),
        (lambda a: a.sample(-1), ValueError, "draws must be a positive integer, got -1"),
        (lambda a: a.sample(2.5), ValueError, "draws must be a positive integer, got 2.5"),
        (lambda a: a.sample(5, random_seed="x"), ValueError, "random_seed must be"),
        (lambda a: a.sample(5, var_names=["z"]), ValueError, "There is no z among the variables"),
        (lambda a: a.sample(5, var_names=["y"]), ValueError, "There is no y among the variables"),
        (lambda a: a.elbo(0), ValueError, "draws must be a positive integer, got 0"),
        (lambda a: a.diagnose(5), ValueError, "draws of at least 30, got 5"),
        (lambda a: a.nuts(-1), ValueError, "draws must be a positive integer, got -1"),
        (lambda a: a.nuts(10, nuts_sampler="stan"), ValueError, "nuts_sampler must be one of"),
        (lambda a: a.log_prob(np.zeros((2, 3))), ValueError, "must have 1 elements"),
        (lambda a: a.log_prob({"z": 1.0}), KeyError, "lacks the unconstrained value x of x"),
        (lambda a: a.save("/nowhere/fit"), FileNotFoundError, "nowhere"),
        (lambda a: emf.load("/nowhere", model=a.model), FileNotFoundError, "nowhere"),
    ],
)
def test_questions(fitted, ask, error, said):
    """Which leave the approximation as it was."""
    before = [value.copy() for value in fitted.values]
    with pytest.raises(error, match=said):
        ask(fitted)
    np.testing.assert_equal(fitted.values, before)


def in_model(build):
    with pm.Model() as model:
        build()
    return model


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (
            lambda: pm.Normal("y", pm.Poisson("k", 3), 1.0, observed=2.0),
            DiscreteVariableError,
            "k; marginalise",
        ),
        (
            lambda: pm.Normal("y", pm.Normal("x", shape=0).sum(), 1.0, observed=2.0),
            ValueError,
            "free variable x has no elements",
        ),
        (
            lambda: pm.Normal("y", pm.Normal("x"), -1.0, observed=[1.0, 2.0]),
            BadStartError,
            "log density of y is minus infinity at every point",
        ),
        (
            lambda: pm.Normal("y", pm.Normal("x") * np.array([1.0, np.nan]), 1.0, observed=[1, 2]),
            BadStartError,
            "log density of y is NaN at every point",
        ),
        (
            lambda: pm.Normal("y", pm.Normal("x", 0.0, 0.0), 1.0, observed=2.0),
            BadStartError,
            "log density of x is minus infinity at every point",
        ),
        (
            lambda: pm.Potential("p", np.inf + 0 * pm.Normal("x")),
            BadStartError,
            "log density of p is not finite at every point",
        ),
    ],
)
def test_models(build, error, said):
    with pytest.raises(error, match=said):
        emf.fit(10, model=in_model(build), random_seed=1, **quiet)


def test_data_out_of_support(caplog):
    """Their log density is a constant, minus infinity, that depends on no variable."""
    with pm.Model() as model:
        pm.Uniform("y", 0.0, 1.0, observed=[0.5, 2.0])
        pm.Normal("z", pm.Normal("x"), 1.0, observed=0.3)
    with pytest.raises(BadStartError, match="log density of y is minus infinity"):
        emf.fit(10, model=model, random_seed=1, **quiet)
    assert "that of y has the logarithm -inf there" in caplog.text
    assert "failed" not in caplog.text


def moments(model, name, n=300):
    approx = emf.fit(n, model=model, random_seed=1, **quiet)
    draws = approx.sample(4000, random_seed=1).posterior[name].values
    return draws.mean(), draws.std(), approx


@pytest.mark.parametrize("unit", [1e30, 1e-10])
def test_units(unit):
    """Of what is measured, huge and tiny."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 10 * unit)
        pm.Normal("y", x, unit, observed=np.array([5 * unit]))
    mean, sd, approx = moments(model, "x")
    assert mean == pytest.approx(500 / 101 * unit, rel=0.02)
    assert sd == pytest.approx(unit / np.sqrt(1.01), rel=0.05)
    assert approx.verdict.is_good


DATA = np.random.default_rng(0).normal(0.3, 1.0, size=30)


def check_in_units(model, unit, log_prior):
    """Means and deviations of mu and s against those by summation, in units of one."""
    mu, s = np.linspace(-1.5, 1.5, 401)[:, None], np.linspace(0.3, 2.5, 401)
    squares = ((DATA - DATA.mean()) ** 2).sum() + len(DATA) * (DATA.mean() - mu) ** 2
    log_density = -len(DATA) * np.log(s) - squares / (2 * s**2) + log_prior(mu, s)
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    approx = emf.fit(300, model=model, random_seed=1, layers="full_rank", progressbar=False)
    posterior = approx.sample(4000, random_seed=1).posterior
    for name, x in (("mu", mu), ("s", s)):
        mean = float((weights * x).sum())
        sd = float((weights * (x - mean) ** 2).sum() ** 0.5)
        assert float(posterior[name].mean()) == pytest.approx(mean * unit, abs=0.1 * sd * unit)
        assert float(posterior[name].std()) == pytest.approx(sd * unit, rel=0.1)


@pytest.mark.parametrize("unit", [1e20, pytest.param(1e-20, marks=pytest.mark.slow)])  # as small
def test_units_of_priors(unit):
    """A gate of 0.999 would add a thousandth of the noise to a prior whose scale is 1e-20."""
    with pm.Model() as model:
        mu, s = pm.Normal("mu", 0.0, 10 * unit), pm.HalfNormal("s", unit)
        pm.Normal("y", mu, s, observed=DATA * unit)
    check_in_units(model, unit, lambda mu, s: -(mu**2) / 200 - s**2 / 2)


def test_data_far_from_where_a_fit_starts():
    """By 20 orders of magnitude, with flat priors."""
    with pm.Model() as model:
        pm.Normal("y", pm.Flat("mu"), pm.HalfFlat("s"), observed=DATA * 1e20)
    check_in_units(model, 1e20, lambda mu, s: 0.0)


def test_a_predictor_in_another_unit():
    with pm.Model() as model:
        slope = pm.Normal("slope", 0.0, 10.0)
        pm.Normal("y", 1e20 * slope, 1.0, observed=[3.0, 5.0])
    mean, sd, approx = moments(model, "slope")
    assert mean == pytest.approx(4e-20, rel=0.02)
    assert sd == pytest.approx(np.sqrt(0.5) * 1e-20, rel=0.05)
    assert approx.verdict.is_good


def test_a_start_in_a_tiny_unit():
    """The user's point is where it was put, though the gates have been opened."""
    with pm.Model() as model:
        x = pm.StudentT("x", nu=3, mu=0.0, sigma=1e-20, initval=4e-20)
        pm.Normal("y", x, 1e-20, observed=[3e-20])
    prepared = emf.EMFApprox(model, layers="affine").approx.prepared
    objective = prepared.objective
    scales = prior_scales(objective, prepared.initial)
    own = objective.structured.own_parameters
    opened = objective.structured.with_open_gates(objective.own(prepared.initial, own), scales)
    values = objective.replace(prepared.initial, own, opened)
    noise = point_in_noise(objective, values, {"x": np.array(4e-20)})
    value, *_ = objective.target.evaluate_many(objective.split(values)[1], noise[None])
    np.testing.assert_allclose(value, [[4e-20]], rtol=1e-6)
    assert noise[0] > 1.0


def test_no_data():
    """The posterior is the prior."""
    mean, sd, _ = moments(line(np.zeros(0)), "x")
    assert (mean, sd) == (pytest.approx(0.0, abs=0.1), pytest.approx(1.0, rel=0.1))


def test_what_the_data_do_not_tell():
    """Two flat variables of which only the sum is known: there is no posterior, and it warns."""
    with pm.Model() as model:
        total = pm.Flat("a") + pm.Flat("b")
        pm.Normal("y", total, 1.0, observed=np.ones(5))
    *_, approx = moments(model, "a")
    assert not approx.verdict.is_good
