"""What is estimated from and drawn: arrays, or the labelled variables of a model."""

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import xarray as xr

from numpy.typing import ArrayLike
from pymc.backends.arviz import coords_and_dims_for_inferencedata

from pymc_emf.arguments import free_name
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify
from pymc_emf.model.program import Program

__all__ = ["ArraySpace", "Data", "ModelSpace", "Source", "Space", "width"]

type Data = ArrayLike | Mapping[str, ArrayLike] | xr.Dataset
type Source = Data | Callable[[np.random.Generator, int], Data]


class ArraySpace:
    """Vectors without names: arrays of shape (n, size).

    Parameters
    ----------
    size : int
    """

    #: The one variable of labelled draws.
    name = "x"
    #: Their axis of observations.
    axis = "sample"

    def __init__(self, size: int):
        self.size = size

    def read(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, (n, size), and the log derivatives, (n,), that lead from X to them."""
        if isinstance(X, Mapping | xr.Dataset):
            if set(X) != {self.name}:
                raise ValueError(
                    f"X must be an array, or hold the one variable {self.name!r}, "
                    f"got variables {', '.join(map(str, X))}."
                )
            X = self._observations_first(X[self.name])
        rows = _numbers("X", X)
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise ValueError(f"X must have shape (n, {self.size}), got {rows.shape}.")
        return rows, np.zeros(len(rows))

    def label(self, rows: np.ndarray) -> xr.Dataset:
        """Name vectors."""
        return xr.Dataset({self.name: ((self.axis, f"{self.name}_dim_0"), rows)})

    def _observations_first(self, values: Any) -> Any:
        if isinstance(values, xr.DataArray) and self.axis in values.dims:
            return values.transpose(self.axis, ...)
        return values


class ModelSpace(ArraySpace):
    """The unconstrained values of a model's free variables, which are known by their names.

    An array is taken to hold values; a dict or dataset to hold the variables themselves, from
    which the model's own transforms lead to the values.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program):
        super().__init__(program.size)
        self.program = program
        self._coords, self._dims = coords_and_dims_for_inferencedata(program.frozen)
        names = [site.name for site in self._sites]
        self.axis = free_name(self.axis, {*self._coords, *chain(*self._dims.values()), *names})

    @property
    def _sites(self):
        return self.program.sites_in_model_order

    def read(self, X):
        if not isinstance(X, Mapping | xr.Dataset):
            return super().read(X)
        names = [site.name for site in self._sites]
        if missing := [name for name in names if name not in X]:
            raise ValueError(f"X lacks the variables {', '.join(missing)} of the model.")
        columns = []
        for site in self._sites:
            column = _numbers(site.name, self._observations_first(X[site.name]))
            if column.shape[1:] != site.rv_shape:
                shape = ", ".join(map(str, ("n", *site.rv_shape)))
                raise ValueError(f"X must hold {site.name} in shape ({shape}), got {column.shape}.")
            columns.append(column.reshape(len(column), -1))
        if len({len(column) for column in columns}) > 1:
            raise ValueError("The variables in X must all have the same number of observations.")
        rows, log_det = self._unconstrain(np.concatenate(columns, axis=1))
        for site in self._sites:
            if not np.isfinite(rows[:, site.noise]).all():
                raise ValueError(f"X has values of {site.name} outside of its support.")
        return rows, log_det

    def label(self, rows):
        (flat,) = self._constrain(rows)
        coords, dims = self._coords, self._dims
        variables: dict[str, Any] = {}
        used: dict[str, Any] = {}
        for site in self._sites:
            values = flat[:, self.program.places[site.name].ravel()]
            names = dims.get(site.name, [f"{site.name}_dim_{i}" for i in range(len(site.rv_shape))])
            used |= {name: np.asarray(coords[name]) for name in names if name in coords}
            variables[site.name] = (
                (self.axis, *names),
                values.reshape(len(rows), *site.rv_shape),
            )
        return xr.Dataset(variables, coords=used)

    @cached_property
    def _unconstrain(self):
        flat = pt.tensor("flat", shape=(self.program.n_elements,), dtype=pytensor.config.floatX)
        places = self.program.places
        known = {
            site.rv: flat[places[site.name].ravel()].reshape(site.rv_shape) for site in self._sites
        }
        values, log_dets = [], [pt.zeros((), dtype=flat.dtype)]
        for site in self._sites:
            x = known[site.rv]
            if site.transform is not None:
                others = {rv: other for rv, other in known.items() if rv is not site.rv}
                (rv,) = self.program.given([site.rv], others)
                x = site.transform.forward(x, *rv.owner.inputs)
                log_dets.append(-site.transform.log_jac_det(x, *rv.owner.inputs).sum())
            values.append(x.reshape((site.size,)))
        return self._batched(flat, [pt.concatenate(values), pt.add(*log_dets)])

    @cached_property
    def _constrain(self):
        value = pt.tensor("value", shape=(self.size,), dtype=pytensor.config.floatX)
        known = self.program.constrained(value)
        return self._batched(value, [known.take(np.arange(self.program.n_elements))])

    def _batched(self, event, outputs):
        # a bound of a transform may be trained
        variables = self.program.parameters
        function = jaxify([*variables, event], outputs)
        many = batch_jax(lambda values, event: tuple(function(*values, event)))
        return lambda rows: many([v.get_value() for v in variables], rows)


type Space = ArraySpace


def width(X: Data) -> int | None:
    """Length of an observation, if it shows."""
    if isinstance(X, Mapping | xr.Dataset):
        return np.shape(X[ArraySpace.name])[-1] if set(X) == {ArraySpace.name} else None
    return np.shape(X)[-1] if np.ndim(X) else None


def _numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=pytensor.config.floatX)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or infinity; remove those observations, or impute them."
        )
    return array
