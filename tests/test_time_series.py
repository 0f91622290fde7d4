"""The exactness law of sequential families."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from tests.helpers import parametrize
from tests.laws import Family, parametric

chol = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]])
cov = chol @ chol.T
small = np.array([[1.0, 0.5], [0.5, 2.0]])


def ornstein_uhlenbeck(x, mean, rate):
    return rate * (mean - x), 0.3 + 0.1 * pt.cos(x)


def lorenz(x, rho):
    a, b, c = x[0], x[1], x[2]
    drift = pt.stack([10.0 * (b - a), a * (rho - c) - b, a * b - 8.0 / 3.0 * c])
    return drift, 0.1 * pt.ones_like(x)


DISTS = {
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

#: Gated Laplace innovations are inverted by root finding, which takes Python half a minute.
ROOT_FINDING = ("RandomWalk Laplace", "AR3 Laplace")


@cache
def family(name):
    return Family(DISTS[name]())


#: What an axis of batches, another order or other innovations change, which are tested elsewhere.
VARIANTS = (
    "GaussianRandomWalk batch",
    "AR1",
    "AR3 Laplace",
    "GARCH11 batch",
    "EulerMaruyama batch",
)


@parametrize(DISTS, slow=VARIANTS)
def test_ungated_bijection_is_the_prior(name):
    family(name).check_prior()


# vectors are those of test_multivariate.py, and Laplace that of test_univariate.py
@parametrize(DISTS, slow=(*VARIANTS, "MvGaussianRandomWalk", "RandomWalk Laplace"))
def test_gated_bijection(name):
    family(name).check_gated()


@pytest.mark.parametrize("name", [name for name in DISTS if name not in ROOT_FINDING])
def test_backends_agree(name):
    family(name).check_backends()


@parametrize(DISTS, quick=[])  # numba takes up to half a minute
def test_numba_agrees(name):
    family(name).check_backends("NUMBA")


PARAMETRIC = {
    "GARCH11": (
        (np.array([0.5, 0.2]), 0.3, 0.4, 1.2),
        lambda w, a, b, s: pm.GARCH11.dist(w, a, b, s, shape=(2, 5)),
    ),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameter_gradients(name):
    parametric(*PARAMETRIC[name]).check_parameter_gradients()
