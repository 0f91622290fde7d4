"""Layers one after the other, as JAX functions that carry the score along."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import JaxLayer, Values, jax_layer

__all__ = ["Flow"]


class Flow:
    """Layers one after the other, as JAX functions of the values of their variables and of noise.

    Parameters
    ----------
    layers : sequence of Bijection
        May be empty.
    size : int
        Length of the vector.
    """

    def __init__(self, layers: Sequence[Bijection], size: int):
        self._n_variables = [len(layer.variables) for layer in layers]
        self._layers = [jax_layer(layer, size) for layer in layers]

    def _with_values(self, values: Values) -> Iterator[tuple[JaxLayer, Values]]:
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
