"""Modes of a density, and the curvature there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from scipy.linalg import solve_banded
from scipy.optimize import minimize
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

__all__ = ["Energy", "Mode", "find_modes", "low_rank_normal"]

#: Iterations of L-BFGS from every start, and more of them for the few best modes.
N_FIRST_ITERATIONS = 50
N_ITERATIONS = 1000
MAX_NEWTON_STEPS = 30
#: Gradients spent on the Hessians of one mode.
MAX_GRADIENTS = 2000
#: Modes are the same if neither their energies nor their places differ by more.
SAME_ENERGY, SAME_PLACE = 0.1, 0.1
#: A Newton step that promises less, in nats, is the last one.
NEWTON_TOLERANCE = 1e-3
#: Random signs with which the diagonals of a large Hessian are estimated.
N_PROBES = 10
#: Share of an element's precision that must be left once its neighbour is known.
MIN_LEFT = 1e-6
#: Restarts of the Lanczos iteration; where all directions bend alike it would go on for long.
MAX_RESTARTS = 10
#: Curvature in whitened coordinates below which a direction is left at unit scale.
MIN_CURVATURE = 0.01
#: Beyond this condition number, differences of gradients are too coarse for a Hessian.
MAX_CONDITION = 1e5

#: Where the energy is not finite; L-BFGS cannot step back from an infinite value.
WALL = 1e300


class Energy:
    """A negative log density of one vector, as a NumPy function with gradient and Hessian.

    Parameters
    ----------
    function : callable
        ``function(point)`` returns value and gradient (JAX, jitted).
    dtype : str or dtype
    """

    def __init__(self, function: Callable, dtype):
        self.function = function
        self.dtype = np.dtype(dtype)
        self._linearised: Callable | None = None

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.function(point.astype(self.dtype))
        value, gradient = float(value), np.asarray(gradient, dtype=float)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return WALL, np.zeros_like(gradient)
        return value, gradient

    def gradient(self, point: np.ndarray) -> np.ndarray:
        """Gradient, NaN where it or the energy is not finite."""
        value, gradient = self(point)
        return gradient if value < WALL else np.full_like(gradient, np.nan)

    def hessian(self, point: np.ndarray) -> np.ndarray:
        """Hessian by differences of the gradient, or by differentiation if it is ill-conditioned.

        Differences need no further compilation.
        """
        rough = self._differences(point)
        if not np.isfinite(rough).all():
            return rough
        _, scaled = _unit_diagonal(rough)
        sizes = np.abs(np.linalg.eigvalsh(scaled))
        if sizes.min() * MAX_CONDITION > sizes.max():
            return rough
        exact = self._derivatives(point)
        return exact if np.isfinite(exact).all() else rough

    def _differences(self, point: np.ndarray) -> np.ndarray:
        # One-sided differences tell how fast the density changes along each element; central
        # ones with steps on that scale follow.
        eps = float(np.finfo(self.dtype).eps)
        here = self.gradient(point)
        steps = np.sqrt(eps) * (1 + np.abs(point))
        axes = np.eye(len(point))
        ahead = [
            (self.gradient(point + step * axis) @ axis - here @ axis) / step
            for step, axis in zip(steps, axes, strict=True)
        ]
        scales = 1 / np.sqrt(np.clip(np.abs(np.nan_to_num(ahead)), 1e-12, None))
        rows = [
            self._central(point, eps ** (1 / 5) * scale * axis) / (eps ** (1 / 5) * scale)
            for scale, axis in zip(scales, axes, strict=True)
        ]
        return (np.array(rows) + np.transpose(rows)) / 2

    def _central(self, point: np.ndarray, step: np.ndarray) -> np.ndarray:
        return (self.gradient(point + step) - self.gradient(point - step)) / 2

    def _derivatives(self, point: np.ndarray) -> np.ndarray:
        if self._linearised is None:

            @jax.jit
            def along(point, axis):
                return jax.jvp(lambda x: self.function(x)[1], (point,), (axis,))[1]

            self._linearised = along
        point = point.astype(self.dtype)
        axes = np.eye(len(point), dtype=self.dtype)
        rows = np.array([self._linearised(point, axis) for axis in axes], dtype=float)
        return (rows + rows.T) / 2


@dataclass(frozen=True)
class Mode:
    """A local minimum of the energy.

    Attributes
    ----------
    point : ndarray
    energy : float
    hessian : ndarray or None
        None where it was not asked for, or is not finite.
    """

    point: np.ndarray
    energy: float
    hessian: np.ndarray | None = None

    def normal(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and Cholesky factor of the normal distribution with this mode and curvature.

        A direction that is flat or bends the wrong way gets unit scale, which is the prior's.
        """
        if self.hessian is None:
            raise ValueError("The curvature at this mode is not known.")
        scales, scaled = _unit_diagonal(self.hessian)
        eigenvalues, vectors = np.linalg.eigh(scaled)
        bends = eigenvalues > 1e-12 * eigenvalues.max()
        root = vectors * np.where(bends, 1 / np.sqrt(np.where(bends, eigenvalues, 1.0)), 1.0)
        # the triangular factor of root @ root.T without forming it, which would square the
        # condition number
        triangle = np.linalg.qr((scales[:, None] * root).T, mode="r").T
        return self.point, triangle * np.sign(np.diag(triangle))


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
    step = np.finfo(energy.dtype).eps ** (1 / 3)

    def product(vector):
        norm = np.linalg.norm(vector)
        if norm == 0.0:
            return np.zeros(size)
        change = energy.gradient(point + step * vector / norm)
        change = change - energy.gradient(point - step * vector / norm)
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


