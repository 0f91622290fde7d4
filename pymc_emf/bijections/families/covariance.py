r"""Correlation and covariance matrices by their Cholesky factors.

The rows of the factor C of an LKJ correlation matrix (Lewandowski, Kurowicka and Joe 2009) are
independent. In the coordinates :math:`y_{ij} = C_{ij} / C_{ii}`, those of PyMC's value, row i is
multivariate Student t, of the elements in the order from the diagonal to the left: its canonical
partial correlations are tanh of half logits of Beta variates, and a Student t variate is the sinh
of one.
"""

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.transforms import (
    CholeskyCorrTransform,
    CholeskyCovPacked,
    CholeskyCovTransform,
    _default_transform,
)
from pymc.exceptions import NotConstantValueError
from pymc.logprob.transforms import Transform
from pymc.pytensorf import constant_fold
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import LKJCholeskyCovRV
from pymc_emf.bijections.core.affine import LocScale, TriangularAffine
from pymc_emf.bijections.core.base import (
    Bijection,
    Triangular,
    bijection_from_rv,
    let_through,
    register_bijection,
)
from pymc_emf.bijections.core.compose import ComposedElementwise
from pymc_emf.bijections.families.by_density import gamma_log
from pymc_emf.bijections.families.student import MvStudent

__all__ = ["CholeskyCorrelation", "CholeskyCovariance", "WishartFactor"]


