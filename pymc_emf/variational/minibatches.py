"""Minibatches: random ones for the steps, and sets of them that hold all rows."""

from collections.abc import Sequence
from functools import cached_property

import jax
import numpy as np

from pytensor.tensor.variable import TensorVariable

__all__ = ["Minibatches"]

#: Rows times draws that a comparison or a check may take, and numbers that its draws may hold
#: together; but draws there must be.
MAX_ROWS_TIMES_DRAWS = 200_000_000
MAX_NUMBERS_CHECKED, MIN_DRAWS = 20_000_000, 100
#: Rows of data from which a start is searched.
MAX_SEARCH_ROWS = 2_000_000


class Minibatches:
    """Rows of every ``pm.Minibatch`` of a model; there may be none.

    Parameters
    ----------
    indices : sequence of (TensorVariable, int)
        The vector of row indices of each, and the number of rows to draw from.
    """

    def __init__(self, indices: Sequence[tuple[TensorVariable, int]]):
        self._shapes = [(n_rows, int(index.type.shape[0] or 0)) for index, n_rows in indices]

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def draw(self, key: jax.Array) -> list[jax.Array]:
        """Row indices of one minibatch (JAX)."""
        keys = jax.random.split(key, max(len(self._shapes), 1))
        return [
            jax.random.randint(k, (size,), 0, n_rows)
            for k, (n_rows, size) in zip(keys, self._shapes, strict=False)
        ]

    @cached_property
    def all_rows(self) -> list[np.ndarray]:
        """Minibatches that hold all rows of data together, in random order.

        Arrays of row indices, shape (minibatches, rows).
        """
        rng = np.random.default_rng(0)
        n = max((-(-n_rows // size) for n_rows, size in self._shapes), default=0)
        return [np.resize(rng.permutation(n_rows), (n, size)) for n_rows, size in self._shapes]

    @property
    def first(self) -> list[np.ndarray]:
        """One minibatch, always the same."""
        return [indices[0] for indices in self.all_rows]

    @property
    def n_rows(self) -> int:
        """Number of rows of the longest data, zero without minibatches."""
        return max((n_rows for n_rows, _ in self._shapes), default=0)

    @property
    def for_search(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Minibatches, on which a start is sought, and their weights: of all rows if affordable."""
        if self.n_rows <= MAX_SEARCH_ROWS:
            return self.weighted
        size = max(indices.shape[1] for indices in self.all_rows)
        some = [indices[: max(MAX_SEARCH_ROWS // size, 1)] for indices in self.all_rows]
        return some, np.full(len(some[0]), 1 / len(some[0]))

    @cached_property
    def weighted(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Minibatches and weights by which their log densities add up to that of all data.

        Arrays of row indices, shape (minibatches, rows); where there are several
        ``pm.Minibatch``, each goes over its rows while the others stay. The weights sum to one.
        """
        covers = [weighted_minibatches(n_rows, size) for n_rows, size in self._shapes]
        first = [indices[:1] for indices, _ in covers]
        parts = [
            [
                indices if i == moving else one.repeat(len(indices), axis=0)
                for i, one in enumerate(first)
            ]
            for moving, (indices, _) in enumerate(covers)
        ]
        weights = [weights for _, weights in covers]
        if len(covers) > 1:  # what does not depend on any of them has been counted each time
            parts.append(first)
            weights.append(np.array([1.0 - len(covers)]))
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)], np.concatenate(weights)

    def affordable(self, n_draws: int, size: int) -> int:
        """Number of draws for a comparison or check, fewer if they or the data are very long."""
        n_rows = max((indices.size for indices in self.all_rows), default=1)
        n_draws = min(n_draws, max(MAX_ROWS_TIMES_DRAWS // n_rows, MIN_DRAWS))
        return min(n_draws, max(MAX_NUMBERS_CHECKED // size, MIN_DRAWS))


def weighted_minibatches(n_rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Minibatches of one size, and weights with which every row counts the same.

    The rows that are left over by full minibatches fill another one by repetition; what is left
    over of the last repetition is taken off again in the same way, as in Euclid's algorithm.

    Returns
    -------
    indices : ndarray, shape (minibatches, size)
    weights : ndarray, shape (minibatches,)
        They sum to one.
    """
    rows = np.random.default_rng(0).permutation(n_rows)
    n_full = n_rows // size
    minibatches = list(rows[: n_full * size].reshape(n_full, size))
    counts = [1.0] * n_full
    rest, count = rows[n_full * size :], 1.0
    while len(rest):
        repetitions, n_left = divmod(size, len(rest))
        minibatches.append(np.resize(rest, size))
        count /= repetitions
        counts.append(count)
        rest, count = rest[:n_left], -count
    return np.array(minibatches), np.array(counts) * size / n_rows
