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

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.quadrature import ByDensity, gauss_legendre, on_nodes
from pymc_emf.bijections.root_finding import bracketed_root
from pymc_emf.bijections.special import ndtri_exp, stop_gradient, tails

__all__ = ["LogConcave"]

#: Nodes and weights on the scale on which the integrand falls from one to 1/e. Panels were chosen
#: to minimise the largest error over Gamma and Beta tails of shapes 0.05 to 1e4: 2e-9 and 1e-3.
FINE = gauss_legendre([0.0, 0.164, 0.88, 1.402, 2.108, 3.412, 7.015, 16.866, 42.0], 8)
COARSE = gauss_legendre([0.0, 0.96, 2.571, 8.887], 4)

#: Nodes and weights between the mode and a point next to it, on the unit interval.
MIDDLE = gauss_legendre([0.0, 0.1, 1.0], 8)
COARSE_MIDDLE = gauss_legendre([0.0, 1.0], 4)

#: Steps of the root finder on the coarse rule; the fine rule polishes.
N_STEPS = 6


def _rough_ndtri_exp(log_p):
    """Inverse of ``log_ndtr`` within 5e-4 (Abramowitz and Stegun 1964, 26.2.23)."""
    log_half = -0.6931471805599453
    below = log_p < log_half
    log_nearer = pt.where(below, log_p, pt.log1mexp(pt.where(below, log_half, log_p)))
    t = pt.sqrt(-2 * log_nearer)
    numerator = 2.515517 + t * (0.802853 + t * 0.010328)
    denominator = 1 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    z = t - numerator / denominator
    return pt.where(below, -z, z)


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

    def _distance(self, function, level, n_points):
        """Bracket, on the log scale, the s where a convex function from zero reaches a level.

        Convexity gives a bracket; two searches among a few points each narrow it, which is a
        smaller graph than as many bisections.
        """
        ratio = level / pt.maximum(function(self.scale), 1e-6)
        lower = pt.log(self.scale * pt.minimum(ratio, 1.0))
        upper = pt.log(self.scale * pt.maximum(ratio, 1.0))
        for _ in range(2):
            step = (upper - lower) / (n_points + 1)
            points = lower + on_nodes(np.arange(1, n_points + 1), lower) * step
            below = (function(pt.exp(points)) < level).sum(0).astype(step.dtype)
            lower, upper = lower + below * step, lower + (below + 1) * step
        return lower, upper

    def noise(self, d, rule=FINE):
        """Noise at the deviation ``d`` from the mode."""
        side = pt.where(d < 0, -1.0, 1.0).astype(d.dtype)
        outer = self._log_tail(d, side, rule)
        # next to one a probability may come out above it
        outer = pt.minimum(outer, -float(np.finfo(d.dtype).eps))
        to_noise = _rough_ndtri_exp if rule is COARSE else ndtri_exp
        if not self.lopsided:
            return -side * to_noise(outer)
        # between mode and median the outer tail is the larger: take the rest, tail and middle
        nodes, weights = (on_nodes(x, d) for x in (COARSE_MIDDLE if rule is COARSE else MIDDLE))
        middle = pt.abs(d) * (weights * pt.exp(-self.drop(d * nodes))).sum(0)
        at_mode = pt.zeros_like(self.log_peak)
        left, right = (pt.exp(self._log_tail(at_mode, side, rule)) for side in (-1.0, 1.0))
        inner = pt.where(d < 0, right, left) + middle * pt.exp(self.log_peak)
        nearer = inner < 0.5
        tail = to_noise(pt.where(nearer, pt.log(pt.where(nearer, inner, 0.5)), outer))
        return pt.where(pt.eq(nearer, d < 0), -tail, tail)

    def _log_tail(self, d, side, rule):
        """Log probability from ``d`` outwards, in the direction ``side`` of plus or minus one."""
        held, drop = stop_gradient(d), self.drop(d)
        lower, upper = self._distance(
            lambda s: stop_gradient(self.drop(held + side * s) - self.drop(held)), 1.0, 3
        )
        width = stop_gradient(pt.exp((lower + upper) / 2))
        nodes, weights = (on_nodes(x, d) for x in rule)
        relative = pt.exp(drop - self.drop(d + side * width * nodes))
        return self.log_peak - drop + pt.log(width * (weights * relative).sum(0))

    def search(self, noise):
        below, above = tails(noise)
        lower, upper = self._bracket(-1.0, below), self._bracket(1.0, above)
        return bracketed_root(
            lambda d: stop_gradient(self.noise(d, COARSE)) - noise,
            stop_gradient(lower),
            stop_gradient(upper),
            2 * N_STEPS if self.lopsided else N_STEPS,
        )

    def _bracket(self, side, log_tail):
        # a little more than the bound, for densities that are not quite log-concave
        level = 1e-6 - 1.02 * log_tail
        _, upper = self._distance(lambda s: self.drop(side * s), level, 7)
        return side * pt.exp(upper)
