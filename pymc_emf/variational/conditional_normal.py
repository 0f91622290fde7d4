"""Distributions that are normal given a few elements, and regression of scores on few elements."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from scipy.linalg import solve_triangular
from scipy.sparse import csc_array, csr_array

from pymc_emf.engine.threads import side_by_side
from pymc_emf.layers.elimination import Elimination
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.least_squares import OnCommon, slopes_in_few, slopes_in_many

__all__ = ["ConditionalNormal"]

#: Draws for each coefficient, and where there are products of noise.
DRAWS, DRAWS_FOR_PRODUCTS = 2, 4
#: Draws of the last batches, and numbers in all of them.
MANY_DRAWS, MANY_NUMBERS = 512, 1_000_000
#: Draws that are mapped together.
TOGETHER = 64
#: Draws for the standard deviations.
N_FOR_SD = 256
#: Standard deviations of the core over which differences are taken.
APART = 0.25
#: Most by which a log scale or a coefficient changes with a standard deviation of the core.
STEEPEST = 1.0


@dataclass(frozen=True)
class ConditionalNormal:
    """A distribution as :class:`pymc_emf.layers.ConditionalAffine` has it, of standard normals.

    Attributes
    ----------
    loc : ndarray, shape (size,)
    factorisation : Factorisation
    scales : ndarray, shape (others,)
    coefficients : ndarray
        Of parents outside of the core, as in the layer.
    slopes : ndarray, shape (others, core)
    factor : ndarray, shape (core, core)
        Lower triangular.
    steering : tuple of ndarray, shapes (steering, others) and (steering, coefficients)
        How the log scales, and the coefficients, change with the noise of the first of the core.
    common_next : bool
        Whether it is the turn of the common elements to move. The scores along which they do
        depend on where all others are given them, so that these move first, and then draws from
        where they are now tell.
    """

    loc: np.ndarray
    factorisation: Factorisation
    scales: np.ndarray
    coefficients: np.ndarray
    slopes: np.ndarray
    factor: np.ndarray
    steering: tuple[np.ndarray, ...]
    common_next: bool = False

    @classmethod
    def isotropic(
        cls, loc: np.ndarray, scale: float | np.ndarray, factorisation: Factorisation
    ) -> "ConditionalNormal":
        """Independent elements of one scale, or of one each."""
        order = factorisation.order
        scales = np.broadcast_to(scale, len(loc))
        n_core, n_others = len(order.core), len(order.others)
        return cls(
            loc,
            factorisation,
            scales[order.others],
            np.zeros(order.n_coefficients),
            np.zeros((n_others, n_core)),
            np.diag(scales[order.core]),
            tuple(np.zeros((order.n_steering, n)) for n in (n_others, order.n_coefficients)),
        )

    @property
    def order(self) -> Elimination:
        return self.factorisation.order

    @property
    def spread(self) -> tuple[np.ndarray, ...]:
        """What the layer's frame takes beside the location."""
        noise = np.random.default_rng(0).normal(size=(N_FOR_SD, self.order.size))
        sd = self.split(self.place(noise))[2].std(axis=0)
        return self.scales, self.coefficients, self.slopes, self.factor, *self.steering, sd

    def log_det(self, noise: np.ndarray) -> np.ndarray:
        """Of the map from noise to draws, shape (draws,)."""
        constant = np.log(self.scales).sum() + np.log(np.diag(self.factor)).sum()
        return constant + self.steering_noise(noise[:, self.order.core]) @ self.steering[0].sum(
            axis=1
        )

    @property
    def n_draws(self) -> int:
        """Draws that determine the regression."""
        products = self.order.n_steering > 0 and self.order.has_few_neighbours
        return (DRAWS_FOR_PRODUCTS if products else DRAWS) * self.n_coefficients

    @property
    def most_draws(self) -> int:
        """Draws that are worth their time at the end."""
        return max(self.n_draws, min(MANY_DRAWS, MANY_NUMBERS // self.order.size))

    @property
    def n_turns(self) -> int:
        return 2

    @property
    def needs_new_draws(self) -> bool:
        return self.common_next

    @property
    def n_coefficients(self) -> int:
        order, n_members = self.order, 1 + self.order.neighbours.shape[1]
        n_steered = n_members if order.has_few_neighbours else 1
        return 1 + order.n_common + n_members + n_steered * order.n_steering

    def holds(self, point: np.ndarray) -> bool:
        """Whether a point is no further out than draws are."""
        return False  # nothing else needs to know

    # --- the map -------------------------------------------------------------------------------

    def steering_noise(self, core_noise: np.ndarray) -> np.ndarray:
        return core_noise[:, : self.order.n_steering]

    def _factors(self, core_noise: np.ndarray) -> np.ndarray:
        """Of coefficients and of their changes, shape (1 + steering, draws)."""
        return np.vstack([np.ones((1, len(core_noise))), self.steering_noise(core_noise).T])

    def _scales(self, core_noise: np.ndarray) -> np.ndarray:
        return self.scales * np.exp(self.steering_noise(core_noise) @ self.steering[0])

    @cached_property
    def _among(self) -> list[tuple[csr_array, csc_array]]:
        """For every round the coefficients of its elements, and below them their changes.

        Columns are the elements before the round, of which some are the parents. With the
        transpose of each.
        """
        varied = np.concatenate([self.coefficients[None], self.steering[1]])
        found = []
        for round in self.order.rounds:
            there = round.parents >= 0
            values = self.order.coefficients_of(varied, round)[:, there]
            ends = np.cumsum(np.tile(there.sum(axis=1), len(varied)))
            columns = np.tile(round.parents[there], len(varied))
            shape = len(ends), round.first
            among = csr_array((values.ravel(), columns, [0, *ends]), shape)
            found.append((among, among.T))
        return found

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise of shape (draws, size)."""
        _ = self._among  # by one thread
        return np.concatenate(side_by_side(self._place, _pieces(noise)))

    def _place(self, noise: np.ndarray) -> np.ndarray:
        order, core_noise = self.order, noise[:, self.order.core]
        core, factors = self.factor @ core_noise.T, self._factors(core_noise)
        others = self._scales(core_noise).T * noise[:, order.others].T + self.slopes @ core
        for round, (among, _) in zip(order.rounds, self._among, strict=True):
            if among.nnz:
                added = among @ others[: round.first]
                others[round.places] += _weighed(factors, added)
        return self.loc + np.concatenate([core, others])[order.back].T

    def at(self, loc: np.ndarray) -> "ConditionalNormal":
        """The same about another location."""
        return replace(self, loc=loc)

    def times_covariance(self, directions: np.ndarray) -> np.ndarray:
        """Rows times the covariance given the common elements, where these are at their mean."""
        _, _, of_core, of_others = self.pull(np.tile(self.loc, (len(directions), 1)), directions)
        n, noise = self.order.n_common, np.zeros_like(directions)
        noise[:, self.order.core[n:]] = of_core[:, n:]
        noise[:, self.order.others] = of_others
        return self.place(noise) - self.loc

    def around(self, noise: np.ndarray) -> "ConditionalNormal":
        """The same with the draw of this noise as its location."""
        changes = self.steering_noise(noise[None, self.order.core])
        log_scales, coefficients = (np.clip(changes @ x, -1, 1)[0] for x in self.steering)
        return replace(
            self,
            loc=self.place(noise[None])[0],
            scales=self.scales * np.exp(log_scales),
            coefficients=self.coefficients + coefficients,
        )

    def with_common(self, factor: np.ndarray) -> "ConditionalNormal":
        """With a lower triangular matrix times noise in the place of the common elements' noise."""
        n, full = self.order.n_steering, np.eye(len(self.order.core))
        full[: len(factor), : len(factor)] = factor
        steering = tuple(factor[:n, :n].T @ x for x in self.steering)
        return replace(self, factor=self.factor @ full, steering=steering)

    def split(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noise of the core at points, and the core and the others less their location."""
        centred = (points - self.loc).T
        core, others = centred[self.order.core], centred[self.order.others]
        return solve_triangular(self.factor, core, lower=True).T, core.T, others.T

    def pull(self, points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
        """Noise of points and the scores there: of the core, then of the others."""
        _ = self._among  # by one thread
        pieces = list(zip(_pieces(points), _pieces(scores), strict=True))
        pulled = side_by_side(lambda piece: self._pull(*piece), pieces)
        return tuple(map(np.concatenate, zip(*pulled, strict=True)))

    def _pull(self, points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
        order, (scale_changes, _) = self.order, self.steering
        core_noise, core, others = self.split(points)
        factors, others = self._factors(core_noise), others.T
        own, alone = scores.T[order.others], others - self.slopes @ core.T
        steered = np.zeros((order.n_steering, len(points)))
        for round, (among, back) in reversed(list(zip(order.rounds, self._among, strict=True))):
            if among.nnz:
                here = own[round.places]
                added = (among @ others[: round.first]).reshape(len(factors), *here.shape)
                alone[round.places] -= _weighed(factors, added)
                steered += (here * added[1:]).sum(axis=1)
                own[: round.first] += back @ (factors[:, None] * here).reshape(-1, len(points))
        scales = self._scales(core_noise).T
        steered += scale_changes @ (own * alone) + scale_changes.sum(axis=1)[:, None]
        core_scores = self.factor.T @ (scores.T[order.core] + self.slopes.T @ own)
        core_scores[: order.n_steering] += steered
        return core_noise, (alone / scales).T, core_scores.T, (own * scales).T

    # --- regression ----------------------------------------------------------------------------

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "_OfCommon | _OfOthers":
        """Least squares of the scores of those elements whose turn it is to move."""
        return (_OfCommon if self.common_next else _OfOthers).fit(self, points, scores)

    @property
    def not_common(self) -> np.ndarray:
        """Positions of the others, and of the rest of the core."""
        return np.concatenate([self.order.others, self.order.core[self.order.n_common :]])


@dataclass(frozen=True)
class _OfOthers:
    """Slopes of the scores of the elements that are not common, which are minus the precisions.

    Attributes
    ----------
    gradient : ndarray, shape (not common,)
        Scores at the location.
    in_common : ndarray, shape (not common, common)
        Slopes in the noise of the common elements.
    own : ndarray, shape (not common, 1 + neighbours, 1 + steering)
        Slopes in the element itself and in its neighbours; how they change with what steers.
    """

    gradient: np.ndarray
    in_common: np.ndarray
    own: np.ndarray

    @classmethod
    def fit(cls, normal: ConditionalNormal, points: np.ndarray, scores: np.ndarray) -> "_OfOthers":
        """On the common elements, the element itself and its neighbours, and products of these.

        The products are those of the last two with what steers, or of the element itself alone.
        """
        order = normal.order
        core_noise, core, others = normal.split(points)
        on_common = OnCommon(core_noise[:, : order.n_common])
        elements = np.column_stack([others, core[:, order.n_common :]])
        element_scores = scores[:, normal.not_common]
        along = on_common.fit(elements)
        members = np.column_stack([np.arange(elements.shape[1]), order.neighbours])
        slopes = (slopes_in_few if order.has_few_neighbours else slopes_in_many)(
            np.ascontiguousarray((elements - on_common.columns @ along).T),
            np.ascontiguousarray(element_scores.T),
            members,
            normal.steering_noise(core_noise).T,
            on_common.columns,
        )
        found = on_common.fit(element_scores)
        for of_member, places in zip(slopes[..., 0].T, members.T, strict=True):
            found -= np.where(places >= 0, of_member * along[:, places], 0.0)
        return cls(found[0], found[1:].T, slopes)

    def move(self, normal: ConditionalNormal, trust: float, reach: float) -> ConditionalNormal:
        """The normal with these precisions and means, as far as they can be trusted."""
        ways, order = normal.factorisation, normal.order
        first, changes = self.own[..., :1], self.own[..., 1:]
        variants = np.concatenate([first, first + APART * changes], axis=2)
        given = ways.precisions(-variants, -self.in_common)
        found = ways.conditionals(given, normal.scales, trust)
        log_scales = -np.log(found.precisions) / 2
        steering = tuple(
            np.clip((x[:, 1:] - x[:, :1]) / APART, -STEEPEST, STEEPEST).T
            for x in (log_scales, found.coefficients)
        )
        # the rest of the core, given the common elements
        n = order.n_common
        factor, slopes = normal.factor.copy(), found.slopes.copy()
        rest = factor[n:, n:] @ _toward(found.core[:, n:], factor[n:, n:], trust)
        factor[n:, n:], factor[n:, :n] = rest, -rest @ (rest.T @ found.core[:, :n])
        # slopes in the common elements themselves, not in their noise
        slopes[:, :n] = solve_triangular(factor[:n, :n], slopes[:, :n].T, lower=True, trans="T").T
        moved = replace(
            normal,
            scales=np.exp(log_scales[:, 0]),
            coefficients=found.coefficients[:, 0],
            slopes=slopes,
            factor=factor,
            steering=steering,
            common_next=n > 0,
        )
        # their means, where the common elements are at their own
        score, shift = np.zeros((1, order.size)), np.zeros(order.size)
        score[:, normal.not_common] = self.gradient
        _, _, (of_core,), (of_others,) = moved.pull(normal.loc[None], score)
        shift[normal.not_common] = np.concatenate([of_others, of_core[n:]])
        return moved.around(np.clip(shift, -reach, reach))


@dataclass(frozen=True)
class _OfCommon:
    """Scores of the common elements where all others follow them.

    Attributes
    ----------
    gradient : ndarray, shape (common,)
    precision : ndarray, shape (common, common)
        In their noise.
    """

    gradient: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, normal: ConditionalNormal, points: np.ndarray, scores: np.ndarray) -> "_OfCommon":
        n = normal.order.n_common
        core_noise, others_noise, core_scores, others_scores = normal.pull(points, scores)
        on_common = OnCommon(core_noise[:, :n])
        noise = np.column_stack([others_noise, core_noise[:, n:]])
        scores = np.column_stack([others_scores, core_scores[:, n:]])
        # what the others' noise adds to these scores: as much as these add to theirs
        in_common = on_common.fit(scores + noise)[1:]
        found = on_common.fit(core_scores[:, :n] - noise @ in_common.T)
        return cls(found[0], -found[1:])

    def move(self, normal: ConditionalNormal, trust: float, reach: float) -> ConditionalNormal:
        """The normal with this precision and mean, as far as they can be trusted."""
        precisions, axes = _clipped(self.precision, trust)
        shift = np.zeros(normal.order.size)
        along = np.clip(axes.T @ self.gradient / precisions, -reach, reach)
        shift[normal.order.core[: normal.order.n_common]] = axes @ along
        moved = normal.around(shift).with_common(_lower(axes / np.sqrt(precisions)))
        return replace(moved, common_next=False)


def _pieces(draws: np.ndarray) -> list[np.ndarray]:
    """Some draws each, so few that what is computed of them stays in a cache."""
    return [draws[start : start + TOGETHER] for start in range(0, len(draws), TOGETHER)]


def _weighed(factors: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Sum over coefficients and their changes, shape (elements, draws)."""
    return (factors[:, None] * added.reshape(len(factors), -1, factors.shape[1])).sum(axis=0)


def _toward(precision: np.ndarray, factor: np.ndarray, trust: float) -> np.ndarray:
    """Factor, in whitened coordinates, of a precision matrix as far as it can be trusted."""
    precisions, axes = _clipped(factor.T @ precision @ factor, trust)
    return _lower(axes / np.sqrt(precisions))


def _clipped(precision: np.ndarray, trust: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues within the region of trust, and axes, of whitened precisions."""
    precisions, axes = np.linalg.eigh((precision + precision.T) / 2)
    return np.clip(precisions, np.exp(-trust), np.exp(2 * trust)), axes


def _lower(root: np.ndarray) -> np.ndarray:
    """Lower triangular factor of a covariance, from any other."""
    factor = np.linalg.qr(root.T, mode="r").T
    return factor * np.sign(np.diag(factor))
