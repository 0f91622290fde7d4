"""Functions of one event, run over many."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytensor.tensor as pt

from pymc.pytensorf import compile as pymc_compile
from pytensor.graph.replace import vectorize_graph
from pytensor.tensor.variable import TensorVariable

from pymc_emf.engine.callback import as_raised
from pymc_emf.engine.forks import refuse_fork
from pymc_emf.engine.threads import N_THREADS, in_background, side_by_side

__all__ = ["Batched", "batch_jax", "batch_pytensor", "share"]

#: Events per compiled call: enough to fill vector units, few enough to bound memory.
BATCH_SIZE = 1000

#: Of arrays whose first axes run over events.
Batched = Callable[..., tuple[np.ndarray, ...]]


def batch_jax(
    function: Callable[..., Any], size: int | None = None, *, block: int | None = None
) -> "BatchedJax":
    """Vectorise and jit a JAX function of values and one event.

    Parameters
    ----------
    function : callable
        ``function(values, *event)`` returns a pytree of arrays.
    size : int, optional
        Number of events in one compiled call, even if there are fewer; by default a power of two
        that holds them.
    block : int, optional
        So many of them are computed together, one block after the other, and blocks without any
        event not at all: one compiled function is then as good for one event as for many. By
        default all; divides ``size``.

    Returns
    -------
    callable
        Of the values, and of one or more arrays whose first axes run over the events together;
        they are taken in batches of one size.
    """

    @jax.jit  # traced once, for the shapes and for the loop
    def together(values, events):
        return jax.vmap(lambda event: function(values, *event))(events)

    @jax.jit
    def compiled(values, events, n_present):
        if block is None or block >= len(events[0]):
            return together(values, events)

        def piece_of(i):
            return [jax.lax.dynamic_slice_in_dim(e, i * block, block) for e in events]

        def one_block(i, outputs):
            return jax.tree.map(
                lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, i * block, 0),
                outputs,
                together(values, piece_of(i)),
            )

        shapes = jax.eval_shape(lambda values: together(values, piece_of(0)), values)
        n_events = len(events[0])
        empty = jax.tree.map(lambda x: jnp.zeros((n_events, *x.shape[1:]), x.dtype), shapes)
        return jax.lax.fori_loop(0, -(-n_present // block), one_block, empty)

    return BatchedJax(compiled, size, block)


class BatchedJax:
    """A compiled function of some events, which takes any number of them.

    Parameters
    ----------
    compiled : callable
        Jitted, of the values, of as many events as fill a call, and of how many of them count.
    size, block
        As for :func:`batch_jax`.
    """

    def __init__(self, compiled: Any, size: int | None, block: int | None):
        self._compiled, self._size, self._block = compiled, size, block
        self._known: set[int] = set()  # sizes for which it is compiled
        self._begun: dict[int, Future] = {}  # and those for which it will be

    def begin(self, values: Sequence[Any], *events: np.ndarray) -> None:
        """Trace it for some events, and let XLA compile it in the background."""
        refuse_fork()
        step = self._step(len(events[0]))
        if step not in self._known and step not in self._begun:
            piece = tuple(_pad(array[:step], step) for array in events)
            lowered = self._compiled.lower(jax.device_put(list(values)), piece, 1)
            self._begun[step] = in_background(lowered.compile)

    def _step(self, n_events: int) -> int:
        return self._size or min(BATCH_SIZE, _next_power_of_two(n_events))

    def __call__(self, values: Sequence[Any], *events: np.ndarray) -> Any:
        refuse_fork()
        values = jax.device_put(list(values))
        n_events, block = len(events[0]), self._block
        step = self._step(n_events)
        n_cores = N_THREADS if jax.default_backend() == "cpu" else 1  # a piece runs on one
        most = step if block is None else share(n_events, step, block, n_cores)

        def outputs_from(start: int) -> Any:
            present = min(most, n_events - start)
            piece = tuple(_pad(array[start : start + most], step) for array in events)
            outputs = self._compiled(values, piece, present)
            return jax.tree.map(lambda x: np.asarray(x)[:present], outputs)

        starts = range(0, max(n_events, 1), most)  # without events, the first tells the shapes
        with as_raised():
            if (begun := self._begun.pop(step, None)) is not None:
                begun.result()
            alone = [] if step in self._known else [outputs_from(starts[0])]
            self._known.add(step)
            rest = starts[len(alone) :]
            if n_cores > 1:
                pieces = alone + side_by_side(outputs_from, rest)
            else:
                pieces = alone + [outputs_from(start) for start in rest]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)


def share(n_events: int, step: int, block: int, n_cores: int) -> int:
    """Events in each compiled call so that every core has as many, in whole blocks."""
    n_calls = -(-n_events // step)
    n_calls = -(-n_calls // n_cores) * n_cores
    n_blocks = -(-n_events // (max(n_calls, 1) * block))
    return min(max(n_blocks, 1) * block, step)


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    width = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, width, mode="edge" if len(array) else "constant")


def batch_pytensor(event: TensorVariable, outputs: Sequence[Any], **compile_kwargs: Any) -> Batched:
    """Vectorise a PyTensor graph over ``event`` and compile it with one of PyTensor's backends."""
    events = pt.tensor("events", shape=(None, *event.type.shape), dtype=event.dtype)
    # an output that does not depend on the event has no axis to concatenate
    tied = [output + 0 * event.sum().astype(output.dtype) for output in outputs]
    function = pymc_compile(
        [events], vectorize_graph(tied, {event: events}), random_seed=False, **compile_kwargs
    )

    def run(values: np.ndarray) -> tuple[np.ndarray, ...]:
        batches = [
            function(values[start : start + BATCH_SIZE])
            for start in range(0, len(values), BATCH_SIZE)
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))

    return run


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
