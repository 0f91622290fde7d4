"""The walk: a PyMC model as an ordered list of sites."""

import warnings

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, cast

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc.distributions.censored import CensoredRV
from pymc.distributions.distribution import PartialObservedRV
from pymc.distributions.mixture import _HurdleRV
from pymc.exceptions import NotConstantValueError
from pymc.logprob.basic import transformed_conditional_logp
from pymc.logprob.transforms import LogOddsTransform, LogTransform, Transform
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.pytensorf import constant_fold
from pymc.vartypes import discrete_types
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import walk
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.exceptions import DiscreteVariableError
from pymc_emf.model.parameter import Trainable, trainable
from pymc_emf.rolling import (
    Batch,
    Body,
    Input,
    Loop,
    Pattern,
    Reader,
    Values,
    evaluate,
    find_patterns,
    replicate,
    schedule,
)

__all__ = ["Program", "Site", "SitePattern", "split_batches"]

#: Most elements that steer all others in a coupling layer.
MAX_HUBS = 64


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

    @property
    def places(self) -> np.ndarray:
        """Places of its elements in the flat noise and value vectors, in the value's shape."""
        return np.arange(self.noise.start, self.noise.stop).reshape(self.shape)

    def take(self, flat: TensorVariable) -> TensorVariable:
        """Take the site's elements from a flat vector, in the shape of the value."""
        return flat[self.noise].reshape(self.shape)

    def constrain(self, rv: TensorVariable, value: TensorVariable) -> TensorVariable:
        """Map the value back to the constrained variable, given ``rv`` with its own parents."""
        if self.transform is None:
            return value
        return self.transform.backward(value, *rv.owner.inputs)


@dataclass(eq=False)
class SitePattern:
    """Sites whose conditional distributions are isomorphic, and the graph of one of them.

    Attributes
    ----------
    sites : list of Site
        Its members, in the order of the flat vectors.
    rv : TensorVariable
        The variable of one member, in terms of the placeholders of its parents.
    transform : Transform or None
    pattern : Pattern
    """

    sites: list[Site]
    rv: TensorVariable
    transform: Transform | None
    pattern: Pattern

    @property
    def site(self) -> Site:
        """The first member."""
        return self.sites[0]

    @cached_property
    def places(self) -> np.ndarray:
        """Places of each member's elements in the flat vectors, (members, *shape)."""
        return np.stack([site.places for site in self.sites])

    def leaves(self, known: Values) -> list[Input]:
        """Inputs of a body over the members: their parents' elements, and their constants."""
        return _inputs(self.pattern, known)


