"""Every multivariate and time-series distribution of PyMC is embedded, or excepted for a reason."""

import numpy as np
import pymc as pm
import pytest

from pymc.distributions import multivariate, timeseries
from pymc.distributions.transforms import _default_transform

from pymc_emf.bijections import bijection_from_rv

ring = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
start, starts = pm.Normal.dist(0, 1), pm.MvNormal.dist(np.zeros(2), np.eye(2))

EMBEDDED = {
    "AR": lambda: pm.AR.dist([0.5], init_dist=start, steps=3),
    "CAR": lambda: pm.CAR.dist(np.zeros(4), ring, 0.5, 1.0),
    "Dirichlet": lambda: pm.Dirichlet.dist(np.ones(3)),
    "EulerMaruyama": lambda: pm.EulerMaruyama.dist(
        0.1, lambda x, a: (-a * x, 1.0), (1.0,), init_dist=start, steps=3
    ),
    "GARCH11": lambda: pm.GARCH11.dist(0.5, 0.3, 0.4, 1.0, steps=3),
    "GaussianRandomWalk": lambda: pm.GaussianRandomWalk.dist(0, 1, init_dist=start, steps=3),
    "ICAR": lambda: pm.ICAR.dist(ring),
    "KroneckerNormal": lambda: pm.KroneckerNormal.dist(np.zeros(4), covs=[np.eye(2), np.eye(2)]),
    "LKJCholeskyCov": lambda: pm.LKJCholeskyCov.dist(
        1.0, 3, pm.Exponential.dist(1.0), compute_corr=False
    ),
    "LKJCorr": lambda: pm.LKJCorr.dist(n=3, eta=1.0),
    "MatrixNormal": lambda: pm.MatrixNormal.dist(0.0, rowcov=np.eye(2), colcov=np.eye(3)),
    "MvGaussianRandomWalk": lambda: pm.MvGaussianRandomWalk.dist(
        np.zeros(2), cov=np.eye(2), init_dist=starts, steps=3
    ),
    "MvNormal": lambda: pm.MvNormal.dist(np.zeros(2), np.eye(2)),
    "MvStudentT": lambda: pm.MvStudentT.dist(4.0, mu=np.zeros(2), scale=np.eye(2)),
    "MvStudentTRandomWalk": lambda: pm.MvStudentTRandomWalk.dist(
        nu=4.0, mu=np.zeros(2), scale=np.eye(2), init_dist=starts, steps=3
    ),
    "RandomWalk": lambda: pm.RandomWalk.dist(start, pm.Laplace.dist(0, 1), steps=3),
    "StickBreakingWeights": lambda: pm.StickBreakingWeights.dist(1.0, K=3),
    "Wishart": lambda: pm.Wishart.dist(nu=4, V=np.eye(2)),
    "ZeroSumNormal": lambda: pm.ZeroSumNormal.dist(shape=3),
}

EXCEPTED = {
    "DirichletMultinomial": "discrete",
    "Multinomial": "discrete",
    "OrderedMultinomial": "discrete",
    "WishartBartlett": "deprecated, no distribution of its own: it makes a Wishart",
}


def test_every_distribution_is_accounted_for():
    names = {*multivariate.__all__, *timeseries.__all__}
    assert names == {*EMBEDDED, *EXCEPTED}
    assert not EMBEDDED.keys() & EXCEPTED.keys()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded(name):
    dist = EMBEDDED[name]()
    transform = _default_transform(dist.owner.op, dist)
    site = bijection_from_rv(dist, transform)
    assert site is not None
    assert site.gateable
