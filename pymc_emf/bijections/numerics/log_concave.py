r"""Log-concave distributions without a closed quantile, from their densities alone.

Gamma, Beta, Student t and most other families of statistics have a log-concave density in the
natural coordinate of their support (log x, logit x, asinh x), however skewed or heavy-tailed
they are in x. Then everything follows from the *drop* of the log density below its mode,
:math:`\psi(d) = \log p(m) - \log p(m + d)`, a convex function with minimum zero at zero:

- the log probability of a tail, :math:`\log p(c) + \log \int_0^\infty
  e^{-(\psi(d + s) - \psi(d))} ds`, integrated *away* from the mode, so that nothing cancels and
  the relative accuracy is the same at any depth;
- a bracket of each quantile, because :math:`P(C < m - d) \le e^{-\psi(d)}`;
- the derivatives in the parameters, which pass through the quadrature, whatever the family.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.elementwise import derivative
from pymc_emf.bijections.numerics.quadrature import ByDensity, gauss_legendre, on_nodes
from pymc_emf.bijections.numerics.root_finding import bracketed_root
from pymc_emf.bijections.numerics.special import ndtri_exp, stop_gradient, tails

__all__ = ["LogConcave"]

#: Nodes and weights on the scale on which the integrand falls from one to 1/e, with errors over
#: Gamma, Beta and Wald tails of shapes 0.05 to 1e4 below 3e-8 (mostly 1e-11) and 2e-4.
FINE = gauss_legendre([0.0, 0.164, 0.88, 1.402, 2.108, 3.412, 7.015, 16.866, 42.0], 8)
COARSE = gauss_legendre([0.0, 2.306, 9.212], 8)

#: Nodes and weights between the mode and a point next to it, on the unit interval.
MIDDLE = gauss_legendre([0.0, 0.1, 1.0], 8)

#: Steps of the root finder on the coarse rule.
N_STEPS = 5


class LogConcave(ByDensity):
    """Bijection of a log-concave density; its coordinate is the deviation from the mode.

    A coarse quadrature finds the quantile in a bracket, the fine one polishes it.

    Parameters
    ----------
    drop : callable
        Log density at the mode minus that at ``mode + d``, elementwise, as a function of d.
        Write it so that it does not cancel for small d.
    mode, log_peak : TensorVariable
        Mode, and log density there, in nats.
    scale : TensorVariable
        A distance over which the density changes, roughly: the standard deviation will do.
    lopsided : bool
        Whether one side of the mode may hold next to no probability.
    """

    def __init__(
        self,
        drop: Callable[[TensorVariable], TensorVariable],
        mode: TensorVariable,
        log_peak: TensorVariable,
        scale: TensorVariable,
        lopsided: bool = False,
    ):
        self._drop = drop
        self.origin = mode
        self.log_peak = log_peak
        self.scale = stop_gradient(scale)
        self.lopsided = lopsided

    def drop(self, d):
        # an infinite drop would become NaN in a difference
        most = pt.constant(np.finfo(d.dtype).max / 1e8, dtype=d.dtype)
        return pt.minimum(self._drop(d), most)

    def log_density(self, d):
        return self.log_peak - self.drop(d)

    def _fallen(self, level, start, n_points):
        """Distances to the left and to the right, stacked, where the drop has reached a level.

        Convexity gives a bracket from the drop at a starting distance; the first of a few points
        between beyond the level is taken.
        """
        side = on_nodes(np.array([-1.0, 1.0]), start[0])

        def drop(distance):
            return self.drop(side * distance)

        ratio = level / pt.maximum(drop(start), 1e-6)
        lower = pt.log(start * pt.minimum(ratio, 1.0))
        step = pt.abs(pt.log(ratio)) / n_points
        points = pt.exp(pt.shape_padleft(lower) + on_nodes(np.arange(1, n_points), lower) * step)
        below = (drop(points) < level).sum(0).astype(step.dtype)
        return stop_gradient(pt.exp(lower + (below + 1) * step))

    @cached_property
    def _reach(self):
        """Where the density has fallen by one nat."""
        return self._fallen(1.0, pt.stack([self.scale, self.scale]), 12)

    def noise(self, d, rule=FINE):
        """Noise at the deviation ``d`` from the mode."""
        minus, plus = (pt.constant(x, dtype=d.dtype) for x in (-1.0, 1.0))
        side = pt.where(d < 0, minus, plus)
        outer = self._log_tail(d, side, rule)
        # next to one a probability may come out above it
        outer = pt.minimum(outer, -float(np.finfo(d.dtype).eps))
        if not self.lopsided:
            return -side * ndtri_exp(outer)
        # between mode and median the outer tail is the larger: take the rest, tail and middle
        nodes, weights = (on_nodes(x, d) for x in MIDDLE)
        middle = pt.abs(d) * (weights * pt.exp(-self.drop(d * nodes))).sum(0)
        at_mode = pt.zeros_like(self.log_peak)
        left, right = (pt.exp(self._log_tail(at_mode, side, rule)) for side in (minus, plus))
        inner = pt.where(d < 0, right, left) + middle * pt.exp(self.log_peak)
        nearer = inner < 0.5
        tail = ndtri_exp(pt.where(nearer, pt.log(pt.where(nearer, inner, 0.5)), outer))
        return pt.where(pt.eq(nearer, d < 0), -tail, tail)

    def _log_tail(self, d, side, rule):
        """Log probability from ``d`` outwards, in the direction ``side`` of plus or minus one."""
        drop, slope = self.drop(d), side * derivative(self.drop, d)
        left, right = self._reach[0], self._reach[1]
        # between the two limits of a straight and of a curved drop; then along the chord
        width = 1 / (slope + 1 / pt.where(side < 0, left, right))
        width = width / (self.drop(d + side * width) - drop)
        width = stop_gradient(width)
        nodes, weights = (on_nodes(x, d) for x in rule)
        relative = pt.exp(drop - self.drop(d + side * width * nodes))
        return self.log_peak - drop + pt.log(width * (weights * relative).sum(0))

    def search(self, noise):
        # a little more than the bound, for densities that are not quite log-concave
        level = 1e-6 - 1.02 * pt.stack(tails(noise))
        further = range(1, 1 + noise.ndim - self.scale.ndim)
        bracket = self._fallen(level, pt.expand_dims(self._reach, tuple(further)), 8)
        return bracketed_root(
            lambda d: stop_gradient(self.noise(d, COARSE)) - noise,
            -bracket[0],
            bracket[1],
            N_STEPS,
        )
