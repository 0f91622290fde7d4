"""What a layer is: a bijection of the whole vector that carries everything about itself."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection, Triangular
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers.elimination import Elimination

__all__ = [
    "Framed",
    "JaxLayer",
    "Layer",
    "TriangularLayer",
    "Values",
    "hyperparameters_of",
    "jax_layer",
]

#: Where the score of an autoregressive layer is accurate enough: its error relative to it.
SCORE_TOLERANCE = 1e-3

#: Of the variables of a layer, in their order.
type Values = Sequence[Any]


class JaxLayer(NamedTuple):
    r"""One layer as two JAX functions.

    Where :math:`y = f(z)` has the Jacobian J, the density of y has the score
    :math:`J^{-\top}(\nabla_z \log q(z) - \nabla_z \log|\det J|)`.

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


class Layer(Bijection):
    """A bijection of the whole vector.

    Attributes
    ----------
    size : int
        Length of the vector.
    """

    size: int

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What decides the map beside the values of its variables, as JSON can hold it."""
        return {}

    def to_jax(self, size: int) -> JaxLayer:
        """The layer as functions that carry the score along, by default by its inverse."""
        return by_inverse(self, size)


class TriangularLayer(Layer, Triangular):
    """A layer with a triangular Jacobian."""

    def to_jax(self, size):
        return by_iteration(self, size)


class Framed(Layer):
    """A trainable affine map followed by a fixed one, its frame, which a start sets.

    What is trained then has unit scale, whatever the scales and correlations of the model.
    All methods take and return values of the layer's variables, and change nothing.

    Attributes
    ----------
    dense : bool
        Whether the frame holds a whole covariance, or only its main directions.
    rank : int
        Number of those directions.
    elimination : Elimination or None
        Order in which the frame draws the elements, if few interact.
    """

    dense: bool
    rank: int
    elimination: Elimination | None = None

    @abstractmethod
    def set_frame(self, values: Values, loc: np.ndarray, *spread: np.ndarray) -> list[np.ndarray]:
        """Values whose map is a frame alone, by default with unit scales."""

    @abstractmethod
    def spread_of(self, covariance: np.ndarray) -> tuple[np.ndarray, ...]:
        """What :meth:`set_frame` takes beside the location, for a normal of this covariance.

        Parameters
        ----------
        covariance : ndarray, shape (size, size) or (size,)
            A matrix, or the variances alone.
        """

    def _as_stored(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In the types of the variables."""
        return [
            np.asarray(x, dtype=v.type.dtype) for x, v in zip(values, self.variables, strict=True)
        ]


def hyperparameters_of(layer: Bijection) -> dict[str, Any]:
    """Hyperparameters of a layer; of a bijection that is none of ours nothing is known."""
    return layer.hyperparameters if isinstance(layer, Layer) else {}


def jax_layer(layer: Bijection, size: int) -> JaxLayer:
    """A layer, or any bijection of a vector, as functions that carry the score along."""
    return layer.to_jax(size) if isinstance(layer, Layer) else by_inverse(layer, size)


def _event(size: int) -> Any:
    return pt.vector("event", shape=(size,), dtype=pytensor.config.floatX)


def by_inverse(layer: Bijection, size: int) -> JaxLayer:
    """Push the score by the inverse of the layer, whose Jacobian is the inverse of J."""
    event = _event(size)
    jax_forward = jaxify([*layer.variables, event], layer.forward(event))

    @cache  # a fit that takes no step needs none
    def inverse():
        return jaxify([*layer.variables, event], layer.inverse(event)[:1])

    def forward(values, noise):
        value, log_det = jax_forward(*values, noise)
        return value, log_det

    def push(values, noise, score):
        jax_inverse = inverse()
        (value, log_det), pull = jax.vjp(lambda e: forward(values, e), noise)
        (slope,) = pull((jnp.zeros_like(value), jnp.ones_like(log_det)))
        _, pull_inverse = jax.vjp(lambda v: jax_inverse(*values, v)[0], value)
        return value, pull_inverse(score - slope)[0]

    return JaxLayer(forward, jax.vmap(push, in_axes=(None, 0, 0)))


def by_iteration(layer: Triangular, size: int) -> JaxLayer:
    """Push the score by iteration with the diagonal D of J: x + D^-1 (r - J^T x).

    It is exact after ``size`` steps, as J is triangular; near the identity, two or three do.
    """
    event = _event(size)
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

    return JaxLayer(forward, push)


def by_element(layer: Triangular, size: int) -> JaxLayer:
    """Push the score of a layer that acts on every element by itself."""
    event = _event(size)
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

    return JaxLayer(forward, push)
