"""The exactness law of correlation and covariance matrices."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_emf as emf

from pymc_emf.bijections.families import covariance, student
from pymc_emf.bijections.families.covariance import CholeskyCovariance
from tests.helpers import parametrize
from tests.laws import Family, parametric, simple_quantile

scale = np.array([[1.0, 0.5, -0.3], [0.5, 4.25, 0.25], [-0.3, 0.25, 0.62]])


def lkj_cov(eta, sd_dist, n=3):
    return pm.LKJCholeskyCov.dist(eta=eta, n=n, sd_dist=sd_dist, compute_corr=False)


DISTS = {
    "LKJCorr": lambda: pm.LKJCorr.dist(n=4, eta=1.5),
    "LKJCorr of two": lambda: pm.LKJCorr.dist(n=2, eta=1.5),
    "LKJCorr batch": lambda: pm.LKJCorr.dist(n=3, eta=0.5, size=2),
    "LKJCholeskyCov": lambda: lkj_cov(2.0, pm.Exponential.dist(1.0)),
    "LKJCholeskyCov bounded": lambda: lkj_cov(2.0, pm.Uniform.dist(0.0, 2.0)),
    "Wishart": lambda: pm.Wishart.dist(nu=5, V=scale),
    "Wishart batch": lambda: pm.Wishart.dist(nu=5, V=scale, size=2),
}


@pytest.fixture
def simple(monkeypatch):
    monkeypatch.setattr(student, "student_t", simple_quantile)
    monkeypatch.setattr(covariance, "gamma_log", simple_quantile)


# that of LKJCorr is a part of it; seven seconds each
@parametrize(["LKJCorr", "LKJCholeskyCov bounded", "Wishart"], quick=["LKJCholeskyCov bounded"])
def test_density_is_the_prior(name):
    Family(DISTS[name]()).check_prior(jacobian=False)


@parametrize(DISTS, quick=["LKJCholeskyCov bounded", "Wishart"])  # of which LKJCorr is a part
def test_laws(name, simple):
    family = Family(DISTS[name]())
    # the covariance's gate acts in its natural coordinates
    family.check_gated(identity=not isinstance(family.site, CholeskyCovariance))
    if name not in ("LKJCorr of two", "LKJCorr batch", "LKJCholeskyCov"):
        family.check_backends()


@pytest.mark.slow  # numba takes minutes
def test_numba_agrees(simple):
    Family(DISTS["LKJCorr"]()).check_backends("NUMBA")


PARAMETRIC = {
    "LKJCorr": ((1.5,), lambda eta: pm.LKJCorr.dist(n=3, eta=eta)),
    "LKJCholeskyCov": (
        (1.5, 2.0),
        lambda eta, sd: lkj_cov(eta, pm.Exponential.dist(scale=sd)),
    ),
    "Wishart": ((scale,), lambda v: pm.Wishart.dist(nu=5, V=v)),
}


@parametrize(PARAMETRIC, quick=["Wishart"])  # LKJ's passes through quantiles of test_by_density.py
def test_parameter_gradients(name, simple):
    parametric(*PARAMETRIC[name]).check_parameter_gradients()


@pytest.mark.slow  # the density at other sizes and shapes, six times
def test_large_correlation_matrices():
    eta = pt.scalar("eta")
    family = Family(pm.LKJCorr.dist(n=10, eta=eta), parameters=[eta], at=[1.0])
    compiled = family.functions(False)
    for concentration in (0.5, 1.0, 100.0):
        for size in (1.0, 2.0):
            noise = family.noise(1, size)
            value, log_det = compiled.forward(concentration, noise)
            back, inverse_log_det = compiled.inverse(concentration, value)
            np.testing.assert_allclose(back, noise, atol=1e-8)
            np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-8)
            family.at = [np.asarray(concentration)]
            ours = -0.5 * (noise**2 + np.log(2 * np.pi)).sum() - log_det
            np.testing.assert_allclose(ours, family.log_density(np.asarray(value)), rtol=1e-7)


def test_a_matrix_needs_its_transform():
    with pytest.raises(NotImplementedError):
        emf.bijection(pm.LKJCorr.dist(n=3, eta=1.0), transform=None)
