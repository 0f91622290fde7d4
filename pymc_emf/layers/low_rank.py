"""Trainable affine layer of many elements, with a band and a few directions."""

from typing import Any

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.families.time_series import linear_recurrence
from pymc_emf.layers.affine import ElementwiseFramed
from pymc_emf.layers.parameters import parameter

__all__ = ["LowRank"]


class LowRank(ElementwiseFramed):
    r"""Trainable elementwise affine layer before a fixed normal distribution of many elements.

    :math:`x = \mu + \sigma \odot \varepsilon` is stretched along a few directions,
    :math:`y = s \odot (x + V ((w - 1) \odot V^\top x))` with orthonormal columns V, and every
    element may depend on the one before it, :math:`z_t = c_t z_{t-1} + y_t`; the result is
    :math:`m + z`. So the precision matrix is tridiagonal, as of a random walk, but for a few
    directions, at a cost proportional to the length of the vector. Location m, scales s,
    directions V, their stretch w and coefficients c are the frame, which the warm start sets.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    rank : int
        Number of directions, at most ``size``.
    """

    dense = False

    def __init__(self, size: int, rank: int = 32):
        super().__init__(size)
        self.rank = min(rank, size)
        self.frame_coefficients = parameter(np.zeros(size), "frame_coefficients")
        self.frame_directions = parameter(np.eye(size, self.rank), "frame_directions")
        self.frame_log_stretch = parameter(np.zeros(self.rank), "frame_log_stretch")

    @property
    def _log_det(self):
        frame = self.frame_log_scale.sum() + self.frame_log_stretch.sum()
        return self.log_scale.sum() + frame

    def _stretch(self, vector, log_stretch):
        along = self.frame_directions.T @ vector
        return vector + self.frame_directions @ (pt.expm1(log_stretch) * along)

    def _through_frame(self, inner):
        inner = pt.exp(self.frame_log_scale) * self._stretch(inner, self.frame_log_stretch)
        coefficients = self.frame_coefficients[1:]
        return self.frame_loc + linear_recurrence([coefficients], inner[:1], inner[1:])

    def forward(self, noise):
        inner = self.loc + pt.exp(self.log_scale) * noise
        return self._through_frame(inner), self._log_det

    def inverse(self, value):
        centred = value - self.frame_loc
        before = pt.concatenate([pt.zeros_like(centred[:1]), centred[:-1]])
        inner = (centred - self.frame_coefficients * before) * pt.exp(-self.frame_log_scale)
        inner = self._stretch(inner, -self.frame_log_stretch)
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det

    @property
    def buffers(self):
        return [
            self.frame_loc,
            self.frame_log_scale,
            self.frame_coefficients,
            self.frame_directions,
            self.frame_log_stretch,
        ]

    @property
    def hyperparameters(self):
        return {"rank": self.rank}

    def set_frame(self, values, loc, *spread):
        """Set the frame, by default without scales, coefficients and directions.

        Parameters
        ----------
        values : sequence of ndarray
        loc : ndarray, shape (size,)
        *spread
            Scales and coefficients, of shape (size,), of which the first coefficient has no
            effect; directions, shape (size, k), with orthonormal columns, at most ``rank``; and
            their positive stretch, shape (k,). The last of them may be left out.
        """
        zero = np.zeros(self.size)
        given: tuple[Any, ...] = (*spread, None, None, None, None)
        scales, coefficients, directions, stretch = given[:4]
        scales = np.ones(self.size) if scales is None else scales
        coefficients = zero if coefficients is None else coefficients
        full, log_stretch = np.zeros((self.size, self.rank)), np.zeros(self.rank)
        if directions is not None and stretch is not None:
            full[:, : len(stretch)] = directions
            log_stretch[: len(stretch)] = np.log(stretch)
        return self._as_stored([zero, zero, loc, np.log(scales), coefficients, full, log_stretch])

    def spread_of(self, covariance):
        """Scales, and the main directions of what correlation there is.

        The other directions share what variance is left (Tipping and Bishop, "Probabilistic
        principal component analysis", 1999).
        """
        if covariance.ndim == 1:
            return (np.sqrt(covariance),)
        sd = np.sqrt(np.diag(covariance))
        variances, directions = np.linalg.eigh(covariance / sd[:, None] / sd)
        n = min(self.rank, self.size - 1)
        rest = float(variances[: self.size - n].mean())
        stretch = np.sqrt(np.maximum(variances[self.size - n :] / rest, np.finfo(float).eps))
        return sd * np.sqrt(rest), np.zeros(self.size), directions[:, self.size - n :], stretch
