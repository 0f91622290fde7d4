"""The univariate families with a closed form, each as one registered function.

Every quantile is written in the natural coordinate of the support (see
:class:`~pymc_emf.bijections.quantile.Support`) from the log probabilities of both tails.
"""

from math import log, pi, sqrt

import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.custom import CustomSymbolicDistRV

from pymc_emf.bijections.base import register_bijection
from pymc_emf.bijections.quantile import Support, location_scale, univariate
from pymc_emf.bijections.special import log_ndtr, ndtri_exp, noise_from_tails, tails

# Python numbers, not NumPy's, which would raise float32 graphs to float64
LOG_2, SQRT_2 = log(2), sqrt(2)

POSITIVE = Support(0.0)
UNIT = Support(0.0, 1.0)


def log1mexp(log_p):
    """Log of one minus a probability given by its log."""
    return pt.log1mexp(log_p)


def _parameters(op, rv):
    return [parameter.astype(rv.dtype) for parameter in op.dist_params(rv.owner)]


@register_bijection(pm.Normal.rv_type)
def normal(op, rv, transform):
    mu, sigma = _parameters(op, rv)
    return location_scale(rv, transform, mu, sigma)


@register_bijection(pm.LogNormal.rv_type)
def log_normal(op, rv, transform):
    mu, sigma = _parameters(op, rv)
    return location_scale(rv, transform, mu, sigma, POSITIVE)


@register_bijection(CustomSymbolicDistRV)
def logit_normal(op, rv, transform):
    # PyMC makes a class on the fly for each LogitNormal, known by its name alone
    if type(op).__name__ != "LogitNormal":
        return None
    mu, sigma = _parameters(op, rv)
    return location_scale(rv, transform, mu, sigma, UNIT)


@register_bijection(pm.Uniform.rv_type)
def uniform(op, rv, transform):
    lower, upper = op.dist_params(rv.owner)

    def quantile(noise):
        below, above = tails(noise)
        return below - above

    return univariate(
        rv,
        transform,
        quantile,
        lambda c: noise_from_tails(-pt.softplus(-c), -pt.softplus(c)),
        Support(lower, upper),
    )


@register_bijection(pm.Exponential.rv_type)
def exponential(op, rv, transform):
    (scale,) = _parameters(op, rv)

    def noise(c):
        above = -pt.exp(c) / scale
        return noise_from_tails(log1mexp(above), above)

    return univariate(
        rv, transform, lambda e: pt.log(scale) + pt.log(-log_ndtr(-e)), noise, POSITIVE
    )


@register_bijection(pm.HalfNormal.rv_type)
def half_normal(op, rv, transform):
    _, sigma = _parameters(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        lower = noise < 0
        central = SQRT_2 * pt.erfinv(pt.exp(pt.where(lower, below, -1.0)))
        tail = -ndtri_exp(pt.where(lower, -1.0, above) - LOG_2)
        return pt.log(sigma) + pt.log(pt.where(lower, central, tail))

    def noise(c):
        z = pt.exp(c) / sigma
        return noise_from_tails(pt.log(pt.erf(z / SQRT_2)), LOG_2 + log_ndtr(-z))

    return univariate(rv, transform, quantile, noise, POSITIVE)


@register_bijection(pm.Laplace.rv_type)
def laplace(op, rv, transform):
    mu, b = _parameters(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        return mu + b * pt.where(noise < 0, below + LOG_2, -above - LOG_2)

    def noise(x):
        z = (x - mu) / b
        sign = pt.where(z < 0, 1.0, -1.0)
        return sign * ndtri_exp(sign * z - LOG_2)

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.Logistic.rv_type)
def logistic(op, rv, transform):
    mu, s = _parameters(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        return mu + s * (below - above)

    def noise(x):
        z = (x - mu) / s
        return noise_from_tails(-pt.softplus(-z), -pt.softplus(z))

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.Gumbel.rv_type)
def gumbel(op, rv, transform):
    mu, beta = _parameters(op, rv)

    def noise(x):
        below = -pt.exp(-(x - mu) / beta)
        return noise_from_tails(below, log1mexp(below))

    return univariate(rv, transform, lambda e: mu - beta * pt.log(-log_ndtr(e)), noise)


@register_bijection(pm.Weibull.rv_type)
def weibull(op, rv, transform):
    alpha, beta = _parameters(op, rv)

    def noise(c):
        above = -pt.exp(alpha * (c - pt.log(beta)))
        return noise_from_tails(log1mexp(above), above)

    return univariate(
        rv, transform, lambda e: pt.log(beta) + pt.log(-log_ndtr(-e)) / alpha, noise, POSITIVE
    )


@register_bijection(pm.Pareto.rv_type)
def pareto(op, rv, transform):
    alpha, m = op.dist_params(rv.owner)
    shape, scale = alpha.astype(rv.dtype), m.astype(rv.dtype)

    def quantile(noise):
        log_ratio = -log_ndtr(-noise) / shape  # log(x / m)
        return pt.log(scale) + log_ratio + log1mexp(-log_ratio)

    def noise(c):
        above = -shape * pt.softplus(c - pt.log(scale))
        return noise_from_tails(log1mexp(above), above)

    return univariate(rv, transform, quantile, noise, Support(m))


@register_bijection(pm.Kumaraswamy.rv_type)
def kumaraswamy(op, rv, transform):
    a, b = _parameters(op, rv)

    def quantile(noise):
        log_x = log1mexp(log_ndtr(-noise) / b) / a
        return log_x - log1mexp(log_x)

    def noise(c):
        above = b * log1mexp(-a * pt.softplus(-c))
        return noise_from_tails(log1mexp(above), above)

    return univariate(rv, transform, quantile, noise, UNIT)


@register_bijection(pm.Cauchy.rv_type)
def cauchy(op, rv, transform):
    alpha, beta = _parameters(op, rv)

    def quantile(noise):
        # tan(pi (Phi - 1/2)): from the middle by erf, from the ends by the smaller tail
        middle = pt.abs(noise) < 1
        central = pt.tan(pi / 2 * pt.erf(pt.where(middle, noise, 0.0) / SQRT_2))
        end = pt.where(middle, 1.0, noise)
        outer = pt.sign(end) / pt.tan(pi * pt.exp(log_ndtr(-pt.abs(end))))
        return alpha + beta * pt.where(middle, central, outer)

    def noise(x):
        z = (x - alpha) / beta
        middle = pt.abs(z) < 1
        central = SQRT_2 * pt.erfinv(2 / pi * pt.arctan(pt.where(middle, z, 0.0)))
        end = pt.where(middle, 1.0, z)
        outer = -pt.sign(end) * ndtri_exp(pt.log(pt.arctan(1 / pt.abs(end)) / pi))
        return pt.where(middle, central, outer)

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.HalfCauchy.rv_type)
def half_cauchy(op, rv, transform):
    (beta,) = _parameters(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        lower = noise < 0
        log_tan = pt.log(pt.tan(pi / 2 * pt.exp(pt.where(lower, below, above))))
        return pt.log(beta) + pt.where(lower, log_tan, -log_tan)

    def noise(c):
        z = c - pt.log(beta)
        sign = pt.where(z < 0, 1.0, -1.0)
        return sign * ndtri_exp(pt.log(2 / pi * pt.arctan(pt.exp(sign * z))))

    return univariate(rv, transform, quantile, noise, POSITIVE)
