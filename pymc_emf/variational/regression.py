r"""Normal approximations by regression of scores, which is where a fit starts.

Where a density is close to normal, its score :math:`\nabla\log p` is close to linear. So draws
from a normal, and the scores at them, tell by least squares how the normal must move: in its own
whitened coordinates z the scores are about :math:`a - Mz`, with M the precision and
:math:`M^{-1}a` the mean of a normal that is closer. For a normal density one such step is exact,
from however far. For others it is a step of natural gradient ascent on the ELBO, by Stein's
identity, and is taken within a region of trust.

The idea is that of Gaussian score matching (Modi, Gower, Margossian, Yao, Blei, Saul, NeurIPS
2023, arXiv:2307.07849) and of batch and match (Cai et al., ICML 2024, arXiv:2402.14758).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytensor

from scipy.linalg import solve_triangular

__all__ = ["Normal", "Regressed", "regress_scores"]

#: Draws of one batch, at least and for every element.
MIN_DRAWS, DRAWS_PER_ELEMENT = 64, 2
#: Batches, of few elements and of many: numbers drawn in all of them beyond which it is the latter.
MAX_BATCHES, MAX_BATCHES_OF_MANY, MANY_NUMBERS = 200, 60, 1.5e7
#: They are fewer where one takes long: draws times squared coefficients of all, but so many.
MAX_WORK, FEWEST_BATCHES = 2e10, 10
#: Batches whose draws are taken together once the ELBO has stopped rising, and how many draws.
MAX_POOLED, MAX_POOLED_DRAWS = 8, 10_000
#: While it rises they are, too, so many before each, if the log weights vary by no more than this
#: for each square root of an element, in nats.
MOVING_POOL, POOLED_SD = 3, 0.3
#: Batches without a rise after which there are more draws, and those at the end; and by which
#: factor more they must be to be worth these batches.
SETTLED, WORTH = 2, 1.5
#: Nats by which the ELBO must rise beyond its Monte Carlo error, and by which it may always fall:
#: next to an exact normal the estimate at hand may be high by chance.
RISE, NEGLIGIBLE = 1e-3, 1e-4
#: Share of the draws that must have a density.
MIN_USABLE = 0.8
#: Pulls towards the normal at hand, as so many draws of its own scores would.
RIDGE = 0.01
#: Log of the factor by which a variance may fall in one step, of one turn; it may grow by its root.
FIRST_TRUST, MAX_TRUST, MIN_TRUST = 1.0, 2.0, 1e-3
#: Standard deviations by which the mean may move, beside that, and by which factor that grows.
REACH, GROWTH_OF_REACH = 2.0, 2.0
#: A first normal is shrunk until its log weights vary by no more, in nats: beside a constant for
#: each square root of an element, and of many elements for every ten.
CALM = 5.0
MAX_SHRINKAGE = 40
#: Distances of neighbouring floats that a standard deviation must have.
RESOLUTION = 10

#: Log density and score at points, of shapes (points,) and (points, size).
type ScoreFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Family(Protocol):
    """A normal distribution, and how scores at draws from it tell where it should move."""

    loc: np.ndarray

    def log_det(self, noise: np.ndarray) -> np.ndarray | float:
        """Of the map from noise to draws, shape (draws,) or the same for all."""

    @property
    def n_draws(self) -> int:
        """Draws that determine the regression."""

    @property
    def most_draws(self) -> int:
        """Draws of a batch once the ELBO has stopped rising."""

    @property
    def n_turns(self) -> int:
        """Batches until all of it has moved once."""

    @property
    def needs_new_draws(self) -> bool:
        """Whether draws from the normals before tell nothing."""

    @property
    def n_coefficients(self) -> int:
        """Elements on which each score is regressed together."""

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise, both of shape (draws, size)."""

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "Move":
        """Least squares of scores, both of shape (draws, size)."""


class Move(Protocol):
    """What a regression says."""

    def move(self, normal: Any, trust: float, reach: float) -> Any:
        """The normal with the mean and the precisions found, as far as they can be trusted.

        Parameters
        ----------
        normal : Family
        trust : float
            Log of the factor by which a precision may fall; it may rise by its square.
        reach : float
            Standard deviations by which the mean may move.
        """


