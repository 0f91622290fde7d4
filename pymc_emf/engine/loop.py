"""The fused optimisation loop: a chunk of steps is one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["MAX_BAD_STEPS", "LoopState", "compile_chunk", "start_state"]

Parameters = Any
LossFn = Callable[[Parameters, jax.Array], jax.Array]

#: Steps in a row whose loss or gradient may be non-finite before the loop gives up. Such steps
#: change nothing, so an isolated overflow early on costs one step and no more.
MAX_BAD_STEPS = 10


class LoopState(NamedTuple):
    """All that the optimisation carries from step to step.

    Attributes
    ----------
    parameters, optimizer : pytree
    step : int
        Number of steps taken.
    bad_steps : int
        Length of the present run of non-finite steps; the loop stands still once it reaches
        ``MAX_BAD_STEPS``.
    """

    parameters: Parameters
    optimizer: Any
    step: jax.Array
    bad_steps: jax.Array


def start_state(parameters: Parameters, optimizer: optax.GradientTransformation) -> LoopState:
    """State before the first step."""
    parameters = jax.tree.map(jnp.asarray, parameters)
    zero = jnp.zeros((), dtype=jnp.int32)
    return LoopState(parameters, optimizer.init(parameters), zero, zero)


def compile_chunk(
    loss: LossFn, optimizer: optax.GradientTransformation, state: LoopState, size: int
) -> Callable[[LoopState, jax.Array, int], tuple[LoopState, np.ndarray]]:
    """Compile ``chunk(state, key, n)``: up to ``size`` optimisation steps in one call.

    Parameters
    ----------
    loss : callable
        ``loss(parameters, key)``, a scalar. The key of step i is ``fold_in(key, i)``, so the
        result depends neither on ``size`` nor on where the loop was interrupted.
    optimizer : optax.GradientTransformation
    state : LoopState
        Gives shapes and types.
    size : int
        Most steps of one call; fewer, ``n``, run without compiling again.

    Returns
    -------
    callable
        Returns the state after ``n`` steps and their losses.
    """

    def one_step(state: LoopState, key: jax.Array) -> tuple[LoopState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(
            state.parameters, jax.random.fold_in(key, state.step)
        )
        updates, new_optimizer = optimizer.update(gradient, state.optimizer, state.parameters)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        proceed = finite & (state.bad_steps < MAX_BAD_STEPS)
        parameters, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(proceed, new, old),
            (optax.apply_updates(state.parameters, updates), new_optimizer),
            (state.parameters, state.optimizer),
        )
        bad_steps = jnp.where(proceed, 0, state.bad_steps + 1)
        return LoopState(parameters, optimizer_state, state.step + 1, bad_steps), value

    def steps(state: LoopState, key: jax.Array, n: jax.Array) -> tuple[LoopState, jax.Array]:
        # A loop with a dynamic length is the while loop that lax.scan would become, and
        # serves every number of steps with one compilation.
        def body(i, carry):
            state, losses = carry
            state, value = one_step(state, key)
            return state, losses.at[i].set(value.astype(losses.dtype))

        losses = jnp.full(size, jnp.nan)
        return jax.lax.fori_loop(0, n, body, (state, losses))

    key = jax.random.key(0)
    # The old state is not donated: an interrupt may strike before the new one is in hand.
    compiled = jax.jit(steps).lower(state, key, 1).compile()

    def chunk(state: LoopState, key: jax.Array, n: int) -> tuple[LoopState, np.ndarray]:
        state, losses = compiled(state, key, n)
        return state, np.asarray(losses)[:n]

    return chunk
