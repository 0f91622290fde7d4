"""Where a density estimator starts, and how fast it learns."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.sharedvalue import SharedVariable

from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers import Chain, StructuredLayer
from pymc_emf.layers.base import Framed
from pymc_emf.model.parameter import Trainable

__all__ = ["learning_rates", "start_from_moments"]

LEARNING_RATE = 0.003
#: Gates are sigmoids of 100 times their parameter.
GATE_LEARNING_RATE = 0.0003
#: A model's own parameters are few, and may start far off.
MODEL_LEARNING_RATE = 0.01


def start_from_moments(
    flow: Chain, values: Sequence[np.ndarray], rows: np.ndarray
) -> list[np.ndarray]:
    """Values with the outermost frame at the mean and covariance of what reaches it.

    Parameters
    ----------
    flow : Chain
    values : sequence of ndarray
        Of its variables.
    rows : ndarray, shape (n, size)
    """
    layers, values = flow.layers, list(values)
    framed = [i for i, layer in enumerate(layers) if isinstance(layer, Framed)]
    if not framed:
        return values
    ends = np.cumsum([len(layer.variables) for layer in layers])
    index = framed[-1]
    if index + 1 < len(layers):
        outer = Chain(layers[index + 1 :])
        value = pt.vector("value", shape=(rows.shape[1],), dtype=pytensor.config.floatX)
        function = jaxify([*outer.variables, value], [outer.inverse(value)[0]])
        inverse = batch_jax(lambda values, x: function(*values, x))
        (rows,) = inverse(values[ends[index] :], rows)
        rows = rows[np.isfinite(rows).all(axis=1)]
    n, size = rows.shape
    if n < 2:
        return values
    deviations = rows - rows.mean(axis=0)
    variances = np.maximum((deviations**2).mean(axis=0), np.finfo(rows.dtype).tiny)
    # few observations do not tell a covariance: shrink it towards the variances
    weight = n / (n + size)
    covariance = weight * deviations.T @ deviations / n + np.diag((1 - weight) * variances)
    layer: Any = layers[index]
    own = slice(ends[index] - len(layer.variables), ends[index])
    values[own] = layer.set_frame(values[own], rows.mean(axis=0), *layer.spread_of(covariance))
    return values


def _structured(layer: Any) -> Iterator[StructuredLayer]:
    """Embedded models, wherever they stand."""
    if isinstance(layer, StructuredLayer):
        yield layer
    for inner in getattr(layer, "layers", [getattr(layer, "layer", None)]):
        if inner is not None:
            yield from _structured(inner)


def learning_rates(flow: Chain) -> list[np.ndarray]:
    """Peak rate of every element of every parameter."""
    gates = {id(p) for layer in _structured(flow) for p in layer.own_parameters}

    def rate(p: SharedVariable) -> float:
        if id(p) in gates:
            return GATE_LEARNING_RATE
        return MODEL_LEARNING_RATE if isinstance(p, Trainable) else LEARNING_RATE

    return [np.full(p.type.shape, rate(p), p.type.dtype) for p in flow.parameters]
