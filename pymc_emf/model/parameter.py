"""Trainable parameters inside a model that is embedded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import xarray as xr

from numpy.typing import ArrayLike
from pymc.distributions import transforms
from pymc.logprob.transforms import Transform
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.sharedvar import TensorSharedVariable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

__all__ = ["Trainable", "constrained_value", "parameter", "trainable"]


class Trainable(TensorSharedVariable):
    """Unconstrained values of a parameter that is trained with the layers around its model.

    A copy of the model has a copy of this variable, and the two hold one and the same value.
    """


def _on_simplex(x: np.ndarray) -> bool:
    return bool(x.ndim and (x > 0).all() and np.allclose(x.sum(axis=-1), 1.0))


#: What each constraint asks for, whether values fulfil it, and the transform that ensures it.
_CONSTRAINTS: dict[str, tuple[str, Any, Transform]] = {
    "positive": ("be positive", lambda x: (x > 0).all(), transforms.log),
    "unit_interval": (
        "lie strictly between 0 and 1",
        lambda x: ((x > 0) & (x < 1)).all(),
        transforms.logodds,
    ),
    "simplex": (
        "be positive and sum to one along the last axis",
        _on_simplex,
        transforms.simplex,
    ),
    "ordered": (
        "increase along the last axis",
        lambda x: x.ndim and (np.diff(x, axis=-1) > 0).all(),
        transforms.ordered,
    ),
}


def parameter(
    name: str,
    initial: ArrayLike,
    *,
    positive: bool = False,
    unit_interval: bool = False,
    simplex: bool = False,
    ordered: bool = False,
    dims: str | Sequence[str] | None = None,
) -> TensorVariable:
    """Make a trainable parameter of a model that will be embedded.

    It stands where a number would, in the priors of a :class:`pymc.Model`, and is trained with
    the layers around them: by maximum likelihood in a :class:`DensityEstimator`, and in
    :class:`EMFApprox` by maximising the ELBO, which is empirical Bayes, also if it stands in the
    likelihood.

    Parameters
    ----------
    name : str
    initial : array_like
        Where the training starts.
    positive, unit_interval, simplex, ordered : bool
        At most one constraint: elements are positive, or lie between 0 and 1, or are positive and
        sum to one along the last axis, or increase along it.
    dims : str or sequence of str, optional
        Of the model in whose context it is made.

    Returns
    -------
    TensorVariable
        Inside of a model, one of its deterministic variables.

    Raises
    ------
    ValueError
        If the initial value is not finite or breaks the constraint, or if there are several
        constraints.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     scale = emf.parameter("scale", 1.0, positive=True)
    ...     x = pm.GaussianRandomWalk("x", 0.0, scale, init_dist=pm.Normal.dist(), steps=9)
    >>> [p.name for p in emf.StructuredLayer(model).parameters]
    ['scale']
    """
    given = [
        constraint
        for constraint, wanted in zip(
            _CONSTRAINTS, (positive, unit_interval, simplex, ordered), strict=True
        )
        if wanted
    ]
    if len(given) > 1:
        raise ValueError(
            f"The parameter {name} has several constraints, {' and '.join(given)}; choose one."
        )
    values = np.asarray(initial, dtype=pytensor.config.floatX)
    if not np.isfinite(values).all():
        raise ValueError(f"The initial value of the parameter {name} must be finite, got {values}.")
    transform = None
    if given:
        rule, holds, transform = _CONSTRAINTS[given[0]]
        if not holds(values):
            raise ValueError(f"The initial value of the parameter {name} must {rule}.")
        values = np.asarray(transform.forward(values).eval(), dtype=values.dtype)
    raw = Trainable(TensorType(values.dtype, shape=values.shape), values, strict=False, name=name)
    model = pm.Model.get_context(error_if_none=False)
    raw.tag.transform = transform
    raw.tag.dims = (dims,) if isinstance(dims, str) else dims
    raw.tag.coords = {} if model is None else dict(model.coords)
    value = raw if transform is None else transform.backward(raw)
    if model is not None:
        return pm.Deterministic(name, value, dims=dims)
    value = value.copy()
    value.name = name
    return value


def trainable(variables: Sequence[Variable]) -> list[Trainable]:
    """Trainable parameters that variables depend on, each once, in a fixed order."""
    found = {v.container: v for v in graph_inputs(variables) if isinstance(v, Trainable)}
    return list(found.values())


def constrained_value(raw: Trainable) -> xr.DataArray:
    """Present value of a parameter, in its own space and with its dims."""
    transform = raw.tag.transform
    value = raw.get_value()
    if transform is not None:
        value = transform.backward(pt.constant(value)).eval()
    dims = raw.tag.dims or [f"{raw.name}_dim_{i}" for i in range(value.ndim)]
    known = raw.tag.coords
    coords = {dim: np.asarray(known[dim]) for dim in dims if known.get(dim) is not None}
    return xr.DataArray(value, dims=dims, coords=coords, name=raw.name)
