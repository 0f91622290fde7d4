"""Operations that JAX does not know, called in Python from what JAX has compiled."""

import logging

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.mode import Mode
from pytensor.gradient import NullTypeGradError, pullback
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.utils import MethodNotDefined
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import TensorType

__all__ = ["Called", "as_raised", "call_back"]

logger = logging.getLogger(__name__)

#: What was raised in Python and has not yet arrived where JAX was called.
_RAISED: list[BaseException] = []

#: Functions of PyTensor, and what users write, need not bear several threads.
_ONE_AT_A_TIME = Lock()

#: Of one operation, or of a derivative that calls another: no linker makes it faster.
_MODE = Mode(linker="py", optimizer="fast_compile")


class Called(Op):
    """An operation that JAX calls back, with its constants.

    Parameters
    ----------
    fgraph : FunctionGraph
        Of one node.
    """

    __props__ = ("fgraph",)

    def __init__(self, fgraph: FunctionGraph):
        self.fgraph = fgraph

    def __str__(self) -> str:
        return str(self.op)

    @property
    def op(self) -> Op:
        (node,) = self.fgraph.apply_nodes
        return node.op

    def make_node(self, *inputs: Variable) -> Apply:
        return Apply(self, list(inputs), [v.type() for v in self.fgraph.outputs])

    def perform(self, node, inputs, output_storage):
        raise NotImplementedError("Called is for JAX alone.")

    # --- what is called ---------------------------------------------------------------------------

    @cached_property
    def evaluate(self) -> Callable[..., list[np.ndarray]]:
        """The outputs, of the inputs."""
        return _compile(self.fgraph.inputs, self.fgraph.outputs)

    @cached_property
    def shapes(self) -> Callable[..., list[np.ndarray]]:
        """Shapes of the outputs, of inputs of which only the shapes matter."""
        return _compile(self.fgraph.inputs, [pt.shape(v) for v in self.fgraph.outputs])

    @cached_property
    def slopes(self) -> Callable[..., list[np.ndarray]]:
        """Products of slopes of the outputs with their derivatives in the inputs that have some.

        Raises
        ------
        NotImplementedError
            If there are no such derivatives.
        """
        inputs, outputs = self.fgraph.inputs, self.fgraph.outputs
        cotangents = [v.type() for v in outputs if _is_float(v)]
        try:
            slopes: Any = pullback(
                [v for v in outputs if _is_float(v)],
                [v for v in inputs if _is_float(v)],
                cotangents,
                disconnected_inputs="ignore",
            )
        except (NotImplementedError, NullTypeGradError, MethodNotDefined) as error:
            raise NotImplementedError(f"{self.op} has no gradient ({error})") from error
        return _compile([*inputs, *cotangents], slopes)


def call_back(fgraph: FunctionGraph) -> list[Called]:
    """Replace what has no implementation in JAX by calls of Python; returns what is called."""
    called = []
    for node in list(fgraph.apply_nodes):
        if _is_known(node) or not all(map(_is_array, [*node.inputs, *node.outputs])):
            continue
        inputs = list(dict.fromkeys(v for v in node.inputs if not isinstance(v, Constant)))
        op = Called(FunctionGraph(inputs, node.outputs, clone=True))
        new = op.make_node(*inputs).outputs
        fgraph.replace_all(zip(node.outputs, new, strict=True), import_missing=True)
        called.append(op)
    return called


@cache
def _tell(op: str) -> None:
    """Say once that an operation is slow."""
    logger.info(
        "JAX has no implementation of %s: Python is called for every draw, which takes its time. "
        "Register one with pytensor.link.jax.dispatch.jax_funcify, or, if numba has one, use "
        'backend="numba".',
        op,
    )


@contextmanager
def as_raised() -> Iterator[None]:
    """Raise what Python has raised, Ctrl-C among it, rather than JAX's error that tells of it."""
    try:
        yield
    except Exception:  # JaxRuntimeError, or ValueError
        if _RAISED:
            raise _RAISED.pop() from None
        raise
    finally:
        _RAISED.clear()


def _is_known(node: Apply) -> bool:
    """Whether JAX has the operation, or PyTensor its reasons why JAX cannot have it."""
    if not isinstance(node.op, Elemwise | Blockwise):
        return jax_funcify.dispatch(type(node.op)) is not jax_funcify.dispatch(object)
    try:  # these ask for the operation on each of many elements
        jax_funcify(node.op, node=node)
    except (NotImplementedError, AttributeError):
        return False
    return True


def _is_array(variable: Variable) -> bool:
    return isinstance(variable.type, TensorType)


def _is_float(variable: Variable) -> bool:
    return variable.type.dtype.startswith("float")


def _struct(shape: tuple[int, ...], variable: Variable) -> jax.ShapeDtypeStruct:
    """How JAX holds the values of a variable: without double precision, if that is off."""
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(variable.type.dtype))


def _compile(inputs: Sequence[Variable], outputs: Sequence[Variable]) -> Callable[..., Any]:
    return pytensor.function(list(inputs), list(outputs), mode=_MODE, on_unused_input="ignore")


def _call(function: Callable, types: Sequence[jax.ShapeDtypeStruct], arguments: Sequence[Any]):
    """Call a function of arrays from JAX."""

    def on_host(*arrays):
        try:
            with _ONE_AT_A_TIME:
                found = function(*map(np.array, arrays))  # copies: JAX's cannot be written to
        except BaseException as error:
            _RAISED.append(error)
            raise
        return tuple(
            np.asarray(x, dtype=t.dtype).reshape(t.shape) for x, t in zip(found, types, strict=True)
        )

    return jax.pure_callback(on_host, tuple(types), *arguments, vmap_method="sequential")


@jax_funcify.register(Called)
def _jax_funcify_called(op: Called, **kwargs):
    _tell(str(op))
    inputs, outputs = op.fgraph.inputs, op.fgraph.outputs
    floats = [_is_float(v) for v in inputs]

    def types(arguments) -> list[jax.ShapeDtypeStruct]:
        shapes = [v.type.shape for v in outputs]
        if any(n is None for shape in shapes for n in shape):
            alike = [
                np.ones(np.shape(x), v.type.dtype) for x, v in zip(arguments, inputs, strict=True)
            ]
            shapes = [tuple(map(int, shape)) for shape in op.shapes(*alike)]
        return [_struct(shape, v) for shape, v in zip(shapes, outputs, strict=True)]

    @jax.custom_vjp
    def call(*arguments):
        return _call(op.evaluate, types(arguments), arguments)

    def forward(*arguments):
        return call(*arguments), arguments

    def backward(arguments, cotangents):
        known = [c for c, v in zip(cotangents, outputs, strict=True) if _is_float(v)]
        wanted = [
            _struct(np.shape(x), v) for x, v in zip(arguments, inputs, strict=True) if _is_float(v)
        ]
        slopes = iter(_call(op.slopes, wanted, [*arguments, *known]))
        return tuple(
            next(slopes) if is_float else np.zeros(np.shape(x), jax.dtypes.float0)
            for x, is_float in zip(arguments, floats, strict=True)
        )

    call.defvjp(forward, backward)

    def called(*arguments):
        arrays = [
            jnp.asarray(x, _struct((), v).dtype) for x, v in zip(arguments, inputs, strict=True)
        ]
        found = call(*arrays)
        return found if len(found) > 1 else found[0]

    return called
