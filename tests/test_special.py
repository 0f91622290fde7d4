"""The normal distribution function and its inverse, on a log scale, against mpmath-exact SciPy."""

import jax
import mpmath
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from scipy import special

from pymc_emf.bijections.numerics.special import (
    as_one,
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


@pytest.mark.parametrize("mode", [UNREWRITTEN, "JAX"])  # LLVM gathers the sums of numba
def test_as_one(mode):
    """A small difference keeps its digits beside what is added to it, and its derivatives."""
    x, y = pt.dscalars("x", "y")
    total = as_one(x - 1e16) + y
    outputs = [total, *pt.grad(pt.exp(total), [x, y])]
    found = pytensor.function([x, y], outputs, mode=mode)(1e16 + 2, 0.1)
    np.testing.assert_allclose(found, [2.1, np.exp(2.1), np.exp(2.1)], rtol=1e-14)


def test_hyp2f1():
    """As a Pareto/NBD model has it, and elsewhere, with all derivatives, against mpmath."""
    rng = np.random.default_rng(0)
    a = rng.gamma(2.0, 0.5, size=20) + rng.poisson(rng.gamma(1.0, 15.0, size=20))
    b = np.append(rng.gamma(2.0, 0.5, size=10), a[10:] + 1.0)
    rows = np.column_stack([a, b, a + 1.0, 0.99 * rng.beta(1.5, 1.0, size=20)])
    others = [(2, 3, 1.5, -5), (1, 1, 2, 0.5), (-2, 3, 1.5, 0.3), (20, 30, 40, 0.9), (3, 2, 2, 0.0)]
    rows = np.vstack([rows, others])
    inputs = pt.dscalars(4)
    compiled = jaxify(inputs, [pt.hyp2f1(*inputs)])
    derive = jax.value_and_grad(lambda *x: compiled(*x)[0], argnums=(0, 1, 2, 3))
    value, slopes = jax.jit(jax.vmap(derive))(*rows.T)
    with mpmath.workdps(30):
        for row, found in zip(rows, np.column_stack([value, *slopes]), strict=True):
            exact = [mpmath.hyp2f1(*row)]
            exact += [
                mpmath.diff(mpmath.hyp2f1, tuple(row), tuple(int(i == j) for j in range(4)))
                for i in range(4)
            ]
            expected = np.array([float(mpmath.re(x)) for x in exact])
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.isnan(compiled(1.0, 1.0, 2.0, 1.5)[0])  # where it is complex


def test_what_is_held_constant_in_a_switch_has_no_slope():
    """A search that is held constant may have slopes that are not finite, as this root has."""
    x = pt.vector("x", shape=(3,))
    found = stop_gradient(pt.cumsum(pt.sqrt(pt.maximum(x - 4.0, 0.0))))
    y = pt.switch(x > 0, pt.log(x) * pt.exp(found), 0.5 * x)
    function = jaxify([x], [y], with_slopes=True)
    slopes = jax.grad(lambda v: function(v)[0].sum())(np.array([2.0, -1.0, 4.0]))
    np.testing.assert_allclose(slopes, [0.5, 0.5, 0.25])
