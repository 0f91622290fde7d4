"""Trainable parameters of layers."""

import numpy as np
import pytensor

from numpy.typing import ArrayLike
from pytensor.tensor.sharedvar import TensorSharedVariable

__all__ = ["parameter"]


def parameter(values: ArrayLike, name: str) -> TensorSharedVariable:
    """Make a shared variable of ``floatX`` with a static shape, without which JAX cannot run it."""
    array = np.asarray(values, dtype=pytensor.config.floatX)
    return pytensor.shared(array, name=name, shape=array.shape)
