"""Derivatives of what is defined by cases, in JAX.

PyMC writes a log density that has different accurate forms in different places as a ``switch`` of
them. Where one form is taken, another may overflow or take the logarithm of zero. JAX sends a
gradient of zero through that other form, where it meets a slope that is infinite: NaN. PyTensor
moves the zero to the end of the chain when it simplifies, and stays finite.

Forward derivatives have no such fault, since a ``switch`` selects them as it does values.
Elementwise operations have one derivative in each input at each element. So a ``switch`` with the
elementwise operations before it becomes one function here, whose derivatives are computed forward;
JAX sees but products with them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.traversal import ancestors
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.scalar import basic
from pytensor.scalar.loop import ScalarLoop
from pytensor.scalar.math import Erf, Erfc, Log1mexp, Sigmoid, Softplus
from pytensor.tensor.elemwise import Elemwise

from pymc_emf.bijections.numerics.special import LogNdtr, StopGradient

__all__ = ["differentiate_forward", "guard_branches"]

#: Their slopes are finite at all finite values.
_TAME = (
    basic.Abs,
    basic.Add,
    basic.BinaryBitOp,
    basic.Cast,
    basic.Clip,
    basic.FixedLogicalComparison,
    basic.Identity,
    basic.LogicalComparison,
    basic.Mul,
    basic.Neg,
    basic.ScalarMaximum,
    basic.ScalarMinimum,
    basic.Second,
    basic.Sign,
    basic.Sqr,
    basic.Sub,
    basic.Switch,
    basic.UnaryBitOp,
    Erf,
    Erfc,
    LogNdtr,
    Sigmoid,
)
#: PyTensor's implementations in JAX are by cases.
_BY_CASES = (Log1mexp, Softplus)


class Branches(Op):
    """A ``switch`` with the elementwise operations before it.

    Parameters
    ----------
    fgraph : FunctionGraph
        Of one output.
    """

    __props__ = ("fgraph",)

    def __init__(self, fgraph: FunctionGraph):
        self.fgraph = fgraph

    def make_node(self, *inputs: Variable) -> Apply:
        return Apply(self, list(inputs), [self.fgraph.outputs[0].type()])

    def perform(self, node, inputs, output_storage):
        raise NotImplementedError("Branches are for JAX alone.")


def guard_branches(fgraph: FunctionGraph) -> None:
    """Replace what is defined by cases in a rewritten graph, for JAX to differentiate safely.

    Only nodes of this graph are replaced: how PyTensor compiles for others stays as it is.
    """
    # the outermost first: it takes those before it along
    for node in reversed(fgraph.toposort()):
        if node not in fgraph.apply_nodes or node.outputs[0].type.dtype[:5] != "float":
            continue
        region = _region(node)
        if region:
            inputs = _widen(region)
            op = Branches(FunctionGraph(inputs, [node.outputs[0]], clone=True))
            (new,) = op.make_node(*inputs).outputs
            fgraph.replace(node.outputs[0], new, import_missing=True)


def _region(root: Apply) -> dict[Apply, None]:
    """Elementwise nodes that are differentiated together with the last of them, or none."""
    op = _scalar_op(root)
    if isinstance(op, _BY_CASES):
        return {root: None}
    if not isinstance(op, basic.Switch):
        return {}
    condition, *branches = root.inputs
    if any(isinstance(v, Constant) and not np.isfinite(v.data).all() for v in branches):
        return {}  # the bounds of a support, where there is no other form to be saved from
    # what the condition is computed from is computed anyway
    outside = set(ancestors([condition]))
    region: dict[Apply, None] = {}
    for node in _elementwise([v for v in branches if v not in outside], outside):
        # what does no harm is an input, rather than all that it depends on
        steep = not isinstance(_scalar_op(node), _TAME)
        if steep or any(v.owner in region for v in node.inputs if v.owner is not None):
            region[node] = None
    return {**region, root: None} if region else {}


def _widen(region: dict[Apply, None]) -> list[Variable]:
    """Take more nodes along, as long as that makes the inputs no more; returns the inputs.

    Each input costs a derivative of the whole.
    """
    inner = [v for node in region for v in node.inputs if v.owner not in region]
    inputs = dict.fromkeys(v for v in inner if not isinstance(v, Constant))
    pending = list(inputs)
    while pending:
        variable = pending.pop()
        node = variable.owner
        if variable not in inputs or node is None or _scalar_op(node) is None:
            continue
        further = {v for v in node.inputs if not isinstance(v, Constant)} - inputs.keys()
        if len(further) <= 1:
            del inputs[variable]
            region[node] = None
            inputs |= dict.fromkeys(further)
            pending = list(inputs)
    return list(inputs)


def _elementwise(outputs: list[Variable], outside: set[Variable]) -> Iterator[Apply]:
    """Nodes on elementwise paths to the outputs, each after those that it depends on."""
    seen: set[Apply] = set()
    stack = [(v.owner, False) for v in outputs]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node is not None and node not in seen and _scalar_op(node) is not None:
            seen.add(node)
            stack.append((node, True))
            stack += [(v.owner, False) for v in node.inputs if v not in outside]


def _scalar_op(node: Apply) -> Any:
    """What an elementwise node does to each element; None of any other node.

    What is held constant counts as another: its slope of zero, times one that is not finite,
    would not be zero.
    """
    op = node.op.scalar_op if isinstance(node.op, Elemwise) else None
    return None if isinstance(op, ScalarLoop | StopGradient) else op


def differentiate_forward(function: Callable) -> Callable:
    """The same elementwise function, with derivatives of any order that are computed forward."""

    def slope(i):
        def of_input(*inputs):
            def of_one(x):
                return function(*inputs[:i], x, *inputs[i + 1 :])

            return jax.jvp(of_one, (inputs[i],), (jnp.ones_like(inputs[i]),))[1]

        return differentiate_forward(of_input)

    @jax.custom_jvp
    def forward(*inputs):
        return function(*inputs)

    def jvp(inputs, tangents):
        output = forward(*inputs)
        change = jnp.zeros_like(output)
        for i, tangent in enumerate(tangents):
            # constants have a symbolic zero, and are not differentiated for nothing
            if not isinstance(tangent, jax.custom_derivatives.SymbolicZero):
                change = change + slope(i)(*inputs) * tangent
        return output, change

    forward.defjvp(jvp, symbolic_zeros=True)
    return forward


@jax_funcify.register(Branches)
def _jax_funcify_branches(op, **kwargs):
    inner = jax_funcify(op.fgraph, **kwargs)
    forward = differentiate_forward(lambda *inputs: jnp.asarray(inner(*inputs)[0]))
    return lambda *inputs: forward(*map(jnp.asarray, inputs))
