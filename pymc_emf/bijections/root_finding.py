"""Bracketed root finding for monotone functions, symbolic and vectorised (EMF A.5)."""

from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.special import stop_gradient

__all__ = ["solve_increasing"]

#: Relative widening of a bracket.
MARGIN = 1e-4

Function = Callable[[TensorVariable], TensorVariable]


def chandrupatla(
    function: Function, lower: TensorVariable, upper: TensorVariable, n_steps: int = 50
) -> TensorVariable:
    """Root of an elementwise function between ``lower`` and ``upper``, by Chandrupatla's method.

    Each step is an inverse quadratic interpolation where the last three points allow it and a
    bisection otherwise, so the bracket shrinks whatever the function. The number of steps is
    fixed: the loop has the same shape for every input and every backend. Steps after
    convergence change nothing. A value of the function that is not a number counts as
    positive infinity.

    References
    ----------
    T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a
    nonlinear function without using derivatives", Advances in Engineering Software 28 (1997).
    """
    resolution = np.finfo(lower.dtype)
    huge = pt.constant(resolution.max / 1e8, dtype=lower.dtype)

    def finite(x):
        y = function(x)
        return pt.clip(pt.where(pt.isnan(y), huge, y), -huge, huge).astype(x.dtype)

    def step(newest, oldest, previous, f_newest, f_oldest, f_previous, fraction):
        point = newest + fraction * (oldest - newest)
        f_point = finite(point)
        same_side = pt.eq(f_point >= 0, f_newest >= 0)
        # (a, b) bracket the root, a the newest point, c the point dropped last
        c, f_c = pt.where(same_side, newest, oldest), pt.where(same_side, f_newest, f_oldest)
        b, f_b = pt.where(same_side, oldest, newest), pt.where(same_side, f_oldest, f_newest)
        a, f_a = point, f_point

        width = pt.abs(b - a)
        xi = (a - b) / pt.where(pt.eq(c, b), 1.0, c - b)
        phi = (f_a - f_b) / pt.where(pt.eq(f_c, f_b), 1.0, f_c - f_b)
        trust = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        denominators = (f_b - f_a, f_b - f_c, f_c - f_a)
        first, second, third = (pt.where(pt.eq(d, 0), 1.0, d) for d in denominators)
        shift = (c - a) / pt.where(pt.eq(a, b), 1.0, b - a)
        quadratic = f_a / first * f_c / second + shift * f_a / third * f_b / -second
        # at least one unit in the last place away from either end, at most a bisection
        smallest = pt.minimum(
            0.5, float(resolution.eps) * (1 + pt.abs(a)) / pt.where(pt.eq(width, 0), 1.0, width)
        )
        fraction = pt.clip(pt.where(trust, quadratic, 0.5), smallest, 1 - smallest)
        done = pt.eq(f_a, 0) | pt.eq(width, 0)
        state = (a, b, c, f_a, f_b, f_c, fraction)
        b_done, f_b_done = pt.where(done, a, b), pt.where(done, f_a, f_b)
        return [s.astype(newest.dtype) for s in (a, b_done, c, f_a, f_b_done, f_c, state[-1])]

    half = pt.full_like(lower, 0.5, dtype=lower.dtype)
    f_lower, f_upper = finite(lower), finite(upper)
    start = [lower, upper, upper, f_lower, f_upper, f_upper, half]
    newest, oldest, _, f_newest, f_oldest, *_ = pytensor.scan(
        step, outputs_info=start, n_steps=n_steps, return_updates=False
    )
    newest, oldest, f_newest, f_oldest = (x[-1] for x in (newest, oldest, f_newest, f_oldest))
    return pt.where(pt.abs(f_newest) <= pt.abs(f_oldest), newest, oldest)


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
    # a root at an end of the bracket would fall outside by rounding
    lower = stop_gradient(lower - MARGIN * (1 + pt.abs(lower)))
    upper = stop_gradient(upper + MARGIN * (1 + pt.abs(upper)))
    root = chandrupatla(lambda x: stop_gradient(function(x)) - held, lower, upper)
    root = stop_gradient(root)
    return root - (function(root) - target) / stop_gradient(derivative(root))
