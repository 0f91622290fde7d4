"""Univariate distributions as bijections: a quantile map is all that a family needs."""

from dataclasses import dataclass
from typing import Any

import pytensor.tensor as pt

from pymc.distributions.transforms import LogExpM1
from pymc.logprob.transforms import IntervalTransform, LogOddsTransform, LogTransform, Transform
from pytensor.graph.basic import equal_computations
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.core.compose import ComposedElementwise, Function
from pymc_emf.bijections.core.elementwise import Elementwise, Map, derivative
from pymc_emf.bijections.numerics.tabulated import by_quadrature

__all__ = ["Quantile", "Support", "in_value_space", "location_scale", "univariate"]


@dataclass(frozen=True)
class Support:
    """An interval and its natural coordinate, in which quantiles are written.

    The coordinate is x itself on the real line, ``log(x - lower)`` above a lower bound, and
    ``logit((x - lower) / (upper - lower))`` between two bounds. PyMC's default transforms
    are these very coordinates, so a quantile written in it is one in value space, and keeps
    its accuracy in tails where x would round to a bound.
    """

    lower: TensorVariable | float | None = None
    upper: TensorVariable | float | None = None

    @property
    def bounded(self) -> bool:
        return self.lower is not None

    def from_coordinate(self, coordinate: TensorVariable) -> TensorVariable:
        if self.lower is None:
            return coordinate
        if self.upper is None:
            return self.lower + pt.exp(coordinate)
        return self.lower + (self.upper - self.lower) * pt.sigmoid(coordinate)

    def to_coordinate(self, x: TensorVariable) -> TensorVariable:
        if self.lower is None:
            return x
        if self.upper is None:
            return pt.log(x - self.lower)
        return pt.log(x - self.lower) - pt.log(self.upper - x)

    def is_coordinate_of(self, transform: Transform | None, inputs: list) -> bool:
        """Whether the transform is this coordinate, so that neither need be applied."""
        match transform:
            case None:
                return not self.bounded
            case LogTransform():
                bounds: tuple[Any, Any] = (0.0, None)
            case LogOddsTransform():
                bounds = (0.0, 1.0)
            case IntervalTransform():
                lower, upper, lower_bounded, upper_bounded = transform.get_a_and_b(inputs)
                bounds = (lower if lower_bounded else None, upper if upper_bounded else None)
            case _:
                return False
        return _same(self.lower, bounds[0]) and _same(self.upper, bounds[1])


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return equal_computations([_as_float(a)], [_as_float(b)])


def _as_float(x):
    return pt.as_tensor(x).astype("floatX")


class Quantile(Elementwise):
    r"""Bijection of a univariate distribution by its quantile function (EMF Eq. 4).

    :math:`u = T(C^{-1}(\Phi(\varepsilon)))`. Its derivative is
    :math:`\varphi(\varepsilon) / p_u(u)` with the prior density in value space, but is taken from
    the quantile map itself: a density that goes through x rounds to zero where x rounds to a
    bound of its support.

    Parameters
    ----------
    quantile, noise : callable
        Noise to value, and value to noise; increasing.
    """

    def __init__(self, quantile: Map, noise: Map):
        self._quantile = quantile
        self._noise = noise

    def _log_slope(self, noise):
        """``log(d value / d noise)``."""
        return pt.log(derivative(self._quantile, noise))

    def to_value(self, noise):
        return self._quantile(noise), self._log_slope(noise)

    def to_noise(self, value):
        noise = self._noise(value)
        return noise, -self._log_slope(noise)


def in_value_space(
    rv: TensorVariable,
    transform: Transform | None,
    site: Elementwise,
    support: Support | None = None,
) -> Bijection | None:
    """Carry a bijection from the natural coordinate of a variable's support to its value space.

    Parameters
    ----------
    rv : TensorVariable
        The random variable.
    transform : Transform or None
        The transform that defines value space.
    site : Elementwise
        From noise to the natural coordinate of the support.
    support : Support, optional
        Bounds of the support, by default the real line.

    Returns
    -------
    Bijection or None
        Under a transform that does not map the support onto the real line, the bijection of
        PyMC's density there, by quadrature; None if the transform is not elementwise.
    """
    support = support or Support()
    inputs = rv.owner.inputs
    if support.is_coordinate_of(transform, inputs):
        return site
    if transform is None:
        # the identity would leave a bounded support, so that there is nothing to gate with
        constrain = Function(support.from_coordinate, support.to_coordinate)
        return ComposedElementwise(site, constrain, gateable=False)
    if isinstance(transform, LogExpM1) and _same(support.lower, 0.0) and support.upper is None:
        change = Function(
            lambda c: transform.forward(support.from_coordinate(c), *inputs),
            lambda value: support.to_coordinate(transform.backward(value, *inputs)),
        )
        return ComposedElementwise(site, change)
    return by_quadrature(rv, transform)


def univariate(
    rv: TensorVariable,
    transform: Transform | None,
    quantile: Map,
    noise: Map,
    support: Support | None = None,
) -> Bijection | None:
    """Bijection of a univariate variable from its quantile map.

    Parameters
    ----------
    rv : TensorVariable
        The random variable.
    transform : Transform or None
        The transform that defines value space.
    quantile : callable
        Noise to the natural coordinate of the support, increasing. Write it with
        :func:`~pymc_emf.bijections.tails`.
    noise : callable
        The inverse of ``quantile``.
    support : Support, optional
        Bounds of the support, by default the real line.

    Returns
    -------
    Bijection or None
        As of :func:`in_value_space`.
    """
    return in_value_space(rv, transform, Quantile(quantile, noise), support)


def location_scale(
    rv: TensorVariable,
    transform: Transform | None,
    loc: TensorVariable,
    scale: TensorVariable,
    support: Support | None = None,
) -> Bijection | None:
    """Bijection of a variable that is normal in the natural coordinate of its support."""
    support = support or Support()
    if support.is_coordinate_of(transform, rv.owner.inputs):
        return LocScale(loc, scale)
    return univariate(
        rv, transform, lambda e: loc + scale * e, lambda c: (c - loc) / scale, support
    )
