"""The exactness law of Gaussian and sequential families."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from scipy import sparse, stats

import pymc_emf as emf

from tests.laws import Family

chol = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]])
cov = chol @ chol.T
small = np.array([[1.0, 0.5], [0.5, 2.0]])
ring = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])


def ornstein_uhlenbeck(x, mean, rate):
    return rate * (mean - x), 0.3 + 0.1 * pt.cos(x)


def lorenz(x, rho):
    a, b, c = x[0], x[1], x[2]
    drift = pt.stack([10.0 * (b - a), a * (rho - c) - b, a * b - 8.0 / 3.0 * c])
    return drift, 0.1 * pt.ones_like(x)


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
    "GaussianRandomWalk": lambda: pm.GaussianRandomWalk.dist(
        0.2, 0.5, init_dist=pm.Normal.dist(1.0, 2.0), steps=6
    ),
    "GaussianRandomWalk batch": lambda: pm.GaussianRandomWalk.dist(
        [0.0, 0.3], [0.5, 1.0], init_dist=pm.Normal.dist(0, 1), shape=(2, 5)
    ),
    "RandomWalk Laplace": lambda: pm.RandomWalk.dist(
        pm.Cauchy.dist(0, 1), pm.Laplace.dist(0.1, 0.5), steps=4
    ),
    "MvGaussianRandomWalk": lambda: pm.MvGaussianRandomWalk.dist(
        np.array([0.1, -0.2, 0.0]), chol=chol, init_dist=pm.MvNormal.dist(np.zeros(3), cov), steps=4
    ),
    "AR1": lambda: pm.AR.dist([0.8], sigma=0.5, init_dist=pm.Normal.dist(0, 1), steps=6),
    "AR2 constant": lambda: pm.AR.dist(
        [0.3, 0.5, -0.4], sigma=0.5, constant=True, init_dist=pm.Normal.dist(0, 1), steps=5
    ),
    "AR2 batch": lambda: pm.AR.dist(
        [[0.5, -0.4], [0.1, 0.2]], sigma=[0.5, 1.0], init_dist=pm.Normal.dist(0, 1), shape=(2, 6)
    ),
    "AR3 Laplace": lambda: pm.AR.dist(
        [0.2, 0.5, -0.4, 0.1],
        sigma=0.5,
        constant=True,
        init_dist=pm.Laplace.dist(1.0, 2.0),
        shape=(2, 7),
    ),
    "AR2 MvNormal": lambda: pm.AR.dist(
        [0.5, -0.4], sigma=0.5, init_dist=pm.MvNormal.dist([0.0, 1.0], small), shape=6
    ),
    "GARCH11": lambda: pm.GARCH11.dist(0.5, 0.3, 0.4, 1.2, steps=6),
    "GARCH11 batch": lambda: pm.GARCH11.dist([0.5, 0.2], 0.3, 0.4, 1.2, shape=(2, 6)),
    "EulerMaruyama": lambda: pm.EulerMaruyama.dist(
        0.1, ornstein_uhlenbeck, (1.0, 2.0), init_dist=pm.Normal.dist(0, 1), steps=6
    ),
    "EulerMaruyama batch": lambda: pm.EulerMaruyama.dist(
        0.1,
        ornstein_uhlenbeck,
        (pt.as_tensor(np.array([1.0, 3.0])), 2.0),
        init_dist=pm.Normal.dist(0, 1),
        shape=(2, 5),
    ),
    "EulerMaruyama vector": lambda: pm.EulerMaruyama.dist(
        0.02, lorenz, (28.0,), init_dist=pm.Normal.dist(0, 1, shape=3), shape=(3, 5)
    ),
}

#: PyMC leaves out what does not depend on the value, in ICAR even the powers of sigma.
UNNORMALIZED = ("CAR", "CAR batch", "CAR sparse", "ICAR")

#: One of each kind of graph goes through numba as well, which takes seconds to compile.
SLOW_TO_TRUST = (
    "MvNormal batch",
    "MatrixNormal",
    "CAR",
    "GaussianRandomWalk batch",
    "AR2 batch",
    "GARCH11 batch",
    "EulerMaruyama vector",
)


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
    family(name).check_backends(numba=name in SLOW_TO_TRUST)


def symbolic(*at):
    return [pt.tensor(f"parameter_{i}", shape=np.shape(a)) for i, a in enumerate(at)]


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
    "GARCH11": (
        (np.array([0.5, 0.2]), 0.3, 0.4, 1.2),
        lambda w, a, b, s: pm.GARCH11.dist(w, a, b, s, shape=(2, 5)),
    ),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameter_gradients(name):
    at, dist = PARAMETRIC[name]
    parameters = symbolic(*at)
    Family(dist(*parameters), parameters=parameters, at=at).check_parameter_gradients()


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
