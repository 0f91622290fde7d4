"""The marginal distribution of common elements, corrected.

By log weights and scores of draws (:mod:`pymc_emf.variational.moments`), or where log weights vary
so much that these do not tell, by short chains (:mod:`pymc_emf.variational.chains`), which take
more gradients. They begin at draws of the approximation, and count once they have forgotten where.
"""

from collections.abc import Sequence
from itertools import islice

import jax
import numpy as np
import pytensor

from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.spline import Spline
from pymc_emf.layers.subset import Subset
from pymc_emf.variational.chains import chains
from pymc_emf.variational.importance import log_ratio, resample, smooth
from pymc_emf.variational.moments import (
    N_GROUPS,
    TINY,
    Moments,
    moments_of_common,
    moments_of_draws,
    through,
)
from pymc_emf.variational.objective import Objective, Values

__all__ = [
    "MOST",
    "PRECISIONS",
    "common_places",
    "correct_by_chains",
    "correct_common",
    "moments_by_chains",
]

#: Standard errors that corrected means may have at first, in standard deviations, and if other
#: draws then cast doubt on them.
PRECISIONS = 0.06, 0.03
#: Draws of one batch, and how many batches there may be.
N_DRAWS, MAX_BATCHES = 2000, 5
#: More common elements are left as they are.
MOST = 24
#: Corrections, as one that went as far as it may is followed by another.
MAX_CORRECTIONS = 3
#: Chains, a multiple of the groups by which errors are found, and transitions at most, of which
#: the latter half counts, and so many at least.
N_CHAINS, MAX_TRANSITIONS, MIN_KEPT = 20 * N_GROUPS, 24, 8
#: Correlation with where they began above which chains have not forgotten it, and standard errors
#: beyond which they still drift.
FORGOTTEN, N_SE_OF_DRIFT = 0.25, 3.0
#: Standard errors of means, in standard deviations: that with which chains may end, and the
#: largest.
SE_OF_CHAINS, MAX_SE_OF_CHAINS = 0.065, 0.1
#: The least and the largest bend of a spline, by which the logarithm of its slope rises in a
#: standard deviation.
MIN_BEND, MAX_BEND = 0.01, 0.3


def common_places(objective: Objective) -> np.ndarray:
    """Positions of the elements that have an affine layer of their own before all others."""
    front = _front(objective)
    return np.zeros(0, dtype=np.intp) if front is None else front[0].positions


def correct_common(
    objective: Objective,
    values: Values,
    rng: np.random.Generator,
    precision: float,
    known: Sequence[np.ndarray] = (),
) -> list[np.ndarray] | None:
    """Values of an approximation whose common elements have the posterior's mean and covariance.

    Where the splines behind their layer have not been trained, they get its skewness as well.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    rng : Generator
    precision : float
        Standard error that the means may have, in standard deviations, if that takes no more
        draws than there may be.
    known : sequence of ndarray, optional
        Noise, log weights and score gaps of draws that have been made.

    Returns
    -------
    list of ndarray or None
        None if there are no common elements, the log weights do not tell, or corrections do not
        come to an end.
    """
    places, front = common_places(objective), _front(objective)
    if front is None or len(places) > MOST:
        return None
    _, layer = front
    moved = list(values)
    for _ in range(MAX_CORRECTIONS):
        moments = _moments(objective, moved, rng, precision, places, known)
        if moments is None:
            return None
        own = objective.own(moved, layer.variables)
        own = layer.preceded_by(own, moments.loc, moments.factor)
        if not moments.is_capped:
            return _skewed(objective, moved, layer, own, moments)
        moved, known = objective.replace(moved, layer.variables, own), ()
    return None


def correct_by_chains(
    objective: Objective,
    values: Values,
    noise: np.ndarray,
    log_weights: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], Moments] | None:
    """What :func:`correct_common` does, where log weights vary more (:func:`weights_tell`).

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    noise : ndarray, shape (draws, size)
    log_weights : ndarray, shape (draws,)
        Of these draws, in nats.
    rng : Generator

    Returns
    -------
    (list of ndarray, Moments) or None
        The values, and the moments that the noise of the common elements should then have; None
        if chains do not tell.
    """
    moments = moments_by_chains(objective, values, noise, log_weights, rng)
    front = _front(objective)
    if moments is None or front is None:
        return None
    _, layer = front
    own = layer.preceded_by(objective.own(values, layer.variables), moments.loc, moments.factor)
    n = len(moments.loc)
    left = Moments(np.zeros(n), np.eye(n), moments.se, False, np.zeros((n, n, n)))
    return _skewed(objective, values, layer, own, moments), left


