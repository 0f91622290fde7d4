"""Log probabilities of tails, written so that they are exact and JAX differentiates them well."""

from typing import Any

import numpy as np
import pytensor.tensor as pt

from pymc.distributions.dist_math import normal_lccdf, normal_lcdf
from pytensor.graph.basic import Constant, Variable, equal_computations
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.scalar.basic import GT, LT, Sub, Switch, TrueDiv
from pytensor.scalar.math import Log1mexp
from pytensor.tensor.elemwise import Elemwise

from pymc_emf.bijections import log_ndtr
from pymc_emf.engine.graph import upcast_constants

__all__ = ["undo_complements", "use_log_ndtr"]


def use_log_ndtr(fgraph: FunctionGraph) -> None:
    """Replace what PyMC's ``normal_lcdf`` and ``normal_lccdf`` return in a graph not yet rewritten.

    It is a ``switch`` of two forms, each of which overflows where the other is taken. Censored and
    truncated normal densities evaluate it at every datum.
    """
    dfs_rewriter(_to_log_ndtr).rewrite(fgraph)


def undo_complements(fgraph: FunctionGraph) -> None:
    """Replace the complement of a complement in a rewritten graph.

    PyMC derives a survival function that it does not know from the distribution function, which may
    be a complement itself: that of the Weibull is one minus exp(-t), of which far out nothing is
    left but one.
    """
    dfs_rewriter(_to_complement).rewrite(fgraph)


@node_rewriter([Elemwise])
def _to_complement(fgraph: FunctionGraph, node: Any) -> list[Variable] | None:
    if not isinstance(node.op.scalar_op, Log1mexp):
        return None
    complement = _complement(node.inputs[0])
    if complement is None or complement.type != node.outputs[0].type:
        return None
    return [complement]


def _complement(variable: Any) -> Any:
    """Log of one minus a probability, from its log; None if that takes a subtraction."""
    if isinstance(variable, Constant):
        with np.errstate(divide="ignore"):
            data = np.log(-np.expm1(variable.data))
        return pt.constant(data.astype(variable.data.dtype))
    if _is(variable, Log1mexp):
        return variable.owner.inputs[0]
    if _is(variable, Switch):
        condition, *branches = variable.owner.inputs
        complements = [_complement(branch) for branch in branches]
        if not any(complement is None for complement in complements):
            return pt.switch(condition, *complements)
    return None


@node_rewriter([Elemwise])
def _to_log_ndtr(fgraph: FunctionGraph, node: Any) -> list[Variable] | None:
    if not (isinstance(node.op.scalar_op, Switch) and _is(node.inputs[0], (LT, GT))):
        return None
    z, _ = node.inputs[0].owner.inputs
    if not (_is(z, TrueDiv) and _is(z.owner.inputs[0], Sub)):
        return None
    (x, mu), sigma = z.owner.inputs[0].owner.inputs, z.owner.inputs[1]
    for function, argument in ((normal_lcdf, z), (normal_lccdf, -z)):
        known: Any = upcast_constants([function(mu, sigma, x)])
        if known[0].type == node.outputs[0].type and equal_computations(known, node.outputs):
            return [log_ndtr(argument)]
    return None


def _is(variable: Variable, scalar_op: type | tuple[type, ...]) -> bool:
    node = variable.owner
    return (
        node is not None
        and isinstance(node.op, Elemwise)
        and isinstance(node.op.scalar_op, scalar_op)
    )
