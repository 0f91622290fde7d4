"""The fit of a density estimator before its first step; nothing has been changed by then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

from pymc_emf.arguments import check_positive
from pymc_emf.density.data import Data, Source, width
from pymc_emf.density.likelihood import Likelihood
from pymc_emf.density.observers import Refill, Validation
from pymc_emf.density.start import learning_rates, start_from_moments
from pymc_emf.engine.loop import CHUNK_SIZE, Steps, make_chunk, start_state
from pymc_emf.engine.optimizers import make_optimizer
from pymc_emf.engine.trainer import Observer, Run

__all__ = ["Asked", "Begun", "begin"]


@dataclass(frozen=True)
class Asked:
    """Arguments of one fit; :meth:`pymc_emf.DensityEstimator.fit` explains the fields.

    Raises
    ------
    ValueError, TypeError
        If a field has a value that no fit can have.
    """

    n: int
    batch_size: int
    validation: float | Data | None
    patience: int | None
    obj_optimizer: optax.GradientTransformation | None

    def __post_init__(self):
        check_positive("n", self.n)
        check_positive("batch_size", self.batch_size)
        if self.patience is not None:
            check_positive("patience", self.patience)
        share = self.validation
        number = isinstance(share, int | float | np.number) and not isinstance(share, bool)
        if number and not (isinstance(share, float) and 0 < share < 1):
            raise ValueError(f"validation must be a share between 0 and 1, got {share!r}.")
        if not isinstance(self.obj_optimizer, optax.GradientTransformation | None):
            raise TypeError(
                f"obj_optimizer must be an optax transformation, got {self.obj_optimizer!r}."
            )


@dataclass(frozen=True)
class Begun:
    """All that a fit needs to take its steps.

    Attributes
    ----------
    likelihood : Likelihood
    steps : Steps
    run : Run
    fixed : list of ndarray
        Values of the flow's buffers.
    held : Validation
    refill : Refill or None
    """

    likelihood: Likelihood
    steps: Steps
    run: Run
    fixed: list[np.ndarray]
    held: Validation
    refill: Refill | None

    def observers(self, *calls: Observer) -> list[Observer]:
        """Who looks at the run after every chunk: ``calls`` see what is held out before it ends."""
        refill = [] if self.refill is None else [self.refill]
        return [self.held, *calls, self.held.stop_when_out_of_patience, *refill]


def begin(
    X: Source,
    ask: Asked,
    rng: np.random.Generator,
    bind: Callable[[int | None, np.random.Generator], Likelihood],
    *,
    from_moments: bool,
    known: Steps | None = None,
) -> Begun:
    """Read the data, find a start and compile.

    Parameters
    ----------
    X : array_like, dict, Dataset or callable
    ask : Asked
    rng : Generator
    bind : callable
        Makes the flow of data of a certain width.
    from_moments : bool
        Whether to start from the moments of the data, rather than from the values that are there.
    known : Steps, optional
        The loop that was compiled last.
    """
    n_fresh = ask.batch_size * CHUNK_SIZE
    first = X(rng, n_fresh) if callable(X) else X
    likelihood = bind(width(first), rng)
    read = likelihood.space.read
    rows, _ = read(first)
    if not len(rows):
        raise ValueError("X has no observations.")
    refill, held_out = None, None
    if callable(X):
        refill = Refill(X, n_fresh, rng, read, len(rows))
    elif isinstance(ask.validation, float):
        rows, held_out = _split(rows, ask.validation, rng)
    if not isinstance(ask.validation, float | None):
        held_out, _ = read(ask.validation)
    if ask.patience is not None and held_out is None:
        raise ValueError("patience needs held-out data; pass validation=.")

    likelihood.rewrite()  # JAX must not trace that
    values = likelihood.initial
    if from_moments:
        values = start_from_moments(likelihood.flow, values, rows)
    trained, fixed = likelihood.trained(values), likelihood.fixed(values)
    steps = _make_steps(likelihood, ask, trained, (fixed, rows), known)
    rates = learning_rates(likelihood.flow)
    state = start_state(steps.optimizer, trained, ask.n, rates, (fixed, rows))
    run = Run.begin(steps.optimizer, state, int(rng.integers(2**31)), ask.n)
    held = Validation(likelihood, fixed, held_out, ask.n, ask.patience)
    return Begun(likelihood, steps, run, fixed, held, refill)


def _split(
    rows: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train on, and a share that is held out, unless none would be left."""
    n_held_out = max(1, round(share * len(rows)))
    if n_held_out >= len(rows):
        return rows, None
    order = rng.permutation(len(rows))
    return rows[order[n_held_out:]], rows[order[:n_held_out]]


def _make_steps(
    likelihood: Likelihood,
    ask: Asked,
    trained: Sequence[np.ndarray],
    constants: tuple[list[np.ndarray], np.ndarray],
    known: Steps | None,
) -> Steps:
    """Compile the loop, unless the one that is known serves; any ``n`` does."""
    n_rows = len(constants[1])
    settings: tuple[Any, ...] = (ask.batch_size, n_rows)
    if known is not None and known.serves(ask.obj_optimizer, settings):
        return known
    flow = likelihood.flow
    optimizer = make_optimizer(ask.obj_optimizer, None, trained, flow.parameters)
    state = start_state(optimizer, trained, 1, learning_rates(flow), constants)
    draw = likelihood.draw(n_rows, ask.batch_size)
    chunk = make_chunk(draw, likelihood.loss, optimizer, state, CHUNK_SIZE)
    chunk.begin()
    return Steps(optimizer, chunk, ask.obj_optimizer, settings)
