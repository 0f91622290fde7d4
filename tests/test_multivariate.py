"""The exactness law of Gaussian families."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from scipy import sparse, stats

import pymc_emf as emf

from tests.helpers import parametrize
from tests.laws import Family, parametric

# PyMC's own log density of a MatrixNormal
pytestmark = pytest.mark.filterwarnings("ignore:pytensor.tensor.linalg.trace:FutureWarning")

chol = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]])
cov = chol @ chol.T
small = np.array([[1.0, 0.5], [0.5, 2.0]])
ring = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])


DISTS = {
    "MvNormal cov": lambda: pm.MvNormal.dist([1.0, 2.0, 3.0], cov=cov),
    "MvNormal chol": lambda: pm.MvNormal.dist(0.5, chol=chol),
    "MvNormal tau": lambda: pm.MvNormal.dist(np.zeros(3), tau=np.linalg.inv(cov)),
    "MvNormal batch": lambda: pm.MvNormal.dist(np.arange(6.0).reshape(2, 3), cov=cov),
    "MvNormal batch of cov": lambda: pm.MvNormal.dist(
        np.arange(6.0).reshape(2, 3), cov=np.stack([cov, np.eye(3)])
    ),
    "MatrixNormal": lambda: pm.MatrixNormal.dist(
        np.arange(6.0).reshape(3, 2), rowcov=cov, colchol=np.linalg.cholesky(small)
    ),
    "KroneckerNormal": lambda: pm.KroneckerNormal.dist(np.arange(6.0), covs=[small, cov]),
    "KroneckerNormal noise": lambda: pm.KroneckerNormal.dist(
        np.arange(6.0), chols=[np.linalg.cholesky(small), chol], sigma=0.3
    ),
    "ZeroSumNormal": lambda: pm.ZeroSumNormal.dist(2.0, shape=5),
    "ZeroSumNormal axes": lambda: pm.ZeroSumNormal.dist(
        np.array([0.5, 2.0]).reshape(2, 1, 1), n_zerosum_axes=2, shape=(2, 3, 4)
    ),
    "CAR": lambda: pm.CAR.dist(np.arange(4.0), ring, 0.6, 2.0),
    "CAR batch": lambda: pm.CAR.dist(np.arange(4.0), ring, 0.6, 2.0, size=2),
    "CAR sparse": lambda: pm.CAR.dist(
        np.arange(4.0), sparse.csr_matrix(ring.astype(float)), -0.3, 2.0
    ),
    "ICAR": lambda: pm.ICAR.dist(ring, sigma=0.7),
}

#: PyMC leaves out what does not depend on the value, in ICAR even the powers of sigma.
UNNORMALIZED = ("CAR", "CAR batch", "CAR sparse", "ICAR")


@cache
def family(name):
    return Family(DISTS[name]())


@pytest.mark.parametrize("name", DISTS)
def test_ungated_bijection_is_the_prior(name):
    family(name).check_prior(normalized=name not in UNNORMALIZED)


@pytest.mark.parametrize("name", DISTS)
def test_gated_bijection(name):
    family(name).check_gated()


@pytest.mark.parametrize("name", DISTS)
def test_backends_agree(name):
    family(name).check_backends()


@parametrize(DISTS, quick=["CAR"])  # numba takes up to half a minute
def test_numba_agrees(name):
    family(name).check_backends("NUMBA")


PARAMETRIC = {
    "MatrixNormal": (
        (small,),
        lambda k: pm.MatrixNormal.dist(np.zeros((3, 2)), rowcov=pt.constant(cov), colcov=k),
    ),
    "KroneckerNormal": (
        (small, 0.3),
        lambda k, s: pm.KroneckerNormal.dist(np.zeros(6), covs=[k, pt.constant(cov)], sigma=s),
    ),
    "ZeroSumNormal": ((1.5,), lambda s: pm.ZeroSumNormal.dist(s, shape=4)),
    "CAR": (
        (np.arange(4.0), 0.6, 2.0),
        lambda mu, alpha, tau: pm.CAR.dist(mu, ring, alpha, tau),
    ),
    "ICAR": ((0.7, 0.01), lambda sigma, s: pm.ICAR.dist(ring, sigma, s)),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameter_gradients(name):
    parametric(*PARAMETRIC[name]).check_parameter_gradients()


def test_car_is_the_normal_of_its_precision():
    # PyMC's density lacks its constant, ours does not
    weights, alpha, tau = ring.astype(float), 0.6, 2.0
    compiled = family("CAR").functions(False)
    noise = family("CAR").noise(1)
    value, log_det = compiled.forward(noise)
    precision = tau * (np.diag(weights.sum(0)) - alpha * weights)
    expected = stats.multivariate_normal(np.arange(4.0), np.linalg.inv(precision)).logpdf(value)
    np.testing.assert_allclose(stats.norm.logpdf(noise).sum() - log_det, expected)


def test_icar_of_an_unconnected_graph_is_improper():
    pairs = np.kron(np.eye(2, dtype=int), [[0, 1], [1, 0]])
    with pytest.raises(NotImplementedError):
        emf.bijection(pm.ICAR.dist(pairs))


def test_zero_sum_normal_needs_its_transform():
    with pytest.raises(NotImplementedError):
        emf.bijection(pm.ZeroSumNormal.dist(shape=4), transform=None)


def latent(cov_func, x):
    pm.gp.Latent(cov_func=cov_func).prior("f", x, reparameterize=False)


def rotated(cov_func, x):
    pm.gp.Latent(cov_func=cov_func).prior("f", x)


def hilbert_space(cov_func, x):
    pm.gp.HSGP(m=[5], c=1.5, cov_func=cov_func).prior("f", x)


def periodic_hilbert_space(cov_func, x):
    cov_func = pm.gp.cov.Periodic(1, period=2.0, ls=1.0)
    pm.gp.HSGPPeriodic(m=5, scale=1.0, cov_func=cov_func).prior("f", x)


def kronecker(cov_func, x):
    pm.gp.LatentKron(cov_funcs=[cov_func, cov_func]).prior("f", [x[:2], x[:3]])


def marginal(cov_func, x):
    gp = pm.gp.Marginal(cov_func=cov_func)
    gp.marginal_likelihood("y", x, np.sin(x[:, 0]), sigma=pm.HalfNormal("noise"))


def sparse_marginal(cov_func, x):
    gp = pm.gp.MarginalApprox(cov_func=cov_func)
    gp.marginal_likelihood("y", x, x[:3], np.sin(x[:, 0]), sigma=pm.HalfNormal("noise"))


@pytest.mark.parametrize(
    "prior",
    [latent, rotated, hilbert_space, periodic_hilbert_space, kronecker, marginal, sparse_marginal],
)
def test_gaussian_process_priors_are_embedded(prior):
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        prior(scale**2 * pm.gp.cov.Matern52(1, ls=1.0), np.linspace(0, 1, 6)[:, None])
    assert not emf.StructuredLayer(model).bypassed
