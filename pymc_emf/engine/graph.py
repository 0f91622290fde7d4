"""Preparation of PyTensor graphs for compilation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc.data import MinibatchIndexRV, MinibatchOp
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.variable import TensorVariable

__all__ = ["expose_minibatches", "upcast_constants"]


def upcast_constants(outputs: Sequence[Variable]) -> list[Variable]:
    """Raise constants that take part in arithmetic to ``floatX``.

    PyTensor stores a Python number in the smallest type that holds it, and the log-gamma of a
    float32 or int8 constant is then computed in single precision, whatever follows.
    """
    float_x = np.dtype(pytensor.config.floatX)
    replacements: dict[Variable, Variable] = {}
    for variable in ancestors(outputs):
        node = variable.owner
        if node is None or not isinstance(node.op, Elemwise):
            continue
        result = np.dtype(node.outputs[0].dtype)
        if result.kind != "f" or result.itemsize >= float_x.itemsize:
            continue
        for constant in node.inputs:
            if isinstance(constant, Constant):
                data = np.asarray(constant.data, dtype=float_x)
                replacements[constant] = pt.constant(data, name=constant.name)
    for variable in ancestors(outputs):
        if isinstance(variable, Constant) and getattr(variable.type, "dtype", "") == "float32":
            data = np.asarray(variable.data, dtype=float_x)
            replacements.setdefault(variable, pt.constant(data, name=variable.name))
    return clone_replace(list(outputs), replacements, rebuild_strict=False)


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
    minibatches = {v.owner for v in ancestors(outputs) if _has_op(v, MinibatchOp)}
    indices: list[tuple[TensorVariable, int]] = []
    replacements: dict[Variable, Variable] = {}
    for node in minibatches:  # type: Any
        *tensors, _ = node.inputs
        *inner, _ = node.op.fgraph.bind(node.inputs)
        drawn: Any
        (drawn,) = {v.owner.outputs[1] for v in ancestors(inner) if _has_op(v, MinibatchIndexRV)}
        n_rows = int(tensors[0].shape[0].eval())
        n_batch = int(pt.prod(drawn.shape).eval())
        index = pt.lvector("minibatch_index").type.clone(shape=(n_batch,))("minibatch_index")
        indices.append((index, n_rows))
        sliced = clone_replace(inner, {drawn: index}, rebuild_strict=False)
        replacements.update(zip(node.outputs[:-1], sliced, strict=True))
    outputs = clone_replace(list(outputs), replacements, rebuild_strict=False)
    for variable in ancestors(outputs):
        if _has_op(variable, RandomVariable):
            raise NotImplementedError(
                f"The log density depends on the random draw {variable.owner.op} outside of any "
                "model variable; only pm.Minibatch may draw inside a log density."
            )
    return outputs, indices


def _has_op(variable: Variable, op_type: type) -> bool:
    return variable.owner is not None and isinstance(variable.owner.op, op_type)
