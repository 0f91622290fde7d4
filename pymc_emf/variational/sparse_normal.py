"""Normal distributions with a sparse precision matrix, and regression of scores on few elements."""

from dataclasses import dataclass

import numpy as np

from scipy.linalg import cho_factor, cho_solve, solve_triangular

from pymc_emf.layers.elimination import Elimination, Round

__all__ = ["SparseNormal"]

#: Share of a least-squares problem's diagonal that is added to it, against rounding.
RIDGE = 1e-9


@dataclass(frozen=True)
class SparseNormal:
    """A normal distribution as :class:`pymc_emf.layers.SparseAffine` has it.

    Attributes
    ----------
    loc : ndarray, shape (size,)
    order : Elimination
    scales : ndarray, shape (others,)
    coefficients : ndarray
        Of parents outside of the core, as in the layer.
    slopes : ndarray, shape (others, core)
    factor : ndarray, shape (core, core)
        Lower triangular.
    """

    loc: np.ndarray
    order: Elimination
    scales: np.ndarray
    coefficients: np.ndarray
    slopes: np.ndarray
    factor: np.ndarray

    @classmethod
    def isotropic(cls, loc: np.ndarray, scale: float, order: Elimination) -> "SparseNormal":
        """Independent elements of one scale."""
        n_core, n_others = len(order.core), len(order.others)
        return cls(
            loc,
            order,
            np.full(n_others, scale),
            np.zeros(order.n_coefficients),
            np.zeros((n_others, n_core)),
            scale * np.eye(n_core),
        )

    @property
    def spread(self) -> tuple[np.ndarray, ...]:
        """What the layer's frame takes beside the location."""
        return self.scales, self.coefficients, self.slopes, self.factor

    @property
    def log_det(self) -> float:
        return float(np.log(self.scales).sum() + np.log(np.diag(self.factor)).sum())

    @property
    def n_draws(self) -> int:
        """Draws that determine the regression."""
        return 2 * self.n_coefficients

    @property
    def n_coefficients(self) -> int:
        return len(self.order.core) + self.order.neighbours.shape[1] + 2

    def holds(self, point: np.ndarray) -> bool:
        """Whether a point is no further out than draws are."""
        return False  # not known without the inverse, which nothing else needs

    def _parents(self, round: Round) -> tuple[np.ndarray, np.ndarray]:
        """Places of the parents of a round, and their coefficients, zero for those left out."""
        coefficients = self.order.coefficients_of(self.coefficients, round)
        return np.maximum(round.parents, 0), np.where(round.parents >= 0, coefficients, 0.0)

    def _stretch(self, noise: np.ndarray) -> np.ndarray:
        """Draws less the location, from noise of shape (draws, size)."""
        core = noise[:, self.order.core] @ self.factor.T
        others = self.scales * noise[:, self.order.others] + core @ self.slopes.T
        for round in self.order.rounds:
            if round.parents.shape[1]:
                parents, coefficients = self._parents(round)
                others[:, round.places] += (coefficients * others[:, parents]).sum(axis=2)
        return np.concatenate([core, others], axis=1)[:, self.order.back]

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Draws from noise of shape (draws, size)."""
        return self.loc + self._stretch(noise)

    def pull(self, score: np.ndarray) -> np.ndarray:
        """A score in noise, from one at a point."""
        core, others = score[self.order.core].copy(), score[self.order.others].copy()
        for round in reversed(self.order.rounds):
            if round.parents.shape[1]:
                parents, coefficients = self._parents(round)
                np.add.at(others, parents, coefficients * others[round.places][:, None])
        core = self.factor.T @ (core + self.slopes.T @ others)
        return np.concatenate([core, self.scales * others])[self.order.back]

    def regress(self, points: np.ndarray, scores: np.ndarray) -> "_SparseStep":
        """Least squares of every element's score on itself, its neighbours and the core."""
        order, neighbours = self.order, self.order.neighbours
        centred = points - self.loc
        core, others = centred[:, order.core], centred[:, order.others]
        core_scores, other_scores = scores[:, order.core], scores[:, order.others]
        white = solve_triangular(self.factor, core.T, lower=True).T
        common = np.column_stack([np.ones(len(core)), white])
        gram = common.T @ common
        gram[np.diag_indices(len(gram))] *= 1 + RIDGE
        root = cho_factor(gram)

        def on_core(x):
            return cho_solve(root, common.T @ x)

        own = others - common @ on_core(others)
        rest_of_scores = other_scores - common @ on_core(other_scores)
        slopes = _least_squares(own, rest_of_scores, neighbours)
        explained = others * slopes[:, 0]
        for k, column in enumerate(neighbours.T, start=1):
            explained += np.where(column >= 0, others[:, column] * slopes[:, k], 0.0)
        mean, in_core = self._in_core(on_core(other_scores - explained))
        # the core's own scores, once what the others add to them is taken off
        core_mean, core_in_core = self._in_core(on_core(core_scores - others @ in_core))
        gradient = np.concatenate([core_mean, mean])[order.back]
        return _SparseStep(gradient, slopes, in_core, core_in_core)

    def _in_core(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts, and slopes in the core itself, from those in whitened coordinates."""
        slopes = solve_triangular(self.factor, found[1:], lower=True, trans="T")
        return found[0], slopes.T


def _least_squares(x: np.ndarray, y: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Slopes of each column of y in its own column of x and those of its neighbours."""
    members = np.column_stack([np.arange(x.shape[1]), neighbours])
    present = members >= 0
    columns = [np.where(ok, x[:, m], 0.0) for m, ok in zip(members.T, present.T, strict=True)]
    width = len(columns)
    gram, right = np.empty((x.shape[1], width, width)), np.empty((x.shape[1], width))
    for a in range(width):
        right[:, a] = np.einsum("bi,bi->i", columns[a], y)
        for b in range(a, width):
            gram[:, a, b] = gram[:, b, a] = np.einsum("bi,bi->i", columns[a], columns[b])
    diagonal = np.einsum("iaa->ia", gram)
    diagonal += np.where(present, RIDGE * diagonal, 1.0) + np.finfo(float).tiny
    return np.linalg.solve(gram, right[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class _SparseStep:
    """Slopes of the scores, which are minus the precisions, and the mean score at the location.

    Attributes
    ----------
    gradient : ndarray, shape (size,)
    own : ndarray, shape (others, 1 + neighbours)
        Slopes in the element itself and in its neighbours.
    in_core : ndarray, shape (others, core)
    core : ndarray, shape (core, core)
    """

    gradient: np.ndarray
    own: np.ndarray
    in_core: np.ndarray
    core: np.ndarray

    def move(self, normal: SparseNormal, trust: float) -> SparseNormal:
        """The normal with these precisions and mean, as far as they can be trusted."""
        order = normal.order
        diagonal, among = -self.own[:, 0].copy(), self._among(order)
        slopes, scales = np.empty_like(normal.slopes), np.empty_like(normal.scales)
        coefficients = np.zeros(order.n_coefficients)
        in_core, core = -self.in_core.copy(), -(self.core + self.core.T) / 2
        lowest, highest = np.exp(-trust), np.exp(2 * trust)
        for round in reversed(order.rounds):
            here = round.places
            known = diagonal[here] * normal.scales[here] ** 2
            precision = np.clip(known, lowest, highest) / normal.scales[here] ** 2
            # a precision that has been lowered was one of a whole row
            share = np.where(known > highest, highest / np.maximum(known, highest), 1.0)
            beside = share[:, None] * in_core[here]
            scales[here], slopes[here] = 1 / np.sqrt(precision), -beside / precision[:, None]
            core -= beside.T @ (beside / precision[:, None])
            self._eliminate(
                round, precision, share, beside, (diagonal, among, in_core), order, coefficients
            )
        whitened = normal.factor.T @ core @ normal.factor
        precisions, axes = np.linalg.eigh((whitened + whitened.T) / 2)
        root = normal.factor @ (axes / np.sqrt(np.clip(precisions, lowest, highest)))
        factor = np.linalg.qr(root.T, mode="r").T
        factor = factor * np.sign(np.diag(factor))
        moved = SparseNormal(normal.loc, order, scales, coefficients, slopes, factor)
        shift = np.clip(moved.pull(self.gradient), -2 * trust, 2 * trust)
        loc = normal.loc + moved._stretch(shift[None])[0]
        return SparseNormal(loc, order, *moved.spread)

    def _among(self, order: Elimination) -> list[dict[int, float]]:
        """Precisions between elements outside of the core: of each, by the place of the other."""
        among: list[dict[int, float]] = [{} for _ in range(len(self.own))]
        for i, row in enumerate(order.neighbours.tolist()):
            for k, j in enumerate(row):
                if j >= 0:
                    half = -self.own[i, k + 1] / 2
                    among[i][j] = among[i].get(j, 0.0) + half
                    among[j][i] = among[j].get(i, 0.0) + half
        return among

    def _eliminate(self, round, precision, share, beside, left, order, coefficients) -> None:
        """Take the elements of a round out of the precisions of those that are left."""
        diagonal, among, in_core = left
        if not round.parents.shape[1]:
            return
        found = order.coefficients_of(coefficients, round)
        for k, row in enumerate(round.parents.tolist()):
            i = round.first + k
            parents = [j for j in row if j >= 0]
            edges = [share[k] * among[i].get(j, 0.0) for j in parents]
            for a, (j, edge) in enumerate(zip(parents, edges, strict=True)):
                weight = edge / precision[k]
                found[k, a] = -weight
                diagonal[j] -= weight * edge
                in_core[j] -= weight * beside[k]
                for other, edge_of_other in zip(parents, edges, strict=True):
                    if other != j:
                        among[j][other] = among[j].get(other, 0.0) - weight * edge_of_other
