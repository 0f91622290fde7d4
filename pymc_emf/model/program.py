"""The walk: a PyMC model as sites in topological order, laid out in flat vectors."""

import copy

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.timeseries import AutoRegressiveRV, EulerMaruyamaRV, RandomWalkRV
from pymc.exceptions import NotConstantValueError
from pymc.pytensorf import constant_fold
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import walk
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import distribution
from pymc_emf.model.density import LogDensity, log_density, split_batches
from pymc_emf.model.freeze import freeze
from pymc_emf.model.grouping import Grouping, group, make_plan
from pymc_emf.model.lowering import has_dims, lower_graphs
from pymc_emf.model.parameter import Trainable, trainable
from pymc_emf.model.site import Site, SitePattern, leaves
from pymc_emf.rolling import Batch, Body, Input, Loop, Values, evaluate

__all__ = ["Program"]

#: Most elements that steer all others in a coupling layer.
MAX_HUBS = 64
SERIES = (AutoRegressiveRV, EulerMaruyamaRV, RandomWalkRV)


class Program:
    """A model's free variables in topological order, with dims and data frozen.

    Parameters
    ----------
    model : pymc.Model
        The outermost model; nested models belong to it.
    data_may_change : bool
        Whether the observed data are shared variables, ``data``, rather than constants.

    Attributes
    ----------
    model : pymc.Model
        The user's model.
    frozen : pymc.Model
        The same model with constant dims and data, to which the sites' variables belong.
    sites : tuple of Site
        In topological order.
    data : dict
        Names of the observed variables to shared variables that hold their data; empty unless
        the data may change.
    size : int
        Number of elements of the flat noise and value vectors, laid out in the order of
        ``model.free_RVs``.

    Raises
    ------
    TypeError
        If the model has no free variables.
    DiscreteVariableError
        If a free variable is discrete, or partly so.
    ValueError
        If the model is nested in another one, a free variable has no elements, or an observed
        variable holds NaN.
    """

    def __init__(self, model: pm.Model, *, data_may_change: bool = False, _roll: bool = True):
        self.model = model
        self.frozen, self.data = freeze(model, data_may_change=data_may_change)
        self.sites = tuple(_walk(model, self.frozen))
        self.size = sum(site.size for site in self.sites)
        self._roll = _roll  # False for tests, which compare
        self._alone: frozenset[str] = frozenset()

    # --- the flat layout --------------------------------------------------------------------

    @property
    def sites_in_model_order(self) -> list[Site]:
        """The sites in the order of the flat vectors."""
        return sorted(self.sites, key=lambda site: site.noise.start)

    def element_name(self, position: int) -> str:
        """Name of one element of the flat vectors, such as ``theta[2]``."""
        site = next(s for s in self.sites if s.noise.start <= position < s.noise.stop)
        index = np.unravel_index(position - site.noise.start, site.shape)
        return site.name + (f"[{', '.join(map(str, map(int, index)))}]" if index else "")

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Where each variable stands among all constrained elements, in its shape."""
        places, start = {}, 0
        for site in self.sites_in_model_order:
            stop = start + int(np.prod(site.rv_shape))
            places[site.name] = np.arange(start, stop).reshape(site.rv_shape)
            start = stop
        return places

    @property
    def n_elements(self) -> int:
        """Number of constrained elements, which a transform may make differ from ``size``."""
        return sum(places.size for places in self.places.values())

    @property
    def hubs(self) -> list[int]:
        """Places in the flat vectors of the smallest variables, as long as they are few."""
        places: list[int] = []
        for site in sorted(self.sites, key=lambda site: site.size):
            if len(places) + site.size > MAX_HUBS:
                break
            places += site.places.ravel().tolist()
        return sorted(places)

    @property
    def has_series(self) -> bool:
        """Whether a variable is a random walk, an autoregression or a diffusion."""
        return any(isinstance(distribution(site.rv), SERIES) for site in self.sites)

    # --- the frozen model ---------------------------------------------------------------------

    @cached_property
    def symbolic(self) -> pm.Model:
        """The model for PyMC's symbolic interface, which takes no variables of pymc.dims."""
        return self.frozen if has_dims(self.model) else self.model

    def in_tensors(self, nodes: Any) -> Any:
        """Nodes of the user's model, one or several, as nodes of ``symbolic``."""
        if self.symbolic is self.model:
            return nodes
        several = isinstance(nodes, list | tuple)
        names = [rv.name for rv in self.model.basic_RVs]
        stand_ins = {self.model[name]: self.frozen[name] for name in names}
        lowered = lower_graphs(nodes if several else [nodes], stand_ins)
        return lowered if several else lowered[0]

    @cached_property
    def parameters(self) -> list[Trainable]:
        """Trainable parameters of the model (``pymc_emf.parameter``), in a fixed order."""
        return trainable([*self.frozen.basic_RVs, *self.frozen.potentials])

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

    # --- isomorphic variables ---------------------------------------------------------------

    @cached_property
    def _grouping(self) -> Grouping:
        return self._group(self._alone)

    def _group(self, alone: Collection[str]) -> Grouping:
        sites = self.sites_in_model_order
        return group(self.frozen, sites, self.places, alone=alone, roll=self._roll)

    @property
    def patterns(self) -> list[SitePattern]:
        """The sites, isomorphic ones together."""
        return self._grouping.free

    def separated(self, names: Collection[str]) -> "Program":
        """Return the program of the same frozen model with some sites out of their patterns."""
        alone = self._alone.union(names)
        if alone == self._alone:
            return self
        separated = copy.copy(self)
        separated._alone = alone
        for name in list(vars(separated)):  # what has been computed depends on the patterns
            if isinstance(getattr(Program, name, None), cached_property):
                delattr(separated, name)
        return separated

    def plan(self, reads: Sequence[Sequence[int]] | None = None) -> list[Batch | Loop]:
        """Order in which the patterns' members can be evaluated.

        Parameters
        ----------
        reads : sequence of sequence of int, optional
            Which leaves of each pattern count; by default all.
        """
        return make_plan(self.patterns, self.sites, self.places, reads)

    def owned(self, pattern: SitePattern) -> np.ndarray:
        """Places of each member among all constrained elements, one row a member."""
        return np.stack([self.places[site.name] for site in pattern.sites])

    def elements(self, flat: TensorVariable) -> Values:
        """The elements of a flat vector of noise or of values, to be found by position.

        Where every pattern has one stretch of the vector, they are split at once: a slice alone
        has a derivative that is padded to the full length, and many of them add up.
        """
        owner = np.empty(self.size, dtype=np.intp)
        for i, p in enumerate(self.patterns):
            owner[p.places.ravel()] = i
        stretches = np.split(np.arange(self.size), np.flatnonzero(np.diff(owner)) + 1)
        if not 1 < len(stretches) == len(self.patterns):
            return Values.of(flat, self.size)
        values = Values(self.size)
        pieces = pt.split(flat, [len(s) for s in stretches], n_splits=len(stretches))
        for piece, stretch in zip(pieces, stretches, strict=True):
            values.add(piece, stretch)
        return values

    def constrained(self, value: TensorVariable) -> Values:
        """All constrained elements, given a flat value."""
        known = Values(self.n_elements)
        bodies, elements = [], self.elements(value)
        for p in self.patterns:
            own = cast(TensorVariable, p.site.value.type())
            inputs = [Input(own, p.places, elements), *leaves(p.pattern, known)]
            x = p.site.constrain(p.rv, own).astype(value.dtype)
            bodies.append(Body(inputs, [x], self.owned(p)))
        reads = [sorted(i - 1 for i in body.reads[0] if i) for body in bodies]
        for _ in evaluate(self.plan(reads), bodies, known):
            pass
        return known

    # --- the log density --------------------------------------------------------------------

    @cached_property
    def _log_density(self) -> LogDensity:
        try:
            return log_density(self.frozen, self._grouping)
        except ValueError:
            # of variables together it knows no data, which a user's log density may evaluate
            observed = [str(rv.name) for rv in self.frozen.observed_RVs]
            return log_density(self.frozen, self._group([*self._alone, *observed]))

    def log_density_batches(self, value: TensorVariable) -> list[tuple[list[str], TensorVariable]]:
        """Log-density terms of the model in value space, isomorphic ones together.

        Parameters
        ----------
        value : TensorVariable
            The flat value vector.

        Returns
        -------
        list of (list of str, TensorVariable)
            Names of variables and potentials, and their terms in nats: a vector, or one scalar
            that is the term of each.
        """
        known, flat = self.constrained(value), self.elements(value)
        return list(self._log_density.batches(value, self.sites, known, flat))

    @property
    def term_names(self) -> list[str]:
        """Names of the log-density terms: variables, then potentials."""
        return [str(v.name) for v in (*self.frozen.basic_RVs, *self.frozen.potentials)]

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
        terms = split_batches(self.log_density_batches(value))
        return {name: terms[name] for name in self.term_names}


def _walk(model: pm.Model, frozen: pm.Model) -> Iterator[Site]:
    """Sites in topological order, laid out in the order of the user's model."""
    slices, shapes, start = {}, {}, 0
    for user_rv in model.free_RVs:
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
