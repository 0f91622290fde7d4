"""An approximation at a glance: what it shows of itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pymc_emf.engine.trainer import average
from pymc_emf.report import Report
from pymc_emf.variational.diagnosis import gate_range
from pymc_emf.variational.objective import Objective
from pymc_emf.variational.record import FitRecord

__all__ = ["Summary"]

#: More names than these are counted, not listed.
MAX_NAMES = 6
#: Steps whose losses tell the ELBO.
LAST_STEPS = 100
#: A variable whose gates are above it follows its prior.
OPEN = 0.9


@dataclass(frozen=True, repr=False)
class Summary(Report):
    """What a fit has come to, from what is known of it: nothing is drawn or compiled.

    Attributes
    ----------
    objective : Objective
    record : FitRecord
    gates : Dataset
    """

    objective: Objective
    record: FitRecord
    gates: xr.Dataset

    def _rows(self) -> list[tuple[str, str]]:
        names = [site.name for site in self.objective.program.sites_in_model_order]
        layers = " > ".join(type(layer).__name__ for layer in self.objective.flow.layers)
        rows = [
            ("variables", f"{_listed(names)} ({self.objective.size:,} unknowns)"),
            ("layers", layers),
            ("gates", self._gates()),
        ]
        stopping, verdict = self.record.stopping, self.record.verdict
        if stopping is None:
            return [*rows, ("fit", "none yet")]
        rows.append(("fit", f"{stopping.reason}, after step {stopping.step:,}"))
        if self.record.hist.size:
            last = self.record.hist[-LAST_STEPS:]
            rows.append(("ELBO", f"{-average(last):.2f} nats, in the last {len(last)} steps"))
        if verdict is None:
            return [*rows, ("verdict", "none, as there was no last check: see diagnose()")]
        rows += [("Pareto k-hat", f"{verdict.pareto_k:.2f}"), ("verdict", verdict.sentence)]
        return rows

    def _gates(self) -> str:
        lowest = {str(name): float(gate.min()) for name, gate in self.gates.data_vars.items()}
        closing = [name for name, gate in lowest.items() if gate < OPEN]
        said = [f"{name} {gate_range(self.gates[name])}" for name in closing]
        others = [gate for gate in lowest.values() if gate >= OPEN]
        if others:
            at_least = f"{np.floor(100 * min(others)) / 100:.2f} or more"
            said.append(f"all others {at_least}" if said else at_least)
        return _listed(said)


def _listed(words: Sequence[str]) -> str:
    """Words in a row, the middle ones counted if there are many."""
    if len(words) > MAX_NAMES:
        n_more = len(words) - MAX_NAMES
        words = [*words[: MAX_NAMES - 1], f"{n_more:,} more", words[-1]]
    return ", ".join(words)
