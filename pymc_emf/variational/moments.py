r"""Mean, covariance and skewness that the noise of common elements should have, from draws.

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

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scipy.linalg import solve_triangular

__all__ = ["Moments", "moments_of_common", "moments_of_draws", "through", "weights_tell"]

#: Columns of a regression on them are no more than so many for each draw.
MOST_COLUMNS = 0.1
#: The cumulants tell where log weights vary by no more, in nats squared, and resemble a normal.
MAX_VARIANCE, MAX_SKEWNESS, TINY = 4.0, 1.0, 1e-6
#: Variance beyond which what they tell is not enough, and up to which a correction by them, in
#: which the other elements stay as they are, hardly raises it beyond that.
CLOSE, VERY_CLOSE = 2.0, 0.7
#: Standard deviations beyond which no draw counts for more, for it would alone decide.
FARTHEST = 3.0
#: Factor by which a precision is corrected at most, and the longest way of a mean.
MAX_FACTOR, MAX_WAY = 4.0, 2.0
#: Groups of draws that are left out in turn, for the standard error.
N_GROUPS = 10
#: Standard errors within which scores are zero on average, most common elements whose products
#: with scores tell of their covariance, and the least variance that there may be.
N_SE_OF_SCORES, MOST_BY_PAIRS, LEAST_VARIANCE = 4.0, 8, 1e-3
#: Rounds in which mean and covariance settle.
ROUNDS = 20
#: Standard errors that a cumulant of third order must exceed, and common elements of more than
#: which draws tell no skewness.
N_SE_OF_THIRD, MOST_SKEWED = 2.0, 24


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

    @property
    def covariance(self) -> np.ndarray:
        """Of shape (common, common)."""
        return self.factor @ self.factor.T

    @property
    def ratios(self) -> np.ndarray:
        """Standard deviations, shape (common,)."""
        return np.linalg.norm(self.factor, axis=1)


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
    return _with_errors(_estimate, noise, log_weights, gap)


def weights_tell(log_weights: np.ndarray, after: bool = True) -> bool:
    """Whether log weights vary so little that cumulants tell the marginal distribution.

    And will still do so after a correction by them, unless that has been made.
    """
    inside = log_weights[np.isfinite(log_weights)]
    return len(inside) > 0 and bool(inside.var() <= (CLOSE if after else VERY_CLOSE))


def moments_of_draws(noise: np.ndarray, scores: np.ndarray) -> Moments:
    """Moments of draws from the posterior, as far as they differ from those of standard noise.

    Scores of the posterior are zero on average, and minus one times the noise that they belong
    to: what draws lack of that tells how far their moments are off by chance (control variates,
    e.g. Mira, Solgi, Imparato, Statistics and Computing 2013). So means of draws from a normal
    are exact.

    Parameters
    ----------
    noise : ndarray, shape (draws, common)
        Draws that are not independent have places that differ by a multiple of `N_GROUPS`.
    scores : ndarray, shape (draws, common)
        Of the posterior in the noise of all elements, in that of the common ones.
    """
    groups = np.array([scores[~others].mean(axis=0) for others in _without_groups(len(scores))])
    se = groups.std(axis=0) / np.sqrt(N_GROUPS - 1)
    # where the posterior ends at a bound, they need not be zero on average
    control = np.abs(groups.mean(axis=0)) < N_SE_OF_SCORES * se
    found = _with_errors(_of_draws, noise, np.where(control, scores, 0.0))
    assert found is not None
    return found


def _kept(off: np.ndarray, se: np.ndarray) -> float:
    """Share of differences that is not due to chance."""
    total = (off**2).sum()
    return float(max(0.0, 1 - (se**2).sum() / total)) if total > 0 else 0.0


def _with_errors(estimate: Callable[..., Moments | None], *draws: np.ndarray) -> Moments | None:
    """An estimate with its standard errors, and without what may be due to chance.

    The errors are found by jackknife, as the few draws of the largest weights may decide most.
    Mean and covariance are drawn back to those of standard noise by as much as chance moves them,
    the one as by James and Stein, the other as by Ledoit and Wolf ("A well-conditioned estimator
    for large-dimensional covariance matrices", 2004). Third cumulants that are lost in their
    errors are zero.
    """
    found = estimate(*draws)
    if found is None:
        return None
    without = []
    for others in _without_groups(len(draws[0])):
        of_others = estimate(*(array[others] for array in draws))
        if of_others is None:
            return None
        without.append(of_others)
    se, se_of_covariance, se_of_third = (
        _jackknife([getattr(one, name) for one in without])
        for name in ("loc", "covariance", "third")
    )
    one = np.eye(len(found.loc))
    off = found.covariance - one
    return Moments(
        found.loc * _kept(found.loc, se),
        np.linalg.cholesky(one + _kept(off, se_of_covariance) * off),
        float(se.max()),
        found.is_capped,
        np.where(np.abs(found.third) > N_SE_OF_THIRD * se_of_third, found.third, 0.0),
    )


def _without_groups(n: int) -> list[np.ndarray]:
    """Which draws are left, for each group that is left out."""
    place = np.arange(n) % N_GROUPS
    return [place != group for group in range(N_GROUPS)]


def _jackknife(without: list[np.ndarray]) -> np.ndarray:
    """Standard error of an estimate, from those without each of the groups."""
    return np.sqrt(len(without) - 1) * np.std(without, axis=0)


def _of_draws(noise: np.ndarray, scores: np.ndarray) -> Moments:
    n, size = noise.shape
    mean = _mean_beside(noise, scores)
    off = noise - mean
    third = np.zeros((size, size, size))
    if size <= MOST_SKEWED:
        third = np.einsum("na,nb,nc->abc", off, off, off, optimize=True) / len(off)
    if size <= MOST_BY_PAIRS:
        pairs = off[:, :, None] * scores[:, None] + np.diag(scores.any(axis=0))
        scores = np.hstack([scores, pairs.reshape(n, -1)])
    first, second = np.triu_indices(size)
    covariance = np.zeros((size, size))
    covariance[first, second] = _mean_beside(off[:, first] * off[:, second], scores)
    covariance[second, first] = covariance[first, second]
    variances, axes = np.linalg.eigh(covariance)
    covariance = (axes * np.maximum(variances, LEAST_VARIANCE)) @ axes.T
    return Moments(mean, np.linalg.cholesky(covariance), 0.0, False, third)


def _mean_beside(y: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Means of columns, less what those of others tell, which should be zero."""
    off = controls.mean(axis=0)
    centred = controls - off
    slopes, *_ = np.linalg.lstsq(centred.T @ centred, centred.T @ y)  # columns may be zero
    return y.mean(axis=0) - off @ slopes


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
    third = through(covariance, 2 * np.mean(turned, axis=0))
    return Moments(mean, np.linalg.cholesky(covariance), 0.0, is_capped, third)


def through(matrix: np.ndarray, cumulants: np.ndarray) -> np.ndarray:
    """Cumulants of third order of what a matrix makes of its input."""
    return np.einsum("ai,bj,ck,ijk->abc", matrix, matrix, matrix, cumulants, optimize=True)


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
