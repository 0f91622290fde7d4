"""The univariate families with a closed form, each as one registered function.

Every quantile is written in the natural coordinate of the support (see
:class:`~pymc_emf.bijections.Support`) from the log probabilities of both tails.
"""

from math import log, pi, sqrt

import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.dist_math import SplineWrapper
from pytensor.link.jax.dispatch import jax_funcify

from pymc_emf.bijections.core.base import register_bijection
from pymc_emf.bijections.numerics.quantile import Support, location_scale, univariate
from pymc_emf.bijections.numerics.special import log_ndtr, ndtri_exp, noise_from_tails, tails

# Python numbers, not NumPy's, which would raise float32 graphs to float64
LOG_2, SQRT_2 = log(2), sqrt(2)

POSITIVE = Support(0.0)
UNIT = Support(0.0, 1.0)


def log1mexp(log_p):
    """Log of one minus a probability given by its log."""
    tiny = log_p < -40  # where the derivatives of the formula overflow on the way
    return pt.where(tiny, -pt.exp(log_p), pt.log1mexp(pt.where(tiny, -1.0, log_p)))


def parameters_of(op, rv):
    """Parameters of a random variable, in its own precision."""
    return [parameter.astype(rv.dtype) for parameter in op.dist_params(rv.owner)]


@register_bijection(pm.Normal.rv_type)
def normal(op, rv, transform):
    mu, sigma = parameters_of(op, rv)
    return location_scale(rv, transform, mu, sigma)


@register_bijection(pm.LogNormal.rv_type)
def log_normal(op, rv, transform):
    mu, sigma = parameters_of(op, rv)
    return location_scale(rv, transform, mu, sigma, POSITIVE)


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
    (scale,) = parameters_of(op, rv)

    def noise(c):
        above = -pt.exp(c) / scale
        return noise_from_tails(log1mexp(above), above)

    return univariate(
        rv, transform, lambda e: pt.log(scale) + pt.log(-log_ndtr(-e)), noise, POSITIVE
    )


def _log_half_normal(noise):
    """Log of the standard half-normal quantile."""
    below, above = tails(noise)
    lower = noise < 0
    central = SQRT_2 * pt.erfinv(pt.exp(pt.where(lower, below, -1.0)))
    tail = -ndtri_exp(pt.where(lower, -1.0, above) - LOG_2)
    return pt.log(pt.where(lower, central, tail))


def _noise_of_log_half_normal(c):
    z = pt.exp(c)
    return noise_from_tails(pt.log(pt.erf(z / SQRT_2)), LOG_2 + log_ndtr(-z))


@register_bijection(pm.HalfNormal.rv_type)
def half_normal(op, rv, transform):
    _, sigma = parameters_of(op, rv)
    return univariate(
        rv,
        transform,
        lambda e: pt.log(sigma) + _log_half_normal(e),
        lambda c: _noise_of_log_half_normal(c - pt.log(sigma)),
        POSITIVE,
    )


@register_bijection(pm.Moyal.rv_type)
def moyal(op, rv, transform):
    # minus twice the log of a half-normal variate
    mu, sigma = parameters_of(op, rv)
    return univariate(
        rv,
        transform,
        lambda e: mu - 2 * sigma * _log_half_normal(-e),
        lambda x: -_noise_of_log_half_normal(-(x - mu) / (2 * sigma)),
    )


