"""In what order patterns are evaluated, and how: batch by batch, or as the steps of a scan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

import numpy as np

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Batch", "Loop", "schedule"]

#: Fewest steps of a scan.
MIN_STEPS = 4
#: Most levels of the graph that one step of a scan may span.
MAX_PERIOD = 8


@dataclass(frozen=True, eq=False)
class Batch:
    """Members of one pattern that can be evaluated side by side."""

    pattern: int
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Loop:
    """Members of several patterns that can be evaluated step by step.

    Attributes
    ----------
    groups : list of (int, ndarray)
        In order of evaluation within a step: the pattern, and its rows, of shape
        (steps, members).
    lags : tuple of int
        How many steps back a step reads, ascending.
    """

    groups: list[tuple[int, np.ndarray]]
    lags: tuple[int, ...]

    @property
    def n_steps(self) -> int:
        return len(self.groups[0][1])


def schedule(
    reads: Sequence[np.ndarray],
    owned: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    size: int,
) -> list[Batch | Loop]:
    """Order in which all members can be evaluated, in as few parts as possible.

    Parameters
    ----------
    reads, owned : sequence of ndarray, shape (members, elements)
        For each pattern, the positions that each member reads, and those that it makes known.
    members : sequence of ndarray
        For each pattern, its members' places in some topological order.
    size : int
        Number of positions.
    """
    n = len(reads)
    pattern_of = np.full(size, -1)
    member_of = np.full(size, -1)
    for p in range(n):
        for row, positions in enumerate(owned[p]):
            pattern_of[positions] = p
            member_of[positions] = members[p][row]
    edges = [(p, int(q)) for p in range(n) for q in np.unique(pattern_of[reads[p]]) if q >= 0]
    links = coo_array(
        (np.ones(len(edges)), tuple(np.array(edges, dtype=np.intp).reshape(-1, 2).T)), shape=(n, n)
    )
    # Patterns that depend on each other in a circle are evaluated together, level by level.
    _, component = connected_components(links, directed=True, connection="strong")
    before: dict[int, set[int]] = {int(c): set() for c in component}
    for p, q in edges:
        if component[p] != component[q]:
            before[int(component[p])].add(int(component[q]))
    plan: list[Batch | Loop] = []
    for c in TopologicalSorter(before).static_order():
        patterns = [p for p in range(n) if component[p] == c]
        if len(patterns) == 1 and (patterns[0], patterns[0]) not in edges:
            plan.append(Batch(patterns[0], np.arange(len(members[patterns[0]]))))
        else:
            waves = _waves(patterns, reads, members, member_of)
            plan += _roll(waves, reads, owned, size)
    return plan


Wave = list[tuple[int, np.ndarray]]


def _waves(patterns, reads, members, member_of) -> list[Wave]:
    """Gather the members by the length of the longest path that leads to them."""
    level: dict[int, int] = {}
    places = sorted(
        (int(members[p][row]), p, row) for p in patterns for row in range(len(members[p]))
    )
    waves: list[dict[int, list[int]]] = []
    for place, p, row in places:
        parents = np.unique(member_of[reads[p][row]])
        level[place] = 1 + max((level[m] for m in parents.tolist() if m in level), default=-1)
        if level[place] == len(waves):
            waves.append({})
        waves[level[place]].setdefault(p, []).append(row)
    return [[(p, np.sort(rows)) for p, rows in sorted(wave.items())] for wave in waves]


def _roll(waves: list[Wave], reads, owned, size: int) -> Iterator[Batch | Loop]:
    """Turn runs of waves that repeat into loops."""
    shape = [tuple((p, len(rows)) for p, rows in wave) for wave in waves]
    start = 0
    while start < len(waves):
        found = _longest(waves, shape, start, reads, owned, size)
        if found is None:
            for p, rows in waves[start]:
                yield Batch(p, rows)
            start += 1
        else:
            loop, n_waves = found
            yield loop
            start += n_waves


def _longest(waves, shape, start, reads, owned, size) -> tuple[Loop, int] | None:
    for period in range(1, MAX_PERIOD + 1):
        stop = start + period
        while stop < len(waves) and shape[stop] == shape[stop - period]:
            stop += 1
        n_steps = (stop - start) // period
        while n_steps >= MIN_STEPS:
            groups = [
                (p, np.stack([waves[start + k * period + w][g][1] for k in range(n_steps)]))
                for w in range(period)
                for g, (p, _) in enumerate(waves[start + w])
            ]
            lags = _lags(groups, reads, owned, size)
            if lags is not None:
                return Loop(groups, lags), n_steps * period
            n_steps //= 2
    return None


def _lags(groups, reads, owned, size) -> tuple[int, ...] | None:
    """How many steps back the steps read, None if they do not all read alike."""
    step_of = np.full(size, -1)
    home = np.full(size, -1)
    start = 0
    for p, rows in groups:
        positions = owned[p][rows]
        n_steps = len(positions)
        flat = positions.reshape(n_steps, -1)
        step_of[flat] = np.arange(n_steps)[:, None]
        home[flat] = start + np.arange(flat.shape[1])
        start += flat.shape[1]
    n_steps = len(groups[0][1])
    before = np.full((n_steps, start), -1)
    lags: set[int] = set()
    for p, rows in groups:
        table = reads[p][rows].reshape(n_steps, -1)
        reference = table[-1]
        inner = step_of[reference] >= 0
        if (step_of[table[:, ~inner]] >= 0).any():
            return None
        table, reference = table[:, inner], reference[inner]
        lag = n_steps - 1 - step_of[reference]
        lags.update(lag.tolist())
        expected = np.arange(n_steps)[:, None] - lag  # the step that each step should read
        early = expected < 0
        if (np.where(early, -1, expected) != step_of[table]).any():
            return None
        if (~early & (home[table] != home[reference])).any():
            return None
        if early.any():
            # steps before the first must be one and the same for all who read them
            k, e = np.nonzero(early)
            at = expected[k, e] + n_steps, home[reference[e]]
            for step, element, position in zip(*at, table[k, e], strict=True):
                if before[step, element] not in (-1, position):
                    return None
                before[step, element] = position
    return tuple(sorted(lags - {0}))
