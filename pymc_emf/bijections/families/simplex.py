r"""Distributions on the simplex whose sequential ratios are independent.

With the components in some order :math:`y_1, \ldots, y_K` and partial sums :math:`S_j`, let
:math:`t_j = \log(S_j / y_{j+1})`. For a Dirichlet distribution, and for stick-breaking weights in
reverse order, the :math:`t_j` are independent logits of Beta variates. The contrasts
:math:`z_j = \sqrt{j/(j+1)}\,(\tfrac1j\sum_{i\le j}\log y_i - \log y_{j+1})` are triangular in them,

.. math:: z_j = \sqrt{j/(j+1)}\,(t_j - c_j), \qquad
    c_j = \log S_j - \tfrac1j\sum_{i\le j}\log y_i,

because :math:`c_j` depends on :math:`z_{<j}` alone; and they are linear in PyMC's value, the
centred log ratios of all but the last component: :math:`z = Bu`.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc.exceptions import NotConstantValueError
from pymc.logprob.transforms import SimplexTransform
from pymc.pytensorf import constant_fold
from pytensor.tensor.variable import TensorVariable
from scipy.linalg import helmert

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import Bijection, let_through, register_bijection
from pymc_emf.bijections.core.compose import ComposedElementwise
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.families.by_density import beta_logit
from pymc_emf.bijections.numerics.quantile import Quantile
from pymc_emf.bijections.numerics.special import log_ndtr, noise_from_tails

__all__ = ["SequentialRatios"]


class SequentialRatios(Bijection):
    r"""Bijection to the centred log ratios of a simplex, gated in rotated coordinates.

    :math:`B = LQ` with L lower triangular and Q orthogonal turns the contrasts into coordinates
    :math:`\hat u = Qu` of the value that are triangular in those of the noise,
    :math:`\hat\varepsilon = Q\varepsilon`, again standard normal. There the gate acts,

    .. math:: \hat u_j = \lambda_j \frac{\sqrt{j/(j+1)}\,(t_j(\hat\varepsilon_j) - c_j) - h_j}
        {L_{jj}} + (1 - \lambda_j)\hat\varepsilon_j, \qquad h_j = \sum_{k<j} L_{jk}\hat u_k,

    so that gate zero is the identity; element j of the gate belongs to contrast j. The forward
    direction is one scan, without one where there is no gate; the inverse is parallel.

    Parameters
    ----------
    ratios : Elementwise
        From noise to :math:`t_j`, on the last axis.
    order : sequence of int
        Place of the components :math:`y_1, \ldots, y_K` in the simplex.
    gate : TensorVariable, optional
    """

    def __init__(self, ratios: Elementwise, order: np.ndarray, gate: TensorVariable | None = None):
        self.ratios = ratios
        self.order = np.asarray(order)
        self.gate = gate
        size = len(self.order) - 1
        #: Centred log ratios of all components, in order, from the value.
        self.ratios_of_value = np.vstack([np.eye(size), -np.ones(size)])[self.order]
        contrasts = helmert(size + 1) @ self.ratios_of_value
        orthogonal, upper = np.linalg.qr(contrasts.T)
        sign = np.sign(np.diag(upper))
        self.factor, self.rotation = upper.T * sign, (orthogonal * sign).T
        # exactly diagonal if the component left out of the value comes last
        self.factor[np.abs(self.factor) < 1e-12] = 0.0
        self.contrasts = self.factor @ self.rotation
        j = np.arange(1, size + 1)
        self.weight = np.sqrt(j / (j + 1))

    def _constant(self, array, like):
        return pt.constant(np.asarray(array, dtype=like.dtype))

    def _apply(self, matrix, vector):
        return (self._constant(matrix, vector) * vector[..., None, :]).sum(-1)

    def _log_slope(self, log_slope):
        """Of the rotated coordinates, from that of the ratios."""
        unit = self._constant(np.log(self.weight / np.diag(self.factor)), log_slope)
        if self.gate is None:
            return unit + log_slope
        return pt.log(self.gate * pt.exp(unit + log_slope) + let_through(self.gate))

    def forward(self, noise):
        rotated = self._apply(self.rotation, noise)
        ratios, log_slope = self.ratios.to_value(rotated)
        log_det = self._log_slope(log_slope).sum()
        if self.gate is None:
            j = self._constant(np.arange(1, len(self.order)), noise)
            growth = (j + 1) * pt.softplus(-ratios) + ratios  # of j c_j
            centre = (pt.cumsum(growth, axis=-1) - growth) / j
            contrasts = self._constant(self.weight, noise) * (ratios - centre)
            return self._apply(np.linalg.inv(self.contrasts), contrasts), log_det
        value = self._scan(rotated, ratios, self.gate)
        return self._apply(self.rotation.T, value), log_det

    def _scan(self, noise, ratios, gate):
        lower = np.tril(self.factor, -1)
        gate = pt.broadcast_to(gate, noise.shape)
        sequences = [pt.moveaxis(x, -1, 0) for x in (noise, ratios, gate)]
        j = np.arange(1, len(self.order))
        sequences += [self._constant(x, noise) for x in (self.weight, np.diag(self.factor), j)]
        states = [pt.zeros_like(noise[..., 0])]
        if lower.any():
            sequences += [self._constant(x, noise) for x in (lower, np.eye(len(lower)))]
            states.append(pt.zeros_like(noise))

        def step(noise_j, ratio, gate_j, weight, diagonal, j, *rest):
            *row, centre, earlier = rest if lower.any() else (*rest, None)
            shift = (row[0] * earlier).sum(-1) if row else 0.0
            open_value = (weight * (ratio - centre) - shift) / diagonal
            value = gate_j * open_value + let_through(gate_j) * noise_j
            ratio = (diagonal * value + shift) / weight + centre
            centre = j / (j + 1) * centre + pt.softplus(-ratio) + ratio / (j + 1)
            states = [centre]
            if row:
                states.append(earlier + value[..., None] * row[1])
            return [*(s.astype(noise.dtype) for s in states), value]

        *_, value = pytensor.scan(
            step, sequences=sequences, outputs_info=[*states, None], return_updates=False
        )
        return pt.moveaxis(value, 0, -1)

    def inverse(self, value):
        rotated = self._apply(self.rotation, value)
        logs = self._apply(self.ratios_of_value, value)[..., :-1]  # log y_j less their mean
        j = self._constant(np.arange(1, len(self.order)), value)
        centre = _cumulative_logsumexp(logs) - pt.cumsum(logs, axis=-1) / j
        diagonal = self._constant(np.diag(self.factor), value)
        weight = self._constant(self.weight, value)
        shift = self._apply(np.tril(self.factor, -1), rotated)
        contrasts = LocScale(-(weight * centre + shift) / diagonal, weight / diagonal)
        site = ComposedElementwise(self.ratios, contrasts)
        noise, log_slope = (site if self.gate is None else site.gated(self.gate)).to_noise(rotated)
        return self._apply(self.rotation.T, noise), log_slope.sum()

    def gated(self, gate):
        return SequentialRatios(self.ratios, self.order, gate)


def _cumulative_logsumexp(x: TensorVariable) -> TensorVariable:
    """Along the last axis, whose length is known, by doubling: no element can swamp another."""
    length, shift = x.type.shape[-1], 1
    while shift < length:
        later = pt.logaddexp(x[..., shift:], x[..., :-shift])
        x = pt.concatenate([x[..., :shift], later], axis=-1)
        shift *= 2
    return x


def _length(rv: TensorVariable) -> int | None:
    """Number of components, None if it is not known."""
    try:
        (length,) = constant_fold((rv.shape[-1],))
    except NotConstantValueError:
        return None
    return int(length)


@register_bijection(pm.Dirichlet.rv_type)
def dirichlet(op, rv, transform):
    length = _length(rv)
    if not isinstance(transform, SimplexTransform) or length is None:
        return None
    (a,) = op.dist_params(rv.owner)
    a = a.astype(rv.dtype)
    total = pt.cumsum(a, axis=-1)
    ratios = beta_logit(total[..., :-1], a[..., 1:])
    return SequentialRatios(ratios, np.arange(length))


@register_bijection(pm.StickBreakingWeights.rv_type)
def stick_breaking_weights(op, rv, transform):
    # what is left of the stick, w = 1 - v ~ Beta(alpha, 1), has the distribution function w^alpha
    length = _length(rv)
    if not isinstance(transform, SimplexTransform) or length is None:
        return None
    alpha = op.dist_params(rv.owner)[0].astype(rv.dtype)[..., None]

    def quantile(noise):
        log_left = log_ndtr(noise) / alpha
        return log_left - pt.log1mexp(log_left)

    def noise(c):
        below = -alpha * pt.softplus(-c)
        return noise_from_tails(below, pt.log1mexp(below))

    return SequentialRatios(Quantile(quantile, noise), np.arange(length - 1, -1, -1))