@register_bijection(pm.Laplace.rv_type)
def laplace(op, rv, transform):
    mu, b = parameters_of(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        return mu + b * pt.where(noise < 0, below + LOG_2, -above - LOG_2)

    def noise(x):
        z = (x - mu) / b
        sign = pt.where(z < 0, 1.0, -1.0)
        return sign * ndtri_exp(sign * z - LOG_2)

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.AsymmetricLaplace.rv_type)
def asymmetric_laplace(op, rv, transform):
    b, kappa, mu = parameters_of(op, rv)
    log_odds = 2 * pt.log(kappa)  # of the probability below mu
    log_left, log_right = -pt.softplus(-log_odds), -pt.softplus(log_odds)

    def quantile(noise):
        below, above = tails(noise)
        left = (below - log_left) * kappa / b
        right = (log_right - above) / (kappa * b)
        return mu + pt.where(below < log_left, left, right)

    def noise(x):
        z = x - mu
        left = ndtri_exp(log_left + b / kappa * pt.minimum(z, 0.0))
        right = -ndtri_exp(log_right - b * kappa * pt.maximum(z, 0.0))
        return pt.where(z < 0, left, right)

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.Logistic.rv_type)
def logistic(op, rv, transform):
    mu, s = parameters_of(op, rv)

    def quantile(noise):
        below, above = tails(noise)
        return mu + s * (below - above)

    def noise(x):
        z = (x - mu) / s
        return noise_from_tails(-pt.softplus(-z), -pt.softplus(z))

    return univariate(rv, transform, quantile, noise)


@register_bijection(pm.Gumbel.rv_type)
def gumbel(op, rv, transform):
    mu, beta = parameters_of(op, rv)

    def noise(x):
        below = -pt.exp(-(x - mu) / beta)
        return noise_from_tails(below, log1mexp(below))

    return univariate(rv, transform, lambda e: mu - beta * pt.log(-log_ndtr(e)), noise)


@register_bijection(pm.Weibull.rv_type)
def weibull(op, rv, transform):
    alpha, beta = parameters_of(op, rv)

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
    a, b = parameters_of(op, rv)

    def quantile(noise):
        log_rest = log_ndtr(-noise) / b  # of 1 - x^a
        log_x = log1mexp(log_rest) / a
        # next to one, 1 - x is the rest over a; the rest itself may be too small to subtract
        next_to_one = (log_rest < -20) & (log_rest - pt.log(a) < -20)
        away = log1mexp(pt.where(next_to_one, -1.0, log_x))
        return log_x - pt.where(next_to_one, log_rest - pt.log(a), away)

    def noise(c):
        next_to_one = (c > 20) & (c - pt.log(a) > 20)
        away = log1mexp(-a * pt.softplus(-pt.where(next_to_one, 0.0, c)))
        above = b * pt.where(next_to_one, pt.log(a) - c, away)
        return noise_from_tails(log1mexp(above), above)

    return univariate(rv, transform, quantile, noise, UNIT)


@register_bijection(pm.Cauchy.rv_type)
def cauchy(op, rv, transform):
    alpha, beta = parameters_of(op, rv)

    def quantile(noise):
        # tan(pi (Phi - 1/2)): from the middle by erf, from the ends by the smaller tail
        middle = pt.abs(noise) < 1
        central = pt.tan(pi / 2 * pt.erf(pt.where(middle, noise, 0.0) / SQRT_2))
        end = pt.where(middle, 1.0, noise)
        log_tail = log_ndtr(-pt.abs(end))
        far = log_tail < -20  # where the tangent is its argument
        near = 1 / pt.tan(pi * pt.exp(pt.where(far, -1.0, log_tail)))
        outer = pt.sign(end) * pt.where(far, pt.exp(-log_tail) / pi, near)
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
    (beta,) = parameters_of(op, rv)

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


