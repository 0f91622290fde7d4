"""Distributions that are normal given a few elements, and regression of scores on few elements."""

from dataclasses import dataclass, replace

import numpy as np

from scipy.linalg import cho_factor, cho_solve, solve_triangular

from pymc_emf.layers.elimination import Elimination, Round
from pymc_emf.variational.factorisation import Factorisation

__all__ = ["ConditionalNormal"]

#: Share of a least-squares problem's diagonal that is added to it, against rounding.
RIDGE = 1e-9
#: Slopes in products are drawn to zero, as by so many draws.
RIDGE_OF_PRODUCTS = 2.0
#: Draws for each coefficient, and where there are products of noise.
DRAWS, DRAWS_FOR_PRODUCTS = 2, 4
#: Elements whose least squares are solved together, so few that they stay in a cache.
TOGETHER = 64
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
    """

    loc: np.ndarray
    factorisation: Factorisation
    scales: np.ndarray
    coefficients: np.ndarray
    slopes: np.ndarray
    factor: np.ndarray
    steering: tuple[np.ndarray, ...]

    @classmethod
    def isotropic(
        cls, loc: np.ndarray, scale: float, factorisation: Factorisation
    ) -> "ConditionalNormal":
        """Independent elements of one scale."""
        order = factorisation.order
        n_core, n_others = len(order.core), len(order.others)
        return cls(
            loc,
            factorisation,
            np.full(n_others, scale),
            np.zeros(order.n_coefficients),
            np.zeros((n_others, n_core)),
            scale * np.eye(n_core),
            tuple(np.zeros((order.n_steering, n)) for n in (n_others, order.n_coefficients)),
        )

    @property
    def order(self) -> Elimination:
        return self.factorisation.order

    @property
    def spread(self) -> tuple[np.ndarray, ...]:
        """What the layer's frame takes beside the location."""
        return self.scales, self.coefficients, self.slopes, self.factor, *self.steering

    def log_det(self, noise: np.ndarray) -> np.ndarray:
        """Of the map from noise to draws, shape (draws,)."""
        constant = np.log(self.scales).sum() + np.log(np.diag(self.factor)).sum()
        return constant + self._steering(noise[:, self.order.core]) @ self.steering[0].sum(axis=1)

    @property
    def n_draws(self) -> int:
        """Draws that determine the regression."""
        each = DRAWS_FOR_PRODUCTS if self.order.n_steering else DRAWS
        return each * self.n_coefficients

    @property
    def n_coefficients(self) -> int:
        order = self.order
        n_products = (1 + order.neighbours.shape[1]) * (1 + order.n_steering)
        return 1 + len(order.core) + n_products

    def holds(self, point: np.ndarray) -> bool:
        """Whether a point is no further out than draws are."""
        return False  # nothing else needs to know

    # --- the map -------------------------------------------------------------------------------

    def _steering(self, core_noise: np.ndarray) -> np.ndarray:
        return core_noise[:, : self.order.n_steering]

    def _scales(self, core_noise: np.ndarray) -> np.ndarray:
        return self.scales * np.exp(self._steering(core_noise) @ self.steering[0])

    def _parents(self, round: Round, core_noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the parents of a round, and their coefficients, zero for those left out.

        Of shapes (elements, parents) and (draws, elements, parents).
        """
        there, of_round = round.parents >= 0, self.order.coefficients_of
        changes = of_round(self.steering[1], round)
        varied = np.tensordot(self._steering(core_noise), changes, axes=1)
        coefficients = of_round(self.coefficients, round) + varied
        return np.maximum(round.parents, 0), np.where(there, coefficients, 0.0)

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise of shape (draws, size)."""
        order = self.order
        core_noise = noise[:, order.core]
        core = core_noise @ self.factor.T
        others = self._scales(core_noise) * noise[:, order.others] + core @ self.slopes.T
        for round in order.rounds:
            if round.parents.shape[1]:
                parents, coefficients = self._parents(round, core_noise)
                others[:, round.places] += (coefficients * others[:, parents]).sum(axis=2)
        return self.loc + np.concatenate([core, others], axis=1)[:, order.back]

    def shifted(
        self, core: np.ndarray | None = None, others: np.ndarray | None = None
    ) -> "ConditionalNormal":
        """Around the draw of this noise."""
        order = self.order
        noise = np.zeros((1, order.size))
        if others is not None:
            noise[:, order.others] = others
        if core is None:
            return replace(self, loc=self.place(noise)[0])
        noise[:, order.core] = core
        changes = self._steering(noise[:, order.core])
        log_scales, coefficients = (np.clip(changes @ x, -1, 1)[0] for x in self.steering)
        return replace(
            self,
            loc=self.place(noise)[0],
            scales=self.scales * np.exp(log_scales),
            coefficients=self.coefficients + coefficients,
        )

    def with_core_spread(self, factor: np.ndarray) -> "ConditionalNormal":
        """With noise of the core that is this lower triangular matrix times other noise."""
        n = self.order.n_steering
        steering = tuple(factor[:n, :n].T @ x for x in self.steering)
        return replace(self, factor=self.factor @ factor, steering=steering)

    def split(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noise of the core at points, and the core and the others less their location."""
        centred = points - self.loc
        core, others = centred[:, self.order.core], centred[:, self.order.others]
        return solve_triangular(self.factor, core.T, lower=True).T, core, others

    def pull(
        self, points: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Noise of points and the scores there: of the core, then of the others."""
        order, (scale_changes, coefficient_changes) = self.order, self.steering
        core_noise, core, others = self.split(points)
        others_scores = scores[:, order.others].copy()
        alone = others - core @ self.slopes.T
        steered = np.zeros((len(points), order.n_steering))
        for round in reversed(order.rounds):
            if not round.parents.shape[1]:
                continue
            parents, coefficients = self._parents(round, core_noise)
            own = others_scores[:, round.places, None]
            alone[:, round.places] -= (coefficients * others[:, parents]).sum(axis=2)
            changes = order.coefficients_of(coefficient_changes, round)
            used = np.where(round.parents >= 0, own * others[:, parents], 0.0)
            steered += np.tensordot(used, changes, axes=((1, 2), (1, 2)))
            np.add.at(others_scores.T, parents, np.moveaxis(coefficients * own, 0, -1))
        scales = self._scales(core_noise)
        steered += (others_scores * alone) @ scale_changes.T + scale_changes.sum(axis=1)
        core_scores = (scores[:, order.core] + others_scores @ self.slopes) @ self.factor
        core_scores[:, : order.n_steering] += steered
        return core_noise, alone / scales, core_scores, others_scores * scales

    # --- regression ----------------------------------------------------------------------------

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "_Regression":
        """Least squares of the score of every element outside of the core.

        On the core, on the element itself and its neighbours, and on the products of these with
        those of the core that steer.
        """
        order = self.order
        core_noise, _, others = self.split(points)
        on_core, others_scores = _OnCore(core_noise), scores[:, order.others]
        along = on_core.fit(others)
        members = np.column_stack([np.arange(others.shape[1]), order.neighbours])
        slopes = _least_squares(
            (others - on_core.common @ along).T,
            others_scores.T,
            members,
            self._steering(core_noise).T,
            on_core.common,
        )
        found = on_core.fit(others_scores)
        for of_member, places in zip(slopes[..., 0].T, members.T, strict=True):
            found -= np.where(places >= 0, of_member * along[:, places], 0.0)
        return _Regression(points, scores, found[0], found[1:].T, slopes)


class _OnCore:
    """Least squares on a constant and the core."""

    def __init__(self, core_noise: np.ndarray):
        self.common = np.column_stack([np.ones(len(core_noise)), core_noise])
        gram = self.common.T @ self.common
        gram[np.diag_indices(len(gram))] *= 1 + RIDGE
        self._root = cho_factor(gram)

    def fit(self, columns: np.ndarray) -> np.ndarray:
        """Intercepts and slopes of columns, shape (1 + core, columns)."""
        return cho_solve(self._root, self.common.T @ columns)


def _least_squares(
    x: np.ndarray, y: np.ndarray, members: np.ndarray, steering: np.ndarray, common: np.ndarray
) -> np.ndarray:
    """Slopes of each row of y in some rows of x, and in their products with what steers.

    All of them beside what is common.

    Returns
    -------
    slopes : ndarray, shape (elements, members, 1 + steering)
    """
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    factors = np.concatenate([np.ones((1, x.shape[1])), steering])
    axes, _ = np.linalg.qr(common)
    slopes = np.empty((*members.shape, len(factors)))
    ridge = np.full((members.shape[1], len(factors)), RIDGE_OF_PRODUCTS / x.shape[1])
    ridge[:, 0] = RIDGE
    for start in range(0, len(members), TOGETHER):
        some = members[start : start + TOGETHER]
        columns = np.where(some[..., None] >= 0, x[some], 0.0)[:, :, None] * factors
        rows = columns.reshape(len(some), -1, x.shape[1])
        here, shared = y[start : start + TOGETHER], rows @ axes
        gram = rows @ rows.transpose(0, 2, 1) - shared @ shared.transpose(0, 2, 1)
        right = rows @ here[..., None] - shared @ (here @ axes)[..., None]
        diagonal = np.einsum("iaa->ia", gram)
        diagonal += np.where(diagonal > 0, ridge.ravel() * diagonal, 1.0) + np.finfo(float).tiny
        slopes[start : start + TOGETHER] = np.linalg.solve(gram, right).reshape(*some.shape, -1)
    return slopes


@dataclass(frozen=True)
class _Regression:
    """Slopes of the others' scores, which are minus the precisions, and what they come from.

    Attributes
    ----------
    points, scores : ndarray, shape (draws, size)
    gradient : ndarray, shape (others,)
        Scores at the location.
    in_core : ndarray, shape (others, core)
        Slopes in the noise of the core.
    own : ndarray, shape (others, 1 + neighbours, 1 + steering)
        Slopes in the element itself and in its neighbours; how they change with what steers.
    """

    points: np.ndarray
    scores: np.ndarray
    gradient: np.ndarray
    in_core: np.ndarray
    own: np.ndarray

    def move(self, normal: ConditionalNormal, trust: float) -> ConditionalNormal:
        """The normal with these precisions and mean, as far as they can be trusted."""
        return self._move_core(self._move_others(normal, trust), trust)

    def _move_others(self, normal: ConditionalNormal, trust: float) -> ConditionalNormal:
        """The others given the core."""
        ways = normal.factorisation
        variants = np.concatenate(
            [self.own[..., :1], self.own[..., :1] + APART * self.own[..., 1:]], axis=2
        )
        precisions, coefficients, slopes = ways.conditionals(
            -variants[:, 0], ways.edges(-variants[:, 1:]), -self.in_core, normal.scales, trust
        )
        log_scales = -np.log(precisions) / 2
        changes = [
            np.clip((x[:, 1:] - x[:, :1]) / APART, -STEEPEST, STEEPEST).T
            for x in (log_scales, coefficients)
        ]
        moved = replace(
            normal,
            scales=np.exp(log_scales[:, 0]),
            coefficients=coefficients[:, 0],
            slopes=solve_triangular(normal.factor, slopes.T, lower=True, trans="T").T,
            steering=tuple(changes),
        )
        # their mean, where the core is at its own
        score = np.zeros((1, len(normal.loc)))
        score[:, normal.order.others] = self.gradient
        *_, pulled = moved.pull(normal.loc[None], score)
        return moved.shifted(others=np.clip(pulled[0], -2 * trust, 2 * trust))

    def _move_core(self, normal: ConditionalNormal, trust: float) -> ConditionalNormal:
        """The core, where the others follow it."""
        core_noise, others_noise, core_scores, others_scores = normal.pull(self.points, self.scores)
        on_core = _OnCore(core_noise)
        # what the others' noise adds to the core's scores: as much as the core adds to theirs
        in_core = on_core.fit(others_scores + others_noise)[1:]
        intercept, *slopes = on_core.fit(core_scores - others_noise @ in_core.T)
        precisions, axes = np.linalg.eigh(-(np.array(slopes) + np.array(slopes).T) / 2)
        precisions = np.clip(precisions, np.exp(-trust), np.exp(2 * trust))
        shift = axes @ np.clip(axes.T @ intercept / precisions, -2 * trust, 2 * trust)
        turned = np.linalg.qr((axes / np.sqrt(precisions)).T, mode="r").T
        return normal.shifted(core=shift).with_core_spread(turned * np.sign(np.diag(turned)))
