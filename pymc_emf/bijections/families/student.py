r"""The multivariate Student t distribution by its sequential conditionals.

With :math:`x = \mu + Ly`, the element :math:`y_i` given those before it is Student t with
:math:`\nu_i = \nu + i` degrees of freedom and scale
:math:`\sqrt{(\nu + \sum_{k<i} y_k^2) / \nu_i}`, counted from zero.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.affine import LocScale, TriangularAffine
from pymc_emf.bijections.core.base import Triangular, let_through, register_bijection
from pymc_emf.bijections.core.compose import ComposedElementwise
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.families.by_density import student_t

__all__ = ["MvStudent"]


class MvStudent(Triangular):
    r"""Multivariate Student t on the last axis, triangular with the gate inside.

    :math:`x_i = \lambda_i(m_i + L_{ii}s_i t_i(\varepsilon_i)) + (1 - \lambda_i)\varepsilon_i`, with
    location :math:`m_i = \mu_i + \sum_{k<i} L_{ik}y_k` and scale :math:`s_i` of the conditional
    given the values :math:`x_{<i}`, and :math:`t_i` the Student t quantile. The forward direction
    is one scan over the elements, without one where there is no gate; the inverse is parallel.

    Parameters
    ----------
    nu : TensorVariable
        Degrees of freedom; leading axes are those of a batch.
    loc : TensorVariable
        Broadcastable to the event.
    diagonal : TensorVariable
        Diagonal of L, broadcastable to the event.
    matrix : TensorVariable, optional
        L, lower triangular; by default it is diagonal.
    gate : TensorVariable, optional
    """

    def __init__(
        self,
        nu: TensorVariable,
        loc: TensorVariable,
        diagonal: TensorVariable,
        matrix: TensorVariable | None = None,
        gate: TensorVariable | None = None,
    ):
        self.nu, self.loc, self.diagonal, self.matrix = nu, loc, diagonal, matrix
        self.gate = gate

    def _conditional(self, event) -> tuple[TensorVariable, Elementwise]:
        """Degrees of freedom and quantile of each standardised conditional."""
        order = np.arange(event.type.shape[-1]) if event.type.shape[-1] else None
        steps = pt.arange(event.shape[-1]) if order is None else pt.constant(order)
        nu = pt.broadcast_to(self.nu[..., None] + steps.astype(event.dtype), event.shape)
        return nu, student_t(nu)

    def to_value(self, noise):
        nu, quantile = self._conditional(noise)
        standard, log_slope = quantile.to_value(noise)
        loc = pt.broadcast_to(self.loc, noise.shape)
        diagonal = pt.broadcast_to(self.diagonal, noise.shape)
        if self.gate is None:
            # nu + sum y^2 grows by the factor 1 + t^2 / nu_i with each element
            growth = pt.log1p(standard**2 / nu)
            log_total = pt.log(self.nu)[..., None] + pt.cumsum(growth, axis=-1) - growth
            log_scale = (log_total - pt.log(nu)) / 2
            y = pt.exp(log_scale) * standard
            product = diagonal * y if self.matrix is None else _times(self.matrix, y)
            return loc + product, pt.log(diagonal) + log_scale + log_slope
        value, log_scale = self._scan(noise, standard, nu, loc, diagonal, self.gate)
        slope = self.gate * diagonal * pt.exp(log_scale + log_slope) + let_through(self.gate)
        return value, pt.log(slope)

    def _scan(self, noise, standard, nu, loc, diagonal, gate):
        gate = pt.broadcast_to(gate, noise.shape)
        sequences = [pt.moveaxis(x, -1, 0) for x in (noise, standard, nu, loc, diagonal, gate)]
        total = pt.broadcast_to(self.nu, noise.shape[:-1]).astype(noise.dtype)
        states = [total]
        if self.matrix is not None:
            rows = pt.broadcast_to(self.matrix, (*tuple(noise.shape), noise.shape[-1]))
            sequences += [pt.moveaxis(rows, -2, 0), pt.eye(noise.shape[-1], dtype=noise.dtype)]
            states.append(pt.zeros_like(noise))

        def step(noise_i, standard_i, nu_i, loc_i, diagonal_i, gate_i, *rest):
            *row, total, earlier = rest if self.matrix is not None else (*rest, None)
            if row:
                loc_i = loc_i + (row[0] * earlier).sum(-1)
            scale = pt.sqrt(total / nu_i)
            value = (
                gate_i * (loc_i + diagonal_i * scale * standard_i) + let_through(gate_i) * noise_i
            )
            y = (value - loc_i) / diagonal_i
            states = [(total + y**2).astype(total.dtype)]
            if row:
                states.append((earlier + y[..., None] * row[1]).astype(earlier.dtype))
            return [*states, value, pt.log(scale)]

        *_, value, log_scale = pytensor.scan(
            step,
            sequences=sequences,
            outputs_info=[*states, None, None],
            return_updates=False,
        )
        return pt.moveaxis(value, 0, -1), pt.moveaxis(log_scale, 0, -1)

    def to_noise(self, value):
        nu, quantile = self._conditional(value)
        if self.matrix is None:
            y = (value - self.loc) / self.diagonal
        else:
            y, _ = TriangularAffine(self.loc, self.matrix).inverse(value)
        square = y**2
        total = self.nu[..., None] + pt.cumsum(square, axis=-1) - square
        scale = self.diagonal * pt.sqrt(total / nu)
        site = ComposedElementwise(quantile, LocScale(value - self.diagonal * y, scale))
        return (site if self.gate is None else site.gated(self.gate)).to_noise(value)

    def gated(self, gate):
        return MvStudent(self.nu, self.loc, self.diagonal, self.matrix, gate)


def _times(matrix, vector):
    return (matrix * vector[..., None, :]).sum(-1)


@register_bijection(pm.MvStudentT.rv_type)
def mv_student(op, rv, transform):
    # PyMC turns every parametrisation (scale, tau, chol) into a scale matrix
    if transform is not None:
        return None
    _, _, nu, mu, scale = rv.owner.inputs
    matrix = pt.linalg.cholesky(scale)
    diagonal = pt.diagonal(matrix, axis1=-2, axis2=-1)
    return MvStudent(nu.astype(rv.dtype), mu, diagonal, matrix)
