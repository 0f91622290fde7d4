"""From a model with variables of ``pymc.dims`` to the same model in tensors alone."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.transforms import ZeroSumTransform, circular, log, logodds, simplex
from pymc.logprob.tensor import MeasurableDimShuffle
from pymc.logprob.transforms import ChainedTransform, IntervalTransform, Transform
from pymc.model.fgraph import (
    ModelFreeRV,
    ModelObservedRV,
    ModelVar,
    fgraph_from_model,
    model_from_fgraph,
    remove_view_rewrite,
)
from pymc.pytensorf import constant_fold
from pytensor.compile import optdb
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.rewriting import local_dimshuffle_rv_lift
from pytensor.tensor.sharedvar import TensorSharedVariable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable
from pytensor.xtensor.basic import tensor_from_xtensor, xtensor_from_tensor
from pytensor.xtensor.type import XTensorType, xtensor

from pymc_emf._compat import default_transform
from pymc_emf.bijections.families.shuffled import ShuffledTransform

__all__ = ["has_dims", "lower_dims", "lower_graphs"]


def has_dims(model: pm.Model) -> bool:
    """Whether a variable with named dimensions stands anywhere in the graphs of a model."""
    variables = [*model.named_vars.values(), *model.rvs_to_values.values()]
    return any(isinstance(v.type, XTensorType) for v in ancestors(variables))


def lower_dims(model: pm.Model) -> pm.Model:
    """Write a model in tensors, with the same names, values, dims and coords.

    Parameters
    ----------
    model : pymc.Model
        Without initial values; is left as it is.

    Returns
    -------
    pymc.Model
        Data and lengths of dims are copies of shared variables, as they were.

    Notes
    -----
    The variables at the leaves become tensors, then PyTensor lowers everything between two
    variables of the model, then each of these is replaced by one of tensors, then PyTensor
    removes what it left at their borders.
    """
    fgraph, _ = fgraph_from_model(model)
    for variable in list(fgraph.variables):
        if variable.owner is None and isinstance(variable.type, XTensorType):
            leaf = xtensor_from_tensor(_as_tensor(variable), dims=variable.type.dims)
            fgraph.replace(variable, leaf, import_missing=True)
    lowering = optdb.query("+lower_xtensor")
    lowering.rewrite(fgraph)
    for node in fgraph.toposort():
        if isinstance(node.op, ModelVar) and isinstance(node.outputs[0].type, XTensorType):
            dims = node.outputs[0].type.dims
            lowered = xtensor_from_tensor(_lower(fgraph, node, dims), dims=dims)
            fgraph.replace(node.outputs[0], lowered, import_missing=True)
    lowering.rewrite(fgraph)
    return model_from_fgraph(fgraph, mutate_fgraph=True)


def _as_tensor(leaf: Any) -> Variable:
    """Return the tensor in the place of a value, a constant or data, which have no owner."""
    tensor_type = TensorType(leaf.type.dtype, shape=leaf.type.shape)
    if isinstance(leaf, Constant):
        return tensor_type.constant_type(tensor_type, leaf.data, name=leaf.name)
    if isinstance(leaf, SharedVariable):
        return TensorSharedVariable(
            type=tensor_type, value=leaf.get_value(borrow=True), strict=True, name=leaf.name
        )
    return tensor_type(name=leaf.name)


def _lower(fgraph: FunctionGraph, node: Apply, dims: Sequence[str]) -> TensorVariable:
    """Return the model's variable in tensors, whose graph before it has been lowered."""
    op: Any = node.op
    variable, *value = [_inner(x) for x in node.inputs]
    order = tuple(range(len(dims)))
    if isinstance(op, ModelFreeRV | ModelObservedRV):
        variable, order = _in_order(fgraph, variable)
    transform = getattr(op, "transform", None)
    if transform is None:
        return cast(TensorVariable, op(variable, *value))
    # as the distribution has them: where its axes are shuffled, so is the transform
    own_dims = [dims[order.index(axis)] for axis in range(len(dims))]
    lowered = _lower_transform(transform, variable, own_dims)
    if order != tuple(range(len(dims))):
        lowered = ShuffledTransform(lowered, order)
    return cast(TensorVariable, type(op)(op.name, op.dims, lowered)(variable, *value))


def _inner(variable: Variable) -> Any:
    return tensor_from_xtensor(variable) if variable.owner is None else variable.owner.inputs[0]


def _in_order(
    fgraph: FunctionGraph, variable: TensorVariable
) -> tuple[TensorVariable, tuple[int, ...]]:
    """Put the axes of a random variable in the order of its dims where its family can do it.

    Returns
    -------
    variable : TensorVariable
    order : tuple of int
        Axes that the distribution itself has, in the order of the variable's.
    """
    node: Any = variable.owner
    unchanged = tuple(range(variable.ndim))
    if not isinstance(node.op, DimShuffle) or node.op.augment or node.op.drop:
        return variable, unchanged
    base = node.inputs[0]
    if base.owner is None or not isinstance(base.owner.op, RandomVariable | SymbolicRandomVariable):
        return variable, unchanged
    order = tuple(node.op.shuffle)
    lifted: Any = local_dimshuffle_rv_lift.transform(fgraph, node)
    if lifted:
        return lifted[variable], unchanged
    op = base.owner.op
    if isinstance(op, SymbolicRandomVariable) and not any((op.ndim_supp, *op.ndims_params)):
        return _of_shuffled_parameters(base, order), unchanged
    # PyMC looks for the density of no other transposition of a vector
    shuffle = MeasurableDimShuffle(input_ndim=base.ndim, new_order=node.op.new_order)
    return cast(TensorVariable, shuffle(base)), order


