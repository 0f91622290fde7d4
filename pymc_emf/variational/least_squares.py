"""Least squares of scores on the elements that may matter to each, many at a time."""

import numpy as np

from scipy.linalg import cho_factor, cho_solve

from pymc_emf.engine.threads import side_by_side

__all__ = ["OnCommon", "slopes_in_few", "slopes_in_many"]

#: Share of a problem's diagonal that is added to it, against rounding.
RIDGE = 1e-9
#: Slopes in products are drawn to zero, as by so many draws.
RIDGE_OF_PRODUCTS = 2.0
#: Elements that are solved together, so few that they stay in a cache.
TOGETHER = 64


class OnCommon:
    """Least squares on a constant and the common elements.

    Parameters
    ----------
    noise : ndarray, shape (draws, common)
    """

    def __init__(self, noise: np.ndarray):
        self.columns = np.column_stack([np.ones(len(noise)), noise])
        gram = self.columns.T @ self.columns
        gram[np.diag_indices(len(gram))] *= 1 + RIDGE
        self._root = cho_factor(gram)

    def fit(self, y: np.ndarray) -> np.ndarray:
        """Intercepts and slopes of the columns of y, shape (1 + common, columns)."""
        return cho_solve(self._root, self.columns.T @ y)


def slopes_in_few(
    x: np.ndarray, y: np.ndarray, members: np.ndarray, steering: np.ndarray, common: np.ndarray
) -> np.ndarray:
    """Slopes of each row of y in some rows of x, and in their products with what steers.

    All of them beside what is common.

    Parameters
    ----------
    x, y : ndarray, shape (elements, draws)
    members : ndarray, shape (elements, members)
        Rows of x for each row of y; minus one where there are fewer.
    steering : ndarray, shape (steering, draws)
    common : ndarray, shape (draws, columns)

    Returns
    -------
    slopes : ndarray, shape (elements, members, 1 + steering)
    """
    factors = np.concatenate([np.ones((1, x.shape[1])), steering])
    axes, _ = np.linalg.qr(common)
    slopes = np.zeros((*members.shape, len(factors)))
    ridge = np.full((members.shape[1], len(factors)), RIDGE_OF_PRODUCTS / x.shape[1])
    ridge[:, 0] = RIDGE

    def solve(start: int) -> None:
        some = members[start : start + TOGETHER]
        width = 1 + np.flatnonzero((some >= 0).any(axis=0))[-1]
        some = some[:, :width]
        columns = np.where(some[..., None] >= 0, x[some], 0.0)[:, :, None] * factors
        rows = columns.reshape(len(some), -1, x.shape[1])
        here, shared = y[start : start + TOGETHER], rows @ axes
        gram = rows @ _transposed(rows) - shared @ _transposed(shared)
        right = rows @ here[..., None] - shared @ (here @ axes)[..., None]
        found = _solve(gram, right, ridge[:width].ravel())
        slopes[start : start + TOGETHER, :width] = found.reshape(*some.shape, -1)

    side_by_side(solve, range(0, len(members), TOGETHER))
    return slopes


def slopes_in_many(
    x: np.ndarray, y: np.ndarray, members: np.ndarray, steering: np.ndarray, common: np.ndarray
) -> np.ndarray:
    """The same for many members, where only the first of them has products.

    Members of one element are those of others too: their products are taken once.
    """
    axes, _ = np.linalg.qr(common)

    def beside(rows):
        return rows - (rows @ axes) @ axes.T

    n_members, n_steering = members.shape[1], len(steering)
    alone = np.concatenate([beside(x), np.zeros((1, x.shape[1]))])
    y = beside(y)
    slopes = np.zeros((*members.shape, 1 + n_steering))
    ridge = np.repeat([RIDGE, RIDGE_OF_PRODUCTS / x.shape[1]], [n_members, n_steering])

    def solve(start: int) -> None:
        some = members[start : start + TOGETHER]
        places, where = np.unique(some, return_inverse=True)  # -1 is the last row, zero
        near, here = alone[places], y[start : start + TOGETHER]
        products = beside(x[some[:, :1]] * steering)
        flat = products.reshape(len(some) * n_steering, x.shape[1])
        with_near = (flat @ near.T).reshape(len(some), n_steering, len(near))
        with_products = np.take_along_axis(with_near, where[:, None], axis=2)
        own = products @ _transposed(products)
        gram = np.block(
            [
                [(near @ near.T)[where[:, :, None], where[:, None]], _transposed(with_products)],
                [with_products, own],
            ]
        )
        plain = np.take_along_axis(here @ near.T, where, axis=1)
        right = np.concatenate([plain[..., None], products @ here[..., None]], axis=1)
        found = _solve(gram, right, ridge)
        slopes[start : start + TOGETHER, :, 0] = found[:, :n_members]
        slopes[start : start + TOGETHER, 0, 1:] = found[:, n_members:]

    side_by_side(solve, range(0, len(members), TOGETHER))
    return slopes


def _transposed(matrices: np.ndarray) -> np.ndarray:
    return matrices.transpose(0, 2, 1)


def _solve(gram: np.ndarray, right: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Solutions of normal equations, shape (equations, columns), zero for columns of zeros."""
    diagonal = np.einsum("iaa->ia", gram)
    diagonal += np.where(diagonal > 0, ridge * diagonal, 1.0) + np.finfo(float).tiny
    return np.linalg.solve(gram, right)[..., 0]
