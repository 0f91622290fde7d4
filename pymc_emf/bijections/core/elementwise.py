"""Increasing maps of each element, and the gate that blends them with the identity."""

from collections.abc import Callable
from typing import cast

import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Triangular, let_through
from pymc_emf.bijections.numerics.root_finding import solve_increasing

__all__ = ["Elementwise", "Gated", "derivative"]

Map = Callable[[TensorVariable], TensorVariable]


def derivative(function: Map, x: TensorVariable) -> TensorVariable:
    """Elementwise derivative of an elementwise function at ``x``."""
    held = x.copy()  # parameters of the function must not count as functions of x
    return cast(TensorVariable, pt.grad(function(held).sum(), held))


class Elementwise(Triangular):
    """An increasing map of each element."""

    #: Whether :meth:`to_value` is a formula and :meth:`to_noise` perhaps a search, rather than
    #: the other way round. It tells which of the two the inverse of a gated map should iterate.
    explicit_forward = True

    def gated(self, gate):
        return Gated(self, gate)


class Gated(Elementwise):
    r"""Elementwise :math:`\lambda f(\varepsilon) + (1 - \lambda)\varepsilon`.

    It is inverted by bracketing. The solution :math:`\varepsilon` for a value :math:`u` lies
    between :math:`u` (the gate closed) and :math:`f^{-1}(u)` (the gate open); where
    :math:`f^{-1}` is the explicit direction, :math:`v = f(\varepsilon)` is sought instead,
    between :math:`u` and :math:`f(u)`.
    """

    def __init__(self, site: Elementwise, gate: TensorVariable):
        self.site = site
        self.gate = gate
        self.explicit_forward = site.explicit_forward

    def _log_slope(self, log_slope):
        """``log(d value / d noise)`` from that of the open map."""
        return pt.log(self.gate * pt.exp(log_slope) + let_through(self.gate))

    def to_value(self, noise):
        value, log_slope = self.site.to_value(noise)
        return self.gate * value + let_through(self.gate) * noise, self._log_slope(log_slope)

    def to_noise(self, value):
        if self.site.explicit_forward:
            noise = self._solve(self.to_value, value, self.site.to_noise(value)[0])
            return noise, -self.to_value(noise)[1]

        def blend(open_value):
            noise, log_slope = self.site.to_noise(open_value)
            slope = self.gate + let_through(self.gate) * pt.exp(log_slope)
            return self.gate * open_value + let_through(self.gate) * noise, pt.log(slope)

        open_value = self._solve(blend, value, self.site.to_value(value)[0])
        noise, log_slope = self.site.to_noise(open_value)
        return noise, -self._log_slope(-log_slope)

    @staticmethod
    def _solve(function, value, other_end):
        # a value beyond the distribution's tail would have a bracket too wide for any search
        farthest = 1e4 * (1 + pt.abs(value))
        other_end = pt.clip(other_end, value - farthest, value + farthest)
        return solve_increasing(
            lambda x: function(x)[0],
            lambda x: pt.exp(function(x)[1]),
            value,
            pt.minimum(other_end, value),
            pt.maximum(other_end, value),
        )

    def gated(self, gate):
        return Gated(self.site, gate * self.gate)
