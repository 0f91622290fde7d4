"""Trainable parameters of layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor

from numpy.typing import ArrayLike
from pytensor.tensor.sharedvar import SharedVariable, TensorSharedVariable

__all__ = ["LOW_PRECISION", "parameter", "store"]

#: Type of what need not be precise, because any value does about as well as its neighbours:
#: weights of networks, and the products with them. Densities are computed in ``floatX``.
LOW_PRECISION = "float32"


def parameter(values: ArrayLike, name: str, dtype: str | None = None) -> TensorSharedVariable:
    """Make a shared variable with a static shape, without which JAX cannot run it.

    It is of ``floatX``, unless another type is asked for.
    """
    array = np.asarray(values, dtype=pytensor.config.floatX if dtype is None else dtype)
    return pytensor.shared(array, name=name, shape=array.shape)


def store(parameters: Sequence[SharedVariable], values: Sequence[Any]) -> None:
    """Write values back as NumPy arrays; functions compiled by numba cannot read JAX's."""
    for variable, value in zip(parameters, values, strict=True):
        variable.set_value(np.asarray(value, dtype=variable.type.dtype))
