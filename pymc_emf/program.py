"""The walk: a PyMC model as an ordered list of sites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import numpy as np
import pymc as pm

from pymc.exceptions import NotConstantValueError
from pymc.logprob.transforms import Transform
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.pytensorf import constant_fold
from pymc.vartypes import discrete_types
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import walk
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.exceptions import DiscreteVariableError

__all__ = ["Program", "Site"]


@dataclass(frozen=True)
class Site:
    """One free random variable of a model.

    Attributes
    ----------
    name, value_name : str
        Names of the variable and of its value variable.
    rv, value : TensorVariable
        The variable and its value in the program's model.
    transform : Transform or None
        From the variable to its value.
    parents : tuple of str
        Names of the free variables that its distribution depends on directly.
    shape, rv_shape : tuple of int
        Shape of the value and of the variable; they differ where a transform drops a dimension.
    noise : slice
        Where its elements stand in the flat noise and value vectors.
    """

    name: str
    value_name: str
    rv: TensorVariable
    value: TensorVariable
    transform: Transform | None
    parents: tuple[str, ...]
    shape: tuple[int, ...]
    rv_shape: tuple[int, ...]
    noise: slice

    @property
    def size(self) -> int:
        return self.noise.stop - self.noise.start

    def take(self, flat: TensorVariable) -> TensorVariable:
        """Take the site's elements from a flat vector, in the shape of the value."""
        return flat[self.noise].reshape(self.shape)

    def constrain(self, rv: TensorVariable, value: TensorVariable) -> TensorVariable:
        """Map the value back to the constrained variable, given ``rv`` with its own parents."""
        if self.transform is None:
            return value
        return self.transform.backward(value, *rv.owner.inputs)


class Program:
    """A model's free variables in topological order, with dims and data frozen.

    Parameters
    ----------
    model : pymc.Model
        The outermost model; nested models belong to it.

    Attributes
    ----------
    model : pymc.Model
        The user's model.
    frozen : pymc.Model
        The same model with constant dims and data, to which the sites' variables belong.
    sites : tuple of Site
        In topological order.
    size : int
        Number of elements of the flat noise and value vectors, laid out in the order of
        ``model.free_RVs``.

    Raises
    ------
    TypeError
        If the model has no free variables.
    DiscreteVariableError
        If a free variable is discrete.
    ValueError
        If the model is nested in another one, a free variable has no elements, or an observed
        variable holds NaN.
    """

    def __init__(self, model: pm.Model):
        _check(model)
        self.model = model
        self.frozen = _freeze(model)
        self.sites = tuple(self._walk())
        self.size = sum(site.size for site in self.sites)

    @property
    def sites_in_model_order(self) -> list[Site]:
        """The sites in the order of the flat vectors."""
        return sorted(self.sites, key=lambda site: site.noise.start)

    def _walk(self) -> Iterator[Site]:
        frozen = self.frozen
        slices, shapes, start = {}, {}, 0
        for user_rv in self.model.free_RVs:
            rv = frozen[user_rv.name]
            transform, value = frozen.rvs_to_transforms[rv], frozen.rvs_to_values[rv]
            unconstrained = rv if transform is None else transform.forward(rv, *rv.owner.inputs)
            shapes[rv] = _static_shape(value, unconstrained), _static_shape(rv, rv)
            stop = start + int(np.prod(shapes[rv][0]))
            if start == stop:
                raise ValueError(
                    f"The free variable {rv.name} has no elements (shape {shapes[rv][0]}); "
                    "remove it, or check the dims and data that give its shape."
                )
            slices[rv], start = slice(start, stop), stop
        for rv, parents in _topological(list(slices), frozen.observed_RVs):
            shape, rv_shape = shapes[rv]
            value = frozen.rvs_to_values[rv]
            yield Site(
                name=str(rv.name),
                value_name=str(value.name),
                rv=rv,
                value=value,
                transform=frozen.rvs_to_transforms[rv],
                parents=tuple(str(parent.name) for parent in parents),
                shape=shape,
                rv_shape=rv_shape,
                noise=slices[rv],
            )

    def given(
        self, variables: list[TensorVariable], constrained: Mapping[TensorVariable, TensorVariable]
    ) -> list[TensorVariable]:
        """Replace random variables in the graphs of ``variables`` by constrained values.

        Observed variables are replaced by their data. The graphs given are not changed.
        """
        frozen = self.frozen
        observed = {
            rv: frozen.rvs_to_values[rv] for rv in frozen.observed_RVs if rv not in variables
        }
        replacements: dict[Any, Any] = {**observed, **constrained}
        return cast(list, graph_replace(variables, replacements, strict=False))

    def log_density_terms(self, value: TensorVariable) -> dict[str, TensorVariable]:
        """Scalar log-density terms of the model in value space, one per variable and potential.

        Parameters
        ----------
        value : TensorVariable
            The flat value vector.

        Returns
        -------
        dict
            Name of each free variable, observed variable and potential to its term in nats,
            with the log Jacobians of the transforms; their sum is ``model.logp()``.
        """
        frozen = self.frozen
        variables = [*frozen.basic_RVs, *frozen.potentials]
        terms = frozen.logp(vars=variables, sum=False)
        # PyMC returns the terms of the random variables first, then those of the potentials
        replacements: dict[Any, Any] = {site.value: site.take(value) for site in self.sites}
        terms = cast(list, graph_replace([t.sum() for t in terms], replacements, strict=False))
        return {var.name: term for var, term in zip(variables, terms, strict=True)}


