"""PyTensor graphs as JAX functions."""

import warnings

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pymc  # noqa: F401  (registers the rewrites of parameter checks)
import pytensor

from pytensor.compile.mode import JAX
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import graph_inputs
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.link.jax.dispatch.basic import jax_typify
from pytensor.link.utils import fgraph_to_python
from pytensor.scan.op import Scan

from pymc_emf.engine.branches import guard_branches
from pymc_emf.engine.cache import use_persistent_cache
from pymc_emf.engine.callback import Called, call_back
from pymc_emf.engine.graph import upcast_constants
from pymc_emf.engine.special import use_special_functions
from pymc_emf.engine.tails import undo_complements, use_log_ndtr

__all__ = ["jaxify"]

#: Rewrites that do not pay: of what XLA saves anyway, which fails noisily on truth values, and of
#: what holds of diagonal, orthogonal or symmetric matrices, for which whole graphs are searched.
_LEFT_OUT = (
    "local_greedy_distributor",
    "diagonal_solve_to_division",
    "orthogonal_solve_to_transpose_matmul",
    "useless_symmetric_transpose",
)


def jaxify(
    inputs: Sequence[Variable],
    outputs: Sequence[Variable],
    *,
    check_bounds: bool = True,
    with_slopes: bool = False,
    called: list[Called] | None = None,
) -> Callable[..., tuple[Any, ...]]:
    """Rewrite a PyTensor graph once and return it as a JAX function.

    Parameters
    ----------
    inputs : sequence of Variable
        May hold shared variables; every other shared variable of the graph is frozen at its
        present value.
    outputs : sequence of Variable
    check_bounds : bool
        Whether PyMC's parameter checks make a log density minus infinity, or are dropped.
    with_slopes : bool
        Whether derivatives will be asked for, which operations unknown to JAX may lack.
    called : list, optional
        Gets those operations, which are called back in Python.

    Returns
    -------
    callable
        Takes and returns arrays, one for each input and output; not vectorised.

    Raises
    ------
    NotImplementedError
        If the graph holds an Op that JAX cannot run, or, ``with_slopes``, one that is called back
        and has no gradient.
    """
    use_persistent_cache()
    outputs = upcast_constants(outputs)
    shared = [v for v in graph_inputs(outputs) if isinstance(v, SharedVariable)]
    as_inputs: dict[Variable, Any] = {v: v.type() for v in inputs if isinstance(v, SharedVariable)}
    frozen: dict[Variable, Any] = {
        v: v.type.constant_type(type=v.type, data=np.asarray(v.get_value()), name=v.name)
        for v in shared
        if v not in as_inputs
    }
    replacements: dict[Variable, Variable] = {**as_inputs, **frozen}
    outputs = clone_replace(outputs, replacements)
    fgraph = FunctionGraph(
        inputs=[as_inputs.get(v, v) for v in inputs], outputs=outputs, clone=True
    )
    check = (
        "local_check_parameter_to_ninf_switch" if check_bounds else "local_remove_check_parameter"
    )
    mode = JAX.including(check).excluding(*_LEFT_OUT)
    with pytensor.config.change_flags(traceback__limit=0):
        use_log_ndtr(fgraph)
        mode.optimizer.rewrite(fgraph)
    unknown = _mend(fgraph)
    if with_slopes:
        for op in unknown:
            _ = op.slopes
    if called is not None:
        called += unknown
    with warnings.catch_warnings():
        # shape assertions of PyTensor's own, which JAX would ignore as it ignores its own
        warnings.filterwarnings("ignore", message="Skipping .* Op", category=UserWarning)
        try:
            with jax.ensure_compile_time_eval():  # constants are no part of what may be traced
                function = fgraph_to_python(fgraph, jax_funcify, type_conversion_fn=_on_device)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"JAX cannot run a part of the graph ({error}); write it with other operations, or "
                "register an implementation with pytensor.link.jax.dispatch.jax_funcify."
            ) from error
    # its graph is traced once, however often it is used within others
    return jax.jit(function, inline=True)


def _on_device(data: Any, **kwargs: Any) -> Any:
    """Put a constant on the device, for which PyTensor's own way compiles a program by shape."""
    if isinstance(data, np.ndarray) and data.ndim:
        return jax.device_put(data)
    return jax_typify(data, **kwargs)


def _mend(fgraph: FunctionGraph) -> list[Called]:
    """Rewrite what JAX would evaluate or differentiate badly, in the steps of scans as well.

    Returns what is not for JAX at all, and is called back.
    """
    called = []
    for node in list(fgraph.apply_nodes):
        if isinstance(node.op, Scan):
            step = node.op.fgraph.unfreeze()
            called += _mend(step)
            scan = node.op.clone_with_inner_graph(step).make_node(*node.inputs)
            fgraph.replace_all(zip(node.outputs, scan.outputs, strict=True), import_missing=True)
    undo_complements(fgraph)
    use_special_functions(fgraph)
    guard_branches(fgraph)
    return [*called, *call_back(fgraph)]
