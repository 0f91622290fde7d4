r"""Mixtures of continuous components: their distribution function is a mixture too (EMF Eq. 11)."""

import numpy as np
import pytensor.tensor as pt

from pymc.distributions.mixture import MixtureRV
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import bijection_from_rv, register_bijection
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.numerics.quadrature import ByDensity
from pymc_emf.bijections.numerics.root_finding import bracketed_root, widen
from pymc_emf.bijections.numerics.special import log_ndtr, ndtri_exp, normal_logpdf, stop_gradient

__all__ = ["MixtureOf"]


class Stacked(Elementwise):
    """Different elementwise bijections, side by side along a new last axis."""

    def __init__(self, sites: list[Elementwise]):
        self.sites = sites
        self.gateable = all(site.gateable for site in sites)

    def _apply(self, direction, event):
        images = [getattr(site, direction)(event[..., i]) for i, site in enumerate(self.sites)]
        image, log_slope = zip(*images, strict=True)
        return pt.stack(image, axis=-1), pt.stack(log_slope, axis=-1)

    def to_value(self, noise):
        return self._apply("to_value", noise)

    def to_noise(self, value):
        return self._apply("to_noise", value)


class MixtureOf(ByDensity):
    r"""Bijection of a mixture, :math:`C(u) = \sum_k w_k C_k(u)`, from those of its components.

    A quantile of the mixture lies between the smallest and the largest of the components'
    quantiles at the same noise, which is the bracket of the root finder.

    Parameters
    ----------
    weights : TensorVariable, shape (..., n_components)
    components : Elementwise
        All components along the last axis, in one and the same value space.
    n_components : int
    """

    def __init__(self, weights: TensorVariable, components: Elementwise, n_components: int):
        self.log_weights = pt.log(weights)
        self.components = components
        self.n_components = n_components
        self.gateable = components.gateable

    def _spread(self, event):
        shape = (*tuple(event.shape), self.n_components)
        return pt.broadcast_to(event[..., None], shape)

    def log_density(self, coordinate):
        noise, log_slope = self.components.to_noise(self._spread(coordinate))
        return pt.logsumexp(self.log_weights + normal_logpdf(noise) + log_slope, axis=-1)

    def noise(self, coordinate):
        noise, _ = self.components.to_noise(self._spread(coordinate))
        # the smaller tail, which a logistic function finds at a fraction of the cost of both
        below = (pt.exp(self.log_weights) * pt.sigmoid(1.7 * noise)).sum(axis=-1)
        side = stop_gradient(pt.where(below < 0.5, 1.0, -1.0).astype(noise.dtype))
        log_tail = pt.logsumexp(self.log_weights + log_ndtr(side[..., None] * noise), axis=-1)
        # keeps the noise finite
        least = pt.constant(np.finfo(noise.type.dtype).min / 1e8, dtype=noise.dtype)
        return side * ndtri_exp(pt.maximum(log_tail, least))

    def search(self, noise):
        quantiles, _ = self.components.to_value(self._spread(noise))
        bracket = widen(quantiles.min(axis=-1), quantiles.max(axis=-1))
        lower, upper = (stop_gradient(end) for end in bracket)
        return bracketed_root(lambda value: stop_gradient(self.noise(value)) - noise, lower, upper)


@register_bijection(MixtureRV)
def mixture(op, rv, transform):
    _, weights, *components = rv.owner.inputs
    if op.ndim_supp != 0:
        return None
    sites: list[Elementwise] = []
    for component in components:
        site = bijection_from_rv(component, transform)
        if not isinstance(site, Elementwise):
            return None
        sites.append(site)
    weights = weights.astype(rv.dtype)
    if len(sites) > 1:
        return MixtureOf(weights, Stacked(sites), len(sites))
    n_components = components[0].type.shape[-1] or weights.type.shape[-1]
    return None if n_components is None else MixtureOf(weights, sites[0], n_components)
