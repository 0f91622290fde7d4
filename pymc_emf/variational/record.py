"""What is known of a fit beside the values: what an approximation tells, and a file holds."""

from dataclasses import dataclass, field, replace

import numpy as np

from pymc_emf.engine.stopping import Stopping
from pymc_emf.variational.search import WarmStart
from pymc_emf.variational.verdict import Verdict

__all__ = ["FitRecord", "Recorded"]


@dataclass(frozen=True)
class FitRecord:
    """How the values of an approximation came about.

    Attributes
    ----------
    hist : ndarray
        Loss (negative ELBO estimate, nats) of every step of all fits.
    warm_start : WarmStart
    stopping : Stopping or None
        Why the last fit ended; None before a fit.
    verdict : Verdict or None
        At the end of the last fit; None if it was not checked.
    timing : dict
        Seconds.
    """

    hist: np.ndarray = field(default_factory=lambda: np.zeros(0))
    warm_start: WarmStart = field(default_factory=lambda: WarmStart("none"))
    stopping: Stopping | None = None
    verdict: Verdict | None = None
    timing: dict[str, float] = field(default_factory=dict)


class Recorded:
    """Has a record of its fit, and tells what is in it."""

    record: FitRecord

    @property
    def hist(self) -> np.ndarray:
        return self.record.hist

    @hist.setter
    def hist(self, losses: np.ndarray) -> None:  # as PyMC's own loop does
        self.record = replace(self.record, hist=losses)

    @property
    def warm_start(self) -> WarmStart:
        return self.record.warm_start

    @property
    def stopping(self) -> Stopping | None:
        return self.record.stopping

    @property
    def verdict(self) -> Verdict | None:
        return self.record.verdict

    @property
    def pareto_k(self) -> float | None:
        return None if self.verdict is None else self.verdict.pareto_k

    @property
    def timing(self) -> dict[str, float]:
        return self.record.timing
