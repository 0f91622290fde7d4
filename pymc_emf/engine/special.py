"""Special functions of which JAX has no derivative that a model may need."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp

from pytensor.graph.fg import FunctionGraph
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.scalar.basic import upgrade_to_float
from pytensor.scalar.math import BetaInc, Erfcx
from pytensor.tensor.elemwise import Elemwise

__all__ = ["use_special_functions"]


class DifferentiableErfcx(Erfcx):
    """PyTensor's ``erfcx``, with second derivatives of arrays in JAX."""


class DifferentiableBetaInc(BetaInc):
    """PyTensor's ``betainc``, with derivatives in its parameters in JAX."""


_OURS = {
    Erfcx: Elemwise(DifferentiableErfcx(upgrade_to_float, name="erfcx")),
    BetaInc: Elemwise(DifferentiableBetaInc(upgrade_to_float, name="betainc")),
}


def use_special_functions(fgraph: FunctionGraph) -> None:
    """Replace functions whose derivatives JAX refuses, in this graph alone."""
    for node in list(fgraph.apply_nodes):
        scalar_op: Any = getattr(node.op, "scalar_op", None)
        op: Any = _OURS.get(type(scalar_op))
        if op is not None:
            (new,) = op.make_node(*node.inputs).outputs
            fgraph.replace(node.outputs[0], new, import_missing=True)


@jax.custom_jvp
def _betainc(a, b, x):
    return jsp.betainc(a, b, x)


def _betainc_jvp(primals, tangents):
    """By the density, and in the parameters by central differences of fourth order.

    They are those of the log of the smaller tail, which is all but linear in a parameter where it
    is tiny.
    """
    (a, b, x), change = primals, jnp.zeros_like(primals[2])
    upper = x > a / (a + b)
    sign, mirrored = jnp.where(upper, -1.0, 1.0), jnp.where(upper, 1 - x, x)

    def tail(a, b):
        return _betainc(jnp.where(upper, b, a), jnp.where(upper, a, b), mirrored)

    for i, tangent in enumerate(tangents):
        if isinstance(tangent, jax.custom_derivatives.SymbolicZero):
            continue
        if i == 2:
            log_slope = jsp.xlogy(a - 1, x) + jsp.xlog1py(b - 1, -x) - jsp.betaln(a, b)
            change = change + jnp.exp(log_slope) * tangent
            continue
        step = primals[i] * jnp.finfo(primals[i].dtype).eps ** 0.2

        def moved(n, i=i, step=step):
            there = tail(a + n * step, b) if i == 0 else tail(a, b + n * step)
            return jnp.log(jnp.where(there > 0, there, 1.0))

        slope = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
        change = change + sign * tail(a, b) * slope * tangent
    return _betainc(*primals), change


_betainc.defjvp(_betainc_jvp, symbolic_zeros=True)


@jax_funcify.register(DifferentiableErfcx)
def _jax_funcify_erfcx(op, **kwargs):
    # the second derivative of JAX 0.12 takes scalars alone
    return jnp.vectorize(jsp.erfcx)


@jax_funcify.register(DifferentiableBetaInc)
def _jax_funcify_betainc(op, **kwargs):
    def betainc(*inputs):
        dtype = jnp.result_type(float, *inputs)
        return _betainc(*jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in inputs)))

    return betainc