@register_bijection(pm.Triangular.rv_type)
def triangular(op, rv, transform):
    lower, c, upper = op.dist_params(rv.owner)
    least = float(np.finfo(rv.dtype).tiny)  # the mode may lie on a bound
    left, right = ((x / (upper - lower)).astype(rv.dtype) for x in (c - lower, upper - c))
    log_left, log_right = pt.log(pt.maximum(left, least)), pt.log(pt.maximum(right, least))

    def quantile(noise):
        below, above = tails(noise)
        falls_left = below < log_left
        log_r = (pt.where(falls_left, below, log_left) + log_left) / 2  # of (x - lower) / width
        log_s = (pt.where(falls_left, log_right, above) + log_right) / 2  # of (upper - x) / width
        return pt.where(falls_left, log_r - log1mexp(log_r), log1mexp(log_s) - log_s)

    def noise(coordinate):
        log_r, log_s = -pt.softplus(-coordinate), -pt.softplus(coordinate)
        falls_left = log_r < log_left
        log_cdf = pt.where(falls_left, 2 * log_r - log_left, -1.0)
        log_sf = pt.where(falls_left, -1.0, 2 * log_s - log_right)
        log_cdf, log_sf = (
            pt.where(falls_left, log_cdf, log1mexp(log_sf)),
            pt.where(falls_left, log1mexp(log_cdf), log_sf),
        )
        return noise_from_tails(log_cdf, log_sf)

    return univariate(rv, transform, quantile, noise, Support(lower, upper))


class _PiecewiseLinear:
    """Cumulative distribution of a piecewise linear density, from its first knot on."""

    def __init__(self, distance, density):
        steps = pt.diff(distance)
        self.distance = distance[:-1]
        self.density = density[:-1]
        self.slope = pt.diff(density) / steps
        areas = steps * (density[1:] + density[:-1]) / 2
        self.below = pt.concatenate([pt.zeros_like(areas[:1]), pt.cumsum(areas)[:-1]])

    @staticmethod
    def _segment(edges, x):
        return (x[..., None] >= edges[1:]).sum(-1)

    def quantile(self, probability):
        i = self._segment(self.below, probability)
        excess, density = probability - self.below[i], self.density[i]
        root = pt.sqrt(pt.maximum(density**2 + 2 * self.slope[i] * excess, 0.0))
        # zero only at the first knot of a density that starts at zero, where the excess is zero
        return self.distance[i] + 2 * excess / (density + root)

    def cdf(self, distance):
        i = self._segment(self.distance, distance)
        excess = distance - self.distance[i]
        return self.below[i] + excess * (self.density[i] + self.slope[i] * excess / 2)


@register_bijection(pm.Interpolated.rv_type)
def interpolated(op, rv, transform):
    x_points, pdf_points, _ = op.dist_params(rv.owner)
    if any(length != 1 for length in x_points.type.shape[:-1]):
        return None
    support = Support(x_points[..., 0], x_points[..., -1])
    knots, density = (x.flatten().astype(rv.dtype) for x in (x_points, pdf_points))
    lower, upper = knots[0], knots[-1]
    width = upper - lower
    backwards = np.arange(x_points.type.shape[-1])[::-1].copy()  # never by a negative step
    from_lower = _PiecewiseLinear(knots - lower, density)
    from_upper = _PiecewiseLinear((upper - knots)[backwards], density[backwards])

    def quantile(noise):
        # the distance from the nearer end, by the nearer tail
        tail = pt.exp(log_ndtr(-pt.abs(noise)))
        left = from_lower.quantile(pt.where(noise < 0, tail, 0.5)) / width
        right = from_upper.quantile(pt.where(noise < 0, 0.5, tail)) / width
        return pt.where(noise < 0, pt.log(left) - pt.log1p(-left), pt.log1p(-right) - pt.log(right))

    def noise(coordinate):
        below = pt.log(from_lower.cdf(width * pt.sigmoid(coordinate)))
        above = pt.log(from_upper.cdf(width * pt.sigmoid(-coordinate)))
        return noise_from_tails(below, above)

    return univariate(rv, transform, quantile, noise, support)


@jax_funcify.register(SplineWrapper)
def _jax_funcify_spline(op, **kwargs):
    """PyMC's density of Interpolated, for which PyTensor has no JAX implementation."""
    if op.spline.get_coeffs().size != op.spline.get_knots().size:
        raise NotImplementedError("Only linear splines can be compiled by JAX.")
    knots, values = op.spline.get_knots(), op.spline.get_coeffs()

    def interpolate(x):
        return jnp.interp(x, knots, values, left=0.0, right=0.0)

    return interpolate
