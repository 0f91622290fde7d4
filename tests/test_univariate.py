"""The exactness law of the univariate families, against SciPy's quantiles and autodiff."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import scipy.stats as st

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from pymc.distributions import transforms as tr
from scipy.special import log_ndtr, logit, ndtr

import pymc_emf as emf

from tests.helpers import UNREWRITTEN, Functions, parametrize

positive = hs.floats(0.05, 50.0)
real = hs.floats(-50.0, 50.0)
NOISE = np.linspace(-6.0, 6.0, 12)  # without zero, where Laplace has a kink
FAR = np.linspace(-8.0, 8.0, 12)


def identity(x, *parameters):
    return x


@dataclass(frozen=True)
class Family:
    """A distribution, its SciPy twin, strategies of its parameters, and its value space."""

    dist: callable
    scipy: callable
    parameters: tuple
    to_value: callable = identity
    transform: object = "default"


def log_above(x, *parameters):
    return np.log(x)


FAMILIES = {
    "Normal": Family(pm.Normal.dist, st.norm, (real, positive)),
    "LogNormal": Family(
        pm.LogNormal.dist,
        lambda mu, sigma: st.lognorm(sigma, scale=np.exp(mu)),
        (hs.floats(-5, 5), hs.floats(0.05, 5.0)),
        log_above,
    ),
    "LogitNormal": Family(
        pm.LogitNormal.dist,
        None,
        (hs.floats(-2, 2), hs.floats(0.05, 3.0)),
        transform=tr.logodds,
    ),
    "Uniform": Family(
        lambda lower, width, **kw: pm.Uniform.dist(lower, lower + width, **kw),
        lambda lower, width: st.uniform(lower, width),
        (real, positive),
        None,
    ),
    "Exponential": Family(
        lambda scale, **kw: pm.Exponential.dist(scale=scale, **kw),
        lambda scale: st.expon(scale=scale),
        (positive,),
        log_above,
    ),
    "HalfNormal": Family(
        pm.HalfNormal.dist, lambda sigma: st.halfnorm(scale=sigma), (positive,), log_above
    ),
    "Laplace": Family(pm.Laplace.dist, st.laplace, (real, positive)),
    "Logistic": Family(pm.Logistic.dist, st.logistic, (real, positive)),
    "Gumbel": Family(pm.Gumbel.dist, st.gumbel_r, (real, positive)),
    "Weibull": Family(
        pm.Weibull.dist,
        lambda alpha, beta: st.weibull_min(alpha, scale=beta),
        (hs.floats(0.2, 50.0), positive),
        log_above,
    ),
    "Pareto": Family(
        pm.Pareto.dist,
        lambda alpha, m: st.pareto(alpha, scale=m),
        (hs.floats(0.02, 1e4), positive),
        None,
    ),
    "Kumaraswamy": Family(pm.Kumaraswamy.dist, None, (hs.floats(0.05, 1e4),) * 2),
    "Cauchy": Family(pm.Cauchy.dist, st.cauchy, (real, positive)),
    "HalfCauchy": Family(
        pm.HalfCauchy.dist, lambda beta: st.halfcauchy(scale=beta), (positive,), log_above
    ),
}


def scipy_quantile(frozen, noise):
    """Quantile at Phi(noise), from the nearer tail."""
    return np.where(noise < 0, frozen.ppf(ndtr(noise)), frozen.isf(ndtr(-noise)))


@cache
def functions(name, gated):
    family = FAMILIES[name]
    arguments = [pt.dscalar(f"p{i}") for i in range(len(family.parameters))]
    dist = family.dist(*arguments, shape=NOISE.shape)
    site = emf.bijection(dist, transform=family.transform)
    if gated:
        gate = pt.dvector("gate")
        return Functions(site.gated(gate), [*arguments, gate], NOISE.shape)
    compiled = Functions(site, arguments, NOISE.shape)
    compiled.dist = dist
    return compiled


EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)
#: What is not about a family's own formulas: an affine map, a quantile of a distribution function
#: in its tails, one with a kink and one that is computed from both ends.
KINDS = parametrize(FAMILIES, quick=["Normal", "Uniform", "Laplace", "Kumaraswamy"])
few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


@EACH_FAMILY
@few
@given(data=hs.data())
def test_ungated_layer_is_the_prior(name, data):
    """Gate one: the quantiles are SciPy's, and log phi - log|det| is the log density."""
    family, compiled = FAMILIES[name], functions(name, False)
    parameters = [data.draw(strategy) for strategy in family.parameters]
    value, _ = compiled.check_laws(parameters, NOISE)
    if family.scipy is not None and family.to_value is not None:
        x = scipy_quantile(family.scipy(*parameters), NOISE)
        # SciPy itself loses digits near zero on the log scale, hence the absolute part
        expected = family.to_value(x, *parameters)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    if name == "Uniform":
        np.testing.assert_allclose(value, log_ndtr(NOISE) - log_ndtr(-NOISE), rtol=1e-9, atol=1e-9)
    if name == "Pareto":
        alpha, m = parameters
        log_ratio = -log_ndtr(-NOISE) / alpha  # of x and m
        expected = np.log(m) + log_ratio + np.log(-np.expm1(-log_ratio))
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    if name == "LogitNormal":
        np.testing.assert_allclose(value, parameters[0] + parameters[1] * NOISE, 1e-9, 1e-9)
    if name == "Kumaraswamy":
        a, b = parameters
        x = (-np.expm1(log_ndtr(-NOISE) / b)) ** (1 / a)
        inside = (x > 1e-12) & (x < 1 - 1e-6)
        np.testing.assert_allclose(value[inside], logit(x[inside]), rtol=1e-6, atol=1e-6)


