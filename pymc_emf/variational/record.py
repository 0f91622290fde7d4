"""What is known of a fit beside the values: what an approximation tells, and a file holds."""

from dataclasses import dataclass, field

import numpy as np

from pymc_emf.engine.stopping import Stopping
from pymc_emf.variational.search import WarmStart

__all__ = ["FitRecord"]


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
    pareto_k : float or None
        Pareto k-hat of the log weights at the end of the last fit; None if it was not checked.
    timing : dict
        Seconds.
    """

    hist: np.ndarray = field(default_factory=lambda: np.zeros(0))
    warm_start: WarmStart = field(default_factory=lambda: WarmStart("none"))
    stopping: Stopping | None = None
    pareto_k: float | None = None
    timing: dict[str, float] = field(default_factory=dict)
