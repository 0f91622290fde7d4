"""Numeric factors of sparse precision matrices, in a given order of elimination."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pymc_emf.layers.elimination import Elimination, Round

__all__ = ["Conditionals", "Factorisation"]


class Precisions(NamedTuple):
    """Of those that are not common, in several variants but for the core.

    Attributes
    ----------
    diagonal : ndarray, shape (others, variants)
    edges : ndarray, shape (coefficients, variants)
        Between others.
    in_core : ndarray, shape (others, core)
    core : ndarray, shape (rest of the core, core)
    """

    diagonal: np.ndarray
    edges: np.ndarray
    in_core: np.ndarray
    core: np.ndarray


class Conditionals(NamedTuple):
    """Normal distributions of single elements given the core and their parents.

    Attributes
    ----------
    precisions : ndarray, shape (others, variants)
    coefficients : ndarray, shape (coefficients, variants)
        Of the parents.
    slopes : ndarray, shape (others, core)
        In the core, of the first variant.
    core : ndarray, shape (rest of the core, core)
        Precisions of the core, once all others have been eliminated.
    """

    precisions: np.ndarray
    coefficients: np.ndarray
    slopes: np.ndarray
    core: np.ndarray


@dataclass(frozen=True)
class Factorisation:
    """How one sparse precision matrix after another is factored: the positions in it, once.

    Of two elements with an edge one is eliminated first, and has the other as a parent. So there
    are as many edges as coefficients, and they lie in the same order.

    Parameters
    ----------
    order : Elimination
    """

    order: Elimination

    @cached_property
    def _edge_of(self) -> dict[tuple[int, int], int]:
        """Positions of edges by the places of both elements, the one eliminated first before."""
        found, n_before = {}, 0
        for round in self.order.rounds:
            width = round.parents.shape[1]
            for k, row in enumerate(round.parents.tolist()):
                for a, parent in enumerate(row):
                    if parent >= 0:
                        found[round.first + k, parent] = n_before + k * width + a
            n_before += round.parents.size
        return found

    def _edge_between(self, i: int, j: int) -> int:
        known = self._edge_of
        return known[i, j] if (i, j) in known else known[j, i]

    @cached_property
    def _fills(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Edges between parents, by rounds: their positions, and those of the edges to both."""
        found, n_before = {}, 0
        for round in self.order.rounds:
            width, fills = round.parents.shape[1], []
            for k, row in enumerate(round.parents.tolist()):
                start = n_before + k * width
                parents = [(start + a, parent) for a, parent in enumerate(row) if parent >= 0]
                for m, (one, i) in enumerate(parents):
                    for other, j in parents[m + 1 :]:
                        fills.append((self._edge_between(i, j), one, other))
            table = np.asarray(fills, dtype=np.intp).reshape(-1, 3)
            found[round.first] = (table[:, 0], table[:, 1], table[:, 2])
            n_before += round.parents.size
        return found

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, ...]:
        """Neighbours: rows and columns of their table, places of both; and edges, or -1."""
        rows, columns = np.nonzero(self.order.neighbours >= 0)
        beside, n_others = self.order.neighbours[rows, columns], len(self.order.others)
        edges = [
            self._edge_between(i, j) if max(i, j) < n_others else -1
            for i, j in zip(rows.tolist(), beside.tolist(), strict=True)
        ]
        return rows, columns, beside, np.asarray(edges, dtype=np.intp)

    def precisions(self, own: np.ndarray, in_common: np.ndarray) -> Precisions:
        """Arrange precisions; of a pair the mean of what both say.

        Parameters
        ----------
        own : ndarray, shape (others and rest of the core, 1 + neighbours, variants)
            With the element itself, and with its neighbours.
        in_common : ndarray, shape (others and rest of the core, common)
        """
        order, n_others = self.order, len(self.order.others)
        rows, columns, beside, at = self._pairs
        halves = own[rows, columns + 1] / 2
        edges = np.zeros((order.n_coefficients, own.shape[-1]))
        np.add.at(edges, at[at >= 0], halves[at >= 0])
        first, n_rest = halves[:, 0], len(own) - n_others
        in_rest, rest = np.zeros((n_others, n_rest)), np.diag(own[n_others:, 0, 0])
        down, up = (
            (rows < n_others) & (beside >= n_others),
            (rows >= n_others) & (beside < n_others),
        )
        within = (rows >= n_others) & (beside >= n_others)
        np.add.at(in_rest, (rows[down], beside[down] - n_others), first[down])
        np.add.at(in_rest, (beside[up], rows[up] - n_others), first[up])
        np.add.at(rest, (rows[within] - n_others, beside[within] - n_others), first[within])
        np.add.at(rest, (beside[within] - n_others, rows[within] - n_others), first[within])
        return Precisions(
            own[:n_others, 0],
            edges,
            np.column_stack([in_common[:n_others], in_rest]),
            np.column_stack([in_common[n_others:], rest]),
        )

    def conditionals(self, given: Precisions, scales: np.ndarray, trust: float) -> Conditionals:
        """Eliminate one round after the other.

        Parameters
        ----------
        given : Precisions
        scales : ndarray, shape (others,)
            Of the conditional distributions that are known.
        trust : float
            Log of the factor by which a precision may be lower than these say; it may be higher
            by the square.
        """
        diagonal, edges, in_core, core = (x.copy() for x in given)
        precisions, slopes = np.empty_like(diagonal), np.empty_like(in_core)
        lowest, highest = np.exp(-trust), np.exp(2 * trust)
        n_after = len(edges)
        for round in reversed(self.order.rounds):
            here, width = round.places, round.parents.shape[1]
            known = diagonal[here] * scales[here, None] ** 2
            precision = np.clip(known, lowest, highest) / scales[here, None] ** 2
            # a precision that has been lowered was one of a whole row
            share = np.where(known > highest, highest / np.maximum(known, highest), 1.0)
            beside = share[:, :1] * in_core[here]
            precisions[here], slopes[here] = precision, -beside / precision[:, :1]
            core += beside[:, self.order.n_common :].T @ slopes[here]
            if width:
                own = slice(n_after - round.parents.size, n_after)
                edges[own] *= np.repeat(share, width, axis=0)
                self._take_out(round, own, precision, beside, (diagonal, edges, in_core))
            n_after -= round.parents.size
        return Conditionals(precisions, edges, slopes, core)

    def _take_out(
        self,
        round: Round,
        own: slice,
        precision: np.ndarray,
        beside: np.ndarray,
        left: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Take a round out of the precisions of what is left, and put coefficients for edges."""
        diagonal, edges, in_core = left
        parents, width = round.parents.ravel(), round.parents.shape[1]
        there = parents >= 0
        child = np.repeat(np.arange(len(round.parents)), width)
        weights = edges[own] / precision[child]
        np.subtract.at(diagonal, parents[there], (weights * edges[own])[there])
        np.subtract.at(in_core, parents[there], (weights[:, :1] * beside[child])[there])
        between, one, other = self._fills[round.first]
        np.subtract.at(edges, between, weights[one - own.start] * edges[other])
        edges[own] = np.where(there[:, None], -weights, 0.0)
