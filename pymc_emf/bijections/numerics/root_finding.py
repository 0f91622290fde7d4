"""Bracketed root finding for monotone functions, symbolic and vectorised (EMF A.5)."""

from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.numerics.special import stop_gradient

__all__ = ["bracketed_root", "solve_increasing", "widen"]

#: Relative widening of a bracket.
MARGIN = 1e-4

Function = Callable[[TensorVariable], TensorVariable]


def _inverse_quadratic(a, b, c, f_a, f_b, f_c):
    """Inverse quadratic interpolation where Chandrupatla's criterion trusts it, or half."""
    xi = (a - b) / _nonzero(c - b)
    phi = (f_a - f_b) / _nonzero(f_c - f_b)
    trust = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    first, second, third = _nonzero(f_b - f_a), _nonzero(f_b - f_c), _nonzero(f_c - f_a)
    shift = (c - a) / _nonzero(b - a)
    fraction = f_a / first * f_c / second + shift * f_a / third * f_b / -second
    return pt.where(trust, fraction, 0.5)


def _nonzero(x):
    return pt.where(pt.eq(x, 0), pt.ones_like(x), x)


def bracketed_root(
    function: Function, lower: TensorVariable, upper: TensorVariable, n_steps: int = 50
) -> TensorVariable:
    """Root of an elementwise function between ``lower`` and ``upper``.

    Each step goes to a point between the two ends of the bracket: the inverse
    quadratic interpolation of the last three points where Chandrupatla's criterion trusts it, and
    the middle otherwise, so that the bracket shrinks whatever the function. The number of steps is
    fixed: the loop has the same shape for every input and every backend. Steps after
    convergence change nothing. The function is taken to be negative at ``lower`` and positive
    at ``upper``; a value that is not a number counts as minus infinity if that at ``lower`` was
    none either or is minus infinity, and as infinity otherwise.

    References
    ----------
    T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a
    nonlinear function without using derivatives", Advances in Engineering Software 28 (1997).
    """
    resolution = np.finfo(lower.dtype)
    huge = pt.constant(resolution.max / 1e8, dtype=lower.dtype)

    def step(state):
        newest, oldest, f_newest, f_oldest, fraction = (state[i] for i in range(5))
        point = newest + fraction * (oldest - newest)
        f_point = function(point)
        # it is not a number far out, on the side where it was already beyond all numbers
        far = pt.where(pt.minimum(f_newest, f_oldest) <= -huge, -huge, huge)
        f_point = pt.clip(pt.where(pt.isnan(f_point), far, f_point), -huge, huge)
        # the first two points are the ends, where the sign is known
        f_point = pt.where(pt.isinf(f_oldest), pt.abs(f_point), f_point)
        f_point = pt.where(pt.isinf(f_newest), -pt.abs(f_point), f_point)
        same_side = pt.eq(f_point >= 0, f_newest >= 0)
        # (a, b) bracket the root, a the newest point, c the point dropped last
        c, f_c = pt.where(same_side, newest, oldest), pt.where(same_side, f_newest, f_oldest)
        b, f_b = pt.where(same_side, oldest, newest), pt.where(same_side, f_oldest, f_newest)
        a, f_a = point, f_point

        width = pt.abs(b - a)
        fraction = _inverse_quadratic(a, b, c, f_a, f_b, f_c)
        # at least one unit in the last place away from either end, at most a bisection
        smallest = pt.minimum(0.5, float(resolution.eps) * (1 + pt.abs(a)) / _nonzero(width))
        fraction = pt.where(pt.isinf(f_b), 1.0, pt.clip(fraction, smallest, 1 - smallest))
        done = pt.eq(f_a, 0) | pt.eq(width, 0)
        b_done, f_b_done = pt.where(done, a, b), pt.where(done, f_a, f_b)
        return pt.stack([a, b_done, f_a, f_b_done, fraction]).astype(state.dtype)

    # The ends are the first two points of the loop, not two more copies of the function before it.
    none, infinity = (pt.full_like(lower, x, dtype=lower.dtype) for x in (0.0, np.inf))
    # One array, not five: a scan is rewritten array by array.
    start = pt.stack([lower, upper, -infinity, infinity, none])
    states = pytensor.scan(step, outputs_info=[start], n_steps=n_steps + 2, return_updates=False)
    newest, oldest, f_newest, f_oldest = (states[-1, i] for i in range(4))
    return pt.where(pt.abs(f_newest) <= pt.abs(f_oldest), newest, oldest)


def widen(lower: TensorVariable, upper: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
    """Widen a bracket a little: a root at one of its ends could fall outside by rounding."""
    return lower - MARGIN * (1 + pt.abs(lower)), upper + MARGIN * (1 + pt.abs(upper))


def solve_increasing(
    function: Function,
    derivative: Function,
    target: TensorVariable,
    lower: TensorVariable,
    upper: TensorVariable,
) -> TensorVariable:
    r"""Solve ``function(x) = target`` elementwise for an increasing ``function``.

    The root is found on constants; one Newton step taken there,
    :math:`x - (f_\theta(x) - u) / f'(x)`, has the value of the root and, by the implicit
    function theorem, its first derivatives in the target and in every parameter of
    ``function``. No derivative passes through the iterations.
    """
    held = stop_gradient(target)
    lower, upper = widen(stop_gradient(lower), stop_gradient(upper))
    root = bracketed_root(lambda x: stop_gradient(function(x)) - held, lower, upper)
    root = stop_gradient(root)
    return root - (function(root) - target) / stop_gradient(derivative(root))
