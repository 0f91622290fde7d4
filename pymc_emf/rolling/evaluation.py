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
    owned = [bodies[p].positions[rows] for p, rows in loop.groups]  # (steps, members, ...)
    inside = np.zeros(known.size, dtype=bool)
    for positions in owned:
        inside[positions] = True
    sequences: list[TensorVariable] = []
    constants: list[TensorVariable] = []

    def argument(given: Input, table: np.ndarray) -> Callable[[Any, Any], TensorVariable]:
        """Pass in what a step reads from outside; returns how the step finds it."""
        first, varies = alike(table, 0)
        group, at = (sequences, len(sequences)) if varies else (constants, len(constants))
        group.append(given.take(first))
        return lambda sequence, constant: (sequence if varies else constant)[at]

    # Positions within a step are those of the last one.
    readers: list[list[Callable[..., TensorVariable]]] = []
    recurrent: list[set[int]] = []
    for p, rows in loop.groups:
        readers.append([])
        recurrent.append(set())
        for i, given in enumerate(bodies[p].inputs):
            table = given.table[rows]
            last = inside[table[-1]] if given.source is known else np.zeros(1, dtype=bool)
            if not last.any():
                table, batched = alike(table, 1)
                find = argument(given, table)
                readers[-1].append(
                    lambda sequence, constant, local, find=find: find(sequence, constant)
                )
                continue
            recurrent[-1].add(i)
            if not last.all():
                readers[-1].append(_mixed(given, table, last, argument))
                continue
            positions, _ = alike(table[-1], 0)
            readers[-1].append(
                lambda sequence, constant, local, positions=positions, given=given: local.take(
                    positions
                ).astype(given.placeholder.dtype)
            )

    n_back = max(loop.lags, default=0)
    started = _initial(loop, bodies, owned, n_back, inside, known)
    extra: list[list[int]] = []  # outputs after the first that depend on earlier steps
    outside: list[list[int]] = []
    for (p, _), reads in zip(loop.groups, recurrent, strict=True):
        others = range(1, len(bodies[p].outputs))
        extra.append([o for o in others if bodies[p].reads[o] & reads])
        outside.append([o for o in others if not bodies[p].reads[o] & reads])

    n_sequences, n_groups, n_lags = len(sequences), len(loop.groups), len(loop.lags)
    shared = [
        v
        for v in graph_inputs([o for p, _ in loop.groups for o in bodies[p].outputs])
        if isinstance(v, SharedVariable) and not isinstance(v.type, RandomType)
    ]

    def step(*arguments):
        sequence, arguments = arguments[:n_sequences], arguments[n_sequences:]
        taps, constant = arguments[: n_groups * n_lags], arguments[n_groups * n_lags :]
        local = Values(known.size)
        for g, positions in enumerate(owned):
            for j, lag in enumerate(loop.lags):
                local.add(taps[g * n_lags + j], positions[-1 - lag])
        firsts, others = [], []
        for g, (p, _) in enumerate(loop.groups):
            body = bodies[p]
            replacements = {
                given.placeholder: read(sequence, constant, local)
                for given, read in zip(body.inputs, readers[g], strict=True)
            }
            first, *more = replicate(
                [body.outputs[0], *(body.outputs[o] for o in extra[g])], replacements
            )
            shape = squeezed(owned[g][-1]).shape
            first = pt.specify_shape(first.reshape(shape), shape)
            local.add(first, owned[g][-1])
            firsts.append(first.astype(started[g].dtype) if loop.lags else first)
            others += more
        return [*firsts, *others]

    outputs_info: list[Any] = []
    for g in range(n_groups):
        if not loop.lags:
            outputs_info.append(None)
        elif loop.lags == (1,):
            outputs_info.append({"initial": started[g][0], "taps": [-1]})
        else:
            outputs_info.append({"initial": started[g], "taps": [-lag for lag in loop.lags]})
    outputs_info += [None] * sum(map(len, extra))
    outputs = pytensor.scan(
        step,
        sequences=sequences,
        outputs_info=outputs_info,
        non_sequences=[*constants, *shared],
        n_steps=loop.n_steps,
        return_updates=False,
        strict=True,
    )
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    later = iter(outputs[n_groups:])
    for g, (p, rows) in enumerate(loop.groups):
        body = bodies[p]
        known.add(outputs[g], owned[g])
        flat = rows.ravel()
        found: dict[int, TensorVariable] = {}
        for o in extra[g]:
            out = next(later)
            core = body.outputs[o].ndim
            batched = out.ndim == core + 2
            shape = (flat.size if batched else loop.n_steps, *tuple(out.shape)[out.ndim - core :])
            out = out.reshape(shape)
            if not batched and rows.shape[1] > 1:
                out = pt.repeat(out, rows.shape[1], axis=0)
            found[o] = out
        if outside[g]:
            found.update(zip(outside[g], body.batch(flat, outside[g]), strict=True))
        yield Result(p, flat, [found[o] for o in sorted(found)])


def _mixed(given: Input, table: np.ndarray, last: np.ndarray, argument):
    """Read a leaf of which some elements come from earlier steps and some from outside."""
    find = argument(given, table[:, ~last])
    order = np.empty(last.size, dtype=np.intp)
    order[np.concatenate([np.flatnonzero(last), np.flatnonzero(~last)])] = np.arange(last.size)
    shape = last.shape[1:] if last.shape[0] == 1 else last.shape

    def read(sequence, constant, local):
        elements = pt.concatenate(
            [local.take(table[-1][last]).astype(given.placeholder.dtype), find(sequence, constant)]
        )
        return elements[order].reshape(shape)

    return read


def squeezed(positions: np.ndarray) -> np.ndarray:
    """Drop the axis of members where there is only one."""
    return positions[0] if len(positions) == 1 else positions


def _initial(loop, bodies, owned, n_back, inside, known) -> list[TensorVariable]:
    """Values of the steps before the first, oldest first, as far as they are read."""
    if not n_back:
        return []
    home = np.full(known.size, -1)  # where in the last step's outputs, by position
    step_of = np.full(known.size, -1)
    sizes = np.cumsum([0, *(positions[0].size for positions in owned)])
    for start, positions in zip(sizes, owned, strict=False):
        for k, of_step in enumerate(positions):
            home[of_step.ravel()] = start + np.arange(of_step.size)
            step_of[of_step.ravel()] = k
    before = np.full((n_back, sizes[-1]), -1)
    for p, rows in loop.groups:
        for given in bodies[p].inputs:
            if given.source is not known:
                continue
            table = given.table[rows].reshape(loop.n_steps, -1)
            reference = table[-1]
            lag = np.where(inside[reference], loop.n_steps - 1 - step_of[reference], 0)
            for k in range(min(n_back, loop.n_steps)):
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
