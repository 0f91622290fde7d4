r"""Multivariate Gaussian families: a lower-triangular factor of the covariance each.

:math:`u = \mu + L\varepsilon` with :math:`LL^T` the covariance (EMF Eq. 5 for a linear Gaussian
model): triangular in the order of the elements, with positive diagonal.
"""

from functools import reduce

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.transforms import ZeroSumTransform
from pymc.exceptions import NotConstantValueError
from pymc.pytensorf import constant_fold
from pytensor.graph.basic import Variable
from pytensor.sparse import dense_from_sparse
from pytensor.sparse.type import SparseTensorType
from pytensor.tensor.variable import TensorVariable
from scipy.sparse import issparse
from scipy.sparse.csgraph import connected_components

from pymc_emf._compat import squeeze_to_ndim
from pymc_emf.bijections.core.affine import LocScale, TriangularAffine
from pymc_emf.bijections.core.base import register_bijection
from pymc_emf.bijections.core.compose import Rearranged


def _ravel(matrix: TensorVariable) -> TensorVariable:
    """Rows in a line."""
    return matrix.reshape((*tuple(matrix.shape)[:-2], -1))


def factor_of_inverse(precision: TensorVariable) -> TensorVariable:
    r"""Lower-triangular factor of the inverse of a positive-definite matrix.

    Cholesky's factorisation from the last row upwards, :math:`Q = UU^T` with U upper
    triangular, gives :math:`Q^{-1} = U^{-T}U^{-1}` and the factor :math:`U^{-T}`: the covariance
    is never formed.
    """
    size = precision.shape[-1]
    reversal = size - 1 - pt.arange(size)
    turned = precision[reversal][:, reversal]
    lower = pt.linalg.cholesky(turned)[reversal][:, reversal].T
    return pt.linalg.solve_triangular(lower, pt.eye(size, dtype=precision.dtype), lower=True)


@register_bijection(pm.MvNormal.rv_type)
def mv_normal(op, rv, transform):
    # PyMC turns every parametrisation (cov, tau, chol) into a covariance
    if transform is not None:
        return None
    mu, cov = op.dist_params(rv.owner)
    return TriangularAffine(mu, pt.linalg.cholesky(cov))


@register_bijection(pm.MatrixNormal.rv_type)
def matrix_normal(op, rv, transform):
    # mu + R E C^T, whose rows in a line are (R kron C) times those of E
    if transform is not None:
        return None
    mu, row_chol, col_chol = op.dist_params(rv.owner)
    site = TriangularAffine(_ravel(mu), pt.linalg.kron(row_chol, col_chol))
    n_rows, n_columns = row_chol.shape[-1], col_chol.shape[-1]

    def unravel(rows):
        return rows.reshape((*tuple(rows.shape)[:-1], n_rows, n_columns))

    return Rearranged(site, _ravel, unravel)


@register_bijection(pm.KroneckerNormal.rv_type)
def kronecker_normal(op, rv, transform):
    # covariance K_1 kron K_2 kron ... + sigma^2 I
    if transform is not None:
        return None
    _, _, mu, sigma, *covs = rv.owner.inputs
    if _constant(sigma) == 0:
        factor = reduce(pt.linalg.kron, [pt.linalg.cholesky(cov) for cov in covs])
    else:
        cov = reduce(pt.linalg.kron, covs)
        factor = pt.linalg.cholesky(cov + sigma**2 * pt.eye(cov.shape[-1]))
    return TriangularAffine(mu, factor)


@register_bijection(pm.ZeroSumNormal.rv_type)
def zero_sum_normal(op, rv, transform):
    # The transform keeps the coordinates in an orthonormal basis of the zero-sum subspace, in
    # which the distribution is an isotropic normal; without it there is no density on R^n.
    if not isinstance(transform, ZeroSumTransform):
        return None
    _, _, sigma, _ = rv.owner.inputs
    return LocScale(pt.zeros((), dtype=rv.dtype), sigma.astype(rv.dtype))


@register_bijection(pm.CAR.rv_type)
def conditional_autoregression(op, rv, transform):
    # precision tau (D - alpha W), with D the degrees
    if transform is not None:
        return None
    mu, adjacency, alpha, tau, _ = op.dist_params(rv.owner)
    adjacency = _dense(adjacency)
    precision = tau * (pt.diag(adjacency.sum(axis=0)) - alpha * adjacency)
    return TriangularAffine(mu, factor_of_inverse(precision))


@register_bijection(pm.ICAR.rv_type)
def intrinsic_conditional_autoregression(op, rv, transform):
    # PyMC's log density is -|phi_i - phi_j|^2 / 2 sigma^2 over the edges, less
    # (sum phi / zero_sum_stdev n)^2 / 2. The first term is flat along the indicator of each
    # connected component and the second removes one such direction: a proper normal, up to the
    # factor that PyMC leaves out (sigma^(n - 1) and a constant), if and only if the graph is
    # connected.
    if transform is not None:
        return None
    adjacency, sigma, zero_sum_stdev = op.dist_params(rv.owner)
    weights = _constant(adjacency)
    if weights is None or weights.ndim > 2 or connected_components(weights)[0] > 1:
        return None
    size = len(weights)
    laplacian = np.diag(weights.sum(axis=0)) - weights
    precision = laplacian / sigma**2 + np.ones((size, size)) / (zero_sum_stdev * size) ** 2
    return TriangularAffine(pt.zeros(size, dtype=rv.dtype), factor_of_inverse(precision))


def _dense(matrix: Variable) -> TensorVariable:
    """Return a dense matrix, a constant where it can be one: JAX has no sparse operations."""
    constant = _constant(matrix)
    if constant is not None:
        return pt.constant(squeeze_to_ndim(constant, 2))
    if isinstance(matrix.type, SparseTensorType):
        return dense_from_sparse(matrix)
    return squeeze_to_ndim(matrix, 2)


def _constant(variable: Variable) -> np.ndarray | None:
    """Return the value of a constant as a dense array of floats, None if it is not one."""
    try:
        (value,) = constant_fold((variable,))
    except NotConstantValueError:
        return None
    value = value.toarray() if issparse(value) else np.asarray(value)
    return value.astype(float)
