"""When to stop: losses that no longer fall, or have no noise left."""

from typing import NamedTuple

import numpy as np

__all__ = [
    "EXACT",
    "Level",
    "Stopping",
    "divergence_left",
    "has_plateaued",
    "is_exact",
    "level_of",
    "rounding_hides",
]

#: The latest losses are compared with as many before: this share of all, and no fewer than so
#: many, or than so many steps of a fit each of which is long.
SHARE, WINDOW, SHORT_WINDOW = 4, 600, 200
#: Standard errors by which a rise must exceed zero to be one: few, as they are asked often.
CERTAINTY = 0.5
#: Estimated divergence from the posterior, in nats, below which there is nothing left to learn.
EXACT = 1e-6
#: A rise of the losses by less, in nats or in standard errors, is none to go back for.
MIN_CLIMB, N_SE_OF_CLIMB = 1.0, 5.0


class Stopping(NamedTuple):
    """Why a fit ended.

    Attributes
    ----------
    reason : str
        "steps" (all that were asked for), "converged" (the ELBO no longer rose, see ``tol``),
        "exact" (the approximation is the posterior, up to rounding), "callback"
        (``StopIteration``), "interrupted" (Ctrl-C), "returned" (to the best state seen: the loss
        had risen, or was not finite any more), "non-finite", or "unfinished" (read from the
        checkpoint of a fit on its way).
    step : int
        Number of steps taken.
    """

    reason: str
    step: int


class Level(NamedTuple):
    """Where losses lie, whatever a few of them may be.

    Attributes
    ----------
    loss, se : float
        Their median and its standard error.
    """

    loss: float
    se: float

    def is_above(self, other: "Level") -> bool:
        """Whether it is clearly higher than another."""
        se = float(np.hypot(self.se, other.se))
        return self.loss - other.loss > max(MIN_CLIMB, N_SE_OF_CLIMB * se)


def level_of(losses: np.ndarray) -> Level:
    """Level of some losses; those that are not finite count as the largest."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    centre = float(np.median(losses))
    if not np.isfinite(centre):
        return Level(np.inf, 0.0)
    # of a normal distribution: from the median deviation the standard error of the median
    spread = float(np.median(np.abs(losses - centre))) / 0.6745
    return Level(centre, 1.2533 * spread / np.sqrt(len(losses)))


def has_plateaued(losses: np.ndarray, tol: float, window: int = WINDOW) -> bool:
    """Whether losses no longer fall by more than ``tol``, or half of their Monte Carlo error.

    Compares the last quarter with the quarter before.

    Parameters
    ----------
    losses : ndarray
        Of every step so far.
    tol : float
        In the units of the losses.
    window : int
        No fewer losses are compared.
    """
    window = max(window, len(losses) // SHARE)
    if len(losses) < 2 * window:
        return False
    earlier, latest = losses[-2 * window : -window], losses[-window:]
    if not (np.isfinite(earlier).all() and np.isfinite(latest).all()):
        return False
    se = np.sqrt((earlier.var(ddof=1) + latest.var(ddof=1)) / window)
    return bool(earlier.mean() - latest.mean() < max(tol, CERTAINTY * se))


def divergence_left(losses: np.ndarray, n_draws: int) -> float:
    """Estimate the divergence from the posterior, in nats, from the noise of the losses.

    They are means of log weights, half of whose variance it is where it is small.

    Parameters
    ----------
    losses : ndarray
        Of some steps over which the approximation hardly changes.
    n_draws : int
        Draws behind each of them.
    """
    if len(losses) < 2 or not np.isfinite(losses).all():
        return np.inf
    # of neighbours, as the losses may still fall
    return float(n_draws * np.mean(np.diff(losses) ** 2) / 4)


def is_exact(losses: np.ndarray, n_draws: int, window: int, dtype: np.dtype) -> bool:
    """Whether the log weights, of whose means these losses are, no longer vary.

    Half their variance is the divergence from the posterior, where that is small.

    Parameters
    ----------
    losses : ndarray
        Of the last steps.
    n_draws : int
        Draws behind each of them.
    window : int
        Fewer losses tell nothing.
    dtype : dtype
        In which they were computed.
    """
    if len(losses) < max(window, 2) or not np.isfinite(losses).all():
        return False
    # the largest deviation, since a single one shows that there is something to learn
    smallest = np.sqrt(2 * EXACT / n_draws)
    return bool(np.ptp(losses) < smallest) and not rounding_hides(losses, smallest, dtype)


def rounding_hides(numbers: np.ndarray, smallest: float, dtype: np.dtype) -> bool:
    """Whether numbers of this type are too large to show a difference as small as this."""
    largest = np.abs(numbers).max().astype(dtype)
    return not np.spacing(largest) < smallest
