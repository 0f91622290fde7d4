"""What importance weights say of an approximation, and resampling by them."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from arviz_stats.base import array_stats
from scipy.special import logsumexp

from pymc_emf.variational.report import Report

__all__ = [
    "HOPELESS_PARETO_K",
    "MAX_PARETO_K",
    "MIN_DRAWS",
    "Diagnosis",
    "Smoothed",
    "average",
    "convergence_rate",
    "log_ratio",
    "missed_evidence",
    "resample",
    "smooth",
    "standard_deviation",
]

#: Above it, importance weights are unreliable, and so is the approximation.
MAX_PARETO_K = 0.7
#: Above it, even many draws would not tell what the approximation misses.
HOPELESS_PARETO_K = 1.0
#: Fewer draws have no tail, of a fifth of them, to which a distribution could be fitted.
MIN_DRAWS = 30
#: Log weights that differ by no more than this differ by rounding.
ROUNDING = 1e-6
#: The evidence that draws from the prior find is right on average, so that it is by this factor
#: too high once in a hundred times at most (Markov's inequality).
BENEFIT_OF_DOUBT = 100.0


def log_ratio(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Log weights, NaN where both densities have overflowed."""
    with np.errstate(invalid="ignore"):
        return np.asarray(log_p - log_q, dtype=float)


def average(log_weights: np.ndarray) -> float:
    """Mean of log weights, NaN where they are infinite either way."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(log_weights.mean())


def standard_deviation(log_weights: np.ndarray, ddof: int = 0) -> float:
    """Standard deviation of log weights, NaN where they are not all finite."""
    if not np.isfinite(log_weights).all():
        return np.nan
    with np.errstate(over="ignore"):
        return float(log_weights.std(ddof=ddof))


@dataclass(frozen=True)
class Smoothed:
    """Importance weights whose largest are smoothed by a generalised Pareto distribution.

    Vehtari et al., "Pareto smoothed importance sampling", arXiv:1507.02646.

    Attributes
    ----------
    log_weights : ndarray, shape (draws,)
        Normalised: they sum to one.
    pareto_k : float
        NaN if a weight is not finite, minus infinity if the largest are all equal but for
        rounding, infinity if a few are beyond all comparison with the others.
    log_evidence, se : float
        Log of the mean weight, and its standard error, in nats; it allows for the slower
        convergence of heavy tails.
    """

    log_weights: np.ndarray
    pareto_k: float
    log_evidence: float
    se: float

    @property
    def ess(self) -> float:
        """Number of draws from the posterior that would be worth as much."""
        return float(np.exp(-logsumexp(2 * self.log_weights)))


def smooth(log_weights: np.ndarray) -> Smoothed:
    """Smooth log weights, log p - log q of draws from q, of which `MIN_DRAWS` are needed."""
    n = len(log_weights)
    equal = np.full(n, -np.log(n))
    if not np.isfinite(log_weights).all():
        return Smoothed(equal, np.nan, np.nan, np.nan)
    if np.ptp(log_weights) < ROUNDING:
        return Smoothed(equal, -np.inf, float(log_weights.mean()), 0.0)
    try:
        with np.errstate(all="ignore"):
            smoothed, k = array_stats.psislw(-log_weights)
    except ValueError:  # all weights of the tail are the same
        smoothed, k = log_weights - logsumexp(log_weights), -np.inf
    if np.isnan(k):  # next to the largest weights, the others of the tail are zero
        k = np.inf
    # the smallest weight is never smoothed, and tells by what all were divided
    least = log_weights.argmin()
    log_evidence = log_weights[least] - smoothed[least] - np.log(n)
    relative = n * np.exp(smoothed)
    se = relative.std(ddof=1) * n ** (-convergence_rate(float(k), n) / 2)
    return Smoothed(smoothed, float(k), float(log_evidence), float(se))


def convergence_rate(k: float, n: int) -> float:
    """How fast errors of Pareto-smoothed weights fall, relative to the central limit theorem.

    The error of a mean over `n` draws is of the order ``n ** (-rate / 2)``. The rate is one for
    light tails, and falls from about k = 0.3 to zero at k = 1: in between the standard error by
    the theorem would be too small.

    References
    ----------
    Vehtari et al., "Pareto smoothed importance sampling", Journal of Machine Learning Research 25,
    2024, appendix B.
    """
    if k <= 0:
        return 1.0
    if k >= 1:
        return 0.0
    size = float(n)
    if abs(k - 0.5) < 1e-6:  # the limit of what follows
        return 1 - 1 / np.log(size)
    share = size ** (2 * k)
    upper = 2 * (k - 1) * size * share + (1 - 2 * k) * share + size**2
    return float(np.clip(upper / ((size - 1) * (size - share)), 0.0, 1.0))


def missed_evidence(smoothed: Smoothed, prior_log_weights: np.ndarray) -> float:
    """Nats of evidence that draws from the prior find and the approximation does not.

    An approximation that sits in the wrong mode looks well from inside: its own weights do not
    vary. The prior reaches every mode, if thinly.

    Parameters
    ----------
    smoothed : Smoothed
        Weights of draws from the approximation.
    prior_log_weights : ndarray
        Of draws from the prior; those that are not finite count as zero.

    Returns
    -------
    float
        Zero if chance may explain it.
    """
    weights = prior_log_weights[np.isfinite(prior_log_weights)]
    if not len(weights) or not np.isfinite(smoothed.log_evidence):
        return 0.0
    found = logsumexp(weights) - np.log(len(prior_log_weights))
    excess = found - smoothed.log_evidence
    # not the larger one of heavy tails, which would excuse what a mode that was missed explains
    n = len(smoothed.log_weights)
    se = np.exp(smoothed.log_weights).std() * np.sqrt(n)
    return float(excess if excess > np.log(BENEFIT_OF_DOUBT) + 3 * se else 0.0)


def resample(log_weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `n` draws taken by their weights, in random order (systematic resampling)."""
    cumulative = np.exp(log_weights).cumsum()
    positions = (rng.random() + np.arange(n)) / n * cumulative[-1]
    return rng.permutation(np.searchsorted(cumulative, positions).clip(max=len(log_weights) - 1))


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

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        k = self.pareto_k
        if self.missed:
            return (
                "Do not trust it: draws from the prior find more evidence, by "
                f"{self.missed:,.3g} nats, in a mode that it has missed; fit again with "
                'warm_start="auto", or pass a start=.'
            )
        if np.isnan(k):
            return (
                "Do not trust it: the log density of the model is not finite where the "
                "approximation reaches; check the model's parameters there."
            )
        if k <= MAX_PARETO_K:
            return "Use it: the importance weights are well-behaved."
        if k <= HOPELESS_PARETO_K:
            return (
                "Resample it, approx.sample(importance=True), or fit longer: its tails are too "
                "light."
            )
        return "Do not trust it: fit longer, check the model, or use approx.nuts()."

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
            low, high = float(gate.min()), float(gate.max())
            spread = f"{low:.2f}" if gate.size == 1 else f"{low:.2f} to {high:.2f}"
            rows.append((f"gate of {name}", spread))
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
