"""Ordered vectors: the laws, and order statistics."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms as tr
from scipy.special import gammaln
from scipy.stats import beta, norm

import pymc_emf as emf

from tests.helpers import Functions, parametrize

scale = pt.dscalar("scale")

CASES = {
    "Normal": (lambda: pm.Normal.dist(1.0, scale, shape=3), tr.ordered),
    "HalfNormal positive": (lambda: pm.HalfNormal.dist(scale, shape=2), tr.Ordered(positive=True)),
    "LogNormal chained": (
        lambda: pm.LogNormal.dist(0.0, scale, shape=2),
        tr.Chain([tr.log, tr.ordered]),
    ),
    "Normal batch, descending": (
        lambda: pm.Normal.dist(np.zeros((2, 2)), scale, shape=(2, 2)),
        tr.Ordered(ascending=False),
    ),
    "Normal of different means": (
        lambda: pm.Normal.dist(np.array([-1.0, 0.0, 2.0]), scale),
        tr.ordered,
    ),
}


@cache
def functions(name, gated):
    build, transform = CASES[name]
    dist = build()
    shape = tuple(int(n) for n in dist.shape.eval({scale: 1.0}, on_unused_input="ignore"))
    site = emf.bijection(dist, transform=transform)
    gate = pt.tensor("gate", shape=shape)
    compiled = Functions(
        site.gated(gate) if gated else site, [scale, gate] if gated else [scale], shape
    )
    compiled.shape, compiled.dist, compiled.transform = shape, dist, transform
    return compiled


# the others are this search under a transform, which takes up to half a minute to compile
@parametrize(CASES, quick=["Normal of different means"])
def test_laws(name):
    compiled = functions(name, False)
    rng = np.random.default_rng(1)
    for noise in (rng.normal(size=compiled.shape), rng.uniform(-6, 6, size=compiled.shape)):
        value, log_det = compiled.check_laws([0.7], noise)
    far = np.resize([-8.0, 8.0, -8.0, 0.0, 8.0], compiled.shape)
    assert np.isfinite(compiled.forward(0.7, far)[0]).all()
    if name == "Normal of different means":
        return  # PyMC's prior has no normaliser in closed form
    v = pt.tensor("v", shape=compiled.shape)
    inputs = compiled.dist.owner.inputs
    density = pm.logp(compiled.dist, compiled.transform.backward(v, *inputs))
    total = density.sum() + compiled.transform.log_jac_det(v, *inputs).sum()
    expected = total.eval({v: value, scale: 0.7})
    # PyMC leaves out the number of permutations
    expected += gammaln(compiled.shape[-1] + 1) * np.prod(compiled.shape[:-1])
    np.testing.assert_allclose(norm.logpdf(noise).sum() - log_det, expected, rtol=1e-7)


@pytest.mark.slow  # a search in a search; of the map itself the laws are tested above
def test_gated():
    name = "Normal"
    compiled = functions(name, True)
    rng = np.random.default_rng(2)
    noise, gate = rng.normal(size=(2, *compiled.shape))
    compiled.check_laws([0.7, norm.cdf(gate)], noise, rtol=1e-5)
    value, _ = compiled.check_laws([0.7, np.zeros(compiled.shape)], noise)
    np.testing.assert_allclose(value, noise)
    value, _ = compiled.forward(0.7, np.ones(compiled.shape), noise)
    np.testing.assert_allclose(value, functions(name, False).forward(0.7, noise)[0], rtol=1e-9)


def test_order_statistics():
    """The i-th smallest of three uniform variables is a Beta(i, 4 - i) variate."""
    compiled = functions("Normal", False)
    noise = np.random.default_rng(3).normal(size=(2000, 3))
    values = np.array([compiled.forward(0.7, e)[0] for e in noise])
    x = tr.ordered.backward(values).eval()
    for i in range(3):
        u = beta(i + 1, 3 - i).cdf(norm.cdf(x[:, i], 1.0, 0.7))
        np.testing.assert_allclose(np.mean(u), 0.5, atol=4 / np.sqrt(12 * 2000))
        np.testing.assert_allclose(np.var(u), 1 / 12, rtol=0.1)


def test_backends_agree():
    compiled = functions("Normal", False)
    compiled.check_backends([0.7], np.random.default_rng(4).normal(size=compiled.shape))
