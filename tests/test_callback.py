"""Operations that JAX does not know: a model with them fits as its twin without them does."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from scipy.special import jv

import pymc_emf as emf

from pymc_emf.engine import callback
from pymc_emf.engine.jax import jaxify
from pymc_emf.variational import check, draws

quiet = {"progressbar": False}
TIMES = np.linspace(0.0, 3.0, 12)


class Decay(Op):
    """exp(-rate * t) at some times, of which PyTensor knows neither the shape nor JAX."""

    __props__ = ()
    calls, stop_at = 0, None

    def make_node(self, rate, times):
        rate, times = pt.as_tensor(rate), pt.as_tensor(times)
        return Apply(self, [rate, times], [pt.vector(dtype=rate.dtype)])

    def perform(self, node, inputs, outputs):
        rate, times = inputs
        rate -= 0.0  # as foreign code that wants to write to its arguments
        Decay.calls += 1
        if Decay.calls == Decay.stop_at:
            raise KeyboardInterrupt
        if rate < 0:
            raise ArithmeticError("The solver gave up.")
        outputs[0][0] = np.exp(-rate * times)

    def pullback(self, inputs, outputs, cotangents):
        _, times = inputs
        slope = (-times * outputs[0] * cotangents[0]).sum()
        return [slope, pytensor.gradient.grad_not_implemented(self, 1, times)]


class Opaque(Decay):
    """The same without a gradient."""

    def pullback(self, inputs, outputs, cotangents):
        raise NotImplementedError("no derivatives")


def decay(curve):
    y = 2.0 * np.exp(-0.7 * TIMES) + 0.05 * np.random.default_rng(1).normal(size=TIMES.size)
    with pm.Model() as model:
        height = pm.HalfNormal("height", 3.0)
        rate = pm.HalfNormal("rate", 2.0)
        fitted = pm.Deterministic("fitted", height * curve(rate))
        pm.Normal("y", fitted, 0.05, observed=y)
    return model


def own(op=Decay):
    return decay(lambda rate: op()(rate, TIMES))


@pytest.fixture(scope="module", autouse=True)
def fewer_draws():
    """Python is called for each draw of the last check and of an importance resampling."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(check, "N_FINAL_DRAWS", 500)
        patched.setattr(draws, "MIN_CANDIDATES", 500)
        yield


@pytest.fixture(scope="module")
def twins():
    """Fits of the model with the operation, and of the one without, by as many draws."""
    options = {"random_seed": 1, "layers": "affine", "obj_n_mc": 8, **quiet}
    return [
        emf.fit(100, model=model, **options)
        for model in (own(), decay(lambda rate: pt.exp(-rate * TIMES)))
    ]


def test_the_same_fit(twins):
    fitted, twin = twins
    assert fitted.stopping == twin.stopping
    np.testing.assert_allclose(fitted.hist, twin.hist, rtol=1e-4)
    ours, theirs = (
        approx.sample(50, importance=True, random_seed=2).posterior for approx in (fitted, twin)
    )
    np.testing.assert_allclose(ours["fitted"], theirs["fitted"], rtol=1e-4)
    k = [approx.diagnose(1000, random_seed=3).pareto_k for approx in (fitted, twin)]
    assert k[0] == pytest.approx(k[1], abs=1e-3)


def test_files_and_nuts(twins, tmp_path):
    fitted, twin = twins
    fitted.save(tmp_path / "fit")
    again = emf.load(tmp_path / "fit", model=own())
    assert again.elbo(500, random_seed=1) == fitted.elbo(500, random_seed=1)
    options = {"tune": 30, "chains": 1, "quiet": True, "nuts_sampler": "pymc", **quiet}
    posterior = again.nuts(50, random_seed=1, **options).posterior
    weighted = twin.sample(4000, importance=True, random_seed=1).posterior
    mean, sd = float(weighted["rate"].mean()), float(weighted["rate"].std())
    assert float(posterior["rate"].mean()) == pytest.approx(mean, abs=0.7 * sd)


