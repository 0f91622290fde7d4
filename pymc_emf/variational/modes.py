"""Modes of a density, and the curvature there."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytensor

from scipy.linalg import solve_banded
from scipy.optimize import minimize
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from pymc_emf.variational.regression import ScoreFn

__all__ = ["Energy", "Mode", "find_modes", "low_rank_normal"]

#: Iterations of L-BFGS; regression of scores goes on from where they lead.
N_ITERATIONS = 50
#: Nats beyond which as many follow, so often, as long as they halve the energy: the start is many
#: orders of magnitude away.
HIGH, MAX_MORE = 1e8, 10
#: Modes are the same if neither their energies nor their places differ by more.
SAME_ENERGY, SAME_PLACE = 0.1, 0.1
#: Random signs with which the diagonals of a large Hessian are estimated.
N_PROBES = 10
#: Share of an element's precision that must be left once its neighbour is known.
MIN_LEFT = 1e-6
#: Restarts of the Lanczos iteration; where all directions bend alike it would go on for long.
MAX_RESTARTS = 10
#: Curvature in whitened coordinates below which a direction is left at unit scale.
MIN_CURVATURE = 0.01
#: Where the energy is not finite; L-BFGS cannot step back from an infinite value.
WALL = 1e300


class Energy:
    """A negative log density, as a function of one vector with its gradient.

    Parameters
    ----------
    score : callable
        Log densities and scores at several points.
    """

    def __init__(self, score: ScoreFn):
        self.score = score

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        log_density, score = self.score(point[None])
        value, gradient = -float(log_density[0]), -np.asarray(score[0], dtype=float)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return WALL, np.zeros_like(gradient)
        return value, gradient

    def gradients(self, points: np.ndarray) -> np.ndarray:
        """Gradients at several points, NaN where they are not finite."""
        _, scores = self.score(points)
        return np.where(np.isfinite(scores).all(axis=1, keepdims=True), -scores, np.nan)


class Mode(NamedTuple):
    """A local minimum of the energy."""

    point: np.ndarray
    energy: float


def low_rank_normal(
    energy: Energy, point: np.ndarray, rank: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normal distribution at a mode, without the Hessian, from products with some vectors.

    The precision is the tridiagonal part of the Hessian, but for the directions in which the
    energy bends most and least in these scales, which Lanczos iteration finds.

    Parameters
    ----------
    energy : Energy
    point : ndarray
    rank : int
        Number of directions.
    rng : Generator

    Returns
    -------
    scales, coefficients, directions, stretch : ndarray
        As of :meth:`pymc_emf.layers.LowRank.set`.
    """
    size = len(point)
    step = np.finfo(pytensor.config.floatX).eps ** (1 / 3)

    def product(vector):
        norm = np.linalg.norm(vector)
        if norm == 0.0:
            return np.zeros(size)
        move = step * vector / norm
        ahead, behind = energy.gradients(np.array([point + move, point - move]))
        change = ahead - behind
        return np.nan_to_num(change) * (norm / (2 * step))

    scales, coefficients = _precision_band(*_tridiagonal(product, size, rng))
    # the recursion x[t] - c[t] x[t-1] = y[t], and its transpose, as banded systems
    below = np.array([np.ones(size), np.append(-coefficients[1:], 0.0)])
    above = np.array([-coefficients, np.ones(size)])

    def whitened(vector):
        recursed = solve_banded((1, 0), below, scales * vector.ravel())
        return scales * solve_banded((0, 1), above, product(recursed))

    if rank < size:
        operator = LinearOperator((size, size), matvec=whitened)
        start = rng.normal(size=size)
        try:
            curvature, directions = eigsh(
                operator, k=rank, which="BE", v0=start, tol=1e-2, maxiter=MAX_RESTARTS
            )
        except ArpackNoConvergence as partial:
            curvature, directions = partial.eigenvalues, partial.eigenvectors
    else:  # Lanczos iteration finds fewer directions than there are
        matrix = np.column_stack([whitened(axis) for axis in np.eye(size)])
        curvature, directions = np.linalg.eigh((matrix + matrix.T) / 2)
    bends = curvature > MIN_CURVATURE
    return scales, coefficients, directions[:, bends], 1 / np.sqrt(curvature[bends])


