r"""The marginal distribution of common elements, corrected by log weights and scores of draws.

Where an approximation q of common elements :math:`\theta` and many others is to have the
posterior's own marginal, the density of :math:`\theta` must be multiplied by the mean of the
weights :math:`p/q` given :math:`\theta`. The log weights :math:`\ell` of many elements are sums of
many small errors, hence close to normal given :math:`\theta`: the log of that mean is the sum of
their cumulants, :math:`m + v/2 + \kappa_3/6`. The highest ELBO knows the first of them alone: it
leaves the common elements where the others can be approximated best. Weights would tell the
same, but few of them would count.

In the noise of the common elements, the derivative of that sum is, by joint cumulants, the mean
given :math:`\theta` of

.. math:: G + (G - \nabla m)(\ell - m) + (G - \nabla m)((\ell - m)^2 - v)/2

with G the gap between the score and that of the approximation. The correction is the normal
nearest to what this makes of the noise, as far as its linear and squared parts tell.

The expansion is that by which Laplace approximations of marginals are corrected (e.g. Rue,
Martino, Chopin, JRSS B 2009), with draws in the place of derivatives.
"""

from typing import NamedTuple

import numpy as np
import pytensor

from scipy.linalg import solve_triangular

from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.spline import Spline
from pymc_emf.layers.subset import Subset
from pymc_emf.variational.importance import log_ratio
from pymc_emf.variational.objective import Objective, Values

__all__ = [
    "MAX_VARIANCE",
    "PRECISIONS",
    "Moments",
    "common_places",
    "correct_common",
    "moments_of_common",
]

#: Standard errors that corrected means may have at first, in standard deviations, and if other
#: draws then cast doubt on them.
PRECISIONS = 0.06, 0.03
#: Draws of one batch, and how many batches there may be.
N_DRAWS, MAX_BATCHES = 2000, 5
#: More common elements are left as they are, or if they are more than so many for each draw.
MOST, MOST_COLUMNS = 24, 0.1
#: The cumulants tell where log weights vary by no more, in nats squared, and resemble a normal.
MAX_VARIANCE, MAX_SKEWNESS, TINY = 4.0, 1.0, 1e-6
#: Standard deviations beyond which no draw counts for more, for it would alone decide.
FARTHEST = 3.0
#: Factor by which a precision is corrected at most, and the longest way of a mean.
MAX_FACTOR, MAX_WAY = 4.0, 2.0
#: Corrections, as one that went as far as it may is followed by another.
MAX_CORRECTIONS = 3
#: Groups of draws that are left out in turn, for the standard error.
N_GROUPS = 10
#: Rounds in which mean and covariance settle.
ROUNDS = 20
#: Standard errors that a cumulant of third order must exceed, and the least and the largest bend
#: of a spline, by which the logarithm of its slope rises in a standard deviation.
N_SE_OF_THIRD, MIN_BEND, MAX_BEND = 2.0, 0.01, 0.3


def common_places(objective: Objective) -> np.ndarray:
    """Positions of the elements that have an affine layer of their own before all others."""
    front = _front(objective)
    return np.zeros(0, dtype=np.intp) if front is None else front[0].positions


