"""Affine bijections: elementwise location and scale, and triangular matrices (EMF Eq. 9)."""

import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Bijection, let_through
from pymc_emf.bijections.core.elementwise import Elementwise

__all__ = ["LocScale", "TriangularAffine"]


class LocScale(Elementwise):
    """Elementwise ``loc + scale * noise`` with positive ``scale``."""

    def __init__(self, loc: TensorVariable, scale: TensorVariable):
        self.loc = loc
        self.scale = scale

    def _log_slope(self, event):
        return pt.log(self.scale) + pt.zeros_like(event)

    def to_value(self, noise):
        return self.loc + self.scale * noise, self._log_slope(noise)

    def to_noise(self, value):
        return (value - self.loc) / self.scale, -self._log_slope(value)

    def gated(self, gate):
        return LocScale(gate * self.loc, gate * self.scale + let_through(gate))


class TriangularAffine(Bijection):
    """``loc + matrix @ noise`` with lower-triangular ``matrix``, positive on the diagonal.

    Acts on the last axis; leading axes are independent events with their own ``loc`` and
    ``matrix``, broadcast as needed.
    """

    def __init__(self, loc: TensorVariable, matrix: TensorVariable):
        self.loc = loc
        self.matrix = matrix

    def _log_det(self, event):
        diagonal = pt.diagonal(self.matrix, axis1=-2, axis2=-1)
        return pt.sum(pt.broadcast_to(pt.log(diagonal), event.shape))

    def forward(self, noise):
        if noise.ndim == 1 and self.matrix.ndim == 2:
            return self.loc + self.matrix @ noise, self._log_det(noise)
        # of many small matrices XLA makes better code than of their products
        product = (self.matrix * noise[..., None, :]).sum(-1)
        return self.loc + product, self._log_det(noise)

    def inverse(self, value):
        residual = value - self.loc
        if residual.ndim == 1:
            noise = pt.linalg.solve_triangular(self.matrix, residual, lower=True)
        else:
            batch = tuple(residual.shape)[:-1]
            matrix = pt.broadcast_to(self.matrix, (*batch, *tuple(self.matrix.shape)[-2:]))
            noise = pt.linalg.solve_triangular(matrix, residual[..., None], lower=True, b_ndim=2)
            noise = noise[..., 0]
        return noise, -self._log_det(value)

    def gated(self, gate):
        return _GatedTriangular(self, gate)


class _GatedTriangular(TriangularAffine):
    """A triangular map as far as a gate for each row lets it through.

    A product with the gated matrix would have derivatives in all of its numbers on the way to
    those in the gates.
    """

    def __init__(self, full: TriangularAffine, gate: TensorVariable):
        identity = let_through(gate)[..., None] * pt.eye(full.matrix.shape[-1])
        super().__init__(gate * full.loc, gate[..., None] * full.matrix + identity)
        self._full, self._gate = full, gate

    def _log_det(self, event):
        diagonal = pt.diagonal(self._full.matrix, axis1=-2, axis2=-1)
        scale = self._gate * diagonal + let_through(self._gate)
        return pt.sum(pt.broadcast_to(pt.log(scale), event.shape))

    def forward(self, noise):
        moved, _ = self._full.forward(noise)
        value = self._gate * moved + let_through(self._gate) * noise
        return value, self._log_det(noise)
