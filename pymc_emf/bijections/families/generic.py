"""Variables embedded by their density in value space: what has no bijection of its own."""

from math import log, pi

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.dist_math import i0e
from pymc.distributions.distribution import PartialObservedRV, SymbolicRandomVariable
from pymc.distributions.simulator import SimulatorRV
from pymc.distributions.transforms import CircularTransform
from pymc.distributions.truncated import TruncatedRV
from pytensor.tensor.random.op import RandomVariable

from pymc_emf._compat import HurdleRV, logprob_of
from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import register_bijection, register_bypass
from pymc_emf.bijections.core.compose import ComposedElementwise, Function
from pymc_emf.bijections.families.univariate import POSITIVE, parameters_of
from pymc_emf.bijections.numerics.quantile import in_value_space
from pymc_emf.bijections.numerics.tabulated import Tabulated, by_quadrature

LOG_2, LOG_2PI = log(2), log(2 * pi)


@register_bijection(RandomVariable)
@register_bijection(SymbolicRandomVariable)
def univariate_with_a_density(op, rv, transform):
    """Embed what nobody registered, ``pm.CustomDist(logp=...)`` among it."""
    if op.ndim_supp != 0 or logprob_of.dispatch(type(op)) is logprob_of.dispatch(object):
        return None
    try:
        return by_quadrature(rv, transform)
    except NotImplementedError:  # a CustomDist without logp
        return None


for _op_type, _reason in {
    pm.Flat.rv_type: "improper",
    pm.HalfFlat.rv_type: "improper",
    pm.Censored.rv_type: "its measure has atoms",
    HurdleRV: "its measure has an atom",
    pm.PolyaGamma.rv_type: "PyMC's density cannot be compiled by JAX",
    SimulatorRV: "it has no density",
    PartialObservedRV: "its density is one with that of what is observed",
}.items():
    register_bypass(_op_type, _reason)


@register_bijection(TruncatedRV)
def truncated(op, rv, transform):
    *base_inputs, lower, upper = rv.owner.inputs
    base = op.base_rv_op.make_node(*base_inputs).default_output()

    def log_density(x):
        # the base's own density: where it is truncated it need not be normalised
        inside = (x >= lower) & (x <= upper)
        x = pt.clip(x, lower, upper)
        return pt.where(inside, pm.logp(base, x, warn_rvs=False), -np.inf)

    return by_quadrature(rv, transform, log_density)


@register_bijection(pm.TruncatedNormal.rv_type)
def truncated_normal(op, rv, transform):
    mu, sigma, lower, upper = parameters_of(op, rv)

    def log_density(x):
        inside = (x >= lower) & (x <= upper)
        return pt.where(inside, -0.5 * ((x - mu) / sigma) ** 2, -np.inf)

    return by_quadrature(rv, transform, log_density)


@register_bijection(pm.Rice.rv_type)
def rice(op, rv, transform):
    b, sigma = parameters_of(op, rv)

    def log_density(c):  # of log(x / sigma)
        x = pt.exp(c)
        return 2 * c - (x - b) ** 2 / 2 + pt.log(i0e(b * x))

    scaled = LocScale(pt.log(sigma), pt.ones_like(sigma))
    site = ComposedElementwise(Tabulated(log_density, [b]), scaled)
    return in_value_space(rv, transform, site, POSITIVE)


@register_bijection(pm.VonMises.rv_type)
def von_mises(op, rv, transform):
    mu, kappa = parameters_of(op, rv)
    if not isinstance(transform, CircularTransform):
        return by_quadrature(rv, transform)

    def log_density(w):  # of w where sin(angle / 2) = tanh w
        return -2 * kappa * pt.tanh(w) ** 2 - pt.log(pt.cosh(w))

    def angle(w):
        return mu + 2 * pt.arctan(pt.sinh(w))

    def from_angle(value):
        turned = value - mu
        return pt.arcsinh(pt.tan(pt.arctan2(pt.sin(turned), pt.cos(turned)) / 2))

    turn = Function(angle, from_angle, lambda w: LOG_2 - pt.log(pt.cosh(w)))
    # the density repeats itself along the line, where a gate would let the fit spread without end
    return ComposedElementwise(Tabulated(log_density, [kappa]), turn, gateable=False)
