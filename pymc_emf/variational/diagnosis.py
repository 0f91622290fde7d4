"""How far an approximation can be trusted, as a report."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from pymc_emf.report import Report
from pymc_emf.variational.check import Weighed
from pymc_emf.variational.importance import HOPELESS_PARETO_K, MAX_PARETO_K, estimate_elbo
from pymc_emf.variational.record import FitRecord

__all__ = ["Diagnosis", "advise", "diagnose", "gate_range"]


def advise(pareto_k: float, missed: float = 0.0, other_start: str = "") -> str:
    """What to do with an approximation, in one sentence.

    Parameters
    ----------
    pareto_k : float
    missed : float
        Nats of evidence in a mode that it has missed.
    other_start : str
        How to start elsewhere.
    """
    if missed:
        return (
            "Do not trust it: draws from the prior find more evidence, by "
            f"{missed:,.3g} nats, in a mode that it has missed; {other_start}."
        )
    if np.isnan(pareto_k):
        return (
            "Do not trust it: the log density of the model is not finite where the "
            "approximation reaches; check the model's parameters there."
        )
    if pareto_k <= MAX_PARETO_K:
        return "Use it: the importance weights are well-behaved."
    if pareto_k <= HOPELESS_PARETO_K:
        return (
            "Resample it, approx.sample(importance=True), or fit longer: its tails are too light."
        )
    return "Do not trust it: fit longer, check the model, or use approx.nuts()."


def gate_range(gate: xr.DataArray) -> str:
    """Lowest and highest gate of a variable, in digits."""
    low, high = f"{float(gate.min()):.2f}", f"{float(gate.max()):.2f}"
    return low if gate.size == 1 else f"{low} to {high}"


@dataclass(frozen=True, repr=False)
class Diagnosis(Report):
    """How far an approximation can be trusted; made by ``approx.diagnose()``.

    Attributes
    ----------
    pareto_k : float
        Pareto k-hat of the importance weights; minus infinity where the largest are all equal,
        infinity where a few are beyond comparison or a mode has been missed, NaN where one is not
        finite.
    missed : float
        Nats of evidence that draws from the prior find beyond what the approximation does; zero
        if chance may explain it.
    elbo, elbo_se : float
        Evidence lower bound and its standard error, in nats.
    log_evidence, log_evidence_se : float
        Log evidence by importance sampling and its standard error, in nats; the heavier the tail
        of the weights, the larger.
    ess : float
        Number of draws from the posterior that would be worth as much as `draws` weighted ones.
    draws : int
    gates : Dataset
        Gate of every element.
    warm_start : str
        The start that was taken.
    stopped : str
        Why the fit ended.
    other_start : str
        How to start elsewhere.
    """

    pareto_k: float
    missed: float
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    ess: float
    draws: int
    gates: xr.Dataset
    warm_start: str
    stopped: str
    other_start: str

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        return advise(self.pareto_k, self.missed, self.other_start)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("Pareto k-hat", f"{self.pareto_k:.2f}"),
            ("ELBO", f"{self.elbo:.4f} ± {self.elbo_se:.4f} nats"),
            ("log evidence", f"{self.log_evidence:.4f} ± {self.log_evidence_se:.4f} nats"),
            ("effective draws", f"{self.ess:,.0f} of {self.draws:,}"),
            ("warm start", self.warm_start),
            ("stopped", self.stopped),
        ]
        for name, gate in self.gates.data_vars.items():
            rows.append((f"gate of {name}", gate_range(gate)))
        return [*rows, ("advice", self.advice)]

    def to_dataset(self) -> xr.Dataset:
        """All numbers as one dataset; the gates are called ``<variable>_gate``."""
        numbers = {
            name: getattr(self, name)
            for name in (
                "pareto_k",
                "missed",
                "elbo",
                "elbo_se",
                "log_evidence",
                "log_evidence_se",
                "ess",
                "draws",
            )
        }
        gates = self.gates.rename({name: f"{name}_gate" for name in self.gates.data_vars})
        said = {"warm_start": self.warm_start, "stopped": self.stopped, "advice": self.advice}
        return gates.assign(numbers).assign_attrs(said)


def diagnose(weighed: Weighed, gates: xr.Dataset, record: FitRecord) -> Diagnosis:
    """Report on an approximation, from the weights of its draws and what is known of its fit."""
    elbo, smoothed = estimate_elbo(weighed.log_weights), weighed.smoothed
    stopping = record.stopping
    return Diagnosis(
        pareto_k=weighed.pareto_k,
        missed=weighed.missed,
        elbo=elbo.mean,
        elbo_se=elbo.se,
        log_evidence=smoothed.log_evidence,
        log_evidence_se=smoothed.se,
        ess=smoothed.ess,
        draws=elbo.draws,
        gates=gates,
        warm_start=record.warm_start.chosen,
        stopped="" if stopping is None else f"{stopping.reason}, after step {stopping.step:,}",
        other_start=record.warm_start.other,
    )
