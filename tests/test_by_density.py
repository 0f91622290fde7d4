"""The exactness law of the families without a closed quantile, against independent tails."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import mpmath
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import scipy.stats as st

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from pymc.distributions import transforms as tr
from scipy.special import betainc, expit, gammainc, gammaincc, log_ndtr, ndtr

import pymc_emf as emf

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.compose import FLIP, ComposedElementwise, Function
from pymc_emf.bijections.families.by_density import gamma_log
from pymc_emf.bijections.families.mixture import MixtureOf, Stacked
from pymc_emf.bijections.numerics.quantile import Quantile
from pymc_emf.engine.jax import jaxify
from tests.helpers import UNREWRITTEN, Functions, parametrize

#: Within 6 the values must be right, within 8 finite.
NOISE = np.array([-8.0, -7.0, -6.0, -4.5, -3.0, -1.5, -0.4, 0.3, 1.2, 2.5, 4.0, 5.0, 6.0, 7.0, 8.0])
RIGHT = np.abs(NOISE) <= 6

#: Evenly on the log scale, as wide as users' models go.
shape = hs.floats(np.log(0.05), np.log(1e4)).map(np.exp)
scale = hs.floats(np.log(0.05), np.log(50.0)).map(np.exp)
real = hs.floats(-50.0, 50.0)


@dataclass(frozen=True)
class Family:
    """A distribution, and the probability of the nearer tail at a value, or None for mpmath's."""

    dist: callable
    parameters: tuple
    tail: callable = None
    transform: object = "default"
    mode: callable = None


def gamma_tail(value, below, a, rate):
    x = rate * np.exp(value)
    return np.where(below, gammainc(a, x), gammaincc(a, x))


def beta_tail(value, below, a, b):
    return np.where(below, betainc(a, b, expit(value)), betainc(b, a, expit(-value)))


def skew_student_tail(value, below, a, b):
    # (x / sqrt(a + b)) = sinh(logit / 2)
    return beta_tail(2 * np.arcsinh(value / np.sqrt(a + b)), below, a, b)


def student_tail(value, below, nu, mu, sigma):
    return skew_student_tail((value - mu) / sigma, below, nu / 2, nu / 2)


def half_student_tail(value, below, nu, sigma):
    return beta_tail(2 * (value - np.log(sigma)) - np.log(nu), below, 0.5, nu / 2)


def wald_tail(value, below, mu, lam):
    x = np.exp(value)
    first, second = np.sqrt(lam / x) * (x / mu - 1), -np.sqrt(lam / x) * (x / mu + 1)
    other = np.exp(2 * lam / mu + log_ndtr(second))
    return np.where(below, ndtr(first) + other, ndtr(-first) - other)


FAMILIES = {
    "Gamma": Family(pm.Gamma.dist, (shape, scale), gamma_tail),
    "InverseGamma": Family(
        pm.InverseGamma.dist,
        (shape, scale),
        lambda value, below, a, b: gamma_tail(-value, ~below, a, b),
    ),
    "Beta": Family(pm.Beta.dist, (shape, shape), beta_tail),
    "StudentT": Family(
        lambda nu, mu, sigma, **kw: pm.StudentT.dist(nu, mu, sigma=sigma, **kw),
        (shape, real, scale),
        student_tail,
    ),
    "HalfStudentT": Family(pm.HalfStudentT.dist, (shape, scale), half_student_tail),
    "SkewStudentT": Family(
        lambda a, b, **kw: pm.SkewStudentT.dist(a, b, mu=0.0, sigma=1.0, **kw),
        (shape, shape),
        skew_student_tail,
    ),
    "Wald": Family(pm.Wald.dist, (scale, scale), wald_tail),
    "SkewNormal": Family(
        lambda alpha, sigma, **kw: pm.SkewNormal.dist(alpha=alpha, mu=0.0, sigma=sigma, **kw),
        (hs.floats(-20.0, 20.0), scale),
    ),
    "ExGaussian": Family(
        lambda sigma, nu, **kw: pm.ExGaussian.dist(0.0, sigma, nu=nu, **kw), (scale, scale)
    ),
    "VonMises": Family(
        lambda kappa, **kw: pm.VonMises.dist(0.0, kappa, **kw),
        (hs.floats(np.log(0.05), np.log(1e3)).map(np.exp),),
    ),
    "Rice": Family(lambda b, sigma, **kw: pm.Rice.dist(b=b, sigma=sigma, **kw), (scale, scale)),
    "TruncatedNormal": Family(
        lambda mu, sigma, **kw: pm.TruncatedNormal.dist(mu, sigma, lower=0.0, upper=3.0, **kw),
        (hs.floats(-2.0, 4.0), scale),
    ),
    "Moyal": Family(lambda sigma, **kw: pm.Moyal.dist(1.0, sigma, **kw), (scale,)),
    "AsymmetricLaplace": Family(
        lambda kappa, b, **kw: pm.AsymmetricLaplace.dist(kappa=kappa, mu=1.0, b=b, **kw),
        (scale, scale),
    ),
    "Triangular": Family(
        lambda c, upper, **kw: pm.Triangular.dist(-0.5, upper, c * upper, **kw),
        (hs.floats(0.01, 0.99), scale),
    ),
    "CustomDist": Family(
        lambda mu, sigma, **kw: pm.CustomDist.dist(
            mu, sigma, logp=lambda x, mu, sigma: pm.logp(pm.Logistic.dist(mu, sigma), x), **kw
        ),
        (real, scale),
        lambda value, below, mu, sigma: expit(np.where(below, 1, -1) * (value - mu) / sigma),
    ),
    "Truncated": Family(
        lambda alpha, beta, **kw: pm.Truncated.dist(
            pm.Gamma.dist(alpha, beta), lower=0.5, upper=4.0, **kw
        ),
        (scale, scale),
    ),
}


