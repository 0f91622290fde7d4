"""Univariate families known by a log-concave density, each as one registered function."""

from math import log, pi

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.pytensorf import constant_fold
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import register_bijection
from pymc_emf.bijections.core.compose import FLIP, ComposedElementwise, Function
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.families.univariate import POSITIVE, UNIT, parameters_of
from pymc_emf.bijections.numerics.interpolated import interpolated
from pymc_emf.bijections.numerics.log_concave import LogConcave
from pymc_emf.bijections.numerics.quantile import Support, in_value_space
from pymc_emf.bijections.numerics.root_finding import bracketed_root
from pymc_emf.bijections.numerics.special import log_mills, log_ndtr, stop_gradient

__all__ = ["beta_logit", "gamma_log", "student_t"]

# Python numbers, not NumPy's, which would raise float32 graphs to float64
LOG_2, LOG_2PI = log(2), log(2 * pi)


def gamma_log(shape: TensorVariable) -> Elementwise:
    """Log of a Gamma variate of unit scale; its density is log-concave for every shape."""
    return interpolated(_gamma_log, shape)


def _gamma_log(shape):
    return LogConcave(
        drop=lambda d: shape * (pt.expm1(d) - d),
        mode=pt.log(shape),
        log_peak=0.5 * (pt.log(shape) - LOG_2PI) - _stirling(shape),
        scale=shape**-0.5,
    )


def beta_logit(a: TensorVariable, b: TensorVariable) -> Elementwise:
    """Logit of a Beta variate; its density is log-concave for all shapes."""
    return interpolated(_beta_logit, a, b)


def _beta_logit(a, b):
    total = a + b
    log_p, log_q = pt.log(a / total), pt.log(b / total)
    # from the side of the smaller shape, r <= 1/2, the logarithm below has nothing to cancel
    r, side = pt.minimum(a, b) / total, pt.where(a <= b, 1.0, -1.0).astype(total.dtype)

    def drop(d):
        x = side * d
        most = float(np.log(np.finfo(d.dtype).max)) / 2 - 9  # beyond, e^2x overflows
        near = pt.minimum(x, most)
        return total * (pt.log1p(r * pt.expm1(near)) + (x - near) - r * x)

    log_peak = 0.5 * (log_p + pt.log(b) - LOG_2PI)
    return LogConcave(
        drop=drop,
        mode=log_p - log_q,
        log_peak=log_peak + _stirling(total) - _stirling(a) - _stirling(b),
        scale=pt.sqrt(1 / a + 1 / b),
    )