def _inputs(pattern: Pattern, known: Values) -> list[Input]:
    return [
        Input(slot.placeholder, slot.table, None if slot.constant else known)
        for slot in pattern.slots
    ]


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
        _check(model)
        self.model = model
        self._roll = _roll  # False for tests, which compare
        self._alone: set[str] = set()
        self.frozen = _freeze(model)
        self.data = _thaw_data(self.frozen) if data_may_change else {}
        self.sites = tuple(self._walk())
        self.size = sum(site.size for site in self.sites)

    @property
    def sites_in_model_order(self) -> list[Site]:
        """The sites in the order of the flat vectors."""
        return sorted(self.sites, key=lambda site: site.noise.start)

    def element_name(self, position: int) -> str:
        """Name of one element of the flat vectors, such as ``theta[2]``."""
        site = next(s for s in self.sites if s.noise.start <= position < s.noise.stop)
        index = np.unravel_index(position - site.noise.start, site.shape)
        return site.name + (f"[{', '.join(map(str, map(int, index)))}]" if index else "")

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

    # --- isomorphic variables ---------------------------------------------------------------

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

    @cached_property
    def _patterns(self) -> tuple[list[SitePattern], list[tuple[list[str], Pattern]]]:
        """Patterns of the free variables, and those of the observed ones and potentials."""
        frozen, sites = self.frozen, self.sites_in_model_order
        observed = {rv: frozen.rvs_to_values[rv] for rv in frozen.observed_RVs}
        stand_ins: dict[Any, Any] = {}
        items: list[tuple[Any, list[Any]]] = []
        for site in sites:
            tag, *structure = _transform_key(site, stand_ins)
            alone = site.name if site.name in self._alone else None
            items.append((("free", site.shape, site.rv_shape, tag, alone), [site.rv, *structure]))
        for rv, value in observed.items():
            items.append((("observed",), [rv, value]))
        items += [(("potential",), [potential]) for potential in frozen.potentials]
        reader = Reader(
            [root for _, roots in items for root in roots],
            {site.rv: self.places[site.name] for site in sites},
            observed,
        )
        graphs = [reader.read(roots, tag) for tag, roots in items]
        n = len(sites)
        free = []
        for pattern in find_patterns(graphs[:n], roll=self._roll):
            members = [sites[i] for i in pattern.members]
            rv = cast(TensorVariable, pattern.roots[0])
            free.append(SitePattern(members, rv, members[0].transform, pattern))
        names = [str(v.name) for v in (*frozen.observed_RVs, *frozen.potentials)]
        others = [
            ([names[i] for i in pattern.members], pattern)
            for pattern in find_patterns(graphs[n:], roll=self._roll)
        ]
        return free, others

    @cached_property
    def parameters(self) -> list[Trainable]:
        """Trainable parameters of the model (``pymc_emf.parameter``), in a fixed order."""
        return trainable([*self.frozen.basic_RVs, *self.frozen.potentials])

    @property
    def patterns(self) -> list[SitePattern]:
        """The sites, isomorphic ones together."""
        return self._patterns[0]

    def separate(self, names: Sequence[str]) -> None:
        """Take sites out of their patterns."""
        if self._alone.issuperset(names):
            return
        self._alone.update(names)
        for computed in ("_patterns", "_log_density_graphs"):
            self.__dict__.pop(computed, None)

    def plan(self, reads: Sequence[Sequence[int]] | None = None) -> list[Batch | Loop]:
        """Order in which the patterns' members can be evaluated.

        Parameters
        ----------
        reads : sequence of sequence of int, optional
            Which leaves of each pattern count; by default all.
        """
        rank = {site.name: i for i, site in enumerate(self.sites)}
        tables, owned, members = [], [], []
        for i, p in enumerate(self.patterns):
            n = len(p.sites)
            slots = p.pattern.slots if reads is None else [p.pattern.slots[j] for j in reads[i]]
            views = [slot.table.reshape(n, -1) for slot in slots if not slot.constant]
            tables.append(np.concatenate([np.zeros((n, 0), dtype=np.intp), *views], axis=1))
            owned.append(self.owned(p).reshape(n, -1))
            members.append(np.array([rank[site.name] for site in p.sites]))
        return schedule(tables, owned, members, self.n_elements)

    def owned(self, pattern: SitePattern) -> np.ndarray:
        """Places of each member among all constrained elements, one row a member."""
        return np.stack([self.places[site.name] for site in pattern.sites])

    @property
    def hubs(self) -> list[int]:
        """Places in the flat vectors of the smallest variables, as long as they are few."""
        places: list[int] = []
        for site in sorted(self.sites, key=lambda site: site.size):
            if len(places) + site.size > MAX_HUBS:
                break
            places += site.places.ravel().tolist()
        return sorted(places)

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
            inputs = [Input(own, p.places, elements), *p.leaves(known)]
            x = p.site.constrain(p.rv, own).astype(value.dtype)
            bodies.append(Body(inputs, [x], self.owned(p)))
        reads = [sorted(i - 1 for i in body.reads[0] if i) for body in bodies]
        for _ in evaluate(self.plan(reads), bodies, known):
            pass
        return known

    # --- the log density --------------------------------------------------------------------

    @cached_property
    def _log_density_graphs(self):
        """The log density of one member of every pattern, and that of what fits in none.

        Returns names, pattern, value placeholder, the value itself if it is observed, and the
        term, for each pattern; then names and terms of the rest.
        """
        frozen = self.frozen
        free, others = self._patterns
        # PyMC evaluates several outputs of one node together
        owners = [rv.owner for rv in frozen.basic_RVs]
        joint = [str(rv.name) for rv in frozen.basic_RVs if owners.count(rv.owner) > 1]
        terms: list[tuple[list[str], Pattern, Any, Any, Any]] = []
        rvs_to_values: dict[Any, Any] = {}
        rvs_to_transforms: dict[Any, Any] = {}
        for p in free:
            rvs_to_values[p.rv] = p.site.value.type()
            rvs_to_transforms[p.rv] = p.transform
            names = [site.name for site in p.sites]
            terms.append((names, p.pattern, p.rv, None, p.places))
        for names, pattern in others:
            rv, *value = pattern.roots
            if value:
                rvs_to_values[rv] = value[0].type()
                rvs_to_transforms[rv] = None
            terms.append((names, pattern, rv, value[0] if value else None, None))
        terms = [term for term in terms if term[0][0] not in joint]
        rvs = [rv for _, _, rv, _, _ in terms if rv in rvs_to_values]

        def densities_of(rvs):
            return transformed_conditional_logp(
                rvs,
                rvs_to_values={rv: rvs_to_values[rv] for rv in rvs},
                rvs_to_transforms={rv: rvs_to_transforms[rv] for rv in rvs},
            )

        try:
            densities = densities_of(rvs)
        except Exception as error:
            for names, _, rv, _, _ in terms:
                try:
                    densities_of([rv] if rv in rvs else [])
                except Exception as reason:
                    raise ValueError(
                        f"PyMC fails to derive the log density of {names[0]} ({reason}); check the "
                        "distribution, data and parameters of that variable."
                    ) from error
            raise
        density_of = dict(zip(rvs, densities, strict=True))
        graphs = [
            (names, pattern, rvs_to_values.get(rv), value, places, density_of.get(rv, rv).sum())
            for names, pattern, rv, value, places in terms
        ]
        rest = frozen.logp(vars=[frozen[name] for name in joint], sum=False) if joint else []
        return graphs, joint, [term.sum() for term in rest]

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
        batches = []
        graphs, joint, rest = self._log_density_graphs
        for names, pattern, own, data, places, term in graphs:
            inputs = _inputs(pattern, known)
            if places is not None:
                inputs.insert(0, Input(own, places, flat))
            elif own is not None:
                (term,) = replicate([term], {own: data})
            (batch,) = Body(inputs, [term]).batch(np.arange(len(names)))
            batches.append((names, batch))
        if rest:
            replacements: dict[Any, Any] = {site.value: site.take(value) for site in self.sites}
            terms = cast(list, graph_replace(rest, replacements, strict=False))
            batches += [([name], term) for name, term in zip(joint, terms, strict=True)]
        return batches

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


