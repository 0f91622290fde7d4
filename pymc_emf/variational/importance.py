"""Importance weights: what they say of an approximation, and resampling by them."""

from dataclasses import dataclass

import numpy as np

from scipy.special import logsumexp

from pymc_emf.statistics import arviz_stats

__all__ = [
    "ELBO",
    "HOPELESS_PARETO_K",
    "MAX_PARETO_K",
    "MIN_DRAWS",
    "Smoothed",
    "average",
    "convergence_rate",
    "estimate_elbo",
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


def elbo_within(log_weights: np.ndarray) -> float:
    """ELBO, in nats, of an approximation without the draws at which the model has no density.

    The density of those that are left is larger by their share. Minus infinity without any.
    """
    usable = np.isfinite(log_weights)
    if np.isposinf(log_weights).any() or not usable.any():
        return np.inf if np.isposinf(log_weights).any() else -np.inf
    return average(log_weights[usable]) + float(np.log(usable.mean()))


def standard_deviation(log_weights: np.ndarray, ddof: int = 0) -> float:
    """Standard deviation of log weights, NaN where they are not all finite."""
    if not np.isfinite(log_weights).all():
        return np.nan
    with np.errstate(over="ignore"):
        return float(log_weights.std(ddof=ddof))


@dataclass(frozen=True, repr=False)
class ELBO:
    """Estimate of the evidence lower bound, in nats.

    Attributes
    ----------
    mean, se : float
        Average over the draws and its standard error.
    draws : int
    """

    mean: float
    se: float
    draws: int

    def __str__(self) -> str:
        return f"ELBO {self.mean:.4f} ± {self.se:.4f} nats ({self.draws:,} draws)"

    __repr__ = __str__


def estimate_elbo(log_weights: np.ndarray) -> ELBO:
    """ELBO of the log weights of some draws, in nats."""
    n = len(log_weights)
    se = standard_deviation(log_weights, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return ELBO(average(log_weights), float(se), n)


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
            smoothed, k = arviz_stats().base.array_stats.psislw(-log_weights)
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