class Normal(NamedTuple):
    """A normal distribution with any covariance.

    Attributes
    ----------
    loc : ndarray, shape (size,)
    factor : ndarray, shape (size, size)
        Lower Cholesky factor of the covariance.
    """

    loc: np.ndarray
    factor: np.ndarray

    @classmethod
    def isotropic(cls, loc: np.ndarray, scale: float | np.ndarray) -> "Normal":
        """Independent elements of one scale, or of one each."""
        return cls(loc, scale * np.eye(len(loc)))

    def log_det(self, noise: np.ndarray) -> float:
        return float(np.log(np.diag(self.factor)).sum())

    @property
    def n_draws(self) -> int:
        return DRAWS_PER_ELEMENT * (len(self.loc) + 1)

    @property
    def most_draws(self) -> int:
        return self.n_draws  # several batches are pooled

    @property
    def n_turns(self) -> int:
        return 1

    @property
    def needs_new_draws(self) -> bool:
        return False

    @property
    def n_coefficients(self) -> int:
        return len(self.loc)

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise of shape (draws, size)."""
        return self.loc + noise @ self.factor.T

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "_Step":
        """Least squares of the scores on all elements, in whitened coordinates."""
        size, noise = len(self.loc), self.whiten(points)
        rows = np.column_stack([np.ones(len(noise)), -noise])
        gram = rows.T @ rows
        gram[np.diag_indices(size + 1)] += RIDGE
        found = np.linalg.solve(gram, rows.T @ (scores @ self.factor + noise))
        precision = np.eye(size) + (found[1:] + found[1:].T) / 2
        return _Step(found[0], *np.linalg.eigh(precision))

    def whiten(self, points: np.ndarray) -> np.ndarray:
        """Noise of points, shape (points, size)."""
        return solve_triangular(self.factor, (points - self.loc).T, lower=True).T

    def holds(self, point: np.ndarray) -> bool:
        """Whether a point is no further out than draws are."""
        size = len(point)
        return bool((self.whiten(point[None]) ** 2).sum() < size + 6 * np.sqrt(2 * size))


@dataclass(frozen=True)
class Regressed:
    """What a regression came to.

    Attributes
    ----------
    normal : Normal
    elbo : float
        Estimate in nats, of the density as it was given; minus infinity if it was not finite at
        many of the draws, however close together.
    sd : float
        Standard deviation of the log weights, in nats.
    """

    normal: Any
    elbo: float
    sd: float


@dataclass
class _Batch:
    """Draws from a normal, with the scores there."""

    normal: Family
    points: np.ndarray
    scores: np.ndarray
    elbo: float = -np.inf
    sd: float = np.inf
    se: float = field(default=np.inf)


def regress_scores(
    score: ScoreFn,
    loc: np.ndarray,
    scale: float | np.ndarray,
    rng: np.random.Generator,
    isotropic: Callable[[np.ndarray, Any], Any] = Normal.isotropic,
    to_beat: float = -np.inf,
) -> Regressed:
    """Move a normal until its ELBO no longer rises.

    Parameters
    ----------
    score : callable
    loc : ndarray, shape (size,)
        First mean.
    scale : float or ndarray, shape (size,)
        First standard deviation of all elements, or of each; it is reduced until the density
        hardly varies over the draws, or is at least finite.
    rng : Generator
    isotropic : callable
        The normal of a mean and a scale, of the family that is wanted.
    to_beat : float
        ELBO that another normal has: give up once this is out of reach.
    """
    size = len(loc)
    for _ in range(MAX_SHRINKAGE):
        normal = isotropic(np.asarray(loc, dtype=float), scale)
        n_draws = max(MIN_DRAWS, normal.n_draws)
        now = _sample(score, normal, n_draws, rng)
        if np.isfinite(now.elbo) and now.sd < CALM * (1 + max(np.sqrt(size), size / 10)):
            break
        scale = scale / 10
    else:  # it varies however close the draws are, by rounding
        return Regressed(now.normal, -np.inf, np.inf)
    n_batches = normal.n_turns * _n_batches(n_draws, size, normal.n_coefficients)
    best = _climb(score, now, n_draws, n_batches, rng, to_beat)
    return Regressed(best.normal, best.elbo, best.sd)


def _climb(
    score: ScoreFn,
    now: _Batch,
    n_draws: int,
    n_batches: int,
    rng: np.random.Generator,
    to_beat: float,
) -> _Batch:
    """Steps from a batch of finite scores, as far as they lead."""
    # what moves by turns is trusted the further, as long as it is far off
    turns = now.normal.n_turns
    trust, pool, settled = turns * FIRST_TRUST, [now], 0
    reach = REACH * trust
    most = min(MAX_POOLED, max(MAX_POOLED_DRAWS // n_draws, 2))
    most_draws = now.normal.most_draws
    grows = n_draws < most_draws
    near = POOLED_SD * np.sqrt(now.points.shape[1])
    # scores may be so large that their squares are not finite: then this is the end of the way
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError, ValueError):
        step = _regress(now.normal, pool)
        for i in range(n_batches):
            new = _sample(score, step.move(now.normal, trust, reach), n_draws, rng)
            gain, se = new.elbo - now.elbo, np.hypot(new.se, now.se)
            if not gain > -2 * se - NEGLIGIBLE or new.sd > max(3 * now.sd, 1.0):
                trust *= 0.4
                reach = min(reach, REACH * trust)
                if trust < MIN_TRUST:
                    break
                more = _sample(score, now.normal, n_draws, rng) if len(pool) < most else now
                if more is not now and np.isfinite(more.elbo):
                    # it may be the noise of the regression that led astray, or the luck for
                    # which a batch was accepted
                    pool = [*pool, more]
                    step = _regress(now.normal, pool)
                    now = replace(now, elbo=more.elbo, sd=more.sd, se=more.se)
                continue
            settled = settled + 1 if gain < 2 * se + RISE else 0
            if settled >= SETTLED and WORTH * n_draws <= most_draws:
                n_draws, settled = min(2 * n_draws, most_draws), 0
            # close by, the scores at draws from the normals before are as linear
            kept = most if settled else MOVING_POOL * (new.sd < near)
            pool = [*pool[len(pool) - min(kept, len(pool)) :], new]
            most_trust = MAX_TRUST * (turns if new.sd > near else 1)
            now, trust, reach = new, min(1.5 * trust, most_trust), GROWTH_OF_REACH * reach
            out_of_reach = now.elbo + (n_batches - i) * max(gain, 0.0) < to_beat
            enough = SETTLED if grows else most
            if settled >= enough or (i > FEWEST_BATCHES and out_of_reach):
                break
            step = _regress(now.normal, pool)
    return now


def _n_batches(n_draws: int, size: int, n_coefficients: int) -> int:
    most = np.clip(MANY_NUMBERS / (n_draws * size), MAX_BATCHES_OF_MANY, MAX_BATCHES)
    work = n_draws * n_coefficients**2
    return int(np.clip(MAX_WORK / work, FEWEST_BATCHES, most))


def _regress(normal: Family, pool: list[_Batch]) -> Move:
    if normal.needs_new_draws:
        pool = pool[-1:]
    points = np.concatenate([batch.points for batch in pool])
    return normal.regress(points, np.concatenate([batch.scores for batch in pool]))


def _sample(score: ScoreFn, normal: Family, n_draws: int, rng: np.random.Generator) -> _Batch:
    """Draws in pairs that mirror each other, so that their mean is that of the normal."""
    size = len(normal.loc)
    noise = rng.normal(size=(-(-n_draws // 2), size))
    noise = np.concatenate([noise, -noise])
    points = normal.place(noise)
    if not _are_resolved(points):
        return _Batch(normal, points, np.full_like(points, np.nan))
    with np.errstate(all="ignore"):
        log_density, scores = score(points)
        log_weights = log_density + (noise**2 + np.log(2 * np.pi)).sum(axis=1) / 2
        log_weights = log_weights + normal.log_det(noise)
        # without the draws at which there is no density, see :func:`elbo_within`
        usable = np.isfinite(log_weights) & np.isfinite((scores**2).sum(axis=1))
        if usable.mean() < MIN_USABLE:
            return _Batch(normal, points, scores)
        log_weights = log_weights[usable]
        elbo, sd = log_weights.mean() + np.log(usable.mean()), float(log_weights.std())
        se = sd / np.sqrt(len(log_weights))
        return _Batch(normal, points[usable], scores[usable], float(elbo), sd, se)


def _are_resolved(points: np.ndarray) -> bool:
    """Whether points are as far apart as floats must be to tell them from each other."""
    rounded = np.spacing(np.abs(points).max(axis=0).astype(pytensor.config.floatX))
    return bool((points.std(axis=0) > RESOLUTION * rounded).all())


class _Step(NamedTuple):
    """Mean and precision that least squares found, in whitened coordinates.

    Attributes
    ----------
    intercept : ndarray, shape (size,)
    precisions : ndarray, shape (size,)
        Eigenvalues; may be negative.
    axes : ndarray, shape (size, size)
    """

    intercept: np.ndarray
    precisions: np.ndarray
    axes: np.ndarray

    def move(self, normal: Normal, trust: float, reach: float) -> Normal:
        precisions = np.clip(self.precisions, np.exp(-trust), np.exp(2 * trust))
        shift = np.clip(self.axes.T @ self.intercept / precisions, -reach, reach)
        root = normal.factor @ (self.axes / np.sqrt(precisions))
        factor = np.linalg.qr(root.T, mode="r").T
        return Normal(
            normal.loc + normal.factor @ (self.axes @ shift), factor * np.sign(np.diag(factor))
        )