def test_it_is_said(caplog):
    callback._tell.cache_clear()
    with caplog.at_level(logging.INFO, logger="pymc_emf"):
        emf.EMFApprox(own(), random_seed=1).approx.elbo(10)
    assert caplog.text.count("JAX has no implementation of Decay") == 1
    assert 'backend="numba"' in caplog.text


def test_without_a_gradient():
    """No fit, but draws of what only depends on it."""
    message = "log density of y cannot be compiled. Opaque has no gradient .*no derivatives"
    with pytest.raises(NotImplementedError, match=message):
        emf.fit(10, model=own(Opaque), **quiet)
    with pm.Model() as model:
        rate = pm.HalfNormal("rate")
        pm.Deterministic("curve", Opaque()(rate, TIMES))
        pm.Normal("y", rate, 1.0, observed=1.0)
    posterior = emf.EMFApprox(model, random_seed=1).approx.sample(5).posterior
    expected = np.exp(-posterior["rate"].values[..., None] * TIMES)
    np.testing.assert_allclose(posterior["curve"], expected)


def test_inside_of_scans_and_of_elementwise_functions():
    x = pt.vector("x", shape=(2,))
    steps = pytensor.scan(
        lambda t, total: total + t * Decay()(x[0], TIMES[:3]).sum(),
        sequences=pt.arange(3.0),
        outputs_info=pt.zeros(()),
        return_updates=False,
    )
    function = jaxify([x], [steps[-1], pt.jv(1, x)], with_slopes=True)
    total, bessel = function(np.array([0.5, 2.0]))
    assert total == pytest.approx(3.0 * np.exp(-0.5 * TIMES[:3]).sum())
    np.testing.assert_allclose(bessel, jv(1, [0.5, 2.0]))


def test_errors_are_those_of_the_operation():
    with pm.Model() as model:
        rate = pm.Normal("rate")
        pm.Normal("y", Decay()(rate, TIMES).sum(), 1.0, observed=5.0)
    with pytest.raises(ArithmeticError, match=r"The solver gave up."):
        emf.fit(10, model=model, random_seed=1, **quiet)


@pytest.mark.parametrize(("warm_start", "after"), [("auto", 2000), (False, 1500)])
def test_interrupts(warm_start, after, monkeypatch):
    """In the search for a start nothing is kept, and later all that was learnt."""
    method = emf.EMFApprox(own(), layers="affine", warm_start=warm_start, random_seed=1)
    monkeypatch.setattr(Decay, "stop_at", Decay.calls + after)
    if warm_start:
        with pytest.raises(KeyboardInterrupt):
            method.fit(300, tol=None, **quiet)
        assert method.hist.size == 0
    else:
        approx = method.fit(300, tol=None, **quiet)
        assert approx.stopping.reason == "interrupted"
        assert approx.hist.size == approx.stopping.step < 300


# PyTensor's own backends know the operation; that fits end so is tested in test_ends.py
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Numba will use object mode")
@pytest.mark.parametrize(
    "options",
    [
        {"compile_kwargs": {"mode": Mode(linker="py", optimizer="fast_compile")}},
        {"backend": "numba"},
    ],
    ids=["py", "numba"],
)
def test_pymcs_own_loop(options):
    """And everything after it."""
    model = own()
    with model:
        method = emf.EMFApprox(layers="affine", random_seed=1)
        approx = pm.fit(100, method=method, **options, **quiet)
    assert approx.stopping == ("steps", 100)
    assert np.isfinite([approx.pareto_k, *approx.hist]).all()
    posterior = approx.sample(100, importance=True, random_seed=1).posterior
    height, rate = (posterior[name].values[..., None] for name in ("height", "rate"))
    np.testing.assert_allclose(posterior["fitted"], height * np.exp(-rate * TIMES))
    assert float(posterior["rate"].mean()) == pytest.approx(0.7, abs=0.1)
    assert approx.diagnose(500, random_seed=1).elbo == pytest.approx(approx.elbo().mean, abs=0.2)
    assert approx.gates["rate"] > 0.9
    assert "height" in str(emf.describe(model))
    assert "LowerTriangular" not in repr(approx)
