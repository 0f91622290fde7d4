"""Every distribution that PyMC exports is embedded, or excepted for a reason."""

import inspect

import numpy as np
import pymc as pm
import pytest

from pymc.distributions.transforms import _default_transform

import pymc_emf as emf

from pymc_emf.bijections import bijection_from_rv

ring = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
start, starts = pm.Normal.dist(0, 1), pm.MvNormal.dist(np.zeros(2), np.eye(2))

ordinary = (pm.Normal.dist(0, 1), pm.Normal.dist(3, 1))
knots = np.array([0.0, 1.0, 2.0])

EMBEDDED = {
    "AsymmetricLaplace": lambda: pm.AsymmetricLaplace.dist(kappa=2.0, mu=0.0, b=1.0),
    "Beta": lambda: pm.Beta.dist(2.0, 1.0),
    "Cauchy": lambda: pm.Cauchy.dist(0.0, 1.0),
    "ChiSquared": lambda: pm.ChiSquared.dist(3.0),
    "CustomDist": lambda: pm.CustomDist.dist(0.0, logp=lambda x, mu: -((x - mu) ** 2)),
    "ExGaussian": lambda: pm.ExGaussian.dist(0.0, 1.0, nu=1.0),
    "Exponential": lambda: pm.Exponential.dist(1.0),
    "Gamma": lambda: pm.Gamma.dist(2.0, 1.0),
    "Gumbel": lambda: pm.Gumbel.dist(0.0, 1.0),
    "HalfCauchy": lambda: pm.HalfCauchy.dist(1.0),
    "HalfNormal": lambda: pm.HalfNormal.dist(1.0),
    "HalfStudentT": lambda: pm.HalfStudentT.dist(4.0, 1.0),
    "Interpolated": lambda: pm.Interpolated.dist(knots, np.array([0.0, 1.0, 0.5])),
    "InverseGamma": lambda: pm.InverseGamma.dist(2.0, 1.0),
    "Kumaraswamy": lambda: pm.Kumaraswamy.dist(2.0, 1.0),
    "Laplace": lambda: pm.Laplace.dist(0.0, 1.0),
    "LogNormal": lambda: pm.LogNormal.dist(0.0, 1.0),
    "Logistic": lambda: pm.Logistic.dist(0.0, 1.0),
    "LogitNormal": lambda: pm.LogitNormal.dist(0.0, 1.0),
    "Lognormal": lambda: pm.Lognormal.dist(0.0, 1.0),
    "Mixture": lambda: pm.Mixture.dist([0.5, 0.5], ordinary),
    "Moyal": lambda: pm.Moyal.dist(0.0, 1.0),
    "Normal": lambda: pm.Normal.dist(0.0, 1.0),
    "NormalMixture": lambda: pm.NormalMixture.dist([0.5, 0.5], np.array([0.0, 3.0]), sigma=1.0),
    "Pareto": lambda: pm.Pareto.dist(2.0, 1.0),
    "Rice": lambda: pm.Rice.dist(1.0, 1.0),
    "SkewNormal": lambda: pm.SkewNormal.dist(2.0, 0.0, 1.0),
    "SkewStudentT": lambda: pm.SkewStudentT.dist(2.0, 1.0, mu=0.0, sigma=1.0),
    "StudentT": lambda: pm.StudentT.dist(4.0, 0.0, sigma=1.0),
    "Triangular": lambda: pm.Triangular.dist(0.0, 2.0, 0.5),
    "Truncated": lambda: pm.Truncated.dist(pm.Gamma.dist(2.0, 1.0), lower=1.0),
    "TruncatedNormal": lambda: pm.TruncatedNormal.dist(0.0, 1.0, lower=0.0),
    "Uniform": lambda: pm.Uniform.dist(0.0, 1.0),
    "VonMises": lambda: pm.VonMises.dist(0.0, 1.0),
    "Wald": lambda: pm.Wald.dist(1.0, 1.0),
    "Weibull": lambda: pm.Weibull.dist(1.0, 1.0),
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

#: Continuous, and not embedded.
EXCEPTED = {
    "Censored": "its measure has atoms",
    "DensityDist": "deprecated name of CustomDist",
    "Flat": "improper",
    "HalfFlat": "improper",
    "HurdleGamma": "its measure has an atom",
    "HurdleLogNormal": "its measure has an atom",
    "PolyaGamma": "PyMC's density is compiled code without derivatives, which JAX cannot run",
    "Simulator": "it has no density",
    "WishartBartlett": "deprecated, no distribution of its own: it makes a Wishart",
}

#: The identity would leave the support.
NOT_GATED = {
    "LogitNormal": "PyMC gives it no transform",
    "VonMises": "an angle of one turn, whose density repeats itself",
}

ABSTRACT = {"Continuous", "Discrete", "Distribution", "SymbolicRandomVariable"}


def is_discrete(name):
    distribution = getattr(pm.distributions, name)
    if inspect.isclass(distribution) and issubclass(distribution, pm.Discrete):
        return True
    return name.startswith(("ZeroInflated", "Ordered", "HurdlePoisson", "HurdleNegative"))


def test_every_distribution_is_accounted_for():
    names = {name for name in pm.distributions.__all__ if not is_discrete(name)} - ABSTRACT
    assert names == {*EMBEDDED, *EXCEPTED}
    assert not EMBEDDED.keys() & EXCEPTED.keys()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded(name):
    dist = EMBEDDED[name]()
    transform = _default_transform(dist.owner.op, dist)
    site = bijection_from_rv(dist, transform)
    assert site is not None
    assert site.gateable == (name not in NOT_GATED)


@pytest.mark.filterwarnings("ignore:No safe default transform")
@pytest.mark.parametrize(
    "build",
    [
        lambda: pm.Flat.dist(),
        lambda: pm.HalfFlat.dist(),
        lambda: pm.Censored.dist(pm.Normal.dist(0, 1), lower=0.0, upper=None),
        lambda: pm.PolyaGamma.dist(1.0, 0.0),
        lambda: pm.HurdleGamma.dist(psi=0.5, alpha=2.0, beta=1.0),
    ],
)
def test_excepted(build):
    dist = build()
    transform = _default_transform(dist.owner.op, dist)
    assert bijection_from_rv(dist, transform) is None


@pytest.mark.filterwarnings("ignore:Data in . contains missing values")
def test_imputed_data_whose_density_is_not_their_own_are_bypassed():
    """PyMC splits what is missing off the distributions that are one Op, and no others."""
    with pm.Model() as model:
        pm.NormalMixture("y", [0.5, 0.5], [0.0, 1.0], observed=np.ma.masked_less([-1.0, 0, 1], 0))
        pm.Normal("z", observed=np.ma.masked_less([-1.0, 0, 1], 0))
    assert emf.StructuredLayer(model).bypassed == {"y_unobserved"}
    assert "one with that of what is observed" in str(emf.describe(model))