# what a gate does to a map does not depend on the family
@parametrize(FAMILIES, quick=["Normal", "Kumaraswamy"])
@few
@given(data=hs.data())
def test_gated_layer(name, data):
    """Any gate: invertible, with the log|det| of the autodiff Jacobian; gate zero: identity."""
    family, compiled = FAMILIES[name], functions(name, True)
    parameters = [data.draw(strategy) for strategy in family.parameters]
    rng = np.random.default_rng(data.draw(hs.integers(0, 2**31)))
    gate = rng.choice([0.0, 1e-3, 0.5, 0.999, 1.0], size=NOISE.shape)
    noise = rng.uniform(-5, 5, size=NOISE.shape)
    value, _ = compiled.check_laws([*parameters, gate], noise, rtol=1e-5)
    np.testing.assert_allclose(value[gate == 0], noise[gate == 0])


@EACH_FAMILY
@few
@given(data=hs.data())
def test_finite_far_out(name, data):
    """Values, log|det| and gradients are finite for noise in [-8, 8]."""
    family, compiled = FAMILIES[name], functions(name, False)
    parameters = [data.draw(strategy) for strategy in family.parameters]
    value, log_det = compiled.forward(*parameters, FAR)
    assert np.isfinite(value).all()
    assert np.isfinite(log_det)
    assert np.isfinite(compiled.jacobian(*parameters, FAR)).all()
    for derivative in compiled.parameter_jacobian(*parameters, FAR):
        assert np.isfinite(derivative[0] if isinstance(derivative, tuple) else derivative).all()
    assert (np.diff(value) > 0).all()


@KINDS
@few
@given(data=hs.data())
def test_parameter_derivatives(name, data):
    """Derivatives in every parameter agree with finite differences, forward and inverse."""
    family, compiled = FAMILIES[name], functions(name, False)
    parameters = np.array([data.draw(strategy) for strategy in family.parameters])
    value, _ = compiled.forward(*parameters, NOISE)
    exact = compiled.parameter_jacobian(*parameters, NOISE)[0]
    exact_inverse = compiled.inverse_jacobian(*parameters, value)
    for i in range(len(parameters)):
        step = 1e-5 * max(abs(parameters[i]), 0.05) * np.eye(len(parameters))[i]
        size = 2 * step.sum()
        up, down = (compiled.forward(*(parameters + s), NOISE)[0] for s in (step, -step))
        rounding = 1e-15 * np.abs(value).max() / size
        np.testing.assert_allclose(exact[i], (up - down) / size, 1e-4, 1e-5 + rounding)
        up, down = (compiled.inverse(*(parameters + s), value)[0] for s in (step, -step))
        scale = np.maximum(1.0, np.abs(exact_inverse[i]).max())
        np.testing.assert_allclose(
            exact_inverse[i] / scale, (up - down) / size / scale, rtol=1e-3, atol=1e-4
        )


# Python takes seconds to search a root
@parametrize(FAMILIES, quick=["Normal", "Uniform"])
def test_backends_agree(name):
    check_backends(name, UNREWRITTEN)


@pytest.mark.slow  # numba takes up to a minute; of layers it is in the default session
@EACH_FAMILY
def test_numba_agrees(name):
    check_backends(name, "NUMBA")


def check_backends(name, mode):
    parameters = [0.7, 1.3][: len(FAMILIES[name].parameters)]
    functions(name, False).check_backends(parameters, NOISE, mode)
    gate = np.linspace(0.05, 0.999, NOISE.size)
    functions(name, True).check_backends([*parameters, gate], NOISE, mode)


@EACH_FAMILY
def test_log_det_is_the_prior_density(name):
    compiled = functions(name, False)
    parameters = [0.7, 1.3][: len(FAMILIES[name].parameters)]
    transform = FAMILIES[name].transform
    dist = compiled.dist
    if transform == "default":
        transform = pm.distributions.transforms._default_transform(dist.owner.op, dist)
    value, log_det = compiled.forward(*parameters, NOISE)
    v = pt.dvector("v")
    if transform is None:
        density = pm.logp(dist, v)
    else:
        density = pm.logp(dist, transform.backward(v, *dist.owner.inputs))
        density = density + transform.log_jac_det(v, *dist.owner.inputs)
    expected = density.sum().eval(
        {v: np.asarray(value), **dict(zip(compiled.arguments, parameters, strict=True))}
    )
    np.testing.assert_allclose(st.norm.logpdf(NOISE).sum() - log_det, expected, rtol=1e-7)
