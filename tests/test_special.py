"""The normal distribution function and its inverse, on a log scale, against mpmath-exact SciPy."""

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from scipy import special

from pymc_emf.bijections.numerics.special import (
    log_ndtr,
    ndtri_exp,
    noise_from_tails,
    stop_gradient,
    tails,
)
from pymc_emf.engine.jax import jaxify
from tests.helpers import UNREWRITTEN

FAR = np.array([-1e8, -1e3, -40.0, -37.0, -12.0, -3.0, -0.5, 0.0, 0.5, 3.0, 7.5, 8.0, 30.0])


def derivatives(function):
    x = pt.dscalar("x")
    compiled = jaxify([x], [function(x)])
    first = jax.grad(lambda v: compiled(v)[0])
    return (jax.jit(jax.vmap(f)) for f in (lambda v: compiled(v)[0], first, jax.grad(first)))


def test_log_ndtr():
    value, first, second = derivatives(log_ndtr)
    np.testing.assert_allclose(value(FAR), special.log_ndtr(FAR), rtol=1e-12)
    # the derivative is the inverse Mills ratio, from SciPy's scaled complementary error function
    ratio = np.sqrt(2 / np.pi) / special.erfcx(-FAR / np.sqrt(2))
    np.testing.assert_allclose(first(FAR), ratio, rtol=1e-9)
    near = FAR[np.abs(FAR) < 10]
    slope = np.sqrt(2 / np.pi) / special.erfcx(-near / np.sqrt(2))
    np.testing.assert_allclose(second(near), -slope * (near + slope), rtol=1e-6)


def test_ndtri_exp():
    value, first, _ = derivatives(ndtri_exp)
    log_p = special.log_ndtr(FAR[FAR < 6])
    np.testing.assert_allclose(value(log_p), FAR[FAR < 6], rtol=1e-9, atol=1e-12)
    ratio = special.erfcx(-FAR[FAR < 6] / np.sqrt(2)) / np.sqrt(2 / np.pi)
    np.testing.assert_allclose(first(log_p), ratio, rtol=1e-8)


def test_noise_from_tails():
    x = pt.dvector("x")
    back = noise_from_tails(*tails(x))
    noise = np.linspace(-35, 35, 71)
    for mode in (UNREWRITTEN, "JAX", "NUMBA"):
        function = pytensor.function([x], back, mode=mode)
        np.testing.assert_allclose(function(noise), noise, rtol=1e-10, atol=1e-12)
    gradient = jax.jit(jax.jacfwd(lambda v: jaxify([x], [back])(v)[0]))(noise)
    np.testing.assert_allclose(gradient, np.eye(71), atol=1e-6)


def test_pytensor_gradients():
    x = pt.dvector("x")
    for function in (log_ndtr, lambda v: ndtri_exp(-pt.exp(v))):
        gradient = pytensor.function([x], pt.grad(function(x).sum(), x), mode=UNREWRITTEN)
        point = np.array([-2.0, -0.3, 0.7, 2.0])
        h = 1e-6
        value = pytensor.function([x], function(x), mode=UNREWRITTEN)
        numeric = (value(point + h) - value(point - h)) / (2 * h)
        np.testing.assert_allclose(gradient(point), numeric, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_stop_gradient(n):
    x = pt.dvector("x")
    y = stop_gradient(x) * x
    point = np.arange(1.0, n + 1)
    by_jax = jax.grad(lambda v: jaxify([x], [y])(v)[0].sum())(point)
    np.testing.assert_allclose(by_jax, point)
    np.testing.assert_allclose(pt.grad(y.sum(), x).eval({x: point}, mode=UNREWRITTEN), point)
