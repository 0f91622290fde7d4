"""Where a density estimator starts, and how fast it learns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.sharedvalue import SharedVariable

from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers import Affine, Chain, LowerTriangular, StructuredLayer
from pymc_emf.model.parameter import Trainable

__all__ = ["learning_rates", "start_from_moments"]

LEARNING_RATE = 0.003
#: Gates are sigmoids of 100 times their parameter.
GATE_LEARNING_RATE = 0.0003
#: A model's own parameters are few, and may start far off.
MODEL_LEARNING_RATE = 0.01


def start_from_moments(flow: Chain, rows: np.ndarray) -> None:
    """Set the outermost affine layer to the mean and covariance of what reaches it."""
    index = max(
        (i for i, layer in enumerate(flow.layers) if isinstance(layer, Affine | LowerTriangular)),
        default=None,
    )
    if index is None:
        return
    if index + 1 < len(flow.layers):
        outer = Chain(flow.layers[index + 1 :])
        value = pt.vector("value", shape=(rows.shape[1],), dtype=pytensor.config.floatX)
        function = jaxify([*outer.variables, value], [outer.inverse(value)[0]])
        (rows,) = batch_jax(lambda values, x: function(*values, x), outer.variables)(rows)
        rows = rows[np.isfinite(rows).all(axis=1)]
    n, size = rows.shape
    if n < 2:
        return
    deviations = rows - rows.mean(axis=0)
    variances = np.maximum((deviations**2).mean(axis=0), np.finfo(rows.dtype).tiny)
    # few observations do not tell a covariance: shrink it towards the variances
    weight = n / (n + size)
    covariance = weight * deviations.T @ deviations / n + np.diag((1 - weight) * variances)
    layer: Any = flow.layers[index]
    layer.set(rows.mean(axis=0), np.linalg.cholesky(covariance))


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