def moments_by_chains(
    objective: Objective,
    values: Values,
    noise: np.ndarray,
    log_weights: np.ndarray,
    rng: np.random.Generator,
) -> Moments | None:
    """Mean and covariance that the noise of common elements should have, from short chains.

    Parameters
    ----------
    objective, values, noise, log_weights, rng
        As for :func:`correct_by_chains`.

    Returns
    -------
    Moments or None
        None if there are no common elements or very many, if chains do not forget where they
        began or still drift at their end, or if scores are those of some of the data.
    """
    places, target = common_places(objective), objective.target
    inside = np.isfinite(log_weights)
    if not 0 < len(places) <= MOST or target.minibatches or inside.sum() < N_CHAINS:
        return None

    held = jax.device_put(list(values))  # once, for all calls

    def weigh(noise):
        noise = noise.astype(pytensor.config.floatX)
        _, log_p, log_q, gap = objective.weigh_and_score(held, noise)
        return log_ratio(log_p, log_q), gap

    start = noise[inside][_worth_a_chain(log_weights[inside], rng)]
    begun, states, scores, moments = start[:, places], [], [], None
    for now, pull in islice(chains(weigh, start, rng), MAX_TRANSITIONS):
        states.append(now[:, places].astype(float))
        scores.append(pull[:, places] - states[-1])
        kept, moments = states[len(states) // 2 :], None
        if len(kept) < MIN_KEPT or _correlation(begun, kept[-1]) > FORGOTTEN or _drifts(kept):
            continue
        moments = moments_of_draws(np.concatenate(kept), np.concatenate(scores[-len(kept) :]))
        if moments.se < SE_OF_CHAINS:
            return moments
    return moments if moments is not None and moments.se < MAX_SE_OF_CHAINS else None


def _drifts(states: list[np.ndarray]) -> bool:
    """Whether a mean or a spread still moves, from one half of the states to the other."""
    half = len(states) // 2
    earlier, later = np.array(states[:half]), np.array(states[half:])
    centre = earlier.mean(axis=(0, 1))
    for of in (lambda z: z, lambda z: (z - centre) ** 2):
        moved = of(later).mean(axis=0) - of(earlier).mean(axis=0)  # chain by chain
        se = moved.std(axis=0) / np.sqrt(len(moved))
        if (np.abs(moved.mean(axis=0)) > N_SE_OF_DRIFT * se).any():
            return True
    return False


def _worth_a_chain(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws where chains begin: by their weights, as far as these leave many of them."""
    smoothed = smooth(log_weights)
    while smoothed.ess < N_CHAINS / 2:
        log_weights = log_weights / 2
        smoothed = smooth(log_weights)
    return resample(smoothed.log_weights, N_CHAINS, rng)


def _correlation(begun: np.ndarray, now: np.ndarray) -> float:
    """The largest of any common element."""
    pairs = zip(begun.T, now.T, strict=True)
    return max(abs(np.corrcoef(*pair)[0, 1]) for pair in pairs)


def _moments(
    objective: Objective,
    values: Values,
    rng: np.random.Generator,
    precision: float,
    places: np.ndarray,
    known: Sequence[np.ndarray],
) -> Moments | None:
    """Those of the common elements, from as many draws as it takes."""
    n_draws = objective.target.affordable(N_DRAWS)
    drawn: list[tuple[np.ndarray, ...]] = []
    for _ in range(MAX_BATCHES):
        if known and not drawn:
            noise, log_weights, gap = known
        else:
            noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)
            _, log_p, log_q, gap = objective.weigh_and_score(values, noise)
            log_weights = log_ratio(log_p, log_q)
        drawn.append((noise[:, places], log_weights, gap[:, places]))
        moments = moments_of_common(*map(np.concatenate, zip(*drawn, strict=True)))
        if moments is None or moments.is_capped:
            if len(drawn) > 1:
                break
        elif moments.se < precision:
            break
    return moments


def _skewed(
    objective: Objective, values: Values, layer: LowerTriangular, own: Values, moments: Moments
) -> list[np.ndarray]:
    """Values with those of the first layer, and splines that skew what it makes.

    A spline whose slope is close to ``exp(a z)`` makes of normal z a shifted log-normal variate,
    with a skewness of about 3 a. Mean and standard deviation are to stay, for which the first
    layer makes room.
    """
    splines = _splines(objective)
    if splines is None:
        return objective.replace(values, layer.variables, own)
    spline, rows = splines
    (log_slopes,) = objective.own(values, spline.variables)
    *_, loc, factor = own
    third = through(factor @ np.linalg.inv(moments.factor), moments.third)
    sd = np.linalg.norm(factor, axis=1)
    each = np.arange(len(sd))
    skewness = third[each, each, each] / sd**3
    a = np.clip(skewness / 3, -MAX_BEND, MAX_BEND)
    bent = (np.abs(a) > MIN_BEND) & ~log_slopes[rows].any(axis=1)
    a, sd_bent, loc_bent = a[bent], sd[bent], loc[bent]
    grown = np.exp(a**2 / 2)
    narrower = a / (grown * np.sqrt(np.expm1(a**2)))  # those of the log-normal variate
    scale = sd_bent * np.abs(narrower)
    # zero stays zero under a spline
    centre = -scale / a * np.log(np.maximum(grown - a * loc_bent / scale, TINY))
    new_slopes = np.array(log_slopes)
    new_slopes[rows[bent]] = a[:, None] * (spline.at - centre[:, None]) / scale[:, None]
    new_loc, new_factor = np.array(loc), np.array(factor)
    new_loc[bent] = centre
    new_factor[bent] *= np.abs(narrower)[:, None]
    own = layer.set_frame(own, new_loc, new_factor)
    moved = objective.replace(values, layer.variables, own)
    return objective.replace(moved, spline.variables, [new_slopes.astype(log_slopes.dtype)])


def _front(objective: Objective) -> tuple[Subset, LowerTriangular] | None:
    """The first layer, if it is an affine one of the common elements."""
    match objective.layers:
        case [Subset(layer=LowerTriangular() as inside) as first, *_]:
            return first, inside
    return None


def _splines(objective: Objective) -> tuple[Spline, np.ndarray] | None:
    """The splines behind that layer, and which of them are those of its elements."""
    places = common_places(objective)
    match objective.layers:
        case [_, Spline() as splines, *_]:
            return splines, places
        case [_, Subset(layer=Spline() as splines) as second, *_]:
            order = np.argsort(second.positions)
            rows = order[np.searchsorted(second.positions, places, sorter=order)]
            return splines, rows
    return None
