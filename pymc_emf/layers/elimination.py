"""The order in which the elements of a sparse precision matrix are eliminated."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

import numpy as np

__all__ = ["Elimination", "Round", "dense", "eliminate"]

#: An element with more neighbours is not eliminated, but joins the core.
MAX_PARENTS = 24
#: From so many neighbours on, elements are drawn given all others, if so large a share can be.
MANY_PARENTS, SHARE_APART = 8, 0.4
#: More common elements do not steer the scales of the others, nor coefficients of more neighbours.
MAX_STEERING, MAX_STEERED = 8, 8
#: So few elements that are left are not worth another round.
FEW_LEFT = 16


@dataclass(frozen=True)
class Round:
    """Elements that do not depend on each other.

    Attributes
    ----------
    first : int
        Place of the first of them among all that are eliminated.
    parents : ndarray, shape (elements, parents)
        Places of those on which each depends beside the core, all of them before ``first``;
        minus one where it depends on fewer.
    in_core : ndarray, shape (elements, parents in the core)
        Places in the core of those that are not common, likewise.
    """

    first: int
    parents: np.ndarray
    in_core: np.ndarray

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + len(self.parents))


@dataclass(frozen=True)
class Elimination:
    r"""How the elements of a normal vector are drawn one after the other.

    The core is drawn first, all of its elements together. Every other one has a mean that is
    linear in the core and in some of those that were drawn before it, its parents. The factor of
    a sparse precision matrix is of this form, with few parents if the order is well chosen (e.g.
    Rue and Held, "Gaussian Markov Random Fields", 2005, chapter 2). Of the core some are common,
    such as the parameters of a hierarchy. If they are few, they steer: where they have other
    values, the factor is another one.

    Attributes
    ----------
    core : ndarray
        Positions in the vector.
    n_common : int
        Number of those in the core, the first ones, with which all elements may interact.
    others : ndarray
        Positions of all others, in the order in which they are drawn: the reverse of that in
        which they are eliminated.
    rounds : tuple of Round
        From the first that is drawn to the last. Together they are ``others``.
    neighbours : ndarray, shape (others and rest of the core, neighbours)
        Of all that are not common, the others first: those with which each interacts given all
        other elements, as places among them; minus one where there are fewer.
    """

    core: np.ndarray
    n_common: int
    others: np.ndarray
    rounds: tuple[Round, ...]
    neighbours: np.ndarray

    @property
    def size(self) -> int:
        return len(self.core) + len(self.others)

    @property
    def is_dense(self) -> bool:
        """Whether all elements are common."""
        return self.n_common == self.size

    @property
    def n_steering(self) -> int:
        """How many of the core, the first ones, steer the scales of the others."""
        return self.n_common if self.n_common <= MAX_STEERING else 0

    @property
    def has_few_neighbours(self) -> bool:
        """Whether those that steer the scales steer the coefficients too."""
        return self.neighbours.shape[1] <= MAX_STEERED

    @cached_property
    def back(self) -> np.ndarray:
        """Where in ``[*core, *others]`` each element of the vector is."""
        return np.argsort(np.concatenate([self.core, self.others]))

    @cached_property
    def n_coefficients(self) -> int:
        """Of parents outside of the core, those left out included."""
        return sum(round.parents.size for round in self.rounds)

    def coefficients_of(self, flat, round: Round):
        """Part of flat coefficients, their last axis, in the shape of the round's parents."""
        start = sum(r.parents.size for r in self.rounds if r.first < round.first)
        return _part(flat, start, round.parents.shape)

    def inputs_of(self, round: Round) -> np.ndarray:
        """Places in ``[*core, *others]`` of all parents in a round but the common elements.

        The shape is (elements, parents); minus one where an element has fewer.
        """
        outside = np.where(round.parents < 0, -1, round.parents + len(self.core))
        return np.hstack([outside, round.in_core])

    @cached_property
    def n_inputs(self) -> int:
        """Number of these, those left out included."""
        return sum(self.inputs_of(round).size for round in self.rounds)

    def weights_of(self, flat, round: Round):
        """Part of flat weights, their last axis, in the shape of :meth:`inputs_of`."""
        start = sum(self.inputs_of(r).size for r in self.rounds if r.first < round.first)
        return _part(flat, start, self.inputs_of(round).shape)

    @property
    def n_numbers(self) -> int:
        """How many a distribution has that is drawn in this order."""
        n_core, n_others, n_varied = len(self.core), len(self.others), 1 + self.n_steering
        return n_core * (n_core + n_others) + n_varied * (n_others + self.n_coefficients)

    # --- as JSON holds it ----------------------------------------------------------------------

    def to_lists(self) -> list:
        """Core, how many of it are common, others, the parents of every round, and neighbours."""
        rounds = [round.parents.tolist() for round in self.rounds]
        in_core = [round.in_core.tolist() for round in self.rounds]
        core, others = self.core.tolist(), self.others.tolist()
        return [core, self.n_common, others, rounds, self.neighbours.tolist(), in_core]

    @classmethod
    def from_lists(
        cls,
        core: Sequence[int],
        n_common: int,
        others: Sequence[int],
        rounds: Iterable[Sequence],
        neighbours: Sequence,
        in_core: Sequence[Sequence] | None = None,
    ) -> "Elimination":
        """Undo :meth:`to_lists`; older files do not have the last one."""
        first, made = 0, []
        for i, parents in enumerate(rounds):
            beside = [[]] * len(parents) if in_core is None else in_core[i]
            made.append(Round(first, _table(parents), _table(beside)))
            first += len(parents)
        table = _table(neighbours)
        return cls(_positions(core), n_common, _positions(others), tuple(made), table)