def correct_common(
    objective: Objective, values: Values, rng: np.random.Generator, precision: float
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
        moments = _moments(objective, moved, rng, precision, places)
        if moments is None:
            return None
        own = objective.own(moved, layer.variables)
        own = layer.preceded_by(own, moments.loc, moments.factor)
        if not moments.is_capped:
            return _skewed(objective, moved, layer, own, moments)
        moved = objective.replace(moved, layer.variables, own)
    return None


def _moments(
    objective: Objective,
    values: Values,
    rng: np.random.Generator,
    precision: float,
    places: np.ndarray,
) -> "Moments | None":
    """Those of the common elements, from as many draws as it takes."""
    n_draws = objective.target.affordable(N_DRAWS)
    drawn: list[tuple[np.ndarray, ...]] = []
    for _ in range(MAX_BATCHES):
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


class Moments(NamedTuple):
    """Of noise as it should be.

    Attributes
    ----------
    loc : ndarray, shape (common,)
    factor : ndarray, shape (common, common)
        Lower Cholesky factor of the covariance.
    se : float
        Largest standard error of the means.
    is_capped : bool
        Whether they are as far from the noise as it is as is trusted, and might be further.
    third : ndarray, shape (common, common, common)
        Cumulants of third order, zero where they are lost in their standard errors.
    """

    loc: np.ndarray
    factor: np.ndarray
    se: float
    is_capped: bool
    third: np.ndarray


def moments_of_common(
    noise: np.ndarray, log_weights: np.ndarray, gap: np.ndarray
) -> Moments | None:
    """Mean and covariance that the noise of common elements should have.

    Parameters
    ----------
    noise : ndarray, shape (draws, common)
    log_weights : ndarray, shape (draws,)
        In nats.
    gap : ndarray, shape (draws, common)

    Returns
    -------
    Moments or None
        As far as corrections may go; None if the log weights do not tell.
    """
    if not (np.isfinite(log_weights).all() and np.isfinite(gap).all()):
        return None
    found = _estimate(noise, log_weights, gap)
    if found is None:
        return None
    # by jackknife, as the few draws of the largest weights decide most
    without, place = [], np.arange(len(noise)) % N_GROUPS
    for group in range(N_GROUPS):
        others = place != group
        of_others = _estimate(noise[others], log_weights[others], gap[others])
        if of_others is None:
            return None
        without.append(of_others)
    se, se_of_third = (
        np.sqrt(N_GROUPS - 1) * np.std([getattr(one, name) for one in without], axis=0)
        for name in ("loc", "third")
    )
    third = np.where(np.abs(found.third) > N_SE_OF_THIRD * se_of_third, found.third, 0.0)
    return found._replace(se=float(se.max()), third=third)


def _estimate(noise: np.ndarray, log_weights: np.ndarray, gap: np.ndarray) -> Moments | None:
    """The moments, without a standard error."""
    n, size = noise.shape
    noise = np.clip(noise.astype(float), -FARTHEST, FARTHEST)
    first, second = np.triu_indices(size)
    squares = np.column_stack([np.ones(n), noise, noise[:, first] * noise[:, second]])
    if len(squares.T) > MOST_COLUMNS * n:
        return None
    fit = _LeastSquares(squares)
    _, rest = fit.bounded(log_weights.astype(float)[:, None])
    variance, skewness = rest.var(), (rest**3).mean()
    if variance > MAX_VARIANCE or abs(skewness) > MAX_SKEWNESS * max(variance, TINY) ** 1.5:
        return None
    slopes, of_gap = fit.bounded(gap.astype(float))
    excess = rest**2 - squares @ fit(rest**2)
    slopes = slopes + fit(of_gap * (rest + excess / 2))
    squared = np.zeros((size, size, size))
    squared[first, second] = squared[second, first] = slopes[1 + size :] / 2
    squared[np.diag_indices(size)] *= 2
    return _best_normal(slopes[0], slopes[1 : 1 + size], squared)


def _best_normal(constant: np.ndarray, linear: np.ndarray, squared: np.ndarray) -> Moments:
    """Mean and Cholesky factor of the normal nearest to the density of corrected noise.

    The derivative of the log of what corrects it is, in element j, ``constant[j] + z @
    linear[:, j] + z @ squared[..., j] @ z``. Under that normal it is the noise, on average, and
    its slope, on average, what the precision lacks to one.

    It is no further from the noise as it is than is trusted. The cumulants of third order are
    those that the third derivatives make to first order.
    """
    one = np.eye(len(constant))
    mean = np.zeros(len(constant))
    for _ in range(ROUNDS):
        slope = linear + 2 * np.einsum("ikj,k->ij", squared, mean)
        precisions, axes = np.linalg.eigh(one - (slope + slope.T) / 2)
        is_capped = precisions.min() < 1 / MAX_FACTOR or precisions.max() > MAX_FACTOR
        precisions = np.clip(precisions, 1 / MAX_FACTOR, MAX_FACTOR)
        covariance = (axes / precisions) @ axes.T
        squares = covariance + np.outer(mean, mean)
        derivative = constant + mean @ linear + np.einsum("ikj,ik->j", squared, squares)
        mean = mean + covariance @ (derivative - mean)
        is_capped = bool(is_capped or np.abs(mean).max() > MAX_WAY)
        mean = np.clip(mean, -MAX_WAY, MAX_WAY)
    # the slopes of one element need not be those of the others, as estimates are
    turned = [squared.transpose(order) for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1))]
    third = _through(covariance, 2 * np.mean(turned, axis=0))
    return Moments(mean, np.linalg.cholesky(covariance), 0.0, is_capped, third)


def _through(matrix: np.ndarray, cumulants: np.ndarray) -> np.ndarray:
    """Cumulants of third order of what a matrix makes of its input."""
    return np.einsum("ai,bj,ck,ijk->abc", matrix, matrix, matrix, cumulants, optimize=True)


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
    third = _through(factor @ np.linalg.inv(moments.factor), moments.third)
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


class _LeastSquares:
    """Least squares on the same columns, again and again."""

    def __init__(self, columns: np.ndarray):
        self.columns = columns
        self._axes, self._root = np.linalg.qr(columns)

    def __call__(self, y: np.ndarray) -> np.ndarray:
        return solve_triangular(self._root, self._axes.T @ y)

    def bounded(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and residuals, where single draws have a bounded share."""
        for _ in range(2):
            found = self(y)
            rest = y - self.columns @ found
            most = FARTHEST * rest.std(axis=0)
            rest = np.clip(rest, -most, most)
            y = self.columns @ found + rest
        return found, rest
