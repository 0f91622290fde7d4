"""A fit in a file while it runs, so that it can be taken up where it was left."""

import json
import logging
import os

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytensor

from pymc_emf.engine.loop import LoopState
from pymc_emf.engine.run import Run
from pymc_emf.layers.parameters import store
from pymc_emf.variational.objective import Objective
from pymc_emf.variational.persistence import (
    check_layers,
    check_model,
    check_settings,
    read,
    restore,
    write,
)

if TYPE_CHECKING:
    from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)

#: Points at which the log density of a model is compared with that of the file.
N_PROBES = 3


class Checkpoint:
    """The file of one fit.

    Parameters
    ----------
    path : path-like
    every : int
        Steps between two writes.
    settings : dict
        All that decides how the fit goes, which must be the same when it is taken up.

    Raises
    ------
    ValueError
        If there is a file which is damaged, or not of a fit with ``checkpoint=``.
    FileNotFoundError
        If there is no folder for it.
    """

    def __init__(self, path: str | os.PathLike, every: int, settings: dict[str, Any]):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {self.path.parent} for the checkpoint.")
        self.every = every
        # as they will be read again
        self.settings = json.loads(json.dumps(settings, default=lambda number: number.item()))
        self._written: int | None = None
        self._saved = read(path) if self.path.exists() else None
        if self._saved is not None and "fit" not in self._saved.header:
            raise ValueError(
                f"{path} holds an approximation that was saved, not a fit on its way; give another "
                "checkpoint=."
            )

    @property
    def exists(self) -> bool:
        """Whether there is a fit to take up."""
        return self._saved is not None

    def check(self, approx: "EMFApproximation") -> None:
        """Refuse to take up another fit, as far as that shows without evaluating the model."""
        if self._saved is None:
            return
        header = self._saved.header
        check_model(self.path, header["model"], approx.objective.program)
        settings = dict(self.settings)
        if settings["random_seed"] is None:  # any will do
            settings["random_seed"] = header["fit"]["settings"]["random_seed"]
        check_settings(self.path, header["fit"]["settings"], settings)
        check_layers(approx, self._saved)

    def take_up(
        self, approx: "EMFApproximation", like: LoopState
    ) -> tuple[Run, list[np.ndarray], list[np.ndarray] | None, dict[str, Any]]:
        """Bring the approximation to where the fit was.

        Parameters
        ----------
        approx : EMFApproximation
            As it was before, if the file is refused.
        like : LoopState
            A state of the loop.

        Returns
        -------
        run : Run
        before : list of ndarray
            Values of the parameters before the first step.
        gate_rates : list of ndarray or None
            Learning rates of the gates, if they were chosen.
        random_state : dict
            State of the method's random stream.

        Raises
        ------
        ValueError
            If the file is of other data, another model or another optimiser.
        """
        saved, objective = self._saved, approx.objective
        assert saved is not None
        fit = saved.header["fit"]
        n, n_gates = len(objective.parameters), fit["n_gate_rates"]
        before, gate_rates = saved.further[:n], saved.further[n : n + (n_gates or 0)]
        try:
            run = Run.from_numbers(fit["run"], saved.further[n + len(gate_rates) :], like)
        except ValueError as error:
            raise ValueError(
                f"{self.path} was begun with another optimiser; give the same obj_optimizer=."
            ) from error
        tolerance = np.sqrt(np.finfo(pytensor.config.floatX).eps)
        expected = np.array(fit["log_density"], dtype=float)
        found = _probe(objective, before)
        if not np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise ValueError(
                f"{self.path} is of another model or of other data: their log density is "
                f"{expected[0]:.6g} where it is {found[0]:.6g} here; give another "
                "checkpoint=, or delete the file."
            )
        timing = approx.timing
        restore(approx, saved)
        approx.timing |= timing
        approx.hist = saved.hist[: fit["n_earlier"]]
        self._log_density, self._written = fit["log_density"], run.done
        logger.info("Continuing %s after step %d of %d.", self.path, run.done, run.end)
        return run, before, None if n_gates is None else gate_rates, fit["random_state"]

    def begin(self, objective: Objective, before: Sequence[np.ndarray]) -> None:
        """Note what the model says, by which it will be known again."""
        self._log_density = _probe(objective, before).tolist()

    def is_due(self, run: Run) -> bool:
        """Whether it is time to write."""
        return (
            self._written is None
            or run.done - self._written >= self.every
            or (run.over and run.done > self._written)
        )

    def write(
        self,
        approx: "EMFApproximation",
        run: Run,
        before: Sequence[np.ndarray],
        gate_rates: Sequence[np.ndarray] | None,
        n_earlier: int,
        random_state: dict[str, Any],
    ) -> None:
        """Write the fit as it stands.

        Only the first failure is an error: later ones must not cost the fit, and warn.

        Parameters
        ----------
        approx : EMFApproximation
            With the values and losses of this moment.
        run : Run
        before, gate_rates : sequence of ndarray
            As :meth:`take_up` returns them.
        n_earlier : int
            Number of losses that were recorded before this run.
        random_state : dict
            State of the method's random stream.
        """
        plain, arrays = run.numbers()
        fit = {
            "settings": self.settings,
            "run": plain,
            "n_gate_rates": None if gate_rates is None else len(gate_rates),
            "n_earlier": n_earlier,
            "random_state": random_state,
            "log_density": self._log_density,
        }
        try:
            write(self.path, approx, {"fit": fit}, [*before, *(gate_rates or ()), *arrays])
        except OSError as error:
            if self._written is None:
                raise
            logger.warning(
                "The checkpoint %s could not be written (%s); the fit goes on, and the file is as "
                "it was after step %d.",
                self.path,
                error,
                self._written,
            )
            return
        self._written = run.done


def _probe(objective: Objective, parameters: Sequence[np.ndarray]) -> np.ndarray:
    """Log joint density of the model at a few points that are always the same, in nats."""
    noise = np.random.default_rng(0).normal(size=(N_PROBES, objective.size))
    held = [p.get_value() for p in objective.parameters]
    try:
        store(objective.parameters, parameters)
        _, log_p, _ = objective.evaluate_many(noise.astype(pytensor.config.floatX))
    finally:
        store(objective.parameters, held)
    return np.asarray(log_p, dtype=float)