def find_modes(
    energy: Energy, starts: Sequence[np.ndarray], n_modes: int, curved: bool
) -> list[Mode]:
    """Descend from several points, and go on from the best.

    L-BFGS from every start, a few steps; L-BFGS and damped Newton steps from the best that
    differ.

    Parameters
    ----------
    energy : Energy
    starts : sequence of ndarray
    n_modes : int
        Most modes that are returned, best first; fewer if they coincide or are not finite.
    curved : bool
        Whether to take Newton steps and return Hessians.
    """
    short = [_descend(energy, start, N_FIRST_ITERATIONS) for start in starts]
    found: list[Mode] = []
    for mode in sorted(short, key=lambda mode: mode.energy):
        if mode.energy < WALL and np.isfinite(mode.point).all() and not _known(mode, found):
            found.append(mode)
    modes: list[Mode] = []
    for mode in found[:n_modes]:
        mode = _descend(energy, mode.point, N_ITERATIONS)
        if curved:
            mode = _polish(energy, mode)
            if mode.hessian is None:
                continue
        if not _known(mode, modes):
            modes.append(mode)
    return sorted(modes, key=lambda mode: mode.energy)


def _descend(energy: Energy, start: np.ndarray, n_iterations: int) -> Mode:
    options = {"maxiter": n_iterations}
    result = minimize(energy, start.astype(float), jac=True, method="L-BFGS-B", options=options)
    return Mode(result.x, float(result.fun))


def _known(mode: Mode, modes: list[Mode]) -> bool:
    return any(
        abs(mode.energy - other.energy) < SAME_ENERGY
        and np.linalg.norm(mode.point - other.point) < SAME_PLACE * np.sqrt(len(mode.point))
        for other in modes
    )


def _unit_diagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales s, and the matrix times s from both sides, so that its diagonal is one."""
    diagonal = np.abs(np.diag(matrix))
    scales = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return scales, scales[:, None] * matrix * scales


def _polish(energy: Energy, mode: Mode) -> Mode:
    """Damped Newton steps, as long as they descend."""
    point, hessian = mode.point, energy.hessian(mode.point)
    value, gradient = energy(point)
    n_steps = int(np.clip(MAX_GRADIENTS // (3 * len(point)), 2, MAX_NEWTON_STEPS))
    for _ in range(n_steps):
        if not np.isfinite(hessian).all():
            break
        scales, scaled = _unit_diagonal(hessian)
        eigenvalues, vectors = np.linalg.eigh(scaled)
        sizes = np.maximum(np.abs(eigenvalues), 1e-12 * np.abs(eigenvalues).max())
        step = -scales * (vectors @ ((vectors.T @ (scales * gradient)) / sizes))
        promise = -(gradient @ step) / 2
        for damping in (1.0, 0.3, 0.1, 0.01, 0.001):
            new_value, new_gradient = energy(point + damping * step)
            if new_value < value:
                point, value, gradient = point + damping * step, new_value, new_gradient
                break
        else:
            break
        if promise < NEWTON_TOLERANCE:
            break  # the curvature hardly differs here
        hessian = energy.hessian(point)
    return Mode(point, value, hessian if np.isfinite(hessian).all() else None)
