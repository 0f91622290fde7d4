"""The trainer: steps of a compiled loop, chunk by chunk, until there is a reason to stop."""

import time

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytensor

from pymc.progress_bar import default_progress_theme
from rich.progress import TextColumn
from rich.theme import Theme

from pymc_emf.arguments import progress_bar
from pymc_emf.engine.loop import CHUNK_SIZE, MAX_BAD_STEPS, Chunk, LoopState
from pymc_emf.engine.optimizers import Optimizer
from pymc_emf.engine.stopping import (
    WINDOW,
    Level,
    Stopping,
    divergence_left,
    has_plateaued,
    is_exact,
    level_of,
)

__all__ = [
    "Best",
    "Observer",
    "Run",
    "Trained",
    "average",
    "keep_the_best",
    "stop_when_settled",
    "train",
]

#: Steps over which the rates fall to zero once the losses have stopped falling, as a share of those
#: that were taken, and no fewer than so many.
COOL_DOWN_SHARE, COOL_DOWN = 0.5, 500
#: Where more than so many tolerances are left to gain, it is the noise of steps of this rate that
#: hides it: what falls with the rates is worth this share.
FAR, COOL_DOWN_SHARE_OF_FAR = 10, 1.0
#: With callbacks, a chunk is no longer than this share of the fit.
CHUNKS_WITH_CALLBACKS = 10


class Best(NamedTuple):
    """The best state that a run has seen.

    Attributes
    ----------
    level : Level
        Of the losses that led to it.
    step : int
    parameters : pytree
        Trained values as the optimiser keeps them.
    """

    level: Level
    step: int
    parameters: Any


