"""The score that flows carry along, and the gradients made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytest

from jax.flatten_util import ravel_pytree
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.layers import StructuredLayer, base
from pymc_emf.layers.flow import Flow
from pymc_emf.layers.presets import Shape, make_layers
from pymc_emf.variational.objective import Objective
from tests.helpers import parametrize
from tests.layer_examples import LAYERS, PARTS, SIZE, perturb

DATA = np.array([0.5, -1.0, 2.0, 0.3])


def values_of(layers):
    return [jnp.asarray(v.get_value()) for layer in layers for v in layer.variables]


def make(name):
    """Layers of a preset away from the identity."""
    rng = np.random.default_rng(0)
    return [perturb(layer, scale=0.3) for layer in make_layers(name, Shape(SIZE), rng)]


@parametrize(LAYERS, slow=PARTS)
def test_score_is_the_gradient_of_the_density_of_the_image(name, monkeypatch):
    monkeypatch.setattr(base, "SCORE_TOLERANCE", 1e-10)
    layer = perturb(LAYERS[name](), scale=0.3)
    flow, values = Flow([layer], SIZE), values_of([layer])
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(5, SIZE)))

    # log q(y) = log phi(z) - log|det|, and dz / dy is the Jacobian's inverse
    def forward(e):
        image, log_det = flow.forward(values, e)
        return (image, jax.scipy.stats.norm.logpdf(e).sum() - log_det), image

    images, scores = jax.jit(flow.push)(values, noise, -noise)
    derive = jax.jit(jax.vmap(jax.jacfwd(forward, has_aux=True)))
    (jacobians, slopes), expected_images = derive(noise)
    np.testing.assert_allclose(images, expected_images, rtol=1e-12)
    expected = np.linalg.solve(np.swapaxes(jacobians, 1, 2), slopes[..., None])[..., 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-9)


def test_score_through_no_layer_and_through_several():
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(5, SIZE)))
    images, scores = Flow([], SIZE).push([], noise, -noise)
    np.testing.assert_array_equal(images, noise)
    np.testing.assert_array_equal(scores, -noise)
    layers = [perturb(LAYERS[name]()) for name in ("Spline", "Coupling", "LowRank")]
    step = noise, -noise
    for layer in layers:
        step = jax.jit(Flow([layer], SIZE).push)(values_of([layer]), *step)
    together = jax.jit(Flow(layers, SIZE).push)(values_of(layers), noise, -noise)
    for whole, part in zip(together, step, strict=True):
        np.testing.assert_allclose(whole, part, rtol=1e-12)


def test_score_of_an_autoregressive_layer_is_as_accurate_as_asked():
    layer = perturb(LAYERS["MaskedAutoregressive"](), scale=0.3)
    flow, own = Flow([layer], SIZE), values_of([layer])
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(50, SIZE)))

    _, scores = jax.jit(flow.push)(own, noise, -noise)
    derive = jax.jit(jax.vmap(jax.jacfwd(lambda e: flow.forward(own, e))))
    jacobians, log_dets = derive(noise)
    residual = np.einsum("nij,ni->nj", jacobians, scores) + noise + log_dets
    bound = base.SCORE_TOLERANCE * np.linalg.norm(noise + log_dets)
    assert np.linalg.norm(residual) <= bound


@pytest.fixture(scope="module")
def gaussian():
    """A model whose posterior is normal, as the flow that ends in a triangular layer can be."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0, shape=SIZE)
        pm.Normal("y", x[:-1] + x[1:], 0.5, observed=DATA)
    return StructuredLayer(model, "element")


def gradients(layers, structured, gradient, n_draws, seeds, values=None):
    """Losses, and gradients as flat vectors, of a number of steps."""
    objective = Objective(layers, structured, gradient)
    objective.rewrite()
    values = [v.get_value() for v in objective.variables] if values is None else values
    trained = [jnp.asarray(value) for value in objective.trained(values)]
    fixed = objective.fixed(values)

    @jax.jit
    def estimate(seed):
        drawn = objective.draw(jax.random.key(seed), n_draws)
        loss, gradient = jax.value_and_grad(objective.loss)(trained, fixed, drawn)
        return loss, ravel_pytree(gradient)[0]

    losses, estimates = zip(*map(estimate, range(seeds)), strict=True)
    return np.array(losses), np.array(estimates)


@pytest.mark.parametrize(
    # the score of maf is an iteration in each of its layers, at 40,000 draws
    "name",
    ["lower_triangular", *(pytest.param(n, marks=pytest.mark.slow) for n in ("iaf", "maf"))],
)
def test_both_estimators_have_the_same_loss_and_the_same_mean(gaussian, name):
    layers = make(name)
    n_draws, n_batches = 200, 50
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
    data = DATA / 0.5**2
    mean = covariance @ (np.append(data, 0.0) + np.insert(data, 0, 0.0))
    layer, n_gates = emf.LowerTriangular(SIZE), SIZE
    framed = layer.set_frame([], mean, np.linalg.cholesky(covariance))
    values = [*framed, np.full(n_gates, 1.0)]  # gates open
    for gradient, vanishes in (("path", True), ("reparameterised", False)):
        _, (estimate,) = gradients([layer], gaussian, gradient, 10, 1, values)
        assert (np.abs(estimate[:-n_gates]).max() < 1e-10) == vanishes
