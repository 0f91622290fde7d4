"""The exactness law of distributions on the simplex."""

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.bijections.families import simplex
from tests.helpers import parametrize
from tests.laws import Family, parametric, simple_quantile

DISTS = {
    "Dirichlet": lambda: pm.Dirichlet.dist([0.5, 2.0, 1.0, 7.0]),
    "Dirichlet of two": lambda: pm.Dirichlet.dist([0.5, 2.0]),
    "Dirichlet batch": lambda: pm.Dirichlet.dist([[0.5, 2.0, 1.0], [20.0, 3.0, 3.0]]),
    "StickBreakingWeights": lambda: pm.StickBreakingWeights.dist(2.5, K=4),
    "StickBreakingWeights batch": lambda: pm.StickBreakingWeights.dist([2.5, 0.7], K=3),
}


@parametrize(["Dirichlet", "Dirichlet batch"], slow=["Dirichlet batch"])  # more to search
def test_density_is_the_prior(name):
    Family(DISTS[name]()).check_prior(jacobian=False)


# a batch is compiled in the laws
@parametrize(["StickBreakingWeights", "StickBreakingWeights batch"], quick=["StickBreakingWeights"])
def test_ungated_bijection_is_the_prior(name):
    Family(DISTS[name]()).check_prior()


# the others are batches and parts of these
@parametrize(DISTS, quick=["Dirichlet", "StickBreakingWeights"])
def test_laws(name, monkeypatch):
    monkeypatch.setattr(simplex, "beta_logit", simple_quantile)
    family = Family(DISTS[name]())
    family.check_gated()
    family.check_backends()


@pytest.mark.slow  # numba takes minutes
@pytest.mark.parametrize("name", ["Dirichlet batch", "StickBreakingWeights"])
def test_numba_agrees(name, monkeypatch):
    monkeypatch.setattr(simplex, "beta_logit", simple_quantile)
    Family(DISTS[name]()).check_backends("NUMBA")


@pytest.mark.parametrize("small", [1e-2, 30.0])
def test_extreme_concentrations(small, monkeypatch):
    # as wide and as narrow as the logits of such Betas
    monkeypatch.setattr(simplex, "beta_logit", simple_quantile)
    family = parametric((np.array([small, 1.0, small, 5.0]),), pm.Dirichlet.dist)
    noise = family.noise(1)
    compiled = family.functions(False)
    value, log_det = compiled.forward(*family.at, noise)
    back, inverse_log_det = compiled.inverse(*family.at, value)
    np.testing.assert_allclose(back, noise, rtol=1e-8)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-8)


def test_many_components(monkeypatch):
    monkeypatch.setattr(simplex, "beta_logit", simple_quantile)
    family = Family(pm.Dirichlet.dist(np.linspace(0.5, 2.0, 50)))
    compiled, rng = family.functions(True), np.random.default_rng(1)
    for gate in (rng.uniform(size=49), np.zeros(49), np.ones(49)):
        noise = family.noise(1)
        value, log_det = compiled.forward(gate, noise)
        back, inverse_log_det = compiled.inverse(gate, value)
        np.testing.assert_allclose(back, noise, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-8)


PARAMETRIC = {
    "Dirichlet": ((np.array([0.5, 2.0, 1.0]),), lambda a: pm.Dirichlet.dist(a)),
    "StickBreakingWeights": ((2.5,), lambda a: pm.StickBreakingWeights.dist(a, K=4)),
}


@parametrize(PARAMETRIC, quick=["Dirichlet"])  # StickBreakingWeights have a part of it
def test_parameter_gradients(name, monkeypatch):
    monkeypatch.setattr(simplex, "beta_logit", simple_quantile)
    parametric(*PARAMETRIC[name]).check_parameter_gradients()


@pytest.mark.parametrize(
    "dist", [pm.Dirichlet.dist([1.0, 2.0]), pm.StickBreakingWeights.dist(1, 2)]
)
def test_a_simplex_needs_its_transform(dist):
    with pytest.raises(NotImplementedError):
        emf.bijection(dist, transform=None)
