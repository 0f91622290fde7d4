"""A fit in a file while it runs, so that it can be taken up where it was left."""

import logging
import os

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pymc_emf.engine.loop import Steps
from pymc_emf.engine.trainer import Run
from pymc_emf.variational.files import Saved, check_settings, probe_noise, read_file
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.record import FitRecord
from pymc_emf.variational.saved_fit import read_record, values_of, write_fit
from pymc_emf.variational.start import Started
from pymc_emf.variational.train import begin_run

__all__ = ["Checkpoint", "TakenUp"]

logger = logging.getLogger(__name__)

#: Settings of which, where they are None, those serve with which the fit was begun.
LEFT_OPEN = "random_seed", "obj_n_mc"


@dataclass(frozen=True)
class TakenUp:
    """A fit as its file has it.

    Attributes
    ----------
    run : Run
    started : Started
        With the values before the first step.
    n_earlier : int
        Number of losses that were recorded before this run.
    record : FitRecord
    random_state, draws_state : dict
        State of the fit's random stream, and of that of the draws.
    """

    run: Run
    started: Started
    n_earlier: int
    record: FitRecord
    random_state: dict[str, Any]
    draws_state: dict[str, Any]


class Checkpoint:
    """The file of one fit.

    Parameters
    ----------
    path : path-like
    every : int
        Steps between two writes.
    settings : dict
        All that decides how the fit goes, which must be the same when it is taken up, or left
        open then.

    Raises
    ------
    ValueError
        If there is a file which is damaged, or not of a fit with ``checkpoint=``.
    """

    def __init__(self, path: str | os.PathLike, every: int, settings: Mapping[str, Any]):
        self.path = Path(path)
        self.every = every
        self.settings = dict(settings)
        self._written: int | None = None
        self._saved: Saved | None = None
        if self.path.exists():
            self._saved = read_file(path, "approximation")
            if "fit" not in self._saved.header:
                raise ValueError(
                    f"{path} holds an approximation that was saved, not a fit on its way; give "
                    "another checkpoint=."
                )
            begun = self._saved.header["fit"]["settings"]
            for name in LEFT_OPEN:
                if self.settings[name] is None:
                    self.settings[name] = begun[name]

    @property
    def exists(self) -> bool:
        """Whether there is a fit to take up."""
        return self._saved is not None

    def check(self, prepared: Prepared) -> None:
        """Refuse to take up another fit, as far as that shows without evaluating the model.

        Raises
        ------
        ValueError
        """
        saved = self._saved
        if saved is None:
            return
        saved.check_variables(prepared.program)
        check_settings(saved, saved.header["fit"]["settings"], self.settings)
        values_of(saved, prepared)

    def take_up(self, prepared: Prepared, steps: Steps) -> TakenUp:
        """Read the fit.

        Parameters
        ----------
        prepared : Prepared
        steps : Steps

        Raises
        ------
        ValueError
            If the file is of other data, another model or another optimiser.
        """
        saved, objective = self._saved, prepared.objective
        assert saved is not None
        fit, values = saved.header["fit"], values_of(saved, prepared)
        further = saved.arrays[len(values) + 1 :]
        n, n_gates = len(objective.parameters), fit["n_gate_rates"]
        before = objective.join(further[:n], objective.fixed(values))
        gate_rates = None if n_gates is None else further[n : n + n_gates]
        record = read_record(saved, len(values))
        seconds = record.timing.get("warm_start", 0.0)
        started = Started(before, record.warm_start, gate_rates, seconds)
        like = begin_run(prepared, steps, started, 1, np.random.default_rng(0)).state
        try:
            numbers = further[n + (n_gates or 0) :]
            run = Run.from_numbers(fit["run"], numbers, steps.optimizer, like)
        except ValueError as error:
            raise ValueError(
                f"{self.path} was begun with another optimiser; give the same obj_optimizer=."
            ) from error
        self._check_densities(prepared, values, before)
        self._written = run.done
        logger.info("Continuing %s after step %d of %d.", self.path, run.done, run.end)
        header = saved.header
        return TakenUp(
            run, started, fit["n_earlier"], record, fit["random_state"], header["random_state"]
        )

    def _check_densities(self, prepared: Prepared, values, before) -> None:
        saved, objective = self._saved, prepared.objective
        assert saved is not None
        noise = probe_noise(objective.size)
        try:
            if saved.version > 1:
                saved.check_densities(lambda: objective.weigh(values, noise)[1:])
                return
            # the first format has log p alone, at noise of the structured layer
            _, log_p, _ = objective.target.evaluate_many(objective.split(before)[1], noise)
            known = {"log_p": saved.header["fit"]["log_density"], "log_q": []}
            Saved(saved.path, 2, {"identity": known}, []).check_densities(lambda: (log_p, []))
        except ValueError as error:
            raise ValueError(f"{error} Give another checkpoint=, or delete the file.") from None

    def is_due(self, run: Run) -> bool:
        """Whether it is time to write."""
        return (
            self._written is None
            or run.done - self._written >= self.every
            or (run.over and run.done > self._written)
        )

    def write(
        self,
        prepared: Prepared,
        run: Run,
        started: Started,
        n_earlier: int,
        record: FitRecord,
        random_state: dict[str, Any],
        draws_state: dict[str, Any],
    ) -> None:
        """Write the fit as it stands.

        Only the first failure is an error: later ones must not cost the fit, and warn.

        Parameters
        ----------
        prepared : Prepared
        run : Run
        started, n_earlier, random_state, draws_state
            As :class:`TakenUp` has them.
        record : FitRecord
            Of this moment.
        """
        objective = prepared.objective
        plain, arrays = run.numbers()
        gate_rates = started.gate_rates
        fit = {
            "settings": self.settings,
            "run": plain,
            "n_gate_rates": None if gate_rates is None else len(gate_rates),
            "n_earlier": n_earlier,
            "random_state": random_state,
        }
        before = objective.trained(started.values)
        values = objective.join(run.values, objective.fixed(started.values))
        further = [*before, *(gate_rates or ()), *arrays]
        try:
            write_fit(self.path, prepared, values, record, draws_state, {"fit": fit}, further)
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