@cache
def functions(name, gated=False):
    family = FAMILIES[name]
    arguments = [pt.dscalar(f"p{i}") for i in range(len(family.parameters))]
    dist = family.dist(*arguments, shape=NOISE.shape)
    site = emf.bijection(dist, transform=family.transform)
    if gated:
        gate = pt.dvector("gate")
        return Functions(site.gated(gate), [*arguments, gate], NOISE.shape)
    compiled = Functions(site, arguments, NOISE.shape)
    transform = family.transform
    if transform == "default":
        transform = tr._default_transform(dist.owner.op, dist)
    value = compiled.event
    if transform is None:
        density = pm.logp(dist, value)
    else:
        density = pm.logp(dist, transform.backward(value, *dist.owner.inputs))
        density = density + transform.log_jac_det(value, *dist.owner.inputs)
    compiled.log_density = pm.compile([*arguments, value], density, on_unused_input="ignore")
    return compiled


few = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


#: These take longest to compile.
SLOW = (
    "StudentT",
    "HalfStudentT",
    "TruncatedNormal",
    "ExGaussian",
    "Rice",
    "SkewNormal",
    "Truncated",
    "CustomDist",
    "VonMises",
)


#: These are log-concave as Gamma and Beta are.
ALIKE = ("InverseGamma", "SkewStudentT", "Wald")


@parametrize(FAMILIES, quick=["Gamma", "AsymmetricLaplace"])  # seconds each
@few
@given(data=hs.data())
def test_ungated_layer_is_the_prior(name, data):
    family, compiled = FAMILIES[name], functions(name)
    parameters = [data.draw(strategy) for strategy in family.parameters]
    # next to the end of its turn an angle, unlike a value on the line, rounds
    noise = NOISE * 0.75 if name == "VonMises" else NOISE
    value, _ = compiled.check_laws(parameters, noise)
    assert (np.diff(value) > 0).all()
    jacobians = compiled.parameter_jacobian(*parameters, NOISE)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jacobians))
    slope = np.diag(compiled.jacobian(*parameters, NOISE))
    assert np.isfinite(slope).all()
    if family.tail is None:
        return
    # an error of the tail probability, as one of the value
    tail = family.tail(value, NOISE < 0, *parameters)
    expected = ndtr(-np.abs(NOISE))
    error = (tail - expected) / st.norm.pdf(NOISE) * slope
    # SciPy's own tails lose digits where x rounds
    kept = RIGHT & (tail > 0)
    tolerance = 1e-6 * np.maximum(np.abs(value), np.minimum(slope, 1.0))
    assert (np.abs(error) < tolerance)[kept].all(), (parameters, error / tolerance)


def mp_normal_cdf(z):
    return mpmath.erfc(-z / mpmath.sqrt(2)) / 2


