"""Flow layers as JAX functions that carry the score along, for path-derivative gradients."""

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection, Triangular
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers import Chain, Parallel, Spline

__all__ = ["Flow"]

#: Where the score of an autoregressive layer is accurate enough: its error relative to it.
SCORE_TOLERANCE = 1e-3

Values = Sequence[jax.Array]


class _Layer(NamedTuple):
    """One layer as two JAX functions.

    Attributes
    ----------
    forward : callable
        From the values of its variables and one noise vector to its image and log|det|.
    push : callable
        From the values, noise and the score of its density to the image and the score of the
        image's density; noise, image and scores have a first axis of draws.
    """

    forward: Callable[[Values, jax.Array], tuple[jax.Array, jax.Array]]
    push: Callable[[Values, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Flow:
    """Layers one after the other, as JAX functions of their variables and of noise.

    Parameters
    ----------
    layers : sequence of Bijection
        May be empty.
    size : int
        Length of the vector.
    """

    def __init__(self, layers: Sequence[Bijection], size: int):
        parts = [part for layer in layers for part in _parts(layer)]
        self._n_variables = [len(part.variables) for part in parts]
        self._layers = [_compile(part, size) for part in parts]

    def _with_values(self, values: Values):
        """Every layer with the values of its own variables."""
        end = 0
        for layer, n in zip(self._layers, self._n_variables, strict=True):
            start, end = end, end + n
            yield layer, values[start:end]

    def forward(self, values: Values, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map one noise vector; returns log|det| too."""
        log_det = jnp.zeros((), noise.dtype)
        for layer, own in self._with_values(values):
            noise, increment = layer.forward(own, noise)
            log_det += increment
        return noise, log_det

    def push(
        self, values: Values, noise: jax.Array, score: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map draws together with the score of their density.

        Parameters
        ----------
        values : sequence of array
            Of the variables of the layers.
        noise : array, shape (draws, size)
        score : array, shape (draws, size)
            Gradient of the log density of the noise; ``-noise`` where it is standard normal.

        Returns
        -------
        value, score : array, shape (draws, size)
            The images, and the gradient of the log density of the images.
        """
        for layer, own in self._with_values(values):
            noise, score = layer.push(own, noise, score)
        return noise, score


def _parts(layer: Bijection) -> list[Bijection]:
    if isinstance(layer, Chain):
        return [part for inner in layer.layers for part in _parts(inner)]
    return [layer]


# Where y = f(z) has the Jacobian J, its density has the score J^-T (score(z) - grad log|det J|).


@singledispatch
def _compile(layer: Bijection, size: int) -> _Layer:
    """Push the score by the inverse of the layer, whose Jacobian is the inverse of J."""
    event = pt.vector("event", shape=(size,), dtype=pytensor.config.floatX)
    jax_forward = jaxify([*layer.variables, event], layer.forward(event))
    jax_inverse = jaxify([*layer.variables, event], layer.inverse(event)[:1])

    def forward(values, noise):
        value, log_det = jax_forward(*values, noise)
        return value, log_det

    def push(values, noise, score):
        (value, log_det), pull = jax.vjp(lambda e: forward(values, e), noise)
        (slope,) = pull((jnp.zeros_like(value), jnp.ones_like(log_det)))
        _, pull_inverse = jax.vjp(lambda v: jax_inverse(*values, v)[0], value)
        return value, pull_inverse(score - slope)[0]

    return _Layer(forward, jax.vmap(push, in_axes=(None, 0, 0)))


@_compile.register
def _(layer: Triangular, size: int) -> _Layer:
    """Push the score by iteration with the diagonal D of J: x + D^-1 (r - J^T x).

    It is exact after ``size`` steps, as J is triangular; near the identity, two or three do.
    """
    event = pt.vector("event", shape=(size,), dtype=pytensor.config.floatX)
    jax_to_value = jaxify([*layer.variables, event], layer.to_value(event))

    def to_value(values, noise):
        value, log_diagonal = jax_to_value(*values, noise)
        return value, log_diagonal

    def forward(values, noise):
        value, log_diagonal = to_value(values, noise)
        return value, log_diagonal.sum()

    def push(values, noise, score):
        many = jax.vmap(to_value, in_axes=(None, 0))
        (value, log_diagonal), pull = jax.vjp(lambda e: many(values, e), noise)
        (slope,) = pull((jnp.zeros_like(value), jnp.ones_like(log_diagonal)))
        target = score - slope
        bound = SCORE_TOLERANCE**2 * (target**2).sum()

        def proceed(state):
            step, _, residual = state
            return (step < size) & ((residual**2).sum() > bound)

        def improve(state):
            step, solution, residual = state
            solution += jnp.exp(-log_diagonal) * residual
            (product,) = pull((solution, jnp.zeros_like(solution)))
            return step + 1, solution, target - product

        start = 0, jnp.zeros_like(target), target
        _, solution, _ = jax.lax.while_loop(proceed, improve, start)
        return value, solution

    return _Layer(forward, push)


@_compile.register
def _(layer: Spline, size: int) -> _Layer:
    """Push the score element by element."""
    event = pt.vector("event", shape=(size,), dtype=pytensor.config.floatX)
    jax_to_value = jaxify([*layer.variables, event], layer.to_value(event))

    def forward(values, noise):
        value, log_diagonal = jax_to_value(*values, noise)
        return value, log_diagonal.sum()

    def push(values, noise, score):
        def log_slopes(noise):
            value, log_diagonal = jax.vmap(lambda e: jax_to_value(*values, e))(noise)
            return log_diagonal, value

        log_diagonal, pull, value = jax.vjp(log_slopes, noise, has_aux=True)
        (slope,) = pull(jnp.ones_like(log_diagonal))
        return value, jnp.exp(-log_diagonal) * (score - slope)

    return _Layer(forward, push)


@_compile.register
def _(layer: Parallel, size: int) -> _Layer:
    """Push the score slice by slice."""
    flows = [Flow([part], n) for part, n in zip(layer.layers, layer.sizes, strict=True)]
    n_variables = [len(part.variables) for part in layer.layers]
    at = np.cumsum(layer.sizes)[:-1]

    def dealt(values):
        ends = np.cumsum(n_variables)
        return [values[end - n : end] for n, end in zip(n_variables, ends, strict=True)]

    def forward(values, noise):
        pieces = zip(flows, dealt(values), jnp.split(noise, at), strict=True)
        images, log_dets = zip(*(f.forward(own, piece) for f, own, piece in pieces), strict=True)
        return jnp.concatenate(images), sum(log_dets)

    def push(values, noise, score):
        pieces = zip(
            flows,
            dealt(values),
            jnp.split(noise, at, axis=1),
            jnp.split(score, at, axis=1),
            strict=True,
        )
        pushed = [f.push(own, piece, s) for f, own, piece, s in pieces]
        images, scores = zip(*pushed, strict=True)
        return jnp.concatenate(images, axis=1), jnp.concatenate(scores, axis=1)

    return _Layer(forward, push)
