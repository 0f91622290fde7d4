"""One fit by the JAX engine: start, train, check."""

import logging
import time

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pymc.variational.inference import State

from pymc_emf.engine.garbage import without_collection
from pymc_emf.engine.loop import Steps
from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import Run, Trained
from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.statistics import import_meanwhile
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.check import KEPT, Checked, explain
from pymc_emf.variational.checkpoint import Checkpoint
from pymc_emf.variational.conclude import conclude
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.prepare import make_steps
from pymc_emf.variational.record import FitRecord
from pymc_emf.variational.start import Started
from pymc_emf.variational.state import MethodState
from pymc_emf.variational.train import (
    begin_run,
    draws_at_the_end,
    end_at_start,
    is_often_enough,
    maximise_elbo,
    may_end_at_start,
)
from pymc_emf.variational.verdict import MANY_ELEMENTS

__all__ = ["fit_by_jax"]

logger = logging.getLogger(__name__)


def fit_by_jax(
    kept: MethodState,
    approx: EMFApproximation,
    ask: FitOptions,
    rng: np.random.Generator,
    file: Checkpoint | None,
) -> State:
    """Start, train, check: each takes values and returns values.

    Parameters
    ----------
    kept : MethodState
        Is changed once the fit has started.
    approx : EMFApproximation
        Gets what is learnt.
    ask : FitOptions
    rng : Generator
    file : Checkpoint or None
    """
    begin = time.perf_counter()
    fit, steps = _start(kept, approx, ask, rng, file)
    prepared, run = approx.prepared, fit.run
    trained = maximise_elbo(prepared, steps, run, ask, fit.before_stopping, fit.after_stopping)
    fit.adopt(trained)
    kept.n_steps += run.done
    if trained.failed:
        step, values = len(trained.losses), fit.values_of(trained.values)
        key = jax.random.fold_in(run.key, step)
        reason = f"The ELBO is not finite at step {step}; {KEPT}."
        with auxiliary("The search for its cause", "the cause is not known"):
            slower = ask.slower("optax.adam(1e-3)")
            n_draws = draws_at_the_end(prepared, run, ask)
            reason = explain(prepared.objective, values, key, n_draws, step, slower)
        raise NonFiniteELBOError(reason, approx)
    if trained.error is not None:
        raise trained.error
    if trained.message:
        logger.info("%s", trained.message)
    conclude(approx, fit.started.values, trained, run.n, rng, begin, fit.ending)
    return State(run.done, step=steps.chunk, callbacks=ask.callbacks, score=ask.scores)


@without_collection()
def _start(kept, approx, ask, rng, file) -> tuple["_Fit", Steps]:
    """The fit before its first step, with all compiled that its steps need."""
    prepared, timing, clock = approx.prepared, dict(approx.timing), _Clock()
    if file is not None:
        file.check(prepared)
    prepared.objective.rewrite()
    timing["rewrite"] = timing.get("rewrite", 0.0) + clock.lap()
    may_stay = kept.started is None and file is None and may_end_at_start(prepared, ask)
    steps = make_steps(prepared, approx.values, ask, kept.steps)
    # where the start is often enough, no step is compiled before it is known not to be
    if may_stay and is_often_enough(prepared):
        many = prepared.objective.size > MANY_ELEMENTS
        prepared.objective.begin_layers(approx.values, with_scores=many)
    else:
        steps.chunk.begin()
    timing["compile"] = clock.lap()
    earlier, taken, ending = approx.hist, None, None
    if file is not None and file.exists:
        taken = file.take_up(prepared, steps)
        started, run, earlier = taken.started, taken.run, taken.record.hist[: taken.n_earlier]
        rng.bit_generator.state = taken.random_state
        timing = taken.record.timing | timing
    else:
        started = kept.start(approx, rng)
        clock.lap()
        if may_stay:
            with auxiliary("The check of the start", "steps are taken"):
                ending = end_at_start(prepared, started, ask.tol, rng)
        run = begin_run(prepared, steps, started, ask.n, rng)
        if ending is not None:
            run.stop(started.reason)
    timing["warm_start"] = started.seconds
    if not run.over:
        import_meanwhile()
        steps.chunk.wait()
        timing["compile"] += clock.lap()

    kept.keep(approx, rng, started, steps)
    approx.use_backend(None)
    if taken is not None:
        approx.random_state = taken.draws_state
    state = dict(rng.bit_generator.state)
    return _Fit(approx, ask, started, run, earlier, file, state, timing, ending), steps


class _Clock:
    """Seconds since it was looked at last."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class _Fit:
    """One fit by JAX on its way: what its observers see, and what the approximation gets."""

    def __init__(
        self,
        approx: EMFApproximation,
        ask: FitOptions,
        started: Started,
        run: Run,
        earlier: np.ndarray,
        file: Checkpoint | None,
        random_state: dict[str, Any],
        timing: dict[str, float],
        ending: Checked | None,
    ):
        self.approx, self.ask, self.started, self.run = approx, ask, started, run
        self.ending = ending
        self.earlier, self.file, self.timing = earlier, file, timing
        self.random_state = random_state
        self.before_stopping = [self._call] if ask.callbacks else []
        self.after_stopping = [] if file is None else [self._write_if_due]
        if file is not None and file.is_due(run):
            self._write(run, "unfinished")

    def values_of(self, trained: Sequence[Any]) -> list[np.ndarray]:
        """All values, with what has been learnt."""
        objective = self.approx.objective
        return objective.join(trained, objective.fixed(self.started.values))

    def _record(self, losses: np.ndarray, stopping: Stopping) -> FitRecord:
        scored = losses if self.ask.scores else losses[:0]
        hist = np.concatenate([self.earlier, scored])
        return FitRecord(hist, self.started.report, stopping, None, self.timing)

    def _call(self, run: Run) -> None:
        """Let the user's callbacks look at the approximation as it is."""
        record = self._record(run.losses_so_far, Stopping("unfinished", run.done))
        self.approx.adopt(self.values_of(run.values), record)
        losses = run.losses_so_far if self.ask.scores else None
        for callback in self.ask.callbacks or ():
            callback(self.approx, losses, run.done)

    def _write_if_due(self, run: Run) -> None:
        assert self.file is not None
        if self.file.is_due(run) and not run.failed:
            self._write(run, run.reason if run.over else "unfinished")

    def _write(self, run: Run, reason: str) -> None:
        assert self.file is not None
        record = self._record(run.losses_so_far, Stopping(reason, run.done))
        self.file.write(
            self.approx.prepared,
            run,
            self.started,
            len(self.earlier),
            record,
            self.random_state,
            self.approx.random_state,
        )

    def adopt(self, trained: Trained) -> None:
        """Give the approximation what was learnt, and write it."""
        self.timing["step"] = trained.seconds
        record = self._record(trained.losses, trained.stopping)
        self.approx.adopt(self.values_of(trained.values), record)
        if self.file is not None and not trained.failed:
            self._write(self.run, trained.stopping.reason)
