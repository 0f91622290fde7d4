"""What only helps a fit may fail without ending it."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pymc as pm
import pytensor.tensor as pt
import pytest

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.jax.dispatch import jax_funcify

import pymc_emf as emf

from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.variational import conclude, jax_fit, prepare, search, start


class OnceDifferentiable(Op):
    """Half of a square whose second derivative JAX refuses, as it does that of some functions."""

    def make_node(self, x):
        x = pt.as_tensor(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.asarray(inputs[0] ** 2 / 2)

    def pullback(self, inputs, outputs, gradients):
        return [gradients[0] * inputs[0]]


@jax.custom_jvp
def slope(x):
    return x


@slope.defjvp
def slope_jvp(primals, tangents):
    raise TypeError("select cases must have the same shapes")


@jax.custom_jvp
def half_square(x):
    return x**2 / 2


@half_square.defjvp
def half_square_jvp(primals, tangents):
    return half_square(*primals), slope(*primals) * tangents[0]


@jax_funcify.register(OnceDifferentiable)
def funcify(op, **kwargs):
    return half_square


def model_of(size=2):
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0, shape=size)
        pm.Potential("likelihood", -OnceDifferentiable()((x - 1.0) / 0.5).sum())
    return model


def test_its_second_derivative_raises():
    with pytest.raises(TypeError, match="select cases"):
        jax.hessian(half_square)(jnp.ones(()))


@pytest.mark.parametrize(
    ("size", "layers"), [(2, "full_rank"), (2, "mean_field"), (250, [emf.LowRank])]
)
def test_a_fit_needs_no_second_derivative_of_the_model(size, layers):
    """The curvature at a mode is taken from differences of the score."""
    approx = emf.fit(500, model=model_of(size), layers=layers, random_seed=1, progressbar=False)
    x = approx.sample(4000, random_seed=1).posterior["x"]
    np.testing.assert_allclose(x.mean(("chain", "draw")), 0.8, atol=0.1)
    np.testing.assert_allclose(x.std(("chain", "draw")), np.sqrt(0.2), rtol=0.1)


def fail(*args, **kwargs):
    raise RuntimeError("no reason\nat length")


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (search.Search, "_normal_approximations", "The search for a start failed (no reason);"),
        (start, "_gate_sensitivity", "The choice of the gates' learning rates failed (no reason);"),
        (jax_fit, "end_at_start", "The check of the start failed (no reason); steps are taken."),
        (conclude, "check", "The last check failed (no reason); what was learnt is kept."),
    ],
)
def test_a_failure_is_logged_and_the_fit_goes_on(monkeypatch, caplog, module, name, said):
    monkeypatch.setattr(module, name, fail)
    tol = None if module is conclude else 0.01  # a fit that ends at its start has been checked
    with caplog.at_level(logging.WARNING, logger="pymc_emf"):
        options = {"layers": "full_rank", "random_seed": 1, "progressbar": False}
        approx = emf.fit(1000, model=model_of(), tol=tol, **options)
    assert said in caplog.text
    assert approx.stopping.step > 0 or name == "_gate_sensitivity"
    x = approx.sample(2000, random_seed=1).posterior["x"]
    np.testing.assert_allclose(x.mean(("chain", "draw")), 0.8, atol=0.1)


def test_many_elements_without_a_search_for_edges(monkeypatch, caplog):
    monkeypatch.setattr(prepare, "find_structure", fail)
    with caplog.at_level(logging.WARNING, logger="pymc_emf"):
        emf.fit(5, model=model_of(250), random_seed=1, progressbar=False)
    assert "The search for elements that interact failed (no reason);" in caplog.text


def test_an_error_does_not_hide_behind_the_search_for_its_cause(monkeypatch, caplog):
    monkeypatch.setattr(jax_fit, "explain", fail)
    rate = optax.sgd(1e6)  # which leads to where no number is
    with pytest.raises(NonFiniteELBOError, match="not finite at step"):
        options = {"layers": "affine", "random_seed": 1, "progressbar": False}
        emf.fit(500, model=model_of(2), obj_optimizer=rate, **options)
    assert "The search for its cause failed (no reason);" in caplog.text
