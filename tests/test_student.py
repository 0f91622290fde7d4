"""The exactness law of multivariate Student t distributions."""

import numpy as np
import pymc as pm
import pytest

from pymc_emf.bijections.families import student
from tests.helpers import parametrize
from tests.laws import Family, parametric, simple_quantile

cov = np.array([[1.0, 0.5, -0.3], [0.5, 4.25, 0.25], [-0.3, 0.25, 0.62]])

DISTS = {
    "one": lambda: pm.MvStudentT.dist(3.5, mu=[1.0, 2.0, 3.0], scale=cov),
    "batch": lambda: pm.MvStudentT.dist(
        [1.5, 3.5], mu=np.arange(6.0).reshape(2, 3), scale=np.stack([cov, np.eye(3)])
    ),
    "random walk": lambda: pm.MvStudentTRandomWalk.dist(
        nu=4.5,
        mu=np.zeros(3),
        scale=cov,
        init_dist=pm.MvNormal.dist(np.zeros(3), cov),
        steps=3,
    ),
}


@parametrize(DISTS, quick=["one"])  # the same search, with more to compile
def test_density_is_the_prior(name):
    Family(DISTS[name]()).check_prior(jacobian=False)


@parametrize(DISTS, quick=["batch"])  # one is in it, and walks are those of test_multivariate.py
def test_laws(name, monkeypatch):
    monkeypatch.setattr(student, "student_t", simple_quantile)
    family = Family(DISTS[name]())
    family.check_gated()
    family.check_backends()


@pytest.mark.slow  # numba takes a minute
def test_numba_agrees(monkeypatch):
    monkeypatch.setattr(student, "student_t", simple_quantile)
    Family(DISTS["batch"]()).check_backends("NUMBA")


def test_parameter_gradients(monkeypatch):
    monkeypatch.setattr(student, "student_t", simple_quantile)
    at = (3.5, np.array([1.0, 2.0, 3.0]), cov)
    site = parametric(at, lambda nu, mu, scale: pm.MvStudentT.dist(nu, mu=mu, scale=scale))
    site.check_parameter_gradients()
