"""Trainable affine layer with a triangular matrix: full rank."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import TriangularAffine
from pymc_emf.layers.base import Framed
from pymc_emf.layers.parameters import LOW_PRECISION, parameter

__all__ = ["LowerTriangular"]


class LowerTriangular(Framed):
    r"""Trainable affine layer :math:`\mu + L\varepsilon` with triangular L: full rank.

    Starts as the identity. The diagonal is kept as its log, what is below it in single precision,
    in which the optimiser is much faster; the arithmetic is in ``floatX``.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    dense = True

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_diagonal = parameter(np.zeros(size), "log_diagonal")
        # a full matrix, of which half is masked: to put a vector in its place takes longer
        self.below = parameter(np.zeros((size, size)), "below", LOW_PRECISION)
        self.frame_loc = parameter(np.zeros(size), "frame_loc")
        self.frame_matrix = parameter(np.eye(size), "frame_matrix")

    @property
    def matrix(self):
        """The trainable triangular matrix, symbolic."""
        below = np.tri(self.size, k=-1, dtype="int8") * self.below
        return pt.diag(pt.exp(self.log_diagonal)) + below.astype(self.log_diagonal.dtype)

    @property
    def _log_det(self):
        return self.log_diagonal.sum() + pt.log(pt.diag(self.frame_matrix)).sum()

    def forward(self, noise):
        inner = self.loc + self.matrix @ noise
        return self.frame_loc + self.frame_matrix @ inner, self._log_det

    def inverse(self, value):
        inner, _ = TriangularAffine(self.frame_loc, self.frame_matrix).inverse(value)
        noise, _ = TriangularAffine(self.loc, self.matrix).inverse(inner)
        return noise, -self._log_det

    @property
    def parameters(self):
        return [self.loc, self.log_diagonal, self.below]

    @property
    def buffers(self):
        return [self.frame_loc, self.frame_matrix]

    def set_frame(self, values, loc, *spread):
        """Set to the normal with this mean and lower Cholesky factor, by default the identity."""
        zero, matrix = np.zeros(self.size), np.zeros((self.size, self.size))
        (frame,) = spread or (np.eye(self.size),)
        return self._as_stored([zero, zero, matrix, loc, frame])

    def preceded_by(self, values, loc, factor):
        """Values of the layer with which it does to noise what it did to ``loc + factor @ noise``.

        Parameters
        ----------
        values : sequence of ndarray
            Of ``variables``.
        loc : ndarray, shape (size,)
        factor : ndarray, shape (size, size)
            Lower triangular.
        """
        inner_loc, log_diagonal, below, frame_loc, frame_matrix = values
        matrix = np.diag(np.exp(log_diagonal)) + np.tril(below, -1)
        moved = frame_loc + frame_matrix @ (inner_loc + matrix @ loc)
        return self.set_frame(values, moved, frame_matrix @ matrix @ factor)

    def spread_of(self, covariance):
        if covariance.ndim == 1:
            return (np.diag(np.sqrt(covariance)),)
        return (np.linalg.cholesky(covariance),)