def _tridiagonal(
    product: Callable, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the diagonal of a symmetric matrix, and that next to it, from products.

    Exact if the matrix is tridiagonal: every third column is probed at once. What else is in
    the matrix averages out over random signs (Bekas, Kokiopoulou, Saad, "An estimator for the
    diagonal of a matrix", 2007).
    """
    diagonals, besides = np.zeros((N_PROBES, size)), np.zeros((N_PROBES, size - 1))
    for diagonal, beside in zip(diagonals, besides, strict=True):
        signs = rng.choice([-1.0, 1.0], size=size)
        for color in range(3):
            probed = np.arange(size) % 3 == color
            found = product(np.where(probed, signs, 0.0))
            diagonal += np.where(probed, signs * found, 0.0)
            # each element beside the diagonal is seen in its row and in its column
            beside += np.where(probed[1:], signs[1:] * found[:-1], 0.0) / 2
            beside += np.where(probed[:-1], signs[:-1] * found[1:], 0.0) / 2
    typical = np.median(np.abs(diagonals))
    diagonal = np.where(
        _is_clear(diagonals), diagonals.mean(axis=0), np.maximum(diagonals.mean(axis=0), typical)
    )
    mean = besides.mean(axis=0)
    return diagonal, np.where(_is_clear(besides * np.sign(mean)), mean, 0.0)


def _is_clear(probes: np.ndarray) -> np.ndarray:
    """Whether the mean of the rows is positive beyond doubt."""
    return probes.mean(axis=0) > 2 * probes.std(axis=0) / np.sqrt(len(probes) - 1)


def _precision_band(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales s and coefficients c of x[t] = c[t] x[t-1] + s[t] e[t] with this precision matrix.

    Where the matrix is not positive definite, neighbours are taken to be independent.
    """
    diagonal = np.where(diagonal > 0, diagonal, 1.0)
    root, coefficients = np.sqrt(diagonal), np.zeros(len(diagonal))
    for t in reversed(range(len(beside))):
        left = diagonal[t] - (beside[t] / root[t + 1]) ** 2
        if left > MIN_LEFT * diagonal[t]:
            coefficients[t + 1] = -beside[t] / root[t + 1] ** 2
            root[t] = np.sqrt(left)
    return 1 / root, coefficients


def find_modes(energy: Energy, starts: Sequence[np.ndarray], n_modes: int) -> list[Mode]:
    """Descend from several points by L-BFGS, some steps from each.

    Parameters
    ----------
    energy : Energy
    starts : sequence of ndarray
    n_modes : int
        Most modes that are returned, best first; fewer if they coincide or are not finite.
    """
    found: list[Mode] = []
    for mode in sorted((_descend(energy, start) for start in starts), key=lambda m: m.energy):
        if mode.energy < WALL and np.isfinite(mode.point).all() and not _known(mode, found):
            found.append(mode)
    return found[:n_modes]


def _descend(energy: Energy, start: np.ndarray) -> Mode:
    options = {"maxiter": N_ITERATIONS}
    point, value = start.astype(float), WALL
    for _ in range(1 + MAX_MORE):
        before = value
        result = minimize(energy, point, jac=True, method="L-BFGS-B", options=options)
        point, value = result.x, float(result.fun)
        if not HIGH < value < before / 2:
            break
    return Mode(point, value)


def _known(mode: Mode, modes: list[Mode]) -> bool:
    return any(
        abs(mode.energy - other.energy) < SAME_ENERGY
        and np.linalg.norm(mode.point - other.point) < SAME_PLACE * np.sqrt(len(mode.point))
        for other in modes
    )
