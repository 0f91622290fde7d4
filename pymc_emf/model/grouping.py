"""Isomorphic variables, and the order in which they can be evaluated together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pymc as pm

from pymc.logprob.transforms import LogOddsTransform, LogTransform
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.model.site import Site, SitePattern
from pymc_emf.rolling import Batch, Loop, Pattern, Reader, find_patterns, schedule

__all__ = ["Grouping", "group", "make_plan"]


@dataclass(frozen=True, eq=False)
class Grouping:
    """The variables of a model, isomorphic ones together.

    Attributes
    ----------
    free : list of SitePattern
    others : list of (list of str, Pattern)
        Observed variables and potentials: names of the members, and their pattern.
    """

    free: list[SitePattern]
    others: list[tuple[list[str], Pattern]]


def group(
    frozen: pm.Model,
    sites: Sequence[Site],
    places: Mapping[str, np.ndarray],
    *,
    alone: Collection[str] = (),
    roll: bool = True,
) -> Grouping:
    """Find the patterns of a model.

    Parameters
    ----------
    frozen : pymc.Model
    sites : sequence of Site
        In the order of the flat vectors.
    places : mapping
        Positions of each variable's constrained elements.
    alone : collection of str
        Names of sites and of observed variables that are kept out of the patterns.
    roll : bool
        False leaves every variable alone.
    """
    observed = {rv: frozen.rvs_to_values[rv] for rv in frozen.observed_RVs}
    stand_ins: dict[Any, Any] = {}
    items: list[tuple[Any, list[Any]]] = []
    for site in sites:
        tag, *structure = _transform_key(site, stand_ins)
        own = site.name if site.name in alone else None
        items.append((("free", site.shape, site.rv_shape, tag, own), [site.rv, *structure]))
    for rv, value in observed.items():
        own = rv.name if rv.name in alone else None
        items.append((("observed", own), [rv, value]))
    items += [(("potential",), [potential]) for potential in frozen.potentials]
    reader = Reader(
        [root for _, roots in items for root in roots],
        {site.rv: places[site.name] for site in sites},
        observed,
    )
    graphs = [reader.read(roots, tag) for tag, roots in items]
    n = len(sites)
    free = []
    for pattern in find_patterns(graphs[:n], roll=roll):
        members = [sites[i] for i in pattern.members]
        rv = cast(TensorVariable, pattern.roots[0])
        free.append(SitePattern(members, rv, members[0].transform, pattern))
    names = [str(v.name) for v in (*frozen.observed_RVs, *frozen.potentials)]
    others = [
        ([names[i] for i in pattern.members], pattern)
        for pattern in find_patterns(graphs[n:], roll=roll)
    ]
    return Grouping(free, others)


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


def make_plan(
    patterns: Sequence[SitePattern],
    sites: Sequence[Site],
    places: Mapping[str, np.ndarray],
    reads: Sequence[Sequence[int]] | None = None,
) -> list[Batch | Loop]:
    """Order in which the members of patterns can be evaluated.

    Parameters
    ----------
    patterns : sequence of SitePattern
    sites : sequence of Site
        In topological order.
    places : mapping
        Positions of each variable's constrained elements.
    reads : sequence of sequence of int, optional
        Which leaves of each pattern count; by default all.
    """
    rank = {site.name: i for i, site in enumerate(sites)}
    tables, owned, members = [], [], []
    for i, p in enumerate(patterns):
        n = len(p.sites)
        slots = p.pattern.slots if reads is None else [p.pattern.slots[j] for j in reads[i]]
        views = [slot.table.reshape(n, -1) for slot in slots if not slot.constant]
        tables.append(np.concatenate([np.zeros((n, 0), dtype=np.intp), *views], axis=1))
        owned.append(np.stack([places[site.name].ravel() for site in p.sites]))
        members.append(np.array([rank[site.name] for site in p.sites]))
    return schedule(tables, owned, members, sum(own.size for own in places.values()))