def _of_shuffled_parameters(rv: TensorVariable, order: Sequence[int]) -> TensorVariable:
    """Do as PyTensor's rewrite, for the scalar distributions that it leaves out."""
    op: Any = rv.owner.op
    missing = [range(rv.ndim - parameter.ndim) for parameter in op.dist_params(rv.owner)]
    parameters = [
        pt.expand_dims(parameter, list(axes)).dimshuffle(order)
        for parameter, axes in zip(op.dist_params(rv.owner), missing, strict=True)
    ]
    return cast(TensorVariable, op.rv_op(*parameters, size=[rv.shape[axis] for axis in order]))


def _lower_transform(transform: Any, rv: TensorVariable, dims: Sequence[str]) -> Transform:
    """Return PyMC's own transform of tensors, or else the lowered graph of this one.

    Parameters
    ----------
    transform : Transform
    rv : TensorVariable
    dims : sequence of str
        Of the distribution's axes.
    """
    # not with the package: whoever imports pymc.dims changes how PyMC rewrites all models
    from pymc.dims.distributions import transforms as named

    match transform:
        case ChainedTransform():
            parts = transform.transform_list
            return ChainedTransform([_lower_transform(part, rv, dims) for part in parts])
        case named.LogTransform():
            return log
        case named.LogOddsTransform():
            return logodds
        case named.CircularTransform():
            return circular
        case named.IntervalTransform():
            return _interval(transform, rv, dims)
        case named.SimplexTransform() if transform.core_dim == dims[-1]:
            return simplex
        case named.ZeroSumTransform():
            return ZeroSumTransform([dims.index(dim) - len(dims) for dim in transform.dims])
    return NamedTransform(transform, dims)


def _interval(transform: Any, rv: TensorVariable, dims: Sequence[str]) -> Transform:
    """Return the transform of constant bounds, or the family's own if it has the same."""
    bounds = tuple(_bound(bound, dims) for bound in (transform.lower, transform.upper))
    own = default_transform(rv.owner.op, rv)
    if isinstance(own, IntervalTransform):
        # of parameters rather than of equal constants: the bijection sees that they agree
        *of_family, lower_bounded, upper_bounded = own.get_a_and_b(rv.owner.inputs)
        found = constant_fold([pt.as_tensor(b) for b in of_family], raise_not_constant=False)
        bounded = (lower_bounded, upper_bounded)
        if all(map(_agree, found, bounded, bounds)):
            return own
    return IntervalTransform(lambda *_: bounds)


def _bound(bound: Any, dims: Sequence[str]) -> np.ndarray | None:
    """Return a bound in the order of the distribution's axes, None if there is none."""
    if np.isinf(bound.data).all():
        return None
    array = np.transpose(bound.data, [bound.dims.index(dim) for dim in dims if dim in bound.dims])
    places = [slice(None) if dim in bound.dims else None for dim in dims]
    return array[tuple(places)] if bound.dims else array


def _agree(found: Any, is_bounded: bool, bound: np.ndarray | None) -> bool:
    if bound is None or not is_bounded:
        return bound is None and not is_bounded
    return not isinstance(found, Variable) and bool(np.all(found == bound))


class NamedTransform(Transform):
    """A transform of named dimensions as one of tensors.

    Parameters
    ----------
    transform : Transform
        Uses no inputs of the variable.
    dims : sequence of str
        Of the variable's axes.
    """

    def __init__(self, transform: Any, dims: Sequence[str]):
        self.transform = transform
        self.dims = tuple(dims)
        value = transform.forward(xtensor("x", dims=self.dims))
        self.value_dims = value.type.dims
        self.name = transform.name
        self.ndim_supp = len(self.dims) - transform.log_jac_det(value).type.ndim

    def forward(self, value, *inputs):
        return _lowered(lambda x: self.transform.forward(x), value, self.dims)

    def backward(self, value, *inputs):
        return _lowered(
            lambda x: self.transform.backward(x).transpose(*self.dims), value, self.value_dims
        )

    def log_jac_det(self, value, *inputs):
        return _lowered(lambda x: self.transform.log_jac_det(x), value, self.value_dims)


def _lowered(function: Any, value: Any, dims: Sequence[str]) -> TensorVariable:
    """Return a function of a variable with named dimensions, of a tensor."""
    value = pt.as_tensor(value)
    variable = xtensor("x", dims=dims, shape=value.type.shape, dtype=value.type.dtype)
    return lower_graphs([function(variable)], {variable: value})[0]


def lower_graphs(
    graphs: Sequence[Variable], stand_ins: Mapping[Variable, TensorVariable]
) -> list[TensorVariable]:
    """Write graphs in tensors, which are left as they are.

    Parameters
    ----------
    graphs : sequence of Variable
    stand_ins : mapping
        From variables of theirs to tensors in their place.
    """
    # lowering changes graphs in place, but not those of the stand-ins
    given: dict[Any, Any] = {v: tensor.type() for v, tensor in stand_ins.items()}
    named = {
        v: xtensor_from_tensor(x, v.type.dims) if isinstance(v.type, XTensorType) else x
        for v, x in given.items()
    }
    replaced: Any = graph_replace(list(graphs), named, strict=False)
    outputs: Any = [
        tensor_from_xtensor(g) if isinstance(g.type, XTensorType) else g for g in replaced
    ]
    fgraph = FunctionGraph(outputs=outputs, clone=True, copy_inputs=False, copy_orphans=False)
    remove_view_rewrite.apply(fgraph)  # of deterministics
    optdb.query("+lower_xtensor").rewrite(fgraph)
    back = {x: stand_ins[v] for v, x in given.items()}
    return cast(list, graph_replace(fgraph.outputs, back, strict=False))
