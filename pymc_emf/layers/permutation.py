"""Fixed permutations of the elements."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt

from pymc_emf.layers.base import Layer

__all__ = ["Permutation"]


class Permutation(Layer):
    """Reorder the elements: output i is input ``order[i]``.

    Parameters
    ----------
    order : sequence of int
        A permutation of ``range(size)``.

    Raises
    ------
    ValueError
        If ``order`` is not a permutation.
    """

    def __init__(self, order: Sequence[int] | np.ndarray):
        order = np.asarray(order)
        if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(order.size)):
            raise ValueError(f"order must be a permutation of 0..{order.size - 1}, got {order}.")
        self.order = order
        self.size = order.size

    def forward(self, noise):
        return noise[self.order], pt.zeros((), dtype=noise.dtype)

    def inverse(self, value):
        return value[np.argsort(self.order)], pt.zeros((), dtype=value.dtype)

    @property
    def hyperparameters(self):
        return {"order": self.order.tolist()}
