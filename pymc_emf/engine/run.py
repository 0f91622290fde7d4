"""A fit on its way: the steps of a compiled loop, chunk by chunk, until a reason to stop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pymc_emf.engine.loop import MAX_BAD_STEPS, Chunk, LoopState
from pymc_emf.engine.optimizers import cool_down
from pymc_emf.engine.stopping import has_plateaued, is_exact

__all__ = ["Run"]

#: Steps over which the rates fall to zero once the losses have stopped falling.
COOL_DOWN = 1000


@dataclass
class Run:
    """Steps of a loop up to a number of them, or until there is a reason to stop earlier.

    All that decides how it goes on is in its attributes, so that it can be put down after any
    chunk and taken up again, in another process too, with the same result.

    Attributes
    ----------
    state : LoopState
    seed : int
        Of the random numbers of all steps.
    losses : ndarray, shape (n,)
        Of every step; NaN for those that are still to come.
    end : int
        After how many steps it ends, as things stand.
    reason : str
        Why it ends there, see :class:`Stopping`.
    """

    state: LoopState
    seed: int
    losses: np.ndarray
    end: int
    reason: str = "steps"

    @property
    def n(self) -> int:
        """Number of steps that were asked for."""
        return len(self.losses)

    @property
    def done(self) -> int:
        """Number of steps taken."""
        return int(self.state.step)

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    @property
    def bad_steps(self) -> int:
        """Length of the present run of non-finite steps."""
        return int(self.state.bad_steps)

    @property
    def failed(self) -> bool:
        """Whether it stands still because too many steps in a row were not finite."""
        return self.bad_steps >= min(MAX_BAD_STEPS, self.n)

    @property
    def over(self) -> bool:
        return self.done >= self.end or self.bad_steps >= MAX_BAD_STEPS

    def advance(self, chunk: Chunk) -> int:
        """Take the steps of one chunk; return their number."""
        first, size = self.done, min(chunk.size, self.end - self.done)
        state, losses = chunk(self.state, self.key, size)
        self.losses[first : first + size] = losses
        self.state = state  # last: an interrupt may strike before
        return size

    def consider(
        self, n_last: int, n_draws: int, tol: float | None, *, may_be_exact: bool, cools: bool
    ) -> None:
        """End the run if its last losses say that there is nothing more to gain.

        Parameters
        ----------
        n_last : int
            Number of steps taken since it was asked last.
        n_draws : int
            Draws behind each loss.
        tol : float or None
            See :func:`has_plateaued`.
        may_be_exact : bool
            Whether losses without noise mean that there is nothing left to learn.
        cools : bool
            Whether the optimiser is the default one, whose rates can be let fall to zero.
        """
        losses = self.losses[: self.done]
        if may_be_exact and is_exact(losses[-n_last:], n_draws):
            self.reason, self.end = "exact", self.done
        elif tol is not None and self.reason == "steps" and has_plateaued(losses, tol):
            self.reason, self.end = "converged", self.done
            if cools:
                self.end = min(self.n, self.done + COOL_DOWN)
                optimizer = cool_down(self.state.optimizer, self.end - self.done)
                self.state = self.state._replace(optimizer=optimizer)

    # --- as numbers, for a file ----------------------------------------------------------------

    def numbers(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """All of it: what JSON can hold, and arrays."""
        plain = {"seed": self.seed, "end": self.end, "reason": self.reason}
        leaves = [np.asarray(_data(leaf)) for leaf in jax.tree.leaves(self.state)]
        return plain, [self.losses, *leaves]

    @classmethod
    def from_numbers(
        cls, plain: dict[str, Any], arrays: Sequence[np.ndarray], like: LoopState
    ) -> "Run":
        """Make a run from what :meth:`numbers` has returned.

        Parameters
        ----------
        plain, arrays
        like : LoopState
            A state of the same loop, for the structure.

        Raises
        ------
        ValueError
            If the structure is another one.
        """
        losses, *saved = arrays
        leaves, structure = jax.tree.flatten(like)
        kinds = [(np.shape(_data(leaf)), jnp.asarray(_data(leaf)).dtype.name) for leaf in leaves]
        if kinds != [(array.shape, array.dtype.name) for array in saved]:
            raise ValueError("The state of the optimiser has another structure.")
        state = jax.tree.unflatten(structure, map(_like, leaves, saved))
        return cls(state, losses=losses.copy(), **plain)


def _data(leaf: Any) -> Any:
    """Numbers of a leaf; JAX wraps those of a random key."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _like(leaf: Any, array: np.ndarray) -> jax.Array:
    if _data(leaf) is leaf:
        return jnp.asarray(array)
    return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
