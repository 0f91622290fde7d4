"""The log density of a model in value space, isomorphic terms together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pymc as pm

from pymc.logprob.basic import transformed_conditional_logp
from pytensor.graph.basic import Constant
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_emf.model.grouping import Grouping
from pymc_emf.model.site import Site, leaves
from pymc_emf.rolling import Body, Input, Pattern, Values, replicate

__all__ = ["LogDensity", "log_density", "split_batches"]


@dataclass(frozen=True, eq=False)
class _Term:
    """Log density of one member of a pattern.

    Attributes
    ----------
    names : list of str
        The members.
    pattern : Pattern
    own : TensorVariable or None
        Placeholder of the member's value; a potential has none.
    data : TensorVariable or None
        The value, if it is observed.
    places : ndarray or None
        Positions of the members' values in the flat vectors, if they are free.
    density : TensorVariable
    """

    names: list[str]
    pattern: Pattern
    own: TensorVariable | None
    data: TensorVariable | None
    places: np.ndarray | None
    density: TensorVariable

    def batch(self, known: Values, flat: Values) -> TensorVariable:
        """Terms of all members, or one that is the term of each."""
        given, density = leaves(self.pattern, known), self.density
        if self.own is not None and self.places is not None:
            given.insert(0, Input(self.own, self.places, flat))
        elif self.own is not None:
            (density,) = replicate([density], {self.own: cast(TensorVariable, self.data)})
        (batch,) = Body(given, [density]).batch(np.arange(len(self.names)))
        return batch


@dataclass(frozen=True, eq=False)
class LogDensity:
    """Graphs of a model's log density.

    Attributes
    ----------
    terms : list of _Term
        One for each pattern.
    joint : dict
        Names to the terms of variables that PyMC evaluates together, in terms of the values of
        the frozen model.
    """

    terms: list[_Term]
    joint: dict[str, TensorVariable]

    def batches(
        self, value: TensorVariable, sites: Sequence[Site], known: Values, flat: Values
    ) -> Iterator[tuple[list[str], TensorVariable]]:
        """Terms at a flat value, of which the constrained and its own elements are given."""
        for term in self.terms:
            yield term.names, term.batch(known, flat)
        if self.joint:
            values: dict[Any, Any] = {site.value: site.take(value) for site in sites}
            joint = cast(list, graph_replace(list(self.joint.values()), values, strict=False))
            yield from (([name], term) for name, term in zip(self.joint, joint, strict=True))


def log_density(frozen: pm.Model, grouping: Grouping) -> LogDensity:
    """Derive the log density of one member of every pattern."""
    # PyMC evaluates several outputs of one node together
    owners = [rv.owner for rv in frozen.basic_RVs]
    joint = [str(rv.name) for rv in frozen.basic_RVs if owners.count(rv.owner) > 1]
    found: list[tuple[list[str], Pattern, Any, Any, Any]] = []
    values: dict[Any, Any] = {}
    transforms: dict[Any, Any] = {}
    for p in grouping.free:
        values[p.rv], transforms[p.rv] = p.site.value.type(), p.transform
        found.append(([site.name for site in p.sites], p.pattern, p.rv, None, p.places))
    for names, pattern in grouping.others:
        root, *data = pattern.roots
        if data:
            # of one member the data themselves: a user's log density may evaluate them
            constant = len(names) == 1 and isinstance(data[0], Constant)
            values[root] = data[0].clone() if constant else data[0].type()
            transforms[root] = None
        found.append((names, pattern, root, data[0] if data else None, None))
    found = [item for item in found if item[0][0] not in joint]
    named = {root: names[0] for names, _, root, _, _ in found if root in values}
    density_of = _densities(named, values, transforms)
    terms = [
        _Term(names, pattern, values.get(root), data, places, density_of.get(root, root).sum())
        for names, pattern, root, data, places in found
    ]
    rest = frozen.logp(vars=[frozen[name] for name in joint], sum=False) if joint else []
    return LogDensity(terms, {n: term.sum() for n, term in zip(joint, rest, strict=True)})


def _densities(
    named: dict[Any, str], values: dict[Any, Any], transforms: dict[Any, Any]
) -> dict[Any, TensorVariable]:
    """Log densities of random variables at their values; ``named`` says whose they are."""

    def densities_of(rvs):
        return transformed_conditional_logp(
            rvs,
            rvs_to_values={rv: values[rv] for rv in rvs},
            rvs_to_transforms={rv: transforms[rv] for rv in rvs},
        )

    try:
        return dict(zip(named, densities_of(list(named)), strict=True))
    except Exception as error:
        for rv, name in named.items():
            try:
                densities_of([rv])
            except Exception as reason:
                raise ValueError(
                    f"PyMC fails to derive the log density of {name} ({reason}); check the "
                    "distribution, data and parameters of that variable."
                ) from error
        raise


def split_batches(batches: Sequence[tuple[list[str], Any]]) -> dict[str, Any]:
    """Each term of :meth:`Program.log_density_batches`, symbolic or evaluated, by its name."""
    return {
        name: batch[i] if batch.ndim else batch
        for names, batch in batches
        for i, name in enumerate(names)
    }
