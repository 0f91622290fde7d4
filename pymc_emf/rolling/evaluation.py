"""A plan carried out: batches, and scans whose step holds batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.rolling.batching import Body, Input, Values, alike, replicate
from pymc_emf.rolling.plan import Batch, Loop

__all__ = ["Result", "evaluate"]


@dataclass(frozen=True, eq=False)
class Result:
    """Further outputs of some members: stacked, or one that serves for all."""

    pattern: int
    rows: np.ndarray
    outputs: list[TensorVariable]


def evaluate(
    plan: Iterable[Batch | Loop], bodies: Sequence[Body], known: Values
) -> Iterator[Result]:
    """Evaluate all members of all bodies; ``known`` gains their first outputs.

    Yields the outputs after the first.
    """
    for part in plan:
        if isinstance(part, Batch):
            body = bodies[part.pattern]
            first, *others = body.batch(part.rows)
            known.add(first, body.positions[part.rows])
            yield Result(part.pattern, part.rows, others)
        else:
            yield from _scan(part, bodies, known)


def _scan(loop: Loop, bodies: Sequence[Body], known: Values) -> Iterator[Result]:
    """Evaluate a loop as one scan."""
    owned = [bodies[p].positions[rows] for p, rows in loop.groups]
    inside = np.zeros(known.size, dtype=bool)
    for positions in owned:
        inside[positions] = True
    arguments = _Arguments()
    groups = [
        _Group(p, rows, bodies[p], positions, _readers(bodies[p], rows, inside, known, arguments))
        for (p, rows), positions in zip(loop.groups, owned, strict=True)
    ]
    initial = _initial(groups, loop.lags, inside, known)
    taps = [-lag for lag in loop.lags]
    firsts: list[Any] = [
        {"initial": piece[0] if taps == [-1] else piece, "taps": taps} for piece in initial
    ]
    others = [None for group in groups for _ in group.recurrent]
    shared = [
        v
        for v in graph_inputs([output for group in groups for output in group.body.outputs])
        if isinstance(v, SharedVariable) and not isinstance(v.type, RandomType)
    ]
    outputs = pytensor.scan(
        _step(groups, loop.lags, [piece.dtype for piece in initial], arguments, known.size),
        sequences=arguments.sequences,
        outputs_info=[*(firsts or [None] * len(groups)), *others],
        non_sequences=[*arguments.constants, *shared],
        n_steps=loop.n_steps,
        return_updates=False,
        strict=True,
    )
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    later = iter(outputs[len(groups) :])
    for group, first in zip(groups, outputs[: len(groups)], strict=True):
        known.add(first, group.owned)
        yield group.result({o: next(later) for o in group.recurrent})


# --- what a step reads ---------------------------------------------------------------------------

#: From the elements of the sequences, the constants, and what the loop itself knows.
Reader = Callable[[Sequence[TensorVariable], Sequence[TensorVariable], Values], TensorVariable]


class _Arguments:
    """What the steps are given from outside: an element each of sequences, and constants."""

    def __init__(self):
        self.sequences: list[TensorVariable] = []
        self.constants: list[TensorVariable] = []

    def reader(self, given: Input, table: np.ndarray) -> Reader:
        """Pass elements in, given their positions at every step; tells how a step finds them."""
        first, varies = alike(table, 0)
        group = self.sequences if varies else self.constants
        at = len(group)
        group.append(given.take(first))
        return lambda sequence, constant, local: (sequence if varies else constant)[at]


def _readers(
    body: Body, rows: np.ndarray, inside: np.ndarray, known: Values, arguments: _Arguments
) -> list[tuple[Reader, bool]]:
    """How a step finds each input of a body, and whether it comes from the loop's own steps."""
    readers = []
    for given in body.inputs:
        table = given.table[rows]
        # positions within a step are those of the last one
        own = inside[table[-1]] if given.source is known else np.zeros(1, dtype=bool)
        if not own.any():
            table, _ = alike(table, 1)
            reader = arguments.reader(given, table)
        elif own.all():
            reader = _own_reader(given, table)
        else:
            reader = _mixed_reader(given, table, own, arguments)
        readers.append((reader, bool(own.any())))
    return readers


def _own_reader(given: Input, table: np.ndarray) -> Reader:
    """Read a leaf that comes from earlier steps."""
    positions, _ = alike(table[-1], 0)
    return lambda sequence, constant, local: local.take(positions).astype(given.placeholder.dtype)


def _mixed_reader(
    given: Input, table: np.ndarray, own: np.ndarray, arguments: _Arguments
) -> Reader:
    """Read a leaf of which some elements come from earlier steps and some from outside."""
    find = arguments.reader(given, table[:, ~own])
    order = np.empty(own.size, dtype=np.intp)
    order[np.concatenate([np.flatnonzero(own), np.flatnonzero(~own)])] = np.arange(own.size)
    shape = own.shape[1:] if own.shape[0] == 1 else own.shape

    def read(sequence, constant, local):
        earlier = local.take(table[-1][own]).astype(given.placeholder.dtype)
        elements = pt.concatenate([earlier, find(sequence, constant, local)])
        return elements[order].reshape(shape)

    return read