class CholeskyCorrelation(Triangular):
    r"""Bijection to :math:`y_{ij} = C_{ij} / C_{ii}`, C the Cholesky factor of an LKJ matrix.

    Row :math:`i = 1, \ldots, n - 1`, read from the diagonal to the left, is multivariate Student t
    with :math:`\nu_i = 2\eta + n - 1 - i` degrees of freedom and scale matrix :math:`I/\nu_i`:
    triangular, so that the gate acts in value space and gate zero is the identity.

    Parameters
    ----------
    n : int
    eta : TensorVariable
        Scalar.
    place : ndarray of int, shape (n, n)
        Where each element below the diagonal stands in the last axis of the event.
    """

    def __init__(
        self, n: int, eta: TensorVariable, place: np.ndarray, rows: MvStudent | None = None
    ):
        self.n, self.eta, self.place = n, eta, place
        # the rows as those of a square, each from the diagonal to the left and then filled up
        i, c = np.tril_indices(n - 1)
        self.present = np.tri(n - 1, dtype=bool)
        self.gather = np.zeros((n - 1, n - 1), dtype=int)
        self.gather[i, c] = place[i + 1, i - c]
        self.scatter = np.empty(n * (n - 1) // 2, dtype=int)
        self.scatter[self.gather[i, c]] = i * (n - 1) + c
        if rows is None:
            nu = 2 * eta + np.arange(n - 2, -1, -1).astype(eta.dtype)
            rows = MvStudent(nu, pt.zeros((), dtype=eta.dtype), (nu**-0.5)[:, None])
        self.rows = rows

    def _to_square(self, packed):
        return pt.where(self.present, packed[..., self.gather], 0.0).astype(packed.dtype)

    def _from_square(self, square):
        shape = (*tuple(square.shape)[:-2], (self.n - 1) ** 2)
        return square.reshape(shape)[..., self.scatter]

    def to_value(self, noise):
        return tuple(self._from_square(x) for x in self.rows.to_value(self._to_square(noise)))

    def to_noise(self, value):
        return tuple(self._from_square(x) for x in self.rows.to_noise(self._to_square(value)))

    def gated(self, gate):
        rows = self.rows.gated(self._to_square(gate))
        return CholeskyCorrelation(self.n, self.eta, self.place, rows)

    def log_norms(self, y):
        r"""Half the log of :math:`1 + \sum_j y_{ij}^2`, of every row of the factor."""
        later = pt.log1p((self._to_square(y) ** 2).sum(-1)) / 2
        return pt.concatenate([pt.zeros_like(later[..., :1]), later], axis=-1)


class _Bound:
    """The transform of a variable, with the inputs of the variable."""

    def __init__(self, transform: Transform, rv: TensorVariable):
        self.transform, self.inputs = transform, rv.owner.inputs

    def forward(self, x):
        return self.transform.forward(x, *self.inputs)

    def backward(self, v):
        return self.transform.backward(v, *self.inputs)

    def log_jac_det(self, v):
        return self.transform.log_jac_det(v, *self.inputs)


class CholeskyCovariance(Bijection):
    r"""Bijection to the packed Cholesky factor of a covariance matrix, log on the diagonal.

    The natural coordinates are those of the standard deviations' own distribution, and
    :math:`y_{ij}` of the correlations (see :class:`CholeskyCorrelation`). From them to the value
    leads a fixed map without parameters,

    .. math:: \log L_{ii} = \log\sigma_i - \tfrac12\log\Bigl(1 + \sum_j y_{ij}^2\Bigr), \qquad
        L_{ij} = L_{ii}\,y_{ij},

    in which no order of the value's elements is triangular. The gate therefore acts in the natural
    coordinates: gate zero is this map of the noise, not the identity.

    Parameters
    ----------
    deviations : Bijection
        From noise to the values of the standard deviations, on the last axis.
    transform
        From the standard deviations to their values.
    correlation : CholeskyCorrelation
        Packed by rows, without the diagonal.
    """

    def __init__(self, deviations: Bijection, transform: _Bound, correlation: CholeskyCorrelation):
        self.deviations = deviations
        self.transform = transform
        self.correlation = correlation
        self.gateable = deviations.gateable
        n = correlation.n
        i, j = np.tril_indices(n)
        self.diagonal, self.below = np.flatnonzero(i == j), np.flatnonzero(i > j)
        self.row = i[self.below]
        self.order = np.argsort(np.concatenate([self.diagonal, self.below]))

    def _split(self, packed):
        return packed[..., self.diagonal], packed[..., self.below]

    def _join(self, diagonal, below):
        return pt.concatenate([diagonal, below], axis=-1)[..., self.order]

    def _log_det(self, v, log_diagonal):
        # of the fixed map: L_ij = L_ii y_ij in row i, and the transform of the deviations
        log_sd = pt.log(self.transform.backward(v))
        return (np.arange(self.correlation.n) * log_diagonal).sum() + (
            self.transform.log_jac_det(v) - log_sd
        ).sum()

    def forward(self, noise):
        noise_of_sd, noise_below = self._split(noise)
        v, log_det = self.deviations.forward(noise_of_sd)
        y, log_det_y = self.correlation.forward(noise_below)
        log_diagonal = pt.log(self.transform.backward(v)) - self.correlation.log_norms(y)
        value = self._join(log_diagonal, pt.exp(log_diagonal)[..., self.row] * y)
        return value, log_det + log_det_y + self._log_det(v, log_diagonal)

    def inverse(self, value):
        log_diagonal, below = self._split(value)
        y = below * pt.exp(-log_diagonal)[..., self.row]
        sd = pt.exp(log_diagonal + self.correlation.log_norms(y))
        v = self.transform.forward(sd)
        noise_of_sd, log_det = self.deviations.inverse(v)
        noise_below, log_det_y = self.correlation.inverse(y)
        log_det = log_det + log_det_y - self._log_det(v, log_diagonal)
        return self._join(noise_of_sd, noise_below), log_det

    def gated(self, gate):
        gate_of_sd, gate_below = self._split(gate)
        return CholeskyCovariance(
            self.deviations.gated(gate_of_sd), self.transform, self.correlation.gated(gate_below)
        )


class WishartFactor(Bijection):
    r"""Bijection to the packed Cholesky factor of a Wishart matrix, log on the diagonal.

    :math:`L = CA` with C the factor of the scale matrix and A lower triangular (Bartlett 1933):
    :math:`A_{ij} \sim N(0, 1)` below the diagonal and :math:`A_{ii}^2 \sim \chi^2_{\nu - i}`,
    counted from zero. Down each column L is triangular in the noise:
    :math:`\log L_{jj} = \log C_{jj} + \log A_{jj}` and
    :math:`L_{ij} = C_{ij}A_{jj} + \sum_{j<k\le i} C_{ik}\varepsilon_{kj}`.
    """

    def __init__(self, nu: TensorVariable, factor: TensorVariable, n: int, gate=None):
        self.nu, self.factor, self.n, self.gate = nu, factor, n, gate
        i, j = np.tril_indices(n)
        self.i, self.j = i, j
        self.diagonal, self.below = np.flatnonzero(i == j), np.flatnonzero(i > j)
        self.order = np.argsort(np.concatenate([self.diagonal, self.below]))
        shape = (nu[..., None] - np.arange(n)) / 2
        loc = pt.log(pt.diagonal(factor, axis1=-2, axis2=-1)) + float(np.log(2) / 2)
        halved = LocScale(loc, pt.full_like(shape, 0.5))
        #: From noise to the log of the factor's diagonal.
        self.chi = ComposedElementwise(gamma_log(shape), halved)

    def _gate(self, event):
        return pt.ones_like(event) if self.gate is None else self.gate

    def _join(self, diagonal, below):
        return pt.concatenate([diagonal, below], axis=-1)[..., self.order]

    def _square(self, packed):
        square = pt.zeros((*tuple(packed.shape)[:-1], self.n, self.n), dtype=packed.dtype)
        return square[..., self.i, self.j].set(packed)

    def _chi(self):
        return self.chi if self.gate is None else self.chi.gated(self.gate[..., self.diagonal])

    def _bartlett_diagonal(self, noise):
        return pt.exp(self.chi.to_value(noise)[0]) / pt.diagonal(self.factor, axis1=-2, axis2=-1)

    def _log_det_below(self, event):
        """Of the map forwards, of the elements below the diagonal."""
        scale = pt.diagonal(self.factor, axis1=-2, axis2=-1)[..., self.i[self.below]]
        gate = self._gate(event)[..., self.below]
        return pt.log(gate * scale + let_through(gate)).sum()

    def forward(self, noise):
        on_diagonal, below = noise[..., self.diagonal], noise[..., self.below]
        log_diagonal, log_slope = self._chi().to_value(on_diagonal)
        bartlett = self._square(self._join(self._bartlett_diagonal(on_diagonal), below))
        open_value = (self.factor @ bartlett)[..., self.i, self.j][..., self.below]
        gate = self._gate(noise)[..., self.below]
        value = gate * open_value + let_through(gate) * below
        log_det = log_slope.sum() + self._log_det_below(noise)
        return self._join(log_diagonal, value), log_det

    def inverse(self, value):
        log_diagonal, below = value[..., self.diagonal], value[..., self.below]
        on_diagonal, log_slope = self._chi().to_noise(log_diagonal)
        gate = self._square(self._gate(value))
        # column j as a system of its own rows below j, the others being trivial
        first = self._bartlett_diagonal(on_diagonal)
        residual = self._square(self._join(pt.zeros_like(first), below))
        residual = residual - pt.tril(gate * self.factor, -1) * first[..., None, :]
        rows = np.arange(self.n)
        active = (rows[:, None, None] < rows[:, None]) & (rows[:, None, None] < rows)
        gate = pt.moveaxis(gate, -1, -2)[..., None]  # of column j in row i, for all k
        system = gate * self.factor[..., None, :, :] + let_through(gate) * np.eye(self.n)
        system = pt.where(active, system, np.eye(self.n)).astype(value.dtype)
        columns = pt.moveaxis(residual, -1, -2)
        noise, _ = TriangularAffine(pt.zeros((), dtype=value.dtype), system).inverse(columns)
        noise = pt.moveaxis(noise, -1, -2)[..., self.i, self.j][..., self.below]
        log_det = log_slope.sum() - self._log_det_below(value)
        return self._join(on_diagonal, noise), log_det

    def gated(self, gate):
        return WishartFactor(self.nu, self.factor, self.n, gate)


def _number(variable: Variable) -> int | None:
    try:
        (value,) = constant_fold((variable,))
    except NotConstantValueError:
        return None
    return int(np.squeeze(value))


@register_bijection(pm.LKJCorr.rv_type)
def lkj_corr(op, rv, transform):
    _, _, n, eta = rv.owner.inputs
    n = _number(n)
    if n is None or not isinstance(transform, CholeskyCorrTransform) or transform.upper:
        return None
    # PyMC winds the elements below the diagonal into a vector: the later half of the rows as they
    # are, the others turned round to fill the gaps
    size = n * (n - 1) // 2
    spiral = np.concatenate([np.arange(n - 1, size), np.arange(size)[::-1]])
    place = np.zeros((n, n), dtype=int)
    place[1:, :-1] = spiral.reshape(n - 1, n - 1)
    return CholeskyCorrelation(n, eta.reshape(()).astype(rv.dtype), place)


@register_bijection(LKJCholeskyCovRV)
def lkj_cholesky_cov(op, rv, transform):
    _, n, eta, sd_dist = rv.owner.inputs
    n = _number(n)
    if n is None or not isinstance(transform, CholeskyCovPacked):
        return None
    transform_of_sd = _default_transform(sd_dist.owner.op, sd_dist)
    if transform_of_sd is None or transform_of_sd.ndim_supp > 0:
        return None
    deviations = bijection_from_rv(sd_dist, transform_of_sd)
    if deviations is None:
        return None
    place = np.zeros((n, n), dtype=int)
    place[np.tril_indices(n, -1)] = np.arange(n * (n - 1) // 2)
    correlation = CholeskyCorrelation(n, eta.astype(rv.dtype), place)
    return CholeskyCovariance(deviations, _Bound(transform_of_sd, sd_dist), correlation)


@register_bijection(pm.Wishart.rv_type)
def wishart(op, rv, transform):
    _, _, nu, factor = rv.owner.inputs
    n = _number(rv.shape[-1])
    if n is None or not isinstance(transform, CholeskyCovTransform):
        return None
    return WishartFactor(nu.astype(rv.dtype), factor.astype(rv.dtype), n)
