"""Inputs that nobody should give: each is answered by the documented error or the right posterior.

Most are refused before anything is compiled.
"""

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.exceptions import BadStartError, DiscreteVariableError

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
        ({"start": {"x": np.nan}}, BadStartError, "The start of x lies outside of its support"),
        ({"start": {"x": np.inf}}, BadStartError, "The start of x lies outside of its support"),
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
