"""A layer that acts on some elements of the vector."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import JaxLayer, Layer, hyperparameters_of, jax_layer

__all__ = ["Subset"]


class Subset(Layer):
    """A layer of some elements of the vector; all others stay as they are.

    Parameters
    ----------
    layer : Bijection
        Of as many elements as there are positions.
    positions : sequence of int
        Different ones.
    size : int
        Length of the whole vector.

    Raises
    ------
    ValueError
        If a position is not in the vector or occurs twice, or the layer has another size.

    Examples
    --------
    >>> import pymc_emf as emf
    >>> layer = emf.Subset(emf.Affine(2), [0, 3], size=4)
    >>> emf.compile(layer).forward([1.0, 2.0, 3.0, 4.0])[0]
    array([1., 2., 3., 4.])
    """

    def __init__(self, layer: Bijection, positions: Sequence[int] | np.ndarray, size: int):
        self.layer, self.size = layer, size
        self.positions = np.asarray(positions, dtype=np.intp)
        distinct = np.unique(self.positions)
        if len(distinct) < len(self.positions) or not set(distinct) <= set(range(size)):
            raise ValueError(
                f"positions must be different integers from 0 to {size - 1}, got {positions!r}."
            )
        own = getattr(layer, "size", len(self.positions))
        if own != len(self.positions):
            raise ValueError(
                f"{type(layer).__name__} has size {own}, but there are {len(self.positions)} "
                "positions."
            )

    def _put(self, vector: Any, image: Any) -> Any:
        return pt.set_subtensor(vector[self.positions], image)

    def forward(self, noise):
        image, log_det = self.layer.forward(noise[self.positions])
        return self._put(noise, image), log_det

    def inverse(self, value):
        image, log_det = self.layer.inverse(value[self.positions])
        return self._put(value, image), log_det

    def to_jax(self, size):
        inner = jax_layer(self.layer, len(self.positions))

        def forward(values, noise):
            image, log_det = inner.forward(values, noise[self.positions])
            return noise.at[self.positions].set(image), log_det

        def push(values, noise, score):
            at = (slice(None), self.positions)
            image, pushed = inner.push(values, noise[at], score[at])
            return noise.at[at].set(image), score.at[at].set(pushed)

        return JaxLayer(forward, push)

    @property
    def hyperparameters(self):
        return {
            "layer": type(self.layer).__name__,
            "of": hyperparameters_of(self.layer),
            "positions": self.positions.tolist(),
        }

    @property
    def parameters(self):
        return self.layer.parameters

    @property
    def buffers(self):
        return self.layer.buffers
