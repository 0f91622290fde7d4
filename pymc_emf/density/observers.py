"""What looks at a density estimator's fit after every chunk of steps."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pymc_emf.density.likelihood import Likelihood
from pymc_emf.engine.loop import CHUNK_SIZE
from pymc_emf.engine.trainer import Run

__all__ = ["Refill", "Validation"]

#: How often in a fit, at most, the held-out data are looked at.
MAX_VALIDATIONS = 100


class Validation:
    """Density of the held-out data, and the values that served them best.

    Attributes
    ----------
    best : list of ndarray or None
    found : list of (int, float)
        Numbers of steps, and negative mean log densities after them.
    every : int
        Number of steps between two looks.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        fixed: list[np.ndarray],
        held_out: np.ndarray | None,
        n: int,
        patience: int | None,
    ):
        self._likelihood, self._fixed, self._held_out = likelihood, fixed, held_out
        self._patience, self._best_loss, self._improved = patience, np.inf, 0
        self.every = CHUNK_SIZE * max(1, n // (CHUNK_SIZE * MAX_VALIDATIONS))
        self.best: list[np.ndarray] | None = None
        self.found: list[tuple[int, float]] = []

    def __call__(self, run: Run) -> str | None:
        if self._held_out is None or (run.done % self.every and run.done < run.n):
            return None
        values = self._likelihood.join(run.values, self._fixed)
        loss = -float(np.mean(self._likelihood.log_prob(values, self._held_out)))
        self.found.append((run.done, loss))
        if loss < self._best_loss:
            self.best, self._best_loss, self._improved = run.values, loss, run.done
        return f"held out {loss:,.5g}"

    def stop_when_out_of_patience(self, run: Run) -> None:
        if self._patience is not None and run.done - self._improved >= self._patience:
            run.stop("converged")


class Refill:
    """Fresh observations for every chunk.

    Parameters
    ----------
    source : callable
        ``source(rng, n)`` returns n observations.
    n : int
    rng : Generator
    read : callable
        From observations to rows.
    n_rows : int
        How many there have to be.
    """

    def __init__(
        self,
        source: Callable[[np.random.Generator, int], Any],
        n: int,
        rng: np.random.Generator,
        read: Callable[[Any], tuple[np.ndarray, np.ndarray]],
        n_rows: int,
    ):
        self._source, self._n, self._rng = source, n, rng
        self._read, self._n_rows = read, n_rows

    def __call__(self, run: Run) -> None:
        fresh, _ = self._read(self._source(self._rng, self._n))
        if len(fresh) != self._n_rows:
            raise ValueError(
                f"X(rng, {self._n}) returned {len(fresh)} observations after {self._n_rows}; "
                "return the same number at every call."
            )
        fixed, _ = run.state.constants
        run.state = run.state._replace(constants=(fixed, jax.device_put(fresh)))
