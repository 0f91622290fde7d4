r"""Ordered vectors: the prior under PyMC's ``ordered`` transform is that of order statistics.

Of K independent variables with one distribution, the i-th smallest (counted from zero) given the
one before it is the smallest of m = K - i, all above that one: with the cumulative hazard
:math:`H = -\log(1 - C)`, :math:`m\,(H(x_i) - H(x_{i-1}))` is standard exponential (Rényi 1953).
Where the distributions differ no such closed form exists; then each element is drawn from its own
distribution above the one before, m = 1, which is not quite the prior that PyMC's density defines.
"""

import numpy as np
import pytensor.tensor as pt

from pymc.distributions.transforms import Ordered
from pymc.logprob.transforms import ChainedTransform
from pytensor.graph.basic import Constant
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.type_other import NoneConst
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Bijection, bijection_from_rv, register_under_transform
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.numerics.special import log_ndtr, noise_from_tails, normal_logpdf

__all__ = ["OrderedSites"]

#: Below this change of the cumulative hazard the gap is the change over the hazard in its middle,
#: because the difference of the two ends would have lost its digits.
SMALL = 1e-4


class _Excess(Elementwise):
    """Smallest of m variables above a bound, or of m variables on the whole support.

    Parameters
    ----------
    site : Elementwise
        Of one variable, unconstrained.
    m : int
    lower : TensorVariable, optional
        The value then is the log of the excess over this bound, and of the variable otherwise.
    """

    def __init__(self, site: Elementwise, m: int, lower: TensorVariable | None = None):
        self.site = site
        self.m = m
        self.lower = lower
        self.explicit_forward = site.explicit_forward

    def _start(self):
        """Cumulative hazard at the lower bound."""
        if self.lower is None:
            return 0.0
        noise, _ = self.site.to_noise(self.lower)
        return -log_ndtr(-noise)

    def _at(self, hazard):
        """Variable and log hazard rate at a cumulative hazard."""
        noise = noise_from_tails(pt.log1mexp(-hazard), -hazard)
        x, log_slope = self.site.to_value(noise)
        return x, normal_logpdf(noise) - log_slope + hazard

    def _log_slope(self, noise, log_rate, change, value):
        """``log(d value / d noise)``."""
        log_density = float(np.log(self.m)) + log_rate - self.m * change
        if self.lower is not None:
            log_density = log_density + value
        return normal_logpdf(noise) - log_density

    def to_value(self, noise):
        start = self._start()
        change = -log_ndtr(-noise) / self.m
        x, log_rate = self._at(start + change)
        if self.lower is None:
            return x, self._log_slope(noise, log_rate, change, x)
        small = change < SMALL * pt.minimum(start, 1.0)
        _, log_middle = self._at(start + change / 2)
        excess = pt.where(small, 1.0, x - self.lower)
        value = pt.where(small, pt.log(change) - log_middle, pt.log(excess))
        return value, self._log_slope(noise, log_rate, change, value)

    def _rate(self, x):
        """Cumulative hazard and log hazard rate of the variable at ``x``."""
        noise, log_slope = self.site.to_noise(x)
        hazard = -log_ndtr(-noise)
        return hazard, normal_logpdf(noise) + log_slope + hazard

    def to_noise(self, value):
        start = self._start()
        if self.lower is None:
            change, log_rate = self._rate(value)
        else:
            excess = pt.exp(value)
            hazard, log_rate = self._rate(self.lower + excess)
            _, log_middle = self._rate(self.lower + excess / 2)
            change = hazard - start
            small = change < SMALL * pt.minimum(start, 1.0)
            change = pt.where(small, excess * pt.exp(log_middle), change)
        log_sf = -self.m * change
        noise = noise_from_tails(pt.log1mexp(log_sf), log_sf)
        return noise, -self._log_slope(noise, log_rate, change, value)


class OrderedSites(Bijection):
    """Ordered vectors along the last axis, with the gate inside.

    Parameters
    ----------
    sites : list of Elementwise
        Bijection of each element without its transform, on events whose last axis has length one.
    exchangeable : bool
        Whether all have the same distribution.
    positive : bool
        Whether the first value is the log of the smallest element.
    """

    def __init__(
        self,
        sites: list[Elementwise],
        exchangeable: bool,
        positive: bool,
        gate: TensorVariable | None = None,
    ):
        self.sites = sites
        self.exchangeable = exchangeable
        self.positive = positive
        self.gate = gate

    def _conditional(self, i, lower):
        m = len(self.sites) - i if self.exchangeable else 1
        if lower is None and m == 1:
            site = self.sites[i]
        else:
            site = _Excess(self.sites[i], m, lower)
        return site if self.gate is None else site.gated(self.gate[..., i : i + 1])

    def _constrain(self, value, lower):
        return value if lower is None else lower + pt.exp(value)

    def _first_bound(self, event):
        return pt.zeros_like(event[..., :1]) if self.positive else None

    def forward(self, noise):
        lower, values, log_det = self._first_bound(noise), [], 0.0
        for i in range(len(self.sites)):
            value, log_slope = self._conditional(i, lower).to_value(noise[..., i : i + 1])
            lower = self._constrain(value, lower)
            values.append(value)
            log_det = log_det + log_slope.sum()
        return pt.concatenate(values, axis=-1), log_det

    def inverse(self, value):
        lower, noises, log_det = self._first_bound(value), [], 0.0
        for i in range(len(self.sites)):
            value_i = value[..., i : i + 1]
            noise, log_slope = self._conditional(i, lower).to_noise(value_i)
            lower = self._constrain(value_i, lower)
            noises.append(noise)
            log_det = log_det + log_slope.sum()
        return pt.concatenate(noises, axis=-1), log_det

    def gated(self, gate):
        return OrderedSites(self.sites, self.exchangeable, self.positive, gate)


@register_under_transform(ChainedTransform)
def ordered_after_another(rv, transform):
    """Embed under an elementwise transform and then ``ordered``."""
    *before, last = transform.transform_list
    if len(before) != 1 or not isinstance(last, Ordered):
        return None
    return ordered(rv, last, before[0])


@register_under_transform(Ordered)
def ordered(rv, transform, before=None):
    """Embed a vector of independent variables."""
    op, length = rv.owner.op, rv.type.shape[-1] if rv.ndim else None
    if length is None or not isinstance(op, RandomVariable) or op.ndim_supp != 0:
        return None
    rng, _, *parameters = rv.owner.inputs
    exchangeable = all(_same_along_last_axis(p) for p in parameters)
    sites = []
    for i in range(length):
        # descending vectors are reversed, and then ascend
        place = i if transform.ascending else length - 1 - i
        of_element = [
            p[..., place : place + 1] if p.ndim and p.type.shape[-1] != 1 else p for p in parameters
        ]
        element = op.make_node(rng, NoneConst, *of_element).default_output()
        site = bijection_from_rv(element, before)
        if not isinstance(site, Elementwise):
            return None
        sites.append(site)
    return OrderedSites(sites, exchangeable, transform.positive)


def _same_along_last_axis(parameter: TensorVariable) -> bool:
    if parameter.ndim == 0 or parameter.type.shape[-1] == 1:
        return True
    if isinstance(parameter, Constant):
        return bool(np.all(parameter.data == parameter.data[..., :1]))
    return False