@dataclass
class Run:
    """Steps of a loop up to a number of them, or until there is a reason to stop earlier.

    All that decides how it goes on is in its attributes, so that it can be put down after any
    chunk and taken up again, in another process too, with the same result.

    Attributes
    ----------
    optimizer : Optimizer
    state : LoopState
    seed : int
        Of the random numbers of all steps.
    losses : ndarray, shape (n,)
        Of every step; NaN for those that are still to come.
    end : int
        After how many steps it ends, as things stand.
    reason : str
        Why it ends there, see :class:`Stopping`.
    best : Best or None
        None before there is one, or if nobody asked to keep it.
    more_since : int or None
        The step since which each takes more draws; None as long as none does.
    """

    optimizer: Optimizer
    state: LoopState
    seed: int
    losses: np.ndarray
    end: int
    reason: str = "steps"
    best: Best | None = None
    more_since: int | None = None

    @classmethod
    def begin(
        cls,
        optimizer: Optimizer,
        state: LoopState,
        seed: int,
        n: int,
        level: Level | None = None,
    ) -> "Run":
        """Make a run of ``n`` steps from a state, the level of whose losses may be known."""
        best = None if level is None else Best(level, 0, state.parameters)
        return cls(optimizer, state, seed, np.full(n, np.nan), n, best=best)

    @property
    def n(self) -> int:
        """Number of steps that were asked for."""
        return len(self.losses)

    @property
    def done(self) -> int:
        """Number of steps taken."""
        return int(self.state.step)

    @property
    def losses_so_far(self) -> np.ndarray:
        """Those of the steps taken; where there are none to take, that of the start."""
        if not self.end and self.best is not None:
            return np.array([self.best.level.loss])
        return self.losses[: self.done]

    @property
    def values(self) -> list[np.ndarray]:
        """Values of the trained variables."""
        held = jax.tree.map(np.asarray, self.state.parameters)
        return [np.asarray(value) for value in self.optimizer.unpack(held)]

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

    def advance(self, chunk: Chunk, longest: int) -> int:
        """Take the steps of one chunk, or fewer; return their number."""
        first, size = self.done, min(chunk.size, longest, self.end - self.done)
        state, losses = chunk(self.state, self.key, size)
        self.losses[first : first + size] = losses
        self.state = state  # last: an interrupt may strike before
        return size

    def take_more(self) -> None:
        """Take more draws from here on."""
        self.more_since = self.done

    def stop(self, reason: str, within: int = 0) -> None:
        """End now, or once the rates have fallen to zero over some further steps."""
        self.reason, self.end = reason, min(self.n, self.done + within)
        if self.end > self.done:
            cooled = self.optimizer.cool_down(self.state.optimizer, self.end - self.done)
            self.state = self.state._replace(optimizer=cooled)

    # --- the best state -------------------------------------------------------------------------

    @property
    def level(self) -> Level | None:
        """Of the latest losses; None while they are too few."""
        losses = self.losses_so_far[-CHUNK_SIZE:]
        return level_of(losses) if len(losses) == CHUNK_SIZE else None

    def keep_if_best(self) -> None:
        """Keep the present state if the losses that led to it are the lowest so far."""
        level = self.level
        if level is None or self.bad_steps or not np.isfinite(level.loss):
            return
        if self.best is None or level.loss < self.best.level.loss:
            self.best = Best(level, self.done, self.state.parameters)

    @property
    def has_climbed(self) -> bool:
        """Whether the losses are clearly higher than they have been."""
        level = self.level
        return self.best is not None and level is not None and level.is_above(self.best.level)

    def go_back(self, within: int = 0) -> None:
        """Take the best state again, and end, or once the rates have fallen to zero from there."""
        assert self.best is not None
        zero = jnp.zeros_like(self.state.bad_steps)
        self.state = self.state._replace(parameters=self.best.parameters, bad_steps=zero)
        self.stop("returned", within if self.optimizer.scheduled else 0)

    # --- as numbers, for a file ----------------------------------------------------------------

    def numbers(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """All of it: what JSON can hold, and arrays."""
        plain: dict[str, Any] = {"seed": self.seed, "end": self.end, "reason": self.reason}
        plain["more_since"] = self.more_since
        leaves = [np.asarray(_data(leaf)) for leaf in jax.tree.leaves(self.state)]
        if self.best is not None:
            plain["best"] = [*self.best.level, self.best.step]
            leaves += [np.asarray(leaf) for leaf in jax.tree.leaves(self.best.parameters)]
        return plain, [self.losses, *leaves]

    @classmethod
    def from_numbers(
        cls,
        plain: dict[str, Any],
        arrays: Sequence[np.ndarray],
        optimizer: Optimizer,
        like: LoopState,
    ) -> "Run":
        """Make a run from what :meth:`numbers` has returned.

        Parameters
        ----------
        plain, arrays
        optimizer : Optimizer
        like : LoopState
            A state of the same loop, for the structure.

        Raises
        ------
        ValueError
            If the structure is another one.
        """
        losses, *saved = arrays
        plain = dict(plain)
        numbers = plain.pop("best", None)  # which older files do not have
        wanted = like if numbers is None else (like, like.parameters)
        leaves, structure = jax.tree.flatten(wanted)
        kinds = [(np.shape(_data(leaf)), jax.device_put(_data(leaf)).dtype.name) for leaf in leaves]
        if kinds != [(array.shape, array.dtype.name) for array in saved]:
            raise ValueError("The state of the optimiser has another structure.")
        read = jax.tree.unflatten(structure, map(_like, leaves, saved))
        if numbers is None:
            return cls(optimizer, read, losses=losses.copy(), **plain)
        *level, step = numbers
        best = Best(Level(*level), step, read[1])
        return cls(optimizer, read[0], losses=losses.copy(), best=best, **plain)


def _data(leaf: Any) -> Any:
    """Numbers of a leaf; JAX wraps those of a random key."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _like(leaf: Any, array: np.ndarray) -> jax.Array:
    if _data(leaf) is leaf:
        return jax.device_put(array)
    return jax.random.wrap_key_data(jax.device_put(array), impl=jax.random.key_impl(leaf))


#: Called with the run after every chunk. What it returns, if anything, the progress bar shows.
#: It may end the run by ``run.stop``, or by raising StopIteration.
Observer = Callable[[Run], str | None]


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Attributes
    ----------
    values : list of ndarray
        Of the trained variables. If the run failed, they are those before the first of the
        non-finite steps at its end.
    losses : ndarray
        Of every step; without those at the end of a run that failed.
    stopping : Stopping
    message : str
        What a StopIteration said.
    seconds : float
        A step took, without callbacks.
    error : BaseException or None
        Raised by an observer, and to be raised again once the values are safe.
    """

    values: list[np.ndarray]
    losses: np.ndarray
    stopping: Stopping
    message: str = ""
    seconds: float = 0.0
    error: BaseException | None = None

    @property
    def failed(self) -> bool:
        return self.stopping.reason == "non-finite"


def train(
    run: Run,
    chunk: Chunk,
    observers: Sequence[Observer] = (),
    *,
    callbacks: Sequence[Any] = (),
    progressbar: bool = True,
    progressbar_theme: Theme = default_progress_theme,
    more: Chunk | None = None,
) -> Trained:
    """Take the steps of a run.

    Ctrl-C and any error of an observer end the run; neither costs what was learnt.

    Parameters
    ----------
    run : Run
        Is advanced in place.
    chunk : Chunk
    observers : sequence of callable
        Called in this order after every chunk.
    callbacks : sequence of callable
        The user's, which one of the observers calls. With them, a chunk is no longer than a
        tenth of the run, and ends where a callback's attribute ``every`` asks for.
    progressbar : bool
    progressbar_theme : rich.theme.Theme
    more : Chunk, optional
        Takes the steps of a run that takes more draws.
    """
    column = TextColumn("{task.fields[loss]}")
    bar = progress_bar(progressbar and not run.over, progressbar_theme, column)
    first, stepping = run.done, 0.0
    ended, message, error = "", "", None
    try:
        with bar:
            task = bar.add_task("Fitting", total=run.n, completed=run.done, loss="")
            while not run.over:
                now = chunk if more is None or run.more_since is None else more
                now.wait()
                begin = time.perf_counter()
                size = run.advance(now, _longest(run, callbacks))
                stepping += time.perf_counter() - begin
                shown = [f"Average Loss = {average(run.losses_so_far):,.5g}"]
                bar.update(task, advance=size, loss=shown[0])
                for observe in observers:
                    shown += filter(None, [observe(run)])
                bar.update(task, loss=", ".join(shown))
    except KeyboardInterrupt:
        ended = "interrupted"
    except StopIteration as stopped:
        run.stop("callback")
        message = str(stopped)
    except BaseException as other:
        ended, error = "unfinished", other
    if run.failed:
        ended = "non-finite"
    losses = run.losses[: run.done - run.bad_steps] if run.failed else run.losses_so_far
    return Trained(
        run.values,
        losses,
        Stopping(ended or (run.reason if run.over else "unfinished"), run.done),
        message,
        stepping / max(run.done - first, 1),
        error,
    )


def _longest(run: Run, callbacks: Sequence[Any]) -> int:
    """Number of steps until the callbacks want to be asked."""
    if not callbacks:
        return CHUNK_SIZE
    wanted = [getattr(callback, "every", None) for callback in callbacks]
    waits = [int(n) - run.done % int(n) for n in wanted if isinstance(n, int) and n > 0]
    return min(CHUNK_SIZE, max(run.n // CHUNKS_WITH_CALLBACKS, 1), *waits)


def average(losses: np.ndarray) -> float:
    """Mean of the last thousand losses that are finite."""
    recent = losses[-1000:]
    recent = recent[np.isfinite(recent)]
    return float(recent.mean()) if recent.size else np.nan


def keep_the_best(run: Run) -> None:
    """Observe a run: keep its best state, and go back to it from where nothing is to be had.

    That is where the losses are not finite any more, and where they have climbed by the last step.
    Under an optimiser without a schedule, the first of them is left to its user, who chose the
    rates.
    """
    run.keep_if_best()
    if run.best is None:
        return
    if run.failed and run.optimizer.scheduled:
        run.go_back(within=0 if run.reason == "returned" else COOL_DOWN)
    elif not run.failed and run.done >= run.end and run.has_climbed:
        run.go_back()


def stop_when_settled(
    n_draws: int,
    tol: float | None,
    may_be_exact: bool,
    window: int = WINDOW,
    n_more: int | None = None,
) -> Observer:
    """Make an observer that ends a run whose losses say that there is nothing more to gain.

    Parameters
    ----------
    n_draws : int
        Draws behind each loss.
    tol : float or None
        See :func:`has_plateaued`.
    may_be_exact : bool
        Whether losses without noise mean that there is nothing left to learn: neither under
        the wrong parameters of a model nor over the rows of a minibatch do they.
    window : int
        See :func:`has_plateaued`.
    n_more : int, optional
        Draws that there may be instead. They are taken where the losses have stopped falling, but
        their noise says that much is left.
    """
    dtype = np.dtype(pytensor.config.floatX)

    def observe(run: Run) -> None:
        losses = run.losses_so_far
        latest = min(CHUNK_SIZE, run.n)
        n_now = n_draws if n_more is None or run.more_since is None else n_more
        if may_be_exact and is_exact(losses[-latest:], n_now, latest, dtype):
            run.stop("exact")
        elif tol is not None and run.reason == "steps":
            left = divergence_left(losses[-CHUNK_SIZE:], n_now) if may_be_exact else np.nan
            if left < tol or has_plateaued(losses[run.more_since or 0 :], tol, window):
                far = left > FAR * tol and run.more_since is None
                if far and n_more is not None:
                    run.take_more()
                    return
                share = COOL_DOWN_SHARE_OF_FAR if far else COOL_DOWN_SHARE
                within = max(COOL_DOWN, int(run.done * share))
                if run.has_climbed:
                    run.go_back(within)
                else:
                    run.stop("converged", within=within if run.optimizer.scheduled else 0)

    return observe
