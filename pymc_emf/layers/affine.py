"""Trainable affine layers: mean field and full rank."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.affine import TriangularAffine
from pymc_emf.bijections.base import Bijection
from pymc_emf.layers.parameters import parameter

__all__ = ["Affine", "LowerTriangular"]


class Affine(Bijection):
    r"""Trainable elementwise affine layer :math:`\mu + \sigma \odot \varepsilon`: mean field.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_scale = parameter(np.zeros(size), "log_scale")

    def forward(self, noise):
        return self.loc + pt.exp(self.log_scale) * noise, self.log_scale.sum()

    def inverse(self, value):
        return (value - self.loc) * pt.exp(-self.log_scale), -self.log_scale.sum()

    @property
    def parameters(self):
        return [self.loc, self.log_scale]

    def set(self, loc: np.ndarray, cholesky: np.ndarray | None = None) -> None:
        """Set to the product of normals closest to the normal with this mean and Cholesky factor.

        Closest in Kullback-Leibler divergence from the product: the precisions agree. Without a
        factor the scales are one.
        """
        _set(self.loc, loc)
        if cholesky is None:
            _set(self.log_scale, np.zeros(self.size))
            return
        inverse_factor = np.linalg.inv(cholesky)
        precision = np.sum(inverse_factor**2, axis=0)
        _set(self.log_scale, -0.5 * np.log(precision))


class LowerTriangular(Bijection):
    r"""Trainable affine layer :math:`\mu + L\varepsilon` with triangular L: full rank.

    Starts as the identity. The diagonal is kept as its log, the rest as it is.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_diagonal = parameter(np.zeros(size), "log_diagonal")
        self.below = parameter(np.zeros(size * (size - 1) // 2), "below")

    @property
    def matrix(self):
        """The triangular matrix, symbolic."""
        rows, columns = np.tril_indices(self.size, -1)
        matrix = pt.diag(pt.exp(self.log_diagonal))
        return matrix[rows, columns].set(self.below) if self.size > 1 else matrix

    def forward(self, noise):
        return self.loc + self.matrix @ noise, self.log_diagonal.sum()

    def inverse(self, value):
        noise, _ = TriangularAffine(self.loc, self.matrix).inverse(value)
        return noise, -self.log_diagonal.sum()

    @property
    def parameters(self):
        return [self.loc, self.log_diagonal, self.below]

    def set(self, loc: np.ndarray, cholesky: np.ndarray | None = None) -> None:
        """Set to the normal with this mean and lower Cholesky factor, by default the identity."""
        cholesky = np.eye(self.size) if cholesky is None else cholesky
        _set(self.loc, loc)
        _set(self.log_diagonal, np.log(np.diag(cholesky)))
        _set(self.below, cholesky[np.tril_indices(self.size, -1)])


def _set(shared, values: np.ndarray) -> None:
    shared.set_value(np.asarray(values, dtype=shared.dtype))
