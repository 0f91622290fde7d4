"""Ctrl-C wherever it strikes: an interrupt with nothing changed, or the fit as far as it went."""

import gc
import signal
import time

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.engine.interrupts import heard
from pymc_emf.engine.loop import Chunk
from pymc_emf.variational import check, jax_fit, regression, search, start, state, verdict
from pymc_emf.variational.draws import Draws

quiet = {"progressbar": False}


def method():
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", 0.0, sigma, observed=np.array([1.2, 0.4, 2.1, 1.7]))
    return emf.EMFApprox(model, layers="affine", random_seed=1)


def strikes(monkeypatch, where, name):
    """Let the next call of a function be interrupted, before it does anything."""
    original, pending = getattr(where, name), [True]

    def interrupted(*args, **kwargs):
        if pending:
            pending.clear()
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, interrupted)


@pytest.fixture(scope="module")
def approx():
    """A fit that nothing interrupts."""
    return method().fit(150, **quiet)


@pytest.fixture(scope="module")
def losses(approx):
    return approx.hist


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (jax_fit, "make_steps"),
        (search.Search, "_log_weights"),
        (Chunk, "wait"),
        # between those, and each makes two fits
        pytest.param(state, "look_at", marks=pytest.mark.slow),
        pytest.param(start, "evaluate_prior", marks=pytest.mark.slow),
        pytest.param(regression, "_climb", marks=pytest.mark.slow),
        pytest.param(start, "_gate_sensitivity", marks=pytest.mark.slow),
    ],
)
def test_before_the_first_step(where, name, monkeypatch, losses):
    """Nothing is kept, and the same method starts as if it had never been called."""
    fitted = method()
    strikes(monkeypatch, where, name)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(150, **quiet)
    assert fitted.hist.size == 0
    np.testing.assert_array_equal(fitted.fit(150, **quiet).hist, losses)


def test_between_steps(monkeypatch):
    fitted = method()
    fitted.fit(100, tol=None, **quiet)
    strikes(monkeypatch, Chunk, "__call__")
    approx = fitted.fit(150, **quiet)
    assert approx.stopping == ("interrupted", 0)
    assert approx.hist.size == 100
    assert approx.pareto_k is not None


@pytest.mark.parametrize(("where", "name"), [(check, "draw"), (verdict, "moments_in_doubt")])
def test_in_the_last_check(where, name, monkeypatch, losses, caplog):
    strikes(monkeypatch, where, name)
    approx = method().fit(150, **quiet)
    np.testing.assert_array_equal(approx.hist, losses)
    assert approx.pareto_k is None
    assert "There was no last check" in caplog.text
    assert "none, as there was no last check" in repr(approx)
    assert np.isfinite(approx.diagnose(100).pareto_k)


@pytest.mark.parametrize("ask", ["sample", "elbo", "diagnose"])
def test_after_the_fit(ask, monkeypatch, approx):
    strikes(monkeypatch, Draws, "noise")
    before = [value.copy() for value in approx.values]
    with pytest.raises(KeyboardInterrupt):
        getattr(approx, ask)(100)
    np.testing.assert_equal(approx.values, before)
    assert approx.sample(5).posterior["sigma"].shape == (1, 5)


def lose_one():
    """Ctrl-C that strikes while Python collects garbage, where it is dropped."""

    def collector(phase, info):
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(collector)
    try:
        gc.collect()
    finally:
        gc.callbacks.pop()


def test_one_that_is_lost():
    with pytest.raises(KeyboardInterrupt), heard():
        lose_one()
        for _ in range(1000):
            time.sleep(0.001)


def test_one_that_is_lost_in_a_fit(monkeypatch, losses):
    fitted, make_steps = method(), jax_fit.make_steps

    def compile_with_garbage(*args):
        lose_one()
        return make_steps(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(jax_fit, "make_steps", compile_with_garbage)
        fitted.fit(150, **quiet)
    assert fitted.hist.size == 0
    np.testing.assert_array_equal(fitted.fit(150, **quiet).hist, losses)
