"""Trainable elementwise affine layer: mean field."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.layers.base import Framed
from pymc_emf.layers.parameters import parameter

__all__ = ["Affine", "ElementwiseFramed"]


class ElementwiseFramed(Framed):
    """What the layers have in common that train a location and a scale of every element."""

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_scale = parameter(np.zeros(size), "log_scale")
        self.frame_loc = parameter(np.zeros(size), "frame_loc")
        self.frame_log_scale = parameter(np.zeros(size), "frame_log_scale")

    @property
    def parameters(self):
        return [self.loc, self.log_scale]


class Affine(ElementwiseFramed):
    r"""Trainable elementwise affine layer :math:`\mu + \sigma \odot \varepsilon`: mean field.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    dense = True

    @property
    def _log_det(self):
        return self.log_scale.sum() + self.frame_log_scale.sum()

    def forward(self, noise):
        inner = self.loc + pt.exp(self.log_scale) * noise
        return self.frame_loc + pt.exp(self.frame_log_scale) * inner, self._log_det

    def inverse(self, value):
        inner = (value - self.frame_loc) * pt.exp(-self.frame_log_scale)
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det

    @property
    def buffers(self):
        return [self.frame_loc, self.frame_log_scale]

    def set_frame(self, values, loc, *spread):
        """Set to the product of normals closest to the normal with this mean and Cholesky factor.

        Closest in Kullback-Leibler divergence from the product: the precisions agree. Without a
        factor the scales are one.
        """
        log_scale = np.zeros(self.size)
        if spread:
            (cholesky,) = spread
            inverse_factor = np.linalg.inv(cholesky)
            log_scale = -0.5 * np.log(np.sum(inverse_factor**2, axis=0))
        zero = np.zeros(self.size)
        return self._as_stored([zero, zero, loc, log_scale])

    def spread_of(self, covariance):
        if covariance.ndim == 1:
            return (np.diag(np.sqrt(covariance)),)
        return (np.linalg.cholesky(covariance),)