def _check(model: pm.Model) -> None:
    if not model.free_RVs:
        raise TypeError(
            "The model has no free random variables; there is no posterior to approximate."
        )
    if model.parent is not None:
        raise ValueError(
            f"The model {model.name or 'given'} is nested in another one; fit the outermost model."
        )
    for rv in model.free_RVs:
        if not isinstance(rv.type, TensorType):
            raise NotImplementedError(
                f"{rv.name} is a variable of pymc.dims, which cannot be embedded yet; make it with "
                "the distribution of the same name in pm, and dims=."
            )
        if rv.type.numpy_dtype.name in discrete_types:
            raise DiscreteVariableError(
                f"Discrete variables are not supported by VI: {rv.name}; marginalise it "
                "(pymc_extras.marginalize) or give it a continuous relaxation."
            )
    for rv in model.observed_RVs:
        data = _constant_data(model.rvs_to_values[rv])
        if data is not None and np.issubdtype(data.dtype, np.floating) and np.isnan(data).any():
            raise ValueError(
                f"The data of the observed variable {rv.name} contain NaN; remove the missing "
                "observations, or pass them as a masked array to have them imputed."
            )


def _constant_data(value: TensorVariable) -> np.ndarray | None:
    if isinstance(value, SharedVariable):
        return np.asarray(value.get_value(borrow=True))
    return getattr(value, "data", None)


_FREEZING = Lock()


def _freeze(model: pm.Model) -> pm.Model:
    # Initial values play no part in a density, and symbolic ones cannot be carried over.
    with _FREEZING:  # another thread must not take the blank values for the user's
        initial_values = dict(model.rvs_to_initial_values)
        model.rvs_to_initial_values.update(dict.fromkeys(initial_values))
        try:
            return freeze_dims_and_data(model)
        finally:
            model.rvs_to_initial_values.update(initial_values)


def _static_shape(variable: TensorVariable, shape_of: TensorVariable) -> tuple[int, ...]:
    """Return the shape of ``variable``, by constant folding where its type does not tell."""
    if None not in variable.type.shape:
        return variable.type.shape
    try:
        folded = constant_fold(tuple(shape_of.shape))
    except NotConstantValueError as error:
        raise ValueError(
            f"The shape of {variable.name} depends on random variables; "
            "give it a fixed shape or dims."
        ) from error
    return tuple(int(length) for length in folded)


def _topological(
    free_rvs: list[TensorVariable], observed_rvs: list[TensorVariable]
) -> list[tuple[TensorVariable, list[TensorVariable]]]:
    """Free variables, parents first and otherwise in the order given, with their direct parents."""
    order = {rv: i for i, rv in enumerate(free_rvs)}
    known = {*free_rvs, *observed_rvs}

    def parents_of(rv: TensorVariable) -> list[TensorVariable]:
        def expand(variable):
            return None if variable in known or variable.owner is None else variable.owner.inputs

        found = {v for v in walk(rv.owner.inputs, expand, bfs=False) if v in order}
        return sorted(found, key=order.__getitem__)

    parents = {rv: parents_of(rv) for rv in free_rvs}
    ordered: dict[TensorVariable, None] = {}
    stack = list(reversed(free_rvs))
    while stack:  # depth first, without recursion: chains may be long
        rv = stack[-1]
        waiting = [parent for parent in parents[rv] if parent not in ordered]
        if waiting:
            stack.extend(waiting)
        else:
            ordered.setdefault(stack.pop())
    return [(rv, parents[rv]) for rv in ordered]
