"""Multivariate families with a triangular map."""

import pymc as pm
import pytensor.tensor as pt

from pymc_emf.bijections.affine import TriangularAffine
from pymc_emf.bijections.base import register_bijection


@register_bijection(pm.MvNormal.rv_type)
def mv_normal(op, rv, transform):
    # PyMC turns every parametrisation (cov, tau, chol) into a covariance
    if transform is not None:
        return None
    mu, cov = op.dist_params(rv.owner)
    return TriangularAffine(mu, pt.linalg.cholesky(cov))
