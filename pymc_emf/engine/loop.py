"""The fused optimisation loop: a chunk of steps is one compiled call."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax.sharding import Sharding

from pymc_emf.engine.callback import as_raised
from pymc_emf.engine.forks import refuse_fork
from pymc_emf.engine.optimizers import Optimizer, Values
from pymc_emf.engine.threads import in_background

__all__ = [
    "CHUNK_SIZE",
    "MAX_BAD_STEPS",
    "Chunk",
    "LoopState",
    "Steps",
    "make_chunk",
    "start_state",
]

Parameters = Any  # as an optimiser keeps them
DrawFn = Callable[[jax.Array], Any]
LossFn = Callable[[Values, Any, Any], jax.Array]

#: Steps of one compiled call. Callbacks, progress bar and Ctrl-C are served in between.
CHUNK_SIZE = 100

#: Steps in a row whose loss or gradient may be non-finite before the loop gives up. Such steps
#: change nothing, so an isolated overflow early on costs one step and no more.
MAX_BAD_STEPS = 10


class LoopState(NamedTuple):
    """All that the optimisation carries from step to step.

    Attributes
    ----------
    parameters, optimizer : pytree
        Trained values as the optimiser keeps them, and its own state.
    constants : pytree
        Passed on to the loss.
    step : int
        Number of steps taken.
    bad_steps : int
        Length of the present run of non-finite steps; the loop stands still once it reaches
        ``MAX_BAD_STEPS``.
    """

    parameters: Parameters
    optimizer: Any
    constants: Any
    step: jax.Array
    bad_steps: jax.Array


class Chunk:
    """Several optimisation steps as one function, compiled in the background.

    The loop is the largest function of a fit; once begun, it compiles while the warm start runs.

    Attributes
    ----------
    size : int
        Most steps of one call.
    """

    def __init__(
        self, lower: Callable[[], jax.stages.Lowered], size: int, placement: Sharding | None
    ):
        self.size = size
        self._lower = lower
        self._placement = placement

    @cached_property
    def _compiled(self) -> Future[jax.stages.Compiled]:
        refuse_fork()
        return in_background(self._lower().compile)

    def begin(self) -> None:
        """Begin to compile, unless that has begun: trace here, and let XLA work on."""
        _ = self._compiled

    def wait(self) -> None:
        """Wait until it is compiled."""
        self._compiled.result()

    def __call__(self, state: LoopState, key: jax.Array, n: int) -> tuple[LoopState, np.ndarray]:
        """Return the state after ``n`` steps and their losses."""
        state, key = jax.device_put((state, key), self._placement)
        with as_raised():
            state, losses = self._compiled.result()(state, key, n)
            return state, np.asarray(losses)[:n]


@dataclass(frozen=True)
class Steps:
    """The loop, and what it is for.

    Attributes
    ----------
    optimizer : Optimizer
    chunk : Chunk
    given : object
        The optimiser that was asked for, or None.
    settings : tuple
        All else that the loop was compiled for.
    more : Chunk or None
        The same steps with more draws each, for runs whose noise they help.
    """

    optimizer: Optimizer
    chunk: Chunk
    given: Any
    settings: tuple[Any, ...]
    more: Chunk | None = None

    def serves(self, given: Any, settings: tuple[Any, ...]) -> bool:
        """Whether another fit, which asks for these, can use it: optimisers must be the same."""
        return self.given is given and self.settings == settings


def start_state(
    optimizer: Optimizer,
    values: Values,
    n: int,
    rates: Values | None = None,
    constants: Any = (),
) -> LoopState:
    """State before the first of ``n`` steps.

    Parameters
    ----------
    optimizer : Optimizer
    values : sequence of array
        Of the trained variables.
    n : int
    rates : sequence of array, optional
        Peak learning rates, if the optimiser has such.
    constants : pytree
        Passed on to the loss.
    """
    values = [np.asarray(value) for value in values]
    # jnp.asarray would compile a program for every shape that is new to it
    parameters, constants = jax.device_put((optimizer.pack(values), constants))
    zero = jax.device_put(np.int32(0))
    return LoopState(parameters, optimizer.init(parameters, n, rates), constants, zero, zero)


def _step(loss: LossFn, optimizer: Optimizer) -> Callable[..., tuple[LoopState, jax.Array]]:
    """One optimisation step, as a function of the state and of its random numbers."""

    def one_step(state: LoopState, drawn: Any) -> tuple[LoopState, jax.Array]:
        def value_fn(parameters):
            return loss(optimizer.unpack(parameters), state.constants, drawn)

        value, gradient = jax.value_and_grad(value_fn)(state.parameters)
        # not optax.apply_if_finite, which gives in after a number of steps and takes them
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        proceed = finite & (state.bad_steps < MAX_BAD_STEPS)

        def advance(parameters, optimizer_state):
            updates, optimizer_state = optimizer.update(
                gradient, optimizer_state, parameters, value=value, value_fn=value_fn
            )
            return optax.apply_updates(parameters, updates), optimizer_state

        # A branch: choosing between old and new by element would copy the whole state.
        parameters, optimizer_state = jax.lax.cond(
            proceed, advance, lambda *unchanged: unchanged, state.parameters, state.optimizer
        )
        bad_steps = jnp.where(proceed, 0, state.bad_steps + 1)
        state = state._replace(
            parameters=parameters,
            optimizer=optimizer_state,
            step=state.step + 1,
            bad_steps=bad_steps,
        )
        return state, value

    return one_step


def make_chunk(
    draw: DrawFn,
    loss: LossFn,
    optimizer: Optimizer,
    state: LoopState,
    size: int,
    *,
    ahead: int | None = None,
    placement: Sharding | None = None,
) -> Chunk:
    """Make ``chunk(state, key, n)``: up to ``size`` optimisation steps in one call.

    Parameters
    ----------
    draw : callable
        ``draw(key)`` makes the random numbers of one step, an array or a pytree of them. The key
        of step i is ``fold_in(key, i)``, so that the result depends neither on ``size`` nor on
        where the loop was interrupted.
    loss : callable
        ``loss(values, constants, drawn)`` of the trained variables' values, a scalar.
    optimizer : Optimizer
    state : LoopState
        Gives shapes and types.
    size : int
        Most steps of one call; fewer, ``n``, run without compiling again.
    ahead : int, optional
        Number of steps whose random numbers are made together, by default ``size``: many small
        draws cost several times what one large draw does, which takes more memory.
    placement : Sharding, optional
        Where state and key live, on several devices if ``draw`` distributes its numbers; by
        default on JAX's default device.

    Returns
    -------
    Chunk
        It compiles when it is begun, at the latest when it is called.
    """
    ahead = size if ahead is None else min(ahead, size)
    one_step = _step(loss, optimizer)

    def steps(state: LoopState, key: jax.Array, n: jax.Array) -> tuple[LoopState, jax.Array]:
        # Loops with a dynamic length are the while loops that lax.scan would become, and serve
        # every number of steps with one compilation.
        def block(i, carry):
            state, losses = carry
            keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(state.step + jnp.arange(ahead))
            drawn = jax.vmap(draw)(keys)
            first = i * ahead

            def body(j, carry):
                state, losses = carry
                state, value = one_step(state, jax.tree.map(lambda x: x[j], drawn))
                return state, losses.at[first + j].set(value.astype(losses.dtype))

            return jax.lax.fori_loop(0, jnp.minimum(ahead, n - first), body, (state, losses))

        losses = jnp.full(size, jnp.nan)
        return jax.lax.fori_loop(0, -(-n // ahead), block, (state, losses))

    state, key = jax.device_put((state, jax.random.key(0)), placement)
    # The old state is not donated: an interrupt may strike before the new one is in hand.
    compiled = jax.jit(steps, out_shardings=None if placement is None else (placement, placement))
    return Chunk(lambda: compiled.lower(state, key, 1), size, placement)
