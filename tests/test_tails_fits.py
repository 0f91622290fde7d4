"""Censored, truncated and self-made densities: fits against long runs of NUTS."""

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_emf as emf

from pymc_emf.layers import StructuredLayer
from pymc_emf.model.program import Program
from pymc_emf.variational.target import Target


def tobit():
    """Linear regression of what is seen above zero only; a third of the data are at zero."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=80)
    y = np.maximum(0.4 + 1.5 * x + rng.normal(0, 0.8, 80), 0.0)
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 10), pm.Normal("b", 0, 10)
        sigma = pm.HalfNormal("sigma", 5)
        pm.Censored("y", pm.Normal.dist(a + b * x, sigma), lower=0.0, upper=None, observed=y)
    return model


def truncated():
    """Linear regression of which nothing below one is in the data."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=300)
    y = 1.0 + 1.2 * x + rng.normal(0, 0.7, 300)
    x, y = x[y > 1.0], y[y > 1.0]
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 10), pm.Normal("b", 0, 10)
        sigma = pm.HalfNormal("sigma", 5)
        pm.Truncated("y", pm.Normal.dist(a + b * x, sigma), lower=1.0, upper=None, observed=y)
    return model


def first_passage():
    """Times at which a random walk leaves an interval, by a density of the user's own."""
    rng = np.random.default_rng(9)
    steps = 1.0 * 0.002 + np.sqrt(0.002) * rng.normal(size=(60, 5000))
    walks = 0.75 + steps.cumsum(axis=1)
    outside = (walks <= 0) | (walks >= 1.5)
    end = outside.argmax(axis=1)
    answer = np.where(walks[np.arange(60), end] > 0.75, 1, -1)
    rt = 0.002 * end + 0.3

    def logp(value, v, a, t):
        drift, time, w, k = -v * answer, value - t, 0.5, np.arange(-3, 4)
        u = pt.maximum(time, 1e-6) / a**2
        series = ((w + 2 * k) * pt.exp(-((w + 2 * k) ** 2) / (2 * u[:, None]))).sum(1)
        log_density = pt.log(pt.maximum(series, 1e-30)) - 0.5 * np.log(2 * np.pi) - 1.5 * pt.log(u)
        result = log_density - drift * a * w - drift**2 * time / 2 - 2 * pt.log(a)
        return pt.switch(time > 0, result, -np.inf)

    with pm.Model() as model:
        v = pm.Normal("v", 0, 2)
        a = pm.TruncatedNormal("a", 1.5, 0.5, lower=0.1)
        t = pm.Uniform("t", 0, rt.min())
        pm.CustomDist("rt", v, a, t, logp=logp, observed=rt)
    return model


def censored_weibull():
    """Survival times in groups, with their own scales and shapes."""
    rng = np.random.default_rng(2)
    groups, n = 10, 200
    scale, shape = rng.normal(1.5, 0.4, groups), rng.normal(0.3, 0.2, groups)
    g = rng.integers(0, groups, n)
    t, c = np.exp(scale[g]) * rng.weibull(np.exp(shape[g])), rng.uniform(1, 9, n)
    with pm.Model(coords={"g": range(groups)}) as model:
        ml, sl = pm.Normal("log_scale_mu", 0, 2), pm.Exponential("log_scale_sd", 1)
        mk, sk = pm.Normal("log_k_mu", 0, 1), pm.Exponential("log_k_sd", 1)
        ls, lk = pm.Normal("log_scale", ml, sl, dims="g"), pm.Normal("log_k", mk, sk, dims="g")
        base = pm.Weibull.dist(pm.math.exp(lk[g]), pm.math.exp(ls[g]))
        upper, seen = np.where(t > c, c, np.inf), np.minimum(t, c)
        pm.Censored("y", base, lower=None, upper=upper, observed=seen)
    return model


def truncated_scales():
    """A normal truncated on both sides, whose location may be far outside."""
    with pm.Model() as model:
        mu, sigma = pm.Normal("mu", 0, 5), pm.HalfNormal("sigma", 1)
        pm.TruncatedNormal("y", mu, sigma, lower=-1.0, upper=1.0, observed=[0.3, -0.2, 0.8])
    return model


MODELS = [tobit, truncated, truncated_scales, first_passage, censored_weibull]

#: Means and standard deviations of draws by NUTS (nutpie, four chains, seed 1): 20,000, and 12,000
#: with a target acceptance of 0.95.
BY_NUTS = {
    tobit: {"a": (0.5309, 0.1098), "b": (1.4068, 0.1248), "sigma": (0.7982, 0.0818)},
    truncated: {"a": (0.8403, 0.1985), "b": (1.2374, 0.1343), "sigma": (0.7518, 0.0675)},
    first_passage: {"v": (1.2830, 0.1872), "a": (1.7474, 0.1377), "t": (0.2508, 0.0252)},
    censored_weibull: {
        "log_scale_mu": (1.4458, 0.1672),
        "log_k_mu": (0.2712, 0.0902),
        "log_scale_sd": (0.4677, 0.1565),
        "log_k_sd": (0.1215, 0.0924),
    },
}


# a series in every datum is fitted in the slow session
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=[pytest.mark.slow] if make is first_passage else [])
        for make in MODELS
    ],
)
def test_where_the_density_is_finite_so_is_the_gradient(make):
    """At draws far beyond the prior's, too; no variable is then to blame for another's NaN."""
    target = Target(StructuredLayer(Program(make())))
    noise = 2.0 * np.random.default_rng(1).normal(size=(500, target.size))
    values = [v.get_value() for v in target.variables]
    scored = target.score_many(values, noise)
    finite = np.isfinite(scored.log_density)
    assert finite.mean() > 0.05
    assert np.isfinite(scored.score[finite]).all()
    assert all(np.isfinite(slope[finite]).all() for slope in scored.slopes)


@pytest.mark.slow  # compiles second derivatives, which test_tails.py has of the families
@pytest.mark.parametrize("make", [truncated_scales, first_passage])
def test_where_the_density_is_finite_so_is_the_curvature(make):
    target = Target(StructuredLayer(Program(make())))
    noise = np.random.default_rng(1).normal(size=(100, target.size))
    values = [jnp.asarray(v.get_value()) for v in target.variables]
    target.rewrite()

    def product(e):
        score = jax.grad(lambda e: target.log_density(values, e, []))
        return target.log_density(values, e, []), jax.jvp(score, (e,), (jnp.ones_like(e),))[1]

    log_density, products = jax.jit(jax.vmap(product))(noise)
    finite = np.isfinite(log_density)
    assert finite.mean() > 0.5
    assert np.isfinite(np.asarray(products)[finite]).all()


# fits of thousands of steps, most of whose time is spent in compiling what is tested above
@pytest.mark.slow
@pytest.mark.parametrize("make", BY_NUTS)
def test_posterior_means(make):
    approx = emf.fit(model=make(), random_seed=1, progressbar=False)
    posterior = approx.sample(10_000, random_seed=2).posterior
    for name, (mean, sd) in BY_NUTS[make].items():
        assert abs(float(posterior[name].mean()) - mean) < 0.1 * sd, name
        assert abs(float(posterior[name].std()) / sd - 1) < 0.1, name