def dense(size: int) -> Elimination:
    """All elements in the core: any normal distribution."""
    return Elimination.from_lists(range(size), size, [], [], [])


def _part(flat, start: int, shape: tuple[int, ...]):
    """Numbers from a place on, the last axis of flat ones, in a shape."""
    part = flat[..., start : start + int(np.prod(shape))]
    return part.reshape((*tuple(part.shape)[:-1], *shape))


def _positions(numbers: Sequence[int]) -> np.ndarray:
    return np.array(list(numbers), dtype=np.intp)


def _table(rows: Sequence) -> np.ndarray:
    """Rows of positions, filled up to one length."""
    width = max(map(len, rows), default=0)
    filled = [list(row) + [-1] * (width - len(row)) for row in rows]
    return np.asarray(filled, dtype=np.intp).reshape(len(rows), width)


def _apart(neighbours: Mapping[int, set[int]]) -> set[int]:
    """Many elements of which no two are neighbours.

    The next is always one of which the fewest neighbours are still to be had.
    """
    free = {i: len(found) for i, found in neighbours.items()}
    queue = [(n, i) for i, n in free.items()]
    heapify(queue)
    found: set[int] = set()
    gone: set[int] = set()
    while queue:
        n, i = heappop(queue)
        if i in gone or n != free[i]:
            continue
        found.add(i)
        blocked = neighbours[i] - gone
        gone |= blocked | {i}
        for j in blocked:
            for k in neighbours[j] - gone:
                free[k] -= 1
                heappush(queue, (free[k], k))
    return found


def eliminate(neighbours: Sequence[set[int]], core: Iterable[int] = ()) -> Elimination:
    """Order elements so that few depend on few.

    In every round elements without a common edge are eliminated, those with the fewest neighbours
    first, whose neighbours then become neighbours of each other. What hangs together too closely
    in the end joins the core.

    Parameters
    ----------
    neighbours : sequence of set of int
        Of each element, those with which it interacts given all others; symmetric.
    core : iterable of int
        Elements with which all may interact; edges to them need not be given.
    """
    common = sorted(core)
    core = set(common)
    left = {i: neighbours[i] - core - {i} for i in range(len(neighbours)) if i not in core}
    taken: list[list[tuple[int, list[int]]]] = []
    while left:
        fewest = min(map(len, left.values()))
        if fewest > MANY_PARENTS:
            # of two crossed factors, all levels of one can be drawn given those of the other
            apart = _apart(left)
            if len(apart) >= SHARE_APART * len(left):
                taken.append([(i, []) for i in apart])
                left = {i: found for i, found in left.items() if i not in apart}
                break
        if fewest > MAX_PARENTS or (fewest > 0 and len(left) <= FEW_LEFT):
            break
        chosen: dict[int, list[int]] = {}
        blocked: set[int] = set()
        for i in sorted(left, key=lambda i: (len(left[i]), i)):
            if len(left[i]) > max(2 * fewest, fewest + 1):
                break
            if i not in blocked:
                chosen[i] = sorted(left[i])
                blocked |= left[i]
        for i, parents in chosen.items():
            for parent in parents:
                left[parent] |= left[i]
                left[parent] -= {i, parent}
        for i in chosen:
            del left[i]
        taken.append(list(chosen.items()))
    joined = sorted(left)
    core |= set(left)
    taken.reverse()
    others = [i for members in taken for i, _ in members]
    place = {i: k for k, i in enumerate([*others, *joined])}
    rounds = [
        [[place[j] for j in parents if j not in core] for _, parents in members]
        for members in taken
    ]
    place_in_core = {i: k for k, i in enumerate(joined, len(common))}
    in_core = [
        [[place_in_core[j] for j in parents if j in place_in_core] for _, parents in members]
        for members in taken
    ]
    beside = [sorted(place[j] for j in neighbours[i] if j in place and j != i) for i in place]
    return Elimination.from_lists([*common, *joined], len(common), others, rounds, beside, in_core)
