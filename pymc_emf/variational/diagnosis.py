"""How far an approximation can be trusted, as a report."""

from dataclasses import asdict, dataclass

import xarray as xr

from pymc_emf.report import Report
from pymc_emf.variational.record import FitRecord
from pymc_emf.variational.verdict import Verdict

__all__ = ["Diagnosis", "diagnose", "gate_range"]


def gate_range(gate: xr.DataArray) -> str:
    """Lowest and highest gate of a variable, in digits."""
    low, high = f"{float(gate.min()):.2f}", f"{float(gate.max()):.2f}"
    return low if gate.size == 1 else f"{low} to {high}"


@dataclass(frozen=True, repr=False)
class Diagnosis(Report):
    """How far an approximation can be trusted; made by ``approx.diagnose()``.

    Attributes
    ----------
    verdict : Verdict
        From importance weights; its numbers are attributes of the diagnosis too.
    gates : Dataset
        Gate of every element.
    warm_start : str
        The start that was taken.
    stopped : str
        Why the fit ended.
    """

    verdict: Verdict
    gates: xr.Dataset
    warm_start: str
    stopped: str

    @property
    def pareto_k(self) -> float:
        """Pareto k-hat of the importance weights.

        Minus infinity where the largest are all equal, infinity where a few are beyond comparison
        or a mode has been missed, NaN where one is not finite.
        """
        return self.verdict.pareto_k

    @property
    def missed(self) -> float:
        """Nats of evidence in a mode that was missed, zero if chance may explain it."""
        return self.verdict.missed

    @property
    def elbo(self) -> float:
        """Evidence lower bound in nats."""
        return self.verdict.elbo

    @property
    def elbo_se(self) -> float:
        """Standard error of the ELBO in nats."""
        return self.verdict.elbo_se

    @property
    def log_evidence(self) -> float:
        """Log evidence by importance sampling, in nats."""
        return self.verdict.log_evidence

    @property
    def log_evidence_se(self) -> float:
        """Standard error of the log evidence in nats; larger the heavier the weights' tail."""
        return self.verdict.log_evidence_se

    @property
    def ess(self) -> float:
        """Number of draws from the posterior that would be worth as much."""
        return self.verdict.ess

    @property
    def draws(self) -> int:
        """Number of weighted draws."""
        return self.verdict.draws

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        return self.verdict.sentence

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("Pareto k-hat", f"{self.pareto_k:.2f}"),
            ("ELBO", f"{self.elbo:.4f} ± {self.elbo_se:.4f} nats"),
            ("log evidence", f"{self.log_evidence:.4f} ± {self.log_evidence_se:.4f} nats"),
            ("effective draws", f"{self.ess:,.0f} of {self.draws:,}"),
        ]
        if self.verdict.outside:
            rows.append(("without a density", f"{self.verdict.outside:,} of {self.draws:,}"))
        rows += [("warm start", self.warm_start), ("stopped", self.stopped)]
        for name, gate in self.gates.data_vars.items():
            rows.append((f"gate of {name}", gate_range(gate)))
        return [*rows, ("advice", self.advice)]

    def to_dataset(self) -> xr.Dataset:
        """All numbers as one dataset; the gates are called ``<variable>_gate``."""
        numbers = {
            name: value
            for name, value in asdict(self.verdict).items()
            if isinstance(value, int | float)
        }
        gates = self.gates.rename({name: f"{name}_gate" for name in self.gates.data_vars})
        said = {"warm_start": self.warm_start, "stopped": self.stopped, "advice": self.advice}
        return gates.assign(numbers).assign_attrs(said)


def diagnose(verdict: Verdict, gates: xr.Dataset, record: FitRecord) -> Diagnosis:
    """Report on an approximation, from the verdict on it and what is known of its fit."""
    stopping = record.stopping
    stopped = "" if stopping is None else f"{stopping.reason}, after step {stopping.step:,}"
    return Diagnosis(verdict, gates, record.warm_start.chosen, stopped)