# --- members that are evaluated step by step -----------------------------------------------------


@dataclass(eq=False)
class _Group:
    """Members of one pattern in a loop.

    Attributes
    ----------
    pattern : int
    rows : ndarray, shape (steps, members)
    body : Body
    owned : ndarray, shape (steps, members, ...)
        Positions of the first outputs.
    readers : list of (Reader, bool)
        How a step finds each input, and whether it comes from the loop's own steps.
    recurrent, outside : list of int
        Outputs after the first that depend on earlier steps, and those that do not, which need
        no scan.
    """

    pattern: int
    rows: np.ndarray
    body: Body
    owned: np.ndarray
    readers: list[tuple[Reader, bool]]

    def __post_init__(self):
        reads = {i for i, (_, recurrent) in enumerate(self.readers) if recurrent}
        others = range(1, len(self.body.outputs))
        self.recurrent = [o for o in others if self.body.reads[o] & reads]
        self.outside = [o for o in others if not self.body.reads[o] & reads]

    def step(self, sequence, constant, local: Values) -> list[TensorVariable]:
        """First output of one step, which becomes known in ``local``, and the recurrent ones."""
        replacements = {
            given.placeholder: read(sequence, constant, local)
            for given, (read, _) in zip(self.body.inputs, self.readers, strict=True)
        }
        outputs = [self.body.outputs[o] for o in (0, *self.recurrent)]
        first, *others = replicate(outputs, replacements)
        shape = squeezed(self.owned[-1]).shape
        first = pt.specify_shape(first.reshape(shape), shape)
        local.add(first, self.owned[-1])
        return [first, *others]

    def result(self, scanned: dict[int, TensorVariable]) -> Result:
        """Outputs after the first of all members, given the recurrent ones of every step."""
        n_steps, n_members = self.rows.shape
        flat = self.rows.ravel()
        found: dict[int, TensorVariable] = {}
        for o, out in scanned.items():
            core = self.body.outputs[o].ndim
            batched = out.ndim == core + 2
            shape = (flat.size if batched else n_steps, *tuple(out.shape)[out.ndim - core :])
            out = out.reshape(shape)
            if not batched and n_members > 1:
                out = pt.repeat(out, n_members, axis=0)
            found[o] = out
        if self.outside:
            found.update(zip(self.outside, self.body.batch(flat, self.outside), strict=True))
        return Result(self.pattern, flat, [found[o] for o in sorted(found)])


def _initial(
    groups: Sequence[_Group], lags: Sequence[int], inside: np.ndarray, known: Values
) -> list[TensorVariable]:
    """Values of the steps before the first, oldest first, as far as they are read."""
    if not lags:
        return []
    owned, n_steps, n_back = [group.owned for group in groups], len(groups[0].rows), max(lags)
    home = np.full(known.size, -1)  # where in the last step's outputs, by position
    step_of = np.full(known.size, -1)
    sizes = np.cumsum([0, *(positions[0].size for positions in owned)])
    for start, positions in zip(sizes, owned, strict=False):
        for k, of_step in enumerate(positions):
            home[of_step.ravel()] = start + np.arange(of_step.size)
            step_of[of_step.ravel()] = k
    before = np.full((n_back, sizes[-1]), -1)
    for group in groups:
        for given in group.body.inputs:
            if given.source is not known:
                continue
            table = given.table[group.rows].reshape(n_steps, -1)
            reference = table[-1]
            lag = np.where(inside[reference], n_steps - 1 - step_of[reference], 0)
            for k in range(min(n_back, n_steps)):
                early = lag > k
                before[k - lag[early] + n_back, home[reference[early]]] = table[k][early]
    anything = before.max()
    before = np.where(before < 0, anything, before)  # what is never read may be anything
    initial = []
    for start, positions in zip(sizes, owned, strict=False):
        shape = squeezed(positions[0]).shape
        piece = before[:, start : start + positions[0].size]
        initial.append(known.take(piece.reshape((n_back, *shape))))
    return initial


def _step(
    groups: Sequence[_Group],
    lags: Sequence[int],
    dtypes: Sequence[str],
    arguments: _Arguments,
    size: int,
) -> Callable[..., list[TensorVariable]]:
    """Step of a scan; ``dtypes`` are those of the values that later steps read."""
    n_sequences, n_taps = len(arguments.sequences), len(groups) * len(lags)

    def step(*given):
        sequence, given = given[:n_sequences], given[n_sequences:]
        taps, constant = iter(given[:n_taps]), given[n_taps:]
        local = Values(size)
        for group in groups:
            for lag in lags:
                local.add(next(taps), group.owned[-1 - lag])
        firsts, others = [], []
        for g, group in enumerate(groups):
            first, *more = group.step(sequence, constant, local)
            firsts.append(first.astype(dtypes[g]) if lags else first)
            others += more
        return [*firsts, *others]

    return step


def squeezed(positions: np.ndarray) -> np.ndarray:
    """Drop the axis of members where there is only one."""
    return positions[0] if len(positions) == 1 else positions
