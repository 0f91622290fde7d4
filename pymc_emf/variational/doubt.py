"""Elements whose moments are in doubt, and losses that still fall."""

import numpy as np

from scipy.special import ndtri

from pymc_emf.variational.moments import Moments

__all__ = [
    "correction_in_doubt",
    "gain_at_the_end",
    "largest_corrections",
    "moments_in_doubt",
    "scores_in_doubt",
]

#: Correction of a mean, in standard deviations, or of a standard deviation that is worth a
#: warning, and the number of standard errors that it must exceed.
MAX_CORRECTION, N_SE = 0.1, 4.0
#: Of common elements, which are few.
N_SE_OF_COMMON = 3.0
#: Rise of the ELBO over the last fifth of the steps that is worth a warning, in nats and in
#: standard errors.
MIN_GAIN, N_SE_OF_GAIN = 0.1, 3.0


def moments_in_doubt(values: np.ndarray, weights: np.ndarray) -> tuple[int, str] | None:
    """Tell which element's mean or standard deviation the weights correct most, and how.

    Parameters
    ----------
    values : ndarray, shape (draws, size)
    weights : ndarray, shape (draws,)
        Normalised.

    Returns
    -------
    (int, str) or None
        The element and what the weights say of it; None if no correction is larger than a tenth,
        and than what the finite number of draws explains.
    """
    found = _corrections(values, weights)
    if found is None:
        return None  # which the log weights have told
    _, shift, ratio, shift_se, ratio_se = found
    sizes = np.array([np.abs(shift), np.abs(ratio - 1)])
    sizes[sizes < N_SE * np.array([shift_se, ratio_se])] = 0.0
    which, element = np.unravel_index(sizes.argmax(), sizes.shape)
    if sizes[which, element] < MAX_CORRECTION:
        return None
    move = _in_words(int(which), (shift, ratio)[which][element])
    return int(element), f"importance weights would {move} in value space"


def largest_corrections(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """By how much weights would correct means, standard deviations and skewness at most.

    Parameters
    ----------
    values : ndarray, shape (draws, size)
    weights : ndarray, shape (draws,)
        Normalised.

    Returns
    -------
    ndarray, shape (3,)
        In standard deviations as they are; infinite if a value is not finite.
    """
    found = _corrections(values, weights)
    if found is None:
        return np.full(3, np.inf)
    z, shift, ratio, *_ = found
    skewness = weights @ z**3 - (z**3).mean(axis=0)
    return np.abs([shift, ratio - 1, skewness]).max(axis=1)


def _corrections(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """Standardised values, shifts of means, ratios of standard deviations, errors of both."""
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        return None
    values = values / np.maximum(np.abs(values).max(axis=0), 1.0)  # or squares may overflow
    sd = values.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    z = (values - values.mean(axis=0)) / sd
    shift = weights @ z
    ratio = np.sqrt(weights @ (z - shift) ** 2)
    # each draw with its own share
    excess = weights - 1 / len(weights)
    shift_se = np.sqrt(excess**2 @ z**2)
    ratio_se = np.sqrt(excess**2 @ (z**2 - 1) ** 2) / 2
    return z, shift, ratio, shift_se, ratio_se


def correction_in_doubt(moments: Moments, who: str) -> tuple[int, str] | None:
    """Tell which common element's moments would be corrected most, and how.

    Parameters
    ----------
    moments : Moments
        That the noise of the common elements should have, in which it is standard normal.
    who : str
        Says so.

    Returns
    -------
    (int, str) or None
        Its place among them; None if none is off by more than a tenth, or than what the finite
        number of draws explains.
    """
    ratio = moments.ratios
    sizes = np.array([np.abs(moments.loc), np.abs(ratio - 1)])
    which, element = np.unravel_index(sizes.argmax(), sizes.shape)
    if sizes[which, element] < max(MAX_CORRECTION, N_SE_OF_COMMON * moments.se):
        return None
    move = _in_words(int(which), (moments.loc, ratio)[which][element])
    return int(element), f"{who} would {move}"


def _in_words(which: int, by: float) -> str:
    """A shift of a mean, or a factor of a standard deviation."""
    if which == 0:
        return f"shift its mean by {by:+.2f} standard deviations"
    return f"multiply its standard deviation by {by:.2f}"


def scores_in_doubt(gap: np.ndarray) -> tuple[int, str] | None:
    """Tell which element the scores say is most off, and how.

    Parameters
    ----------
    gap : ndarray, shape (draws, size)
        As of :meth:`pymc_emf.variational.objective.Objective.score_gap`: of a normal posterior
        whose precision matrix in the noise is M and whose mean is m, it is M m + (1 - M) z. Its
        mean is how far the location is off, in standard deviations. Of the variance, which is the
        sum of squares of a row of 1 - M, half is about the relative error of the standard
        deviation, be it the element's own or by correlations that the approximation lacks.

    Returns
    -------
    (int, str) or None
        None if none is off by more than a tenth.
    """
    if not np.isfinite(gap).all():
        return None  # which the log weights have told
    shift, variance = gap.mean(axis=0), gap.var(axis=0)
    sizes = np.array([np.abs(shift), variance / 2])
    # the largest of many is large by chance
    n_se = -ndtri(0.01 / gap.size)
    sizes[0, sizes[0] < n_se * np.sqrt(variance / len(gap))] = 0.0
    which, element = np.unravel_index(sizes.argmax(), sizes.shape)
    if sizes[which, element] < MAX_CORRECTION:
        return None
    if which == 0:
        move = f"shift its mean by {shift[element]:+.2f} standard deviations"
        return int(element), f"the scores of its draws would {move}"
    error = 100 * min(sizes[1, element], 1.0)
    return int(element), (
        f"the scores of its draws differ as if its standard deviation were off by {error:.0f} %"
    )


def gain_at_the_end(losses: np.ndarray) -> float:
    """Nats by which the ELBO rose in the last fifth of the steps; zero if chance may explain it."""
    n = len(losses) // 5
    earlier, latest = losses[-2 * n : -n], losses[-n:]
    earlier, latest = earlier[np.isfinite(earlier)], latest[np.isfinite(latest)]
    if min(len(earlier), len(latest)) < 2:
        return 0.0
    with np.errstate(over="ignore"):
        se = np.sqrt(earlier.var(ddof=1) / len(earlier) + latest.var(ddof=1) / len(latest))
        gain = float(earlier.mean() - latest.mean())
    return gain if gain > max(MIN_GAIN, N_SE_OF_GAIN * se) else 0.0
