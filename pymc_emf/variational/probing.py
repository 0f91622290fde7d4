"""Which elements of a density interact, found by trying."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pymc_emf.layers.elimination import Elimination, dense, eliminate
from pymc_emf.variational.regression import ScoreFn

__all__ = ["Structure", "find_structure"]

#: Elements of smaller variables are tried one by one, and so many of larger ones.
FEW_ELEMENTS, N_TRIED = 64, 8
#: An element that interacts with a larger share of all others belongs to the core.
MAX_SHARE = 0.1
#: The core is no larger, no element has more neighbours, and the factor is no fuller than a dense
#: one, but for what is left out at the edges: otherwise that would serve as well.
MAX_CORE, MAX_NEIGHBOURS, MAX_FILL = 500, 64, 1.1
#: A longer vector gets no dense factor.
MAX_DENSE = 600
#: Of so many others each is tried alone. Of more, several by one colour, as many as these, and
#: the colours are dealt anew so often.
ALONE, COLORS, MAX_DEALS = 700, 128, 8
#: Candidates that are looked at together.
MAX_CANDIDATES = 5_000_000
#: Standard deviation of the points and of the moves.
SCALE = 0.5


class Structure(NamedTuple):
    """Which elements of a posterior interact, and in which space.

    Attributes
    ----------
    order : Elimination
    closed : set of int
        Elements whose gates are to be closed, since in value space they interact with fewer.
    """

    order: Elimination
    closed: set[int]


def find_structure(
    score_with: Callable[[set[int]], ScoreFn],
    size: int,
    variables: Sequence[np.ndarray],
    gated: set[int],
) -> Structure | None:
    """Order of elimination by the interactions of a density.

    Two elements interact if one's score changes, in any digit, when the other is moved. Few
    elements are tried alone, which shows those that interact with many, the core; all others are
    moved together by colours, several times with the colours dealt anew, which leaves few pairs
    that always answered together.

    The noise of a series interacts with all that comes after it, its values with their
    neighbours only: what interacts with too many is tried again with its gates closed.

    Parameters
    ----------
    score_with : callable
        ``score_with(closed)`` returns a function of several points, with log densities and
        scores, in which the gates of some elements are closed.
    size : int
    variables : sequence of ndarray
        Positions of the elements of each variable.
    gated : set of int
        Elements that have a gate.

    Returns
    -------
    Structure or None
        With all elements in the core where most interact; None if those are too many, or the
        density is not finite at the points tried.
    """
    closed: set[int] = set()
    while True:
        rng = np.random.default_rng(0)
        probe = _Probe.at_a_point(score_with(closed), size, rng)
        if probe is None:
            return None
        core = _find_core(probe, variables)
        if len(core) <= min(MAX_CORE, size - 1):
            neighbours = _find_neighbours(probe, core)
            if neighbours is not None:
                order = eliminate(neighbours, core)
                if _is_sparse(order):
                    return Structure(order, closed)
        dense_ones = (core & gated) - closed
        if not dense_ones:
            return Structure(dense(size), set()) if size <= MAX_DENSE else None
        closed |= dense_ones


def _is_sparse(order: Elimination) -> bool:
    n_dense = order.size * (order.size + 1) / 2
    few = len(order.core) <= MAX_CORE and order.neighbours.shape[1] <= MAX_NEIGHBOURS
    return few and order.n_numbers <= MAX_FILL * n_dense


class _Probe:
    """Moves elements of a point, and tells whose scores answer."""

    def __init__(self, score: ScoreFn, point: np.ndarray, move: np.ndarray, rng):
        self.score, self.point, self.move, self.rng = score, point, move, rng
        _, self.before = score(point[None])

    @classmethod
    def at_a_point(cls, score: ScoreFn, size: int, rng) -> "_Probe | None":
        for scale in (1.0, 0.1, 0.01):
            point, move = scale * SCALE * rng.normal(size=(2, size))
            log_density, scores = score(np.array([point, point + move]))
            if np.isfinite(log_density).all() and np.isfinite(scores).all():
                return cls(score, point, move, rng)
        return None

    def __call__(self, sets: Sequence[np.ndarray]) -> np.ndarray:
        """Which scores change as each set of elements is moved; shape (sets, size)."""
        points = np.repeat(self.point[None], len(sets), axis=0)
        for row, members in zip(points, sets, strict=True):
            row[members] += self.move[members]
        _, scores = self.score(points)
        # on some devices the order of a sum, and so its last digits, differs from call to call
        rounding = np.sqrt(np.finfo(scores.dtype).eps)
        return np.abs(scores - self.before) > rounding * np.maximum(1.0, np.abs(self.before))


def _find_core(probe: _Probe, variables: Sequence[np.ndarray]) -> set[int]:
    """Elements that interact with many others; no more are sought once there are too many."""
    tried = [
        places if len(places) <= FEW_ELEMENTS else probe.rng.choice(places, N_TRIED, replace=False)
        for places in map(np.ravel, variables)
    ]
    elements = np.concatenate(tried)
    answers = probe([np.array([i]) for i in elements])
    owner = np.repeat(np.arange(len(variables)), [len(t) for t in tried])
    core: set[int] = set()
    outside = np.ones(answers.shape[1], dtype=bool)
    while outside.any():
        # of what is left, the densest variable or element joins the core
        share = answers[:, outside].mean(axis=1)
        share[~outside[elements]] = 0.0  # those that have joined
        k = int(share.argmax())
        if share[k] * outside.sum() <= 2 or share[k] <= MAX_SHARE:
            return core
        places = np.ravel(variables[owner[k]])
        joining = places if len(places) > FEW_ELEMENTS else elements[[k]]
        core |= set(joining.tolist())
        outside[joining] = False
        if len(core) > MAX_CORE:
            break
    return core


def _find_neighbours(probe: _Probe, core: set[int]) -> list[set[int]] | None:
    """Elements outside of the core with which each of them interacts; None if with too many."""
    size = len(probe.point)
    others = np.array([i for i in range(size) if i not in core], dtype=np.intp)
    n_colors = len(others) if len(others) <= ALONE else COLORS
    deals: list[tuple[np.ndarray, np.ndarray]] = []
    pairs = None
    for _ in range(MAX_DEALS):
        colors = probe.rng.permutation(len(others)) % n_colors
        answers = probe([others[colors == c] for c in range(n_colors)])[:, others]
        if answers.mean() > 0.5:
            return None
        deals.append((colors, answers))
        if len(deals) < 2 and n_colors < len(others):
            continue
        found = _always_together(deals)
        settled = pairs is not None and len(found) == len(pairs)
        pairs = found
        if settled or n_colors == len(others):
            break
    neighbours: list[set[int]] = [set() for _ in range(size)]
    assert pairs is not None
    for i, j in others[pairs].tolist():
        if i != j:
            neighbours[i].add(j)
            neighbours[j].add(i)
    return neighbours


def _always_together(deals: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs whose second answered whenever the colour of the first was moved."""
    (colors, answers), *more = deals
    members = [np.flatnonzero(colors == c) for c in range(len(answers))]
    largest = max(map(len, members))
    answered = np.argwhere(answers)
    found = []
    step = max(MAX_CANDIDATES // largest, 1)
    for start in range(0, len(answered), step):
        some = answered[start : start + step]
        moved = np.concatenate([members[c] for c, _ in some])
        seen = np.repeat(some[:, 1], [len(members[c]) for c, _ in some])
        for other_colors, other_answers in more:
            kept = other_answers[other_colors[moved], seen]
            moved, seen = moved[kept], seen[kept]
        found.append(np.column_stack([moved, seen]))
    return np.concatenate(found)
