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


def common_places(objective: Objective) -> np.ndarray:
    """Positions of the elements that have an affine layer of their own before all others."""
    front = _front(objective)
    return np.zeros(0, dtype=np.intp) if front is None else front[0].positions


def correct_common(
    objective: Objective, values: Values, rng: np.random.Generator, precision: float
) -> list[np.ndarray] | None:
    """Values of an approximation whose common elements have the posterior's mean and covariance.

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
        moved = objective.replace(moved, layer.variables, own)
        if not moments.is_capped:
            return moved
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
    """

    loc: np.ndarray
    factor: np.ndarray
    se: float
    is_capped: bool


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
    means, place = [], np.arange(len(noise)) % N_GROUPS
    for group in range(N_GROUPS):
        others = place != group
        without = _estimate(noise[others], log_weights[others], gap[others])
        if without is None:
            return None
        means.append(without[0])
    se = np.sqrt(N_GROUPS - 1) * np.std(means, axis=0)
    loc, factor, is_capped = found
    return Moments(loc, factor, float(se.max()), is_capped)


def _estimate(
    noise: np.ndarray, log_weights: np.ndarray, gap: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Mean and Cholesky factor, and whether they are as far off as is trusted."""
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


def _best_normal(
    constant: np.ndarray, linear: np.ndarray, squared: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Mean and Cholesky factor of the normal nearest to the density of corrected noise.

    The derivative of the log of what corrects it is, in element j, ``constant[j] + z @
    linear[:, j] + z @ squared[..., j] @ z``. Under that normal it is the noise, on average, and
    its slope, on average, what the precision lacks to one.

    It is no further from the noise as it is than is trusted; the last value tells if it would be.
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
    return mean, np.linalg.cholesky(covariance), is_capped


def _front(objective: Objective) -> tuple[Subset, LowerTriangular] | None:
    """The first layer, if it is an affine one of the common elements."""
    match objective.layers:
        case [Subset(layer=LowerTriangular() as inside) as first, *_]:
            return first, inside
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
