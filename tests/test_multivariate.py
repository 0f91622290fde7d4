"""The exactness law of multivariate and sequential families."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from scipy.stats import norm

import pymc_emf as emf

from tests.helpers import UNREWRITTEN, Functions

chol = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]])
cov = chol @ chol.T


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


@cache
def functions(name, gated):
    dist = DISTS[name]()
    shape = tuple(int(n) for n in dist.shape.eval())
    site = emf.bijection(dist)
    gate = pt.tensor("gate", shape=shape)
    arguments = [gate] if gated else []
    compiled = Functions(site.gated(gate) if gated else site, arguments, shape)
    compiled.dist, compiled.shape = dist, shape
    return compiled


pytestmark = pytest.mark.parametrize("name", DISTS)


def test_ungated_layer_is_the_prior(name):
    compiled = functions(name, False)
    noise = np.random.default_rng(1).normal(size=compiled.shape)
    value, log_det = compiled.check_laws([], noise)
    v = pt.tensor("v", shape=compiled.shape)
    log_density = pm.logp(compiled.dist, v).sum().eval({v: value})
    # PyMC computes with float32 constants where a Python number fits in one
    np.testing.assert_allclose(norm.logpdf(noise).sum() - log_det, log_density, rtol=1e-7)


def test_gated_layer(name):
    compiled = functions(name, True)
    rng = np.random.default_rng(2)
    noise = rng.normal(size=compiled.shape)
    compiled.check_laws([rng.uniform(size=compiled.shape)], noise)
    value, _ = compiled.check_laws([np.zeros(compiled.shape)], noise)
    np.testing.assert_allclose(value, noise)
    # all gates one is the ungated layer
    value, _ = compiled.forward(np.ones(compiled.shape), noise)
    np.testing.assert_allclose(value, functions(name, False).forward(noise)[0], rtol=1e-12)


def test_backends_agree(name):
    compiled = functions(name, True)
    rng = np.random.default_rng(3)
    modes = (UNREWRITTEN, "NUMBA") if name in SLOW_TO_TRUST else (UNREWRITTEN,)
    compiled.check_backends(
        [rng.uniform(size=compiled.shape)], rng.normal(size=compiled.shape), modes
    )


#: One of each kind of graph goes through numba as well, which takes seconds to compile.
SLOW_TO_TRUST = ("MvNormal batch", "GaussianRandomWalk batch", "AR2 batch", "EulerMaruyama vector")
