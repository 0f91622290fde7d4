"""Optimisers: the default schedule, and PyMC's own optimisers as optax transformations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import graph_inputs

from pymc_emf.engine.jax import jaxify

__all__ = ["cool_down", "default_optimizer", "from_pymc"]

#: Where data and prior disagree, early gradients are huge, and Adam remembers their squares for
#: a thousand steps.
MAX_GRADIENT_NORM = 100.0
MAX_WARMUP = 100


class ScheduleState(NamedTuple):
    """Where a schedule stands; all of it is data, so that one compiled loop serves every fit.

    Attributes
    ----------
    step, n_steps : int
    rates : pytree
        Peak learning rate of each element.
    """

    step: jax.Array
    n_steps: jax.Array
    rates: Any


def default_optimizer(n: int, rates: Any) -> optax.GradientTransformation:
    """Adam with warm-up and cosine decay to zero over ``n`` steps.

    Parameters
    ----------
    n : int
        Number of steps of the fit.
    rates : pytree
        Peak learning rate of each element, in the shape of the parameters.
    """

    def init(parameters):
        zero = jnp.zeros((), dtype=jnp.int32)
        typed = jax.tree.map(lambda rate, p: jnp.asarray(rate, p.dtype), rates, parameters)
        return ScheduleState(zero, zero + n, typed)

    def update(updates, state, parameters=None):
        del parameters
        # XLA would compute the cosine anew for every element
        factor = jax.lax.optimization_barrier(_warmup_cosine(state.step, state.n_steps))
        updates = jax.tree.map(
            lambda update, rate: -factor.astype(update.dtype) * rate * update, updates, state.rates
        )
        return updates, state._replace(step=state.step + 1)

    return optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM),
        optax.scale_by_adam(),
        optax.GradientTransformation(init, update),
    )


def cool_down(state: Any, n_left: int) -> Any:
    """Let the rates of :func:`default_optimizer` fall from where they stand to zero.

    Parameters
    ----------
    state
        Of the optimiser, or anything that holds it.
    n_left : int
        Number of steps until the rates are zero.
    """

    def shortened(node):
        if not isinstance(node, ScheduleState):
            return node
        # a longer or shorter schedule that has the same rate n_left steps before its end
        phase = float(jnp.arccos(2 * _warmup_cosine(node.step, node.n_steps) - 1)) / np.pi
        n_falling = round(n_left / max(1 - phase, 1e-3))
        n_steps = n_falling + min(n_falling // 19, MAX_WARMUP)
        zero = jnp.zeros((), dtype=jnp.int32)
        return node._replace(step=zero + n_steps - n_left, n_steps=zero + n_steps)

    return jax.tree.map(shortened, state, is_leaf=lambda node: isinstance(node, ScheduleState))


def _warmup_cosine(step: jax.Array, n_steps: jax.Array) -> jax.Array:
    """Share of the peak rate: a linear rise, then half a cosine down to zero."""
    warmup = jnp.clip(n_steps // 20, 1, MAX_WARMUP)
    decay = (step - warmup) / jnp.maximum(n_steps - warmup, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(decay, 0.0, 1.0)))
    return jnp.where(step < warmup, step / warmup, falling)


def from_pymc(
    optimizer: Callable[..., dict[SharedVariable, Any]], parameters: Sequence[SharedVariable]
) -> optax.GradientTransformation:
    """Turn one of PyMC's optimisers, such as ``pm.adam(learning_rate=0.01)``, into an optax one.

    PyMC's optimisers are functions from gradients and shared variables to symbolic updates. The
    updates are compiled as they are; the shared variables that they create are the state.

    Parameters
    ----------
    optimizer : callable
        ``optimizer(gradients, parameters)`` returns a dict of updates.
    parameters : sequence of SharedVariable
        In the order of the parameters that the transformation will be given.
    """
    gradients = [p.type() for p in parameters]
    updates = dict(optimizer(gradients, list(parameters)))
    state_variables = [
        v
        for v in graph_inputs([*updates.values(), *updates])
        if isinstance(v, SharedVariable) and v not in parameters
    ]
    new_values = [updates.get(v, v) for v in (*parameters, *state_variables)]
    step = jaxify([*parameters, *state_variables, *gradients], new_values)

    def init(_):
        return [jnp.asarray(np.asarray(v.get_value())) for v in state_variables]

    def update(gradient, state, values=None):
        new = step(*values, *state, *gradient)
        changes = [a.astype(b.dtype) - b for a, b in zip(new, values, strict=False)]
        state = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), list(new[len(values) :]), state)
        return changes, state

    return optax.GradientTransformation(init, update)
