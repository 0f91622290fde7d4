"""The exactness law on models at random: families, shapes, transforms and parents."""

import jax
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from pymc.distributions import transforms as tr
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.engine.jax import jaxify
from tests.helpers import UNREWRITTEN

REAL = {
    "Normal": lambda name, m, s, **kw: pm.Normal(name, m, s, **kw),
    "Laplace": lambda name, m, s, **kw: pm.Laplace(name, m, s, **kw),
    "Logistic": lambda name, m, s, **kw: pm.Logistic(name, m, s, **kw),
    "Gumbel": lambda name, m, s, **kw: pm.Gumbel(name, m, s, **kw),
    "Moyal": lambda name, m, s, **kw: pm.Moyal(name, m, s, **kw),
    "AsymmetricLaplace": lambda name, m, s, **kw: pm.AsymmetricLaplace(name, s, m, 1.0, **kw),
}
POSITIVE = {
    "HalfNormal": lambda name, m, s, **kw: pm.HalfNormal(name, s, **kw),
    "Exponential": lambda name, m, s, **kw: pm.Exponential(name, s, **kw),
    "LogNormal": lambda name, m, s, **kw: pm.LogNormal(name, m, s, **kw),
    "Weibull": lambda name, m, s, **kw: pm.Weibull(name, 1.5, s, **kw),
    "HalfCauchy": lambda name, m, s, **kw: pm.HalfCauchy(name, s, **kw),
}
BOUNDED = {
    "Uniform": lambda name, m, s, **kw: pm.Uniform(name, m - s, m + s, **kw),
    "Kumaraswamy": lambda name, m, s, **kw: pm.Kumaraswamy(name, s, 1.5, **kw),
}
VECTORS = {
    "MvNormal": lambda name, m, s: pm.MvNormal(name, m * np.ones(2), s * np.eye(2) + 0.3),
    "ZeroSumNormal": lambda name, m, s: pm.ZeroSumNormal(name, s, shape=3),
    "RandomWalk": lambda name, m, s: pm.GaussianRandomWalk(
        name, m, s, init_dist=pm.Normal.dist(0, 1), steps=3
    ),
    "AR": lambda name, m, s: pm.AR(
        name, pt.stack([m, 0.5]), s, init_dist=pm.Normal.dist(0, 1), constant=True, steps=3
    ),
    "ordered": lambda name, m, s: pm.Normal(
        name, m, s, shape=2, transform=tr.ordered, initval=np.arange(2.0)
    ),
}
#: Families that take seconds to compile: at most one or two of them in a model.
BY_QUADRATURE = {
    "Gamma": lambda name, m, s: pm.Gamma(name, 1.5, s),
    "Beta": lambda name, m, s: pm.Beta(name, s, 2.0, shape=2),
    "StudentT": lambda name, m, s: pm.StudentT(name, 4.0, m, sigma=s),
    "TruncatedNormal": lambda name, m, s: pm.TruncatedNormal(name, m, s, lower=-1.0),
    "Dirichlet": lambda name, m, s: pm.Dirichlet(name, s * np.ones(3)),
    "NormalMixture": lambda name, m, s: pm.NormalMixture(
        name, [0.3, 0.7], pt.stack([m, m + 1.0]), sigma=s
    ),
}
CHEAP = REAL | POSITIVE | BOUNDED


@hs.composite
def models(draw, most, most_by_quadrature):
    """A model, each variable of which may depend on any two of those before it."""
    n = draw(hs.integers(2, most))
    by_quadrature = draw(hs.sets(hs.integers(0, n - 1), max_size=most_by_quadrature))
    variables = []
    with pm.Model() as model:
        for i in range(n):
            parents = draw(hs.lists(hs.sampled_from(variables), max_size=2)) if variables else []
            shift = sum((pt.tanh(parent.sum()) for parent in parents), pt.zeros(()))
            loc = draw(hs.floats(-1, 1)) + 0.5 * shift
            scale = draw(hs.floats(0.5, 2.0)) * pt.exp(0.3 * shift)
            if i in by_quadrature:
                family = draw(hs.sampled_from(sorted(BY_QUADRATURE)))
                x = BY_QUADRATURE[family](f"x{i}", loc, scale)
            elif draw(hs.integers(0, 4)) == 0:
                family = draw(hs.sampled_from(sorted(VECTORS)))
                x = VECTORS[family](f"x{i}", loc, scale)
            else:
                family = draw(hs.sampled_from(sorted(CHEAP)))
                options = {}
                if draw(hs.booleans()):
                    options["shape"] = draw(hs.sampled_from([(2,), (1,), (2, 2)]))
                if family in POSITIVE and draw(hs.booleans()):
                    options["default_transform"] = draw(hs.sampled_from([None, tr.LogExpM1()]))
                x = CHEAP[family](f"x{i}", loc, scale, **options)
            variables.append(x)
    return model


def check(model, seed):
    layer = emf.StructuredLayer(model, "element")
    assert not layer.bypassed
    (gates,) = layer.parameters or (None,)
    noise = pt.vector("noise", shape=(layer.size,))
    inputs = [*layer.parameters, noise]
    forward = jax.jit(jaxify(inputs, layer.forward(noise)))
    inverse = jax.jit(jaxify(inputs, layer.inverse(noise)))
    rng = np.random.default_rng(seed)
    point = rng.normal(size=layer.size)

    def gated(raw):
        return [] if gates is None else [np.full(gates.get_value().shape, raw)]

    for raw in (10.0, 0.0):  # open, half open
        value, log_det = forward(*gated(raw), point)
        back, back_log_det = inverse(*gated(raw), value)
        np.testing.assert_allclose(back, point, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(back_log_det, -log_det, rtol=1e-6, atol=1e-6)
        jacobian = jax.jacfwd(lambda e, raw=raw: forward(*gated(raw), e)[0])(point)
        sign, expected = np.linalg.slogdet(jacobian)
        assert sign == 1
        np.testing.assert_allclose(log_det, expected, rtol=1e-6, atol=1e-6)

    value, log_det = forward(*gated(10.0), point)
    value = np.asarray(value)
    values = {
        site.value_name: value[site.noise].reshape(site.shape) for site in layer.program.sites
    }
    constant = sum(  # PyMC leaves out the number of permutations
        np.log(2.0) for site in layer.program.sites if isinstance(site.transform, tr.Ordered)
    )
    log_density = model.compile_fn(
        model.logp(), mode=UNREWRITTEN, point_fn=True, on_unused_input="ignore"
    )(values)
    np.testing.assert_allclose(
        norm.logpdf(point).sum() - log_det, log_density + constant, rtol=1e-6, atol=1e-6
    )


def options(max_examples):
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@options(3)
@given(model=models(8, 1), seed=hs.integers(0, 1000))
def test_law(model, seed):
    check(model, seed)


@pytest.mark.slow
@options(12)
@given(model=models(30, 2), seed=hs.integers(0, 1000))
def test_law_of_large_models(model, seed):
    check(model, seed)