def split_batches(batches: Sequence[tuple[list[str], Any]]) -> dict[str, Any]:
    """Each term of :meth:`Program.log_density_batches`, symbolic or evaluated, by its name."""
    return {
        name: batch[i] if batch.ndim else batch
        for names, batch in batches
        for i, name in enumerate(names)
    }


def _transform_key(site: Site, stand_ins: dict[Any, Any]) -> list[Any]:
    """Key that equal transforms share, and the graph that their structure shows in."""
    transform, inputs = site.transform, site.rv.owner.inputs
    if transform is None or isinstance(transform, LogTransform | LogOddsTransform):
        return [type(transform)]

    def stand_in(variable, i):
        key = variable.type, i
        return stand_ins.setdefault(key, variable.type())

    value = stand_in(site.value, -1)
    backward = transform.backward(value, *inputs)
    # constants that the transform holds itself do not stand among the variable's inputs
    tensors = [
        stand_in(v, i) if isinstance(v.type, TensorType) else v for i, v in enumerate(inputs)
    ]
    graph = transform.backward(value, *tensors)
    held = Reader([graph], {}, {}).read([graph])
    return [(type(transform), held.key, tuple(map(np.ndarray.tobytes, held.leaves))), backward]


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
        op = rv.owner.op
        if isinstance(op, PartialObservedRV):  # what is missing of an observed variable
            op = rv.owner.inputs[0].owner.op
        if isinstance(op, CensoredRV | _HurdleRV):
            raise DiscreteVariableError(
                f"{rv.name} is censored or has a hurdle: single values have a probability, which "
                "no continuous approximation can give them; let the variable behind it be free, "
                "or drop the missing observations."
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
            with warnings.catch_warnings():
                # the copy is ours alone: nobody will use the user's GP objects on it
                warnings.filterwarnings("ignore", message="Detected variables likely created by GP")
                return freeze_dims_and_data(model)
        finally:
            model.rvs_to_initial_values.update(initial_values)


def _thaw_data(frozen: pm.Model) -> dict[str, SharedVariable]:
    """Put shared variables in the place of a model's observed data."""
    data = {}
    for rv in frozen.observed_RVs:
        value = frozen.rvs_to_values[rv]
        observed = _constant_data(value)
        if observed is None:
            raise ValueError(
                f"The data of {rv.name} are computed, as a minibatch for example; give it constant "
                "data."
            )
        shared = pytensor.shared(np.array(observed), name=value.name, shape=observed.shape)
        del frozen.values_to_rvs[value]
        frozen.rvs_to_values[rv], frozen.values_to_rvs[shared] = shared, rv
        data[str(rv.name)] = shared
    return data


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