def _stirling(x):
    r"""Error of Stirling's formula, :math:`\log\Gamma(x) - ((x - 1/2)\log x - x + \log(2\pi)/2)`.

    For large x the difference would lose all digits of single precision, and the series is exact.
    """
    large = pt.maximum(x, 10.0)
    w = 1 / large**2
    series = (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / large
    small = pt.minimum(x, 10.0)
    exact = pt.gammaln(small) - (small - 0.5) * pt.log(small) + small - LOG_2PI / 2
    return pt.where(x < 10, exact, series)


def student_t(nu: TensorVariable) -> Elementwise:
    """Student t variate of unit scale."""
    return _sinh_of_half(beta_logit(nu / 2, nu / 2), pt.sqrt(nu))


def _sinh_of_half(site: Elementwise, scale: TensorVariable) -> Elementwise:
    """``scale * sinh(value / 2)``, which turns a logit Beta into a (skew) Student t."""

    def function(v):
        # a quantile beyond the largest number stays finite
        most = float(np.log(np.finfo(v.dtype).max) - 5)
        return scale * pt.sinh(pt.clip(v / 2, -most, most))

    def log_derivative(v):
        return pt.log(scale) - 2 * LOG_2 + pt.abs(v) / 2 + pt.log1p(pt.exp(-pt.abs(v)))

    sinh = Function(function, lambda x: 2 * pt.arcsinh(x / scale), log_derivative)
    return ComposedElementwise(site, sinh)


@register_bijection(pm.Gamma.rv_type)
def gamma(op, rv, transform):
    alpha, scale = parameters_of(op, rv)
    site = ComposedElementwise(gamma_log(alpha), LocScale(pt.log(scale), pt.ones_like(scale)))
    return in_value_space(rv, transform, site, POSITIVE)


@register_bijection(pm.InverseGamma.rv_type)
def inverse_gamma(op, rv, transform):
    alpha, beta = parameters_of(op, rv)
    scaled = LocScale(pt.log(beta), pt.ones_like(beta))
    site = ComposedElementwise(FLIP, gamma_log(alpha), FLIP, scaled)
    return in_value_space(rv, transform, site, POSITIVE)


@register_bijection(pm.Beta.rv_type)
def beta(op, rv, transform):
    return in_value_space(rv, transform, beta_logit(*parameters_of(op, rv)), UNIT)


@register_bijection(pm.StudentT.rv_type)
def student(op, rv, transform):
    nu, mu, sigma = parameters_of(op, rv)
    return in_value_space(rv, transform, ComposedElementwise(student_t(nu), LocScale(mu, sigma)))


@register_bijection(pm.HalfStudentT.rv_type)
def half_student(op, rv, transform):
    # t^2 / nu is the odds of a Beta(1/2, nu/2) variate
    nu, sigma = parameters_of(op, rv)
    half = pt.full_like(nu, 0.5)
    scaled = LocScale(pt.log(sigma) + pt.log(nu) / 2, half)
    site = ComposedElementwise(beta_logit(half, nu / 2), scaled)
    return in_value_space(rv, transform, site, POSITIVE)


@register_bijection(pm.SkewStudentT.rv_type)
def skew_student(op, rv, transform):
    # Jones and Faddy (2003)
    a, b, mu, sigma = parameters_of(op, rv)
    site = _sinh_of_half(beta_logit(a, b), pt.sqrt(a + b))
    return in_value_space(rv, transform, ComposedElementwise(site, LocScale(mu, sigma)))


@register_bijection(pm.Wald.rv_type)
def wald(op, rv, transform):
    alpha = op.dist_params(rv.owner)[2]
    mu, lam, _ = parameters_of(op, rv)
    ratio = lam / mu
    mode = -pt.arcsinh(0.5 / ratio)  # of log(x / mu)

    def drop(d):
        return d / 2 + 2 * ratio * pt.sinh(mode + d / 2) * pt.sinh(d / 2)

    site: Elementwise = LogConcave(
        drop,
        mode,
        log_peak=0.5 * (pt.log(ratio) - LOG_2PI - mode) - 2 * ratio * pt.sinh(mode / 2) ** 2,
        scale=(ratio * pt.cosh(mode)) ** -0.5,
    )
    site = ComposedElementwise(site, LocScale(pt.log(mu), pt.ones_like(mu)))
    return in_value_space(rv, transform, site, _above(alpha))


def _above(lower):
    """Support above a bound, recognised as that of PyMC's log transform where it is zero."""
    return POSITIVE if _is_zero(lower) else Support(lower)


def _is_zero(x):
    (folded,) = constant_fold([x], raise_not_constant=False)
    return isinstance(folded, np.ndarray) and bool(np.all(folded == 0))


@register_bijection(pm.SkewNormal.rv_type)
def skew_normal(op, rv, transform):
    mu, sigma, alpha = parameters_of(op, rv)

    def log_density(z):
        return LOG_2 - LOG_2PI / 2 - z**2 / 2 + log_ndtr(alpha * z)

    def downhill(z):  # minus the slope of the log density
        return z - alpha * pt.exp(-((alpha * z) ** 2) / 2 - LOG_2PI / 2 - log_ndtr(alpha * z))

    one = pt.ones_like(alpha)
    site = _from_log_density(log_density, _mode(downhill, -one, one), one)
    return in_value_space(rv, transform, ComposedElementwise(site, LocScale(mu, sigma)))


@register_bijection(pm.ExGaussian.rv_type)
def ex_gaussian(op, rv, transform):
    mu, sigma, nu = parameters_of(op, rv)
    rate = sigma / nu

    def log_density(z):
        # an exponential and a normal tail, of which the large parts cancel
        return pt.log(rate) - z**2 / 2 + log_mills(z - rate)

    def downhill(z):
        return rate - pt.exp(-LOG_2PI / 2 - log_mills(z - rate))

    one = pt.ones_like(rate)
    site = _from_log_density(log_density, _mode(downhill, -one, 40 * one), one + 1 / rate)
    return in_value_space(rv, transform, ComposedElementwise(site, LocScale(mu, sigma)))


def _mode(downhill, lower, upper):
    """Mode of a log-concave density; the quantiles do not depend on it, only the search."""
    return stop_gradient(bracketed_root(lambda z: stop_gradient(downhill(z)), lower, upper))


def _from_log_density(log_density, mode, scale):
    peak = log_density(mode)
    return LogConcave(lambda d: peak - log_density(mode + d), mode, peak, scale, lopsided=True)
