"""Bijections made of others: one after another, or of the elements in another arrangement."""

from functools import reduce
from operator import add

import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.core.elementwise import Elementwise, Map, derivative

__all__ = ["FLIP", "Composed", "ComposedElementwise", "Function", "Rearranged"]


class Composed(Bijection):
    """Bijections one after another, the first of them applied to the noise.

    Parameters
    ----------
    *parts : Bijection
    gated_part : int, optional
        Position of the part that the gate acts on, the others staying as they are; by default there
        is none, and the composition cannot be gated.
    """

    def __init__(self, *parts: Bijection, gated_part: int | None = None):
        self.parts = parts
        self.gated_part = gated_part
        self.gateable = gated_part is not None and parts[gated_part].gateable

    def forward(self, noise):
        value, log_dets = noise, []
        for part in self.parts:
            value, log_det = part.forward(value)
            log_dets.append(log_det)
        return value, reduce(add, log_dets)

    def inverse(self, value):
        noise, log_dets = value, []
        for part in reversed(self.parts):
            noise, log_det = part.inverse(noise)
            log_dets.append(log_det)
        return noise, reduce(add, log_dets)

    def gated(self, gate):
        if self.gated_part is None:
            return super().gated(gate)
        parts = list(self.parts)
        parts[self.gated_part] = parts[self.gated_part].gated(gate)
        return Composed(*parts, gated_part=self.gated_part)


class ComposedElementwise(Elementwise):
    """Elementwise bijections one after another, gated in value space.

    Parameters
    ----------
    *parts : Elementwise
        Two of them may decrease.
    gateable : bool
        False if the values do not fill the real line.
    """

    def __init__(self, *parts: Elementwise, gateable: bool = True):
        self.parts = parts
        self.gateable = gateable
        self.explicit_forward = all(part.explicit_forward for part in parts)

    def to_value(self, noise):
        value, log_slopes = noise, []
        for part in self.parts:
            value, log_slope = part.to_value(value)
            log_slopes.append(log_slope)
        return value, reduce(add, log_slopes)

    def to_noise(self, value):
        noise, log_slopes = value, []
        for part in reversed(self.parts):
            noise, log_slope = part.to_noise(noise)
            log_slopes.append(log_slope)
        return noise, reduce(add, log_slopes)


class Function(Elementwise):
    """A monotone function of each element, to be composed with bijections.

    Parameters
    ----------
    function, inverse : callable
        The function and its inverse.
    log_derivative : callable, optional
        Log of the derivative's absolute value, at the argument of the function; by default of the
        derivative that PyTensor finds.
    """

    def __init__(self, function: Map, inverse: Map, log_derivative: Map | None = None):
        self.function = function
        self.inverse_function = inverse
        self.log_derivative = log_derivative or (lambda x: pt.log(derivative(function, x)))

    def to_value(self, noise):
        return self.function(noise), self.log_derivative(noise)

    def to_noise(self, value):
        noise = self.inverse_function(value)
        return noise, -self.log_derivative(noise)


#: Minus the argument: before and after a bijection, it gives the bijection of minus the variable.
FLIP = Function(pt.neg, pt.neg, pt.zeros_like)


class Rearranged(Bijection):
    """A bijection of the same elements in another arrangement, and so is its gate.

    Parameters
    ----------
    site : Bijection
    inwards, outwards : callable
        From an event of this bijection to one of ``site``, and back. They only move elements.
    """

    def __init__(self, site: Bijection, inwards: Map, outwards: Map):
        self.site = site
        self.inwards = inwards
        self.outwards = outwards
        self.gateable = site.gateable

    def forward(self, noise):
        value, log_det = self.site.forward(self.inwards(noise))
        return self.outwards(value), log_det

    def inverse(self, value):
        noise, log_det = self.site.inverse(self.inwards(value))
        return self.outwards(noise), log_det

    def gated(self, gate):
        return Rearranged(self.site.gated(self.inwards(gate)), self.inwards, self.outwards)