#: Densities of the value up to a constant, points to split the integral at, and parameters.
BY_MPMATH = {
    "SkewNormal": (
        lambda z, alpha, sigma: mpmath.npdf(z / sigma) * mp_normal_cdf(alpha * z / sigma),
        [(-3.0, 1.0), (20.0, 2.0), (0.1, 0.3)],
    ),
    "ExGaussian": (
        lambda x, sigma, nu: (
            mpmath.exp(-x / nu + (sigma / nu) ** 2 / 2) * mp_normal_cdf(x / sigma - sigma / nu)
        ),
        [(1.0, 1.0), (0.1, 3.0), (1.0, 0.2)],
    ),
    "VonMises": (
        lambda x, kappa: mpmath.exp(kappa * (mpmath.cos(x) - 1)),
        [(0.05,), (3.0,), (80.0,)],
    ),
    "Rice": (
        lambda u, b, sigma: (
            mpmath.exp(2 * u - (mpmath.exp(u) / sigma - b) ** 2 / 2 - mpmath.exp(u) * b / sigma)
            * mpmath.besseli(0, mpmath.exp(u) * b / sigma)
        ),
        [(0.05, 1.0), (2.0, 0.5), (20.0, 1.0)],
    ),
    "TruncatedNormal": (
        lambda u, mu, sigma: (
            mpmath.npdf((3 / (1 + mpmath.exp(-u)) - mu) / sigma)
            / ((1 + mpmath.exp(-u)) * (1 + mpmath.exp(u)))
        ),
        [(1.0, 0.5), (-2.0, 1.0), (1.0, 20.0)],
    ),
}


def _swapped(density, parameters, x):
    return density(x, *parameters)


@parametrize(BY_MPMATH, slow=SLOW)
def test_tails_by_arbitrary_precision(name):
    """The integral of the density below the value is Phi(noise)."""
    density, cases = BY_MPMATH[name]
    compiled = functions(name)
    for parameters in cases:
        slope = np.diag(compiled.jacobian(*parameters, NOISE))
        value = np.asarray(compiled.forward(*parameters, NOISE)[0])
        # between values that are quantiles already each piece is smooth and of one scale
        inner = [float(v) for v in value]
        first, last = (3 * inner[0] - 2 * inner[1], 3 * inner[-1] - 2 * inner[-2])
        if name == "VonMises":
            first, last = -np.pi, np.pi
        pieces = [
            mpmath.quad(partial(_swapped, density, parameters), [a, (a + b) / 2, b])
            for a, b in zip([first, *inner], [*inner, last], strict=True)
        ]
        total = sum(pieces)
        for i in np.flatnonzero(RIGHT):
            below, above = sum(pieces[: i + 1]) / total, sum(pieces[i + 1 :]) / total
            tail = float(below if NOISE[i] < 0 else above)
            error = (tail - ndtr(-abs(NOISE[i]))) / st.norm.pdf(NOISE[i]) * slope[i]
            assert abs(error) < 1e-6 * max(abs(value[i]), min(slope[i], 1.0)), (
                parameters,
                NOISE[i],
            )


@parametrize(FAMILIES, slow=(*SLOW, *ALIKE))
def test_log_det_is_the_prior_density(name):
    """Element by element; a truncation's constant, which PyMC adds, is left to the total."""
    compiled = functions(name)
    parameters = [1.3, 0.7, 0.9][: len(compiled.arguments)]
    if name == "Triangular":
        parameters = [0.3, 0.7]
    slope = np.diag(compiled.jacobian(*parameters, NOISE))
    value = np.asarray(compiled.forward(*parameters, NOISE)[0])
    expected = compiled.log_density(*parameters, value)
    actual = st.norm.logpdf(NOISE) - np.log(slope)
    # farther out PyMC's own densities lose digits
    kept = (np.abs(NOISE) <= 4) & np.isfinite(expected)
    assert kept.sum() > 5
    np.testing.assert_allclose(actual[kept], expected[kept], rtol=1e-6, atol=1e-6)


