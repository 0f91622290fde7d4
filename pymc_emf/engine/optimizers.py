"""Optimisers: the protocol of the loop, its default, and what optax and PyMC offer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import graph_inputs

from pymc_emf.engine.jax import jaxify
from pymc_emf.engine.packing import Packed, packing

__all__ = ["Adam", "FromOptax", "Optimizer", "Values", "make_optimizer"]

#: Where data and prior disagree, early gradients are huge, and Adam remembers their squares for
#: a thousand steps.
MAX_GRADIENT_NORM = 100.0
MAX_WARMUP = 100

#: Arrays of trained variables, in the order of the objective's.
type Values = Sequence[Any]


class Optimizer(Protocol):
    """What the loop asks of an optimiser.

    Everything that differs between two fits, such as the number of steps, is data of its state,
    so that one compiled loop serves them all.

    Attributes
    ----------
    scheduled : bool
        Whether its rates fall to zero over the steps of a fit. Only then a short fit shows what
        a longer one would lead to, and :meth:`cool_down` ends a fit early.
    """

    scheduled: bool

    def pack(self, values: Values) -> Any:
        """Values in the form in which the optimiser keeps them."""

    def unpack(self, parameters: Any) -> Values:
        """Undo :meth:`pack`."""

    def init(self, parameters: Any, n: int, rates: Values | None) -> Any:
        """State before the first of ``n`` steps, with a peak learning rate of every element."""

    def update(
        self,
        gradient: Any,
        state: Any,
        parameters: Any,
        *,
        value: jax.Array,
        value_fn: Callable[[Any], jax.Array],
    ) -> tuple[Any, Any]:
        """Changes of the parameters, and the next state.

        Parameters
        ----------
        gradient, state, parameters : pytree
        value : array
            Loss at the parameters.
        value_fn : callable
            The loss with the same draws, as a function of the parameters, for line searches and
            for products with curvature.
        """

    def cool_down(self, state: Any, n_left: int) -> Any:
        """State whose rates fall from where they stand to zero over ``n_left`` steps."""


class ScheduleState(NamedTuple):
    """Where a schedule stands.

    Attributes
    ----------
    step, n_steps : int
    rates : pytree
        Peak learning rate of each element.
    """

    step: jax.Array
    n_steps: jax.Array
    rates: Any


class Adam:
    """Adam with warm-up and cosine decay to zero: the default.

    Parameters
    ----------
    like : sequence of ndarray
        Values whose shapes and types those of the trained variables have.
    norm : float, optional
        Gradients are first scaled down to this norm.
    """

    scheduled = True

    def __init__(self, like: Values, norm: float | None = None):
        self._pack, self._unpack = packing(like)
        before = [] if norm is None else [optax.clip_by_global_norm(norm)]
        self._adam = optax.chain(
            *before, optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.scale_by_adam()
        )
        packed = self._pack([np.asarray(value) for value in like])
        self._state = jax.eval_shape(self._adam.init, packed)

    def pack(self, values: Values) -> Packed:
        return self._pack(values)

    def unpack(self, parameters: Packed) -> list[jax.Array]:
        return self._unpack(parameters)

    def init(self, parameters, n, rates):
        zero, end = jax.device_put((np.int32(0), np.int32(n)))
        typed = jax.tree.map(
            lambda rate, p: jax.device_put(rate.astype(p.dtype)),
            self._packed_rates(rates),
            parameters,
        )
        # all zeros, for which JAX would compile a program, shape by shape
        adam = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), self._state
        )
        return adam, ScheduleState(zero, end, typed)

    def _packed_rates(self, rates: Values) -> Packed:
        return self._pack([np.asarray(rate) for rate in rates])

    def update(self, gradient, state, parameters, *, value, value_fn):
        adam, schedule = state
        updates, adam = self._adam.update(gradient, adam, parameters)
        # XLA would compute the cosine anew for every element
        factor = jax.lax.optimization_barrier(_warmup_cosine(schedule.step, schedule.n_steps))
        updates = jax.tree.map(
            lambda update, rate: -factor.astype(update.dtype) * rate * update,
            updates,
            schedule.rates,
        )
        return updates, (adam, schedule._replace(step=schedule.step + 1))

    def cool_down(self, state, n_left):
        adam, schedule = state
        # a longer or shorter schedule that has the same rate n_left steps before its end
        rate = _warmup_cosine(int(schedule.step), int(schedule.n_steps), np)
        phase = np.arccos(2 * float(rate) - 1) / np.pi
        n_falling = round(n_left / max(1 - phase, 1e-3))
        n_steps = n_falling + min(n_falling // 19, MAX_WARMUP)
        step, end = jax.device_put((np.int32(n_steps - n_left), np.int32(n_steps)))
        return adam, schedule._replace(step=step, n_steps=end)


def _warmup_cosine(step: Any, n_steps: Any, xp: Any = jnp) -> Any:
    """Share of the peak rate: a linear rise, then half a cosine down to zero."""
    warmup = xp.clip(n_steps // 20, 1, MAX_WARMUP)
    decay = (step - warmup) / xp.maximum(n_steps - warmup, 1)
    falling = 0.5 * (1 + xp.cos(np.pi * xp.clip(decay, 0.0, 1.0)))
    return xp.where(step < warmup, step / warmup, falling)


class FromOptax:
    """An optax transformation, which sees the values variable by variable.

    It is given ``value``, ``grad`` and ``value_fn`` too, as L-BFGS and line searches need them.

    Parameters
    ----------
    transformation : optax.GradientTransformation
    norm : float, optional
        Gradients are first scaled down to this norm.
    """

    scheduled = False

    def __init__(self, transformation: optax.GradientTransformation, norm: float | None = None):
        if norm is not None:
            transformation = optax.chain(optax.clip_by_global_norm(norm), transformation)
        self._transformation = optax.with_extra_args_support(transformation)

    def pack(self, values: Values) -> list[Any]:
        return list(values)

    def unpack(self, parameters: list[Any]) -> list[Any]:
        return parameters

    def init(self, parameters, n, rates):
        return self._transformation.init(parameters)

    def update(self, gradient, state, parameters, *, value, value_fn):
        return self._transformation.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=value_fn
        )

    def cool_down(self, state, n_left):
        return state


def make_optimizer(
    given: Any, norm: float | None, like: Values, parameters: Sequence[SharedVariable]
) -> Optimizer:
    """Optimiser of what a user gave: nothing, an optax transformation, or one of PyMC's.

    Parameters
    ----------
    given : optax.GradientTransformation, callable or None
    norm : float or None
        Gradients are first scaled down to this norm.
    like : sequence of ndarray
        Values of the trained variables.
    parameters : sequence of SharedVariable
        The trained variables themselves, of which PyMC's optimisers are functions.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    check_optimizer(given)
    match given:
        case None:
            return Adam(like, norm)
        case optax.GradientTransformation():
            return FromOptax(given, norm)
        case _:
            return FromOptax(from_pymc(given, parameters), norm)


def check_optimizer(given: Any) -> None:
    """Raise TypeError if :func:`make_optimizer` would."""
    if not (given is None or isinstance(given, optax.GradientTransformation) or callable(given)):
        raise TypeError(
            "obj_optimizer must be an optax transformation or one of PyMC's optimisers, "
            f"got {given!r}."
        )


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
        return [jax.device_put(np.asarray(v.get_value())) for v in state_variables]

    def update(gradient, state, values=None):
        new = step(*values, *state, *gradient)
        changes = [a.astype(b.dtype) - b for a, b in zip(new, values, strict=False)]
        state = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), list(new[len(values) :]), state)
        return changes, state

    return optax.GradientTransformation(init, update)
