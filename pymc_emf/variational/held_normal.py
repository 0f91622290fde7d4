r"""Normal distributions of which some sums are held fast, and their regression.

Let Q be the precision of elements of which few interact, and let sums :math:`U^\top x` have, by
the prior, standard deviations S beside. With :math:`K = Q^{-1}U(U^\top Q^{-1}U)^{-1}(1 - \Delta)`
and :math:`x = z - KU^\top z`, the precision of z is Q itself if
:math:`\Delta^\top(C^{-1} + S^{-2})\Delta = C^{-1}`, :math:`C = U^\top Q^{-1}U`. So scores are
regressed in z, where few elements interact, and K follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_emf.model.soft_sums import SoftSum
from pymc_emf.variational.conditional_normal import ConditionalNormal
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.regression import Family, Move, ScoreFn

__all__ = ["HeldNormal", "without_sums"]


@dataclass(frozen=True)
class HeldNormal(Family):
    """A distribution as :class:`pymc_emf.layers.HeldSums` has it.

    Attributes
    ----------
    free : ConditionalNormal
        Of z.
    sums : sequence of SoftSum
    pull : ndarray, shape (sums, size)
        Transpose of K.
    release : ndarray, shape (sums, sums)
        Inverse of Delta, upper triangular.
    """

    free: ConditionalNormal
    sums: Sequence[SoftSum]
    pull: np.ndarray
    release: np.ndarray

    @classmethod
    def isotropic(
        cls,
        loc: np.ndarray,
        scale: float | np.ndarray,
        factorisation: Factorisation,
        sums: Sequence[SoftSum],
    ) -> "HeldNormal":
        """Independent elements of one scale, or of one each, but for the sums."""
        return cls.holding(ConditionalNormal.isotropic(loc, scale, factorisation), sums)

    @classmethod
    def holding(cls, free: ConditionalNormal, sums: Sequence[SoftSum]) -> "HeldNormal":
        """With the sums of a normal held; its mean is moved to where they are zero."""
        along = free.times_covariance(_indicators(sums, len(free.loc)))
        inverse = np.linalg.inv(_sums_of(sums, along))
        of_prior = np.diag([held.sd**-2.0 for held in sums])
        left = np.linalg.cholesky(inverse).T
        release = np.linalg.solve(left, np.linalg.cholesky(inverse + of_prior).T)
        share = np.eye(len(sums)) - np.linalg.inv(release)
        pull = share.T @ inverse @ along
        return cls(free.at(free.loc - _sums_of(sums, free.loc) @ pull), sums, pull, release)

    @property
    def loc(self) -> np.ndarray:  # type: ignore[override]
        return self.free.loc

    @property
    def spread(self) -> tuple[np.ndarray, ...]:
        """What the layer's frame takes beside the location."""
        return *self.free.spread, self.pull, self.release

    def log_det(self, noise: np.ndarray) -> np.ndarray:
        return self.free.log_det(noise) - np.log(np.diag(self.release)).sum()

    @property
    def n_draws(self) -> int:
        return self.free.n_draws

    @property
    def most_draws(self) -> int:
        return self.free.most_draws

    @property
    def n_turns(self) -> int:
        return self.free.n_turns

    @property
    def needs_new_draws(self) -> bool:
        return self.free.needs_new_draws

    @property
    def n_coefficients(self) -> int:
        return self.free.n_coefficients

    def holds(self, point: np.ndarray) -> bool:
        return self.free.holds(point)

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise of shape (draws, size)."""
        points = self.free.place(noise)
        return points - _sums_of(self.sums, points - self.loc) @ self.pull

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "_Move":
        """Least squares of the scores in z."""
        sums = _sums_of(self.sums, points - self.loc) @ self.release.T
        pulled = scores.copy()
        for held, of_sum in zip(self.sums, (scores @ self.pull.T).T, strict=True):
            pulled[:, held.places] -= of_sum[:, None]
        return _Move(self.free.regress(points + sums @ self.pull, pulled))


@dataclass(frozen=True)
class _Move(Move):
    """What a regression in z says."""

    of_free: Any

    def move(self, normal: HeldNormal, trust: float, reach: float) -> HeldNormal:
        return HeldNormal.holding(self.of_free.move(normal.free, trust, reach), normal.sums)


def without_sums(score: ScoreFn, sums: Sequence[SoftSum]) -> ScoreFn:
    """A density without that of the sums: its scores, for the log density is left as it is."""

    def rest(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_density, scores = score(points)
        scores = scores.copy()
        for held in sums:
            scores[:, held.places] += points[:, held.places].sum(axis=1)[:, None] / held.sd**2
        return log_density, scores

    return rest


def _sums_of(sums: Sequence[SoftSum], points: np.ndarray) -> np.ndarray:
    """Of points, shape (..., sums)."""
    return np.stack([points[..., held.places].sum(axis=-1) for held in sums], axis=-1)


def _indicators(sums: Sequence[SoftSum], size: int) -> np.ndarray:
    """Rows that are one in the elements of each sum."""
    rows = np.zeros((len(sums), size))
    for row, held in zip(rows, sums, strict=True):
        row[held.places] = 1.0
    return rows
