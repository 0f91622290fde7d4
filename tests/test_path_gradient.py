"""The score that flows carry along, and the gradients made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytest

from jax.flatten_util import ravel_pytree
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.layers import StructuredLayer
from pymc_emf.variational import path_gradient
from pymc_emf.variational.objective import Objective
from pymc_emf.variational.path_gradient import Flow

SIZE = 4


def made(size=SIZE, **kwargs):
    return emf.MaskedAutoregressive(size, hidden=(8, 8), dtype="float64", random_seed=0, **kwargs)


LAYERS = {
    "none": lambda: [],
    "affine": lambda: [emf.Affine(SIZE)],
    "triangular": lambda: [emf.LowerTriangular(SIZE)],
    "low rank": lambda: [emf.LowRank(SIZE, rank=2)],
    "coupling": lambda: [emf.Coupling(SIZE, [1], dtype="float64", random_seed=0)],
    "permutation": lambda: [emf.Permutation([2, 0, 3, 1])],
    "spline": lambda: [emf.Spline(SIZE, bound=2.0, knots=5), emf.Affine(SIZE)],
    "iaf": lambda: [emf.Spline(SIZE), made(), made(reverse=True), emf.LowerTriangular(SIZE)],
    "maf": lambda: [emf.Invert(made()), emf.Affine(SIZE)],
    "parallel": lambda: [
        emf.Parallel([made(3), emf.Affine(1)], [3, 1]),
        emf.Chain([emf.LowerTriangular(SIZE), emf.Permutation([3, 2, 1, 0])]),
    ],
}


def make(name):
    """Layers away from the identity, and the values of their parameters."""
    layers = LAYERS[name]()
    rng = np.random.default_rng(1)
    for layer in layers:
        for p in layer.parameters:
            value = p.get_value()
            p.set_value((value + 0.3 * rng.normal(size=value.shape)).astype(value.dtype))
    variables = [v for layer in layers for v in layer.variables]
    return layers, [jnp.asarray(v.get_value()) for v in variables]


@pytest.mark.parametrize("name", LAYERS)
def test_score_is_the_gradient_of_the_density_of_the_image(name, monkeypatch):
    monkeypatch.setattr(path_gradient, "SCORE_TOLERANCE", 1e-10)
    layers, values = make(name)
    flow = Flow(layers, SIZE)
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(5, SIZE)))

    images, scores = jax.jit(flow.push)(values, noise, -noise)
    expected_images, _ = jax.vmap(lambda e: flow.forward(values, e))(noise)
    np.testing.assert_allclose(images, expected_images, rtol=1e-12)

    # log q(y) = log phi(z) - log|det|, and dz / dy is the Jacobian's inverse
    def log_q(e):
        return jax.scipy.stats.norm.logpdf(e).sum() - flow.forward(values, e)[1]

    slopes = jax.vmap(jax.grad(log_q))(noise)
    jacobians = jax.vmap(jax.jacobian(lambda e: flow.forward(values, e)[0]))(noise)
    expected = np.linalg.solve(np.swapaxes(jacobians, 1, 2), slopes[..., None])[..., 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-9)


def test_score_of_an_autoregressive_layer_is_as_accurate_as_asked():
    layers, values = make("iaf")
    flow = Flow(layers[1:2], SIZE)
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(50, SIZE)))
    first = len(layers[0].parameters)
    own = values[first : first + len(layers[1].parameters)]

    _, scores = jax.jit(flow.push)(own, noise, -noise)
    jacobians = jax.vmap(jax.jacobian(lambda e: flow.forward(own, e)[0]))(noise)
    log_dets = jax.vmap(jax.grad(lambda e: flow.forward(own, e)[1]))(noise)
    residual = np.einsum("nij,ni->nj", jacobians, scores) + noise + log_dets
    bound = path_gradient.SCORE_TOLERANCE * np.linalg.norm(noise + log_dets)
    assert np.linalg.norm(residual) <= bound


@pytest.fixture(scope="module")
def gaussian():
    """A model whose posterior is normal, as the flow that ends in a triangular layer can be."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0, shape=SIZE)
        pm.Normal("y", x[:-1] + x[1:], 0.5, observed=[0.5, -1.0, 2.0])
    return StructuredLayer(model, "element")


def gradients(layers, structured, gradient, n_draws, seeds):
    """Losses, and gradients as flat vectors, of a number of steps."""
    objective = Objective(layers, structured, gradient)
    objective.rewrite()
    parameters = [jnp.asarray(p.get_value()) for p in objective.parameters]
    buffers = [jnp.asarray(b.get_value()) for b in objective.buffers]

    @jax.jit
    def estimate(seed):
        drawn = objective.draw(jax.random.key(seed), n_draws)
        loss, gradient = jax.value_and_grad(objective.loss)(parameters, buffers, drawn)
        return loss, ravel_pytree(gradient)[0]

    losses, estimates = zip(*map(estimate, range(seeds)), strict=True)
    return np.array(losses), np.array(estimates)


@pytest.mark.parametrize("name", ["iaf", "maf", "triangular"])
def test_both_estimators_have_the_same_loss_and_the_same_mean(gaussian, name):
    layers, _ = make(name)
    n_draws, n_batches = 400, 50
    estimates = {
        gradient: gradients(layers, gaussian, gradient, n_draws, n_batches)
        for gradient in ("path", "reparameterised")
    }
    path, plain = estimates["path"], estimates["reparameterised"]
    np.testing.assert_allclose(path[0], plain[0], rtol=1e-12)
    difference = path[1] - plain[1]
    se = difference.std(axis=0) / np.sqrt(n_batches)
    z = difference.mean(axis=0)[se > 1e-12] / se[se > 1e-12]
    # the score's tolerance leaves a bias of a hundredth of it at most
    assert np.abs(z).max() < norm.isf(1e-3 / len(z))


def test_path_derivative_vanishes_at_the_posterior(gaussian):
    precision = np.eye(SIZE)
    for i in range(SIZE - 1):
        precision[i : i + 2, i : i + 2] += 1 / 0.5**2
    covariance = np.linalg.inv(precision)
    data = np.array([0.5, -1.0, 2.0]) / 0.5**2
    mean = covariance @ (np.append(data, 0.0) + np.insert(data, 0, 0.0))
    layer = emf.LowerTriangular(SIZE)
    layer.set(mean, np.linalg.cholesky(covariance))
    gaussian.parameters[0].set_value(np.full(SIZE, 1.0))  # gates open

    n_gates = gaussian.parameters[0].get_value().size
    for gradient, vanishes in (("path", True), ("reparameterised", False)):
        _, (estimate,) = gradients([layer], gaussian, gradient, 10, 1)
        assert (np.abs(estimate[:-n_gates]).max() < 1e-10) == vanishes
