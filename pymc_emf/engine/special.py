"""Special functions of which JAX has no derivative that a model may need."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp

from pytensor.graph.fg import FunctionGraph
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.scalar.basic import upgrade_to_float
from pytensor.scalar.math import BetaInc, Erfcx, Hyp2F1
from pytensor.tensor.elemwise import Elemwise

from pymc_emf.engine.branches import differentiate_forward

__all__ = ["use_special_functions"]


class DifferentiableErfcx(Erfcx):
    """PyTensor's ``erfcx``, with second derivatives of arrays in JAX."""


class DifferentiableBetaInc(BetaInc):
    """PyTensor's ``betainc``, with derivatives in its parameters in JAX."""


class FastHyp2F1(Hyp2F1):
    """PyTensor's ``hyp2f1``, a hundred times as fast as JAX's, and with its derivatives."""


#: Terms of a hypergeometric series; for an argument of 0.999 so many are needed.
MAX_TERMS = 20_000

_OURS = {
    Erfcx: Elemwise(DifferentiableErfcx(upgrade_to_float, name="erfcx")),
    BetaInc: Elemwise(DifferentiableBetaInc(upgrade_to_float, name="betainc")),
    Hyp2F1: Elemwise(FastHyp2F1(upgrade_to_float, name="hyp2f1")),
}


def use_special_functions(fgraph: FunctionGraph) -> None:
    """Replace functions whose derivatives JAX refuses, in this graph alone."""
    for node in list(fgraph.apply_nodes):
        scalar_op: Any = getattr(node.op, "scalar_op", None)
        op: Any = _OURS.get(type(scalar_op))
        if op is not None:
            (new,) = op.make_node(*node.inputs).outputs
            fgraph.replace(node.outputs[0], new, import_missing=True)


@differentiate_forward
def _log_betainc(a, b, x):
    """Log of ``betainc`` below its mean, by its continued fraction (for its derivatives alone).

    Lentz's method: W. H. Press et al., *Numerical Recipes*, 3rd edition, section 6.4. Derivatives
    settle later than the value does: that ends at once where ``b`` is a whole number.
    """
    tiny, eps = jnp.finfo(x.dtype).tiny, jnp.finfo(x.dtype).eps
    enough = 15 + 2 * jnp.nanmax(jnp.sqrt(jnp.maximum(a, b)))

    def away_from_zero(y):
        return jnp.where(jnp.abs(y) < tiny, tiny, y)

    def is_going_on(state):
        m, settled, *_ = state
        return (m < MAX_TERMS) & (m <= jnp.maximum(settled + settled // 4, enough))

    def add(state):
        m, settled, numerator, denominator, total = state
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        factor = 1.0
        for term in (even, odd):
            denominator = 1 / away_from_zero(1 + term * denominator)
            numerator = away_from_zero(1 + term / numerator)
            factor *= numerator * denominator
        settled = jnp.where((jnp.abs(factor - 1) > 16 * eps).any(), m, settled)  # rounding
        return m + 1, settled, numerator, denominator, total * factor

    first = 1 / away_from_zero(1 - (a + b) * x / (a + 1))
    one = jnp.ones((), x.dtype)
    *_, fraction = jax.lax.while_loop(is_going_on, add, (one, one, jnp.ones_like(x), first, first))
    # nine digits of the derivatives of JAX's betaln are right
    log_beta = jsp.gammaln(a) + jsp.gammaln(b) - jsp.gammaln(a + b)
    return a * jnp.log(x) + b * jnp.log1p(-x) - jnp.log(a) - log_beta + jnp.log(fraction)


@jax.custom_jvp
def _betainc(a, b, x):
    return jsp.betainc(a, b, x)


def _betainc_jvp(primals, tangents):
    """By the density, and in the parameters by the log of the smaller tail."""
    (a, b, x), change = primals, jnp.zeros_like(primals[2])
    upper = x > a / (a + b)
    sign, mirrored = jnp.where(upper, -1.0, 1.0), jnp.where(upper, 1 - x, x)

    def tail(function, a, b, mirrored=mirrored):
        return function(jnp.where(upper, b, a), jnp.where(upper, a, b), mirrored)

    for i, tangent in enumerate(tangents):
        if isinstance(tangent, jax.custom_derivatives.SymbolicZero):
            continue
        if i == 2:
            log_slope = jsp.xlogy(a - 1, x) + jsp.xlog1py(b - 1, -x) - jsp.betaln(a, b)
            change = change + jnp.exp(log_slope) * tangent
            continue
        inside = jnp.maximum(mirrored, jnp.finfo(x.dtype).tiny)

        def moved(parameter, i=i, inside=inside):
            there = (parameter, b) if i == 0 else (a, parameter)
            return tail(_log_betainc, *there, inside)

        _, slope = jax.jvp(moved, (primals[i],), (jnp.ones_like(primals[i]),))
        change = change + sign * tail(_betainc, a, b) * slope * tangent
    return _betainc(*primals), change


_betainc.defjvp(_betainc_jvp, symbolic_zeros=True)


@differentiate_forward
def _hyp2f1(a, b, c, x):
    """By Gauss's series, after the transformations of Pfaff and Euler; NaN from one on.

    The first makes the argument positive, the second the terms decrease. JAX's own derivatives
    take a series with digamma functions each, of 250 terms, which is not always enough.
    """
    negative = x < 0
    b, factor = jnp.where(negative, c - b, b), jnp.where(negative, -a * jnp.log1p(-x), 0.0)
    x = jnp.where(negative, x / (x - 1), x)
    grows = a + b > c
    factor += jnp.where(grows, (c - a - b) * jnp.log1p(-x), 0.0)
    a, b = jnp.where(grows, c - a, a), jnp.where(grows, c - b, b)
    eps = jnp.finfo(x.dtype).eps

    def is_going_on(state):
        k, _, size, total = state
        # what is left is at most a geometric series
        left = size > eps * (1 - x) * jnp.abs(total)
        return (k < MAX_TERMS) & (left & (x < 1)).any()

    def add(state):
        k, term, size, total = state
        shrunk = x / ((c + k) * (k + 1))
        term = term * (a + k) * (b + k) * shrunk
        # of the derivatives' terms, too, which do not vanish where a + k or b + k does
        size = size * jnp.maximum(jnp.abs(a + k), 1) * jnp.maximum(jnp.abs(b + k), 1)
        return k + 1, term, size * jnp.abs(shrunk), total + term

    one = jnp.ones_like(x)
    *_, total = jax.lax.while_loop(is_going_on, add, (0.0, one, one, one))
    return jnp.where(x < 1, jnp.exp(factor) * total, jnp.nan)


@jax_funcify.register(DifferentiableErfcx)
def _jax_funcify_erfcx(op, **kwargs):
    # the second derivative of JAX 0.12 takes scalars alone
    return jnp.vectorize(jsp.erfcx)


@jax_funcify.register(DifferentiableBetaInc)
def _jax_funcify_betainc(op, **kwargs):
    return _of_floats(_betainc)


@jax_funcify.register(FastHyp2F1)
def _jax_funcify_hyp2f1(op, **kwargs):
    return _of_floats(_hyp2f1)


def _of_floats(function: Any) -> Any:
    def elementwise(*inputs):
        dtype = jnp.result_type(float, *inputs)
        return function(*jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in inputs)))

    return elementwise