@parametrize(["Gamma", "SkewStudentT", "Moyal", "CustomDist"], quick=["Gamma"])
def test_parameter_derivatives(name):
    """Derivatives in every parameter agree with finite differences, forward and inverse."""
    family, compiled = FAMILIES[name], functions(name)
    for parameters in (np.array([0.7, 1.3]), np.array([30.0, 2.0]), np.array([0.1, 400.0])):
        parameters = parameters[: len(family.parameters)]
        value, _ = compiled.forward(*parameters, NOISE)
        exact, exact_log_det = compiled.parameter_jacobian(*parameters, NOISE)
        exact_inverse = compiled.inverse_jacobian(*parameters, value)
        for i, p in enumerate(parameters):
            step = 1e-5 * p * np.eye(len(parameters))[i]
            (up, up_det), (down, down_det) = (
                compiled.forward(*(parameters + s), NOISE) for s in (step, -step)
            )
            size = 2 * step.sum()
            rounding = 1e-14 * np.abs(value).max() / size
            np.testing.assert_allclose(exact[i], (up - down) / size, 1e-6, 1e-6 + rounding)
            np.testing.assert_allclose(
                exact_log_det[i], (up_det - down_det) / size, 1e-5, 1e-5 + rounding
            )
            up, down = (compiled.inverse(*(parameters + s), value)[0] for s in (step, -step))
            np.testing.assert_allclose(exact_inverse[i], (up - down) / size, 1e-5, 1e-5 + rounding)


# a search within a search takes XLA 15 s; the sticks of test_simplex.py are gated, too
@parametrize(["Gamma", "CustomDist"], quick=[])
def test_gated(name):
    family, compiled = FAMILIES[name], functions(name, gated=True)
    parameters = [1.3, 0.7, 0.9][: len(family.parameters)]
    rng = np.random.default_rng(5)
    gate = rng.choice([0.0, 1e-3, 0.5, 0.999, 1.0], size=NOISE.shape)
    noise = rng.uniform(-5, 5, size=NOISE.shape)
    value, _ = compiled.check_laws([*parameters, gate], noise, rtol=1e-5)
    np.testing.assert_allclose(value[gate == 0], noise[gate == 0])


@parametrize(["Gamma", "CustomDist"], slow=SLOW)
def test_backends_agree(name):
    functions(name).check_backends([1.3, 0.7], NOISE, UNREWRITTEN)


@pytest.mark.slow  # numba takes a minute
def test_numba_agrees():
    functions("Beta").check_backends([1.3, 0.7], NOISE, "NUMBA")


def test_second_derivatives():
    """The curvature in the noise, which the warm start's Hessian needs."""
    site = functions("Gamma")

    def value(noise):
        return site.forward(2.0, 1.0, noise)[0][7]

    noise = np.array(NOISE)
    exact = jax.jit(jax.hessian(value))(noise)[7, 7]
    step = 1e-3 * np.eye(len(noise))[7]
    expected = (value(noise + step) - 2 * value(noise) + value(noise - step)) / 1e-6
    np.testing.assert_allclose(exact, expected, rtol=1e-4)


@pytest.mark.parametrize("concentration", [0.3, np.array([0.3, 2.0, 50.0])])
def test_noise_with_more_axes_than_the_parameters(concentration):
    noise = np.array([[-3.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    event = pt.dmatrix("noise")
    value, _ = gamma_log(pt.constant(concentration)).to_value(event)
    expected = np.log(st.gamma.isf(ndtr(-noise), concentration))
    found = jax.jit(jaxify([event], [value]))(noise)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def _elementwise_sites():
    """One of each way to make an elementwise map."""
    loc, scale, shape, gate = (pt.constant(np.array(x)) for x in (0.3, 2.0, 1.5, 0.4))
    density, quantile = gamma_log(shape), Quantile(pt.sinh, pt.arcsinh)
    affine, arcsinh = LocScale(loc, scale), Function(pt.arcsinh, pt.sinh)
    weights = pt.constant(np.array([0.4, 0.6]))
    return {
        "composed": ComposedElementwise(FLIP, density, FLIP, arcsinh, affine),
        "mixture": MixtureOf(weights, Stacked([affine, quantile]), 2),
        "gated density": density.gated(gate),
        "gated quantile": quantile.gated(gate),
    }


@parametrize(_elementwise_sites(), slow=["gated density"])  # as `test_gated`
def test_either_direction_returns_its_own_derivatives(name):
    site, event = _elementwise_sites()[name], pt.dvector("event")
    at = np.array([-1.2, -0.1, 0.4])
    for direction in (site.to_value, site.to_noise):
        function = jaxify([event], direction(event))
        derive = jax.jit(jax.jacfwd(lambda event, f=function: f(event), has_aux=True))
        slope, log_slope = derive(at)
        np.testing.assert_allclose(log_slope, np.log(np.diag(slope)), rtol=1e-6, atol=1e-6)
