"""Preparation of PyTensor graphs for compilation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc.data import MinibatchIndexRV, MinibatchOp
from pymc.distributions.distribution import SymbolicRandomVariable
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.variable import TensorVariable

__all__ = [
    "depends_on_minibatch",
    "draws_at_random",
    "evaluate_once",
    "expose_minibatches",
    "upcast_constants",
]


def evaluate_once(
    inputs: dict[Variable, Any], outputs: Sequence[Variable], rewrites: str | None = None
) -> list[np.ndarray]:
    """Evaluate a graph node by node, where to compile it would not pay.

    Parameters
    ----------
    inputs : dict
    outputs : sequence of Variable
    rewrites : str, optional
        "fast_compile" or "fast_run"; by default the graph is taken as it stands.
    """
    optimizer: Any = "None"
    if rewrites is not None:
        optimizer = RewriteDatabaseQuery(include=[rewrites], exclude=["fusion"])
    mode = Mode("py", optimizer)
    with pytensor.config.change_flags(linker="py", cxx=""):  # of the inner graphs of scans too
        # a log density need not depend on the value: data out of its support have none
        function = pytensor.function(
            list(inputs), list(outputs), mode=mode, on_unused_input="ignore"
        )
        with np.errstate(all="ignore"):
            return [np.asarray(found) for found in function(*inputs.values())]


def upcast_constants(outputs: Sequence[Variable]) -> list[Variable]:
    """Raise constants that take part in arithmetic to ``floatX``.

    PyTensor stores a Python number in the smallest type that holds it, and the log-gamma of a
    float32 or int8 constant is then computed in single precision, whatever follows. Arithmetic
    with a variable of low precision is meant to have it, and keeps it.
    """
    float_x = np.dtype(pytensor.config.floatX)

    def is_low(variable: Variable) -> bool:
        return getattr(variable.type, "dtype", "") in ("float16", "float32")

    def upcast(variable: Variable, also_integers: bool) -> Variable:
        if not isinstance(variable, Constant) or not (is_low(variable) or also_integers):
            return variable
        if np.dtype(variable.type.dtype).itemsize >= float_x.itemsize:
            return variable
        return pt.constant(np.asarray(variable.data, dtype=float_x), name=variable.name)

    memo: dict[Variable, Variable] = {}
    for node in toposort(outputs):
        variables = [memo.get(v, v) for v in node.inputs if not isinstance(v, Constant)]
        meant = any(is_low(v) for v in variables)
        # an integer is raised only where it enters arithmetic: elsewhere it may be a shape
        arithmetic = isinstance(node.op, Elemwise) and is_low(node.outputs[0])
        inputs = [memo.get(v, v if meant else upcast(v, arithmetic)) for v in node.inputs]
        if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
            continue
        rebuilt = node.clone_with_new_inputs(inputs, strict=False)
        memo.update(zip(node.outputs, rebuilt.outputs, strict=True))
    return [memo.get(output, output) for output in outputs]


def depends_on_minibatch(variable: Variable) -> bool:
    """Whether a random minibatch is among the ancestors of a variable."""
    return any(_has_op(v, MinibatchOp) for v in ancestors([variable]))


def draws_at_random(variable: Variable) -> bool:
    """Whether a random draw is among the ancestors of a variable."""
    random = (RandomVariable, SymbolicRandomVariable)
    return any(
        v.owner is not None and isinstance(v.owner.op, random) for v in ancestors([variable])
    )


def expose_minibatches(
    outputs: Sequence[Variable],
) -> tuple[list[Variable], list[tuple[TensorVariable, int]]]:
    """Turn the random row indices of ``pm.Minibatch`` into inputs.

    Returns
    -------
    outputs : list of Variable
    indices : list of (TensorVariable, int)
        An integer vector for each minibatch, and the number of rows to draw from. All variables
        that were cut by one call of ``pm.Minibatch`` share their indices.

    Raises
    ------
    NotImplementedError
        If any other random variable is left in the graph.
    """
    # one call of pm.Minibatch may have become several nodes, but they keep its generator
    minibatches = dict.fromkeys(v.owner for v in ancestors(outputs) if _has_op(v, MinibatchOp))
    indices: dict[Variable, tuple[TensorVariable, int]] = {}
    replacements: dict[Variable, Variable] = {}
    for node in minibatches:  # type: Any
        *tensors, generator = node.inputs
        *inner, _ = node.op.fgraph.bind(node.inputs)
        drawn: Any
        (drawn,) = {v.owner.outputs[1] for v in ancestors(inner) if _has_op(v, MinibatchIndexRV)}
        if generator not in indices:
            n_rows = int(tensors[0].shape[0].eval())
            n_batch = int(pt.prod(drawn.shape).eval())
            index = pt.tensor("minibatch_index", shape=(n_batch,), dtype="int64")
            indices[generator] = index, n_rows
        index, _ = indices[generator]
        sliced = clone_replace(inner, {drawn: index}, rebuild_strict=False)
        replacements.update(zip(node.outputs[:-1], sliced, strict=True))
    outputs = clone_replace(list(outputs), replacements, rebuild_strict=False)
    for variable in ancestors(outputs):
        if _has_op(variable, RandomVariable):
            raise NotImplementedError(
                f"The log density depends on the random draw {variable.owner.op} outside of any "
                "model variable; only pm.Minibatch may draw inside a log density."
            )
    return outputs, list(indices.values())


def _has_op(variable: Variable, op_type: type | tuple[type, ...]) -> bool:
    return variable.owner is not None and isinstance(variable.owner.op, op_type)
