"""Candidates for a start, and the best of them."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytensor

from pymc_emf.engine.stopping import EXACT, rounding_hides
from pymc_emf.layers.base import Framed
from pymc_emf.layers.gates import AJAR
from pymc_emf.layers.held_sums import HeldSums
from pymc_emf.layers.presets import DENSE_LIMIT
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.conditional_normal import ConditionalNormal
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.held_normal import HeldNormal
from pymc_emf.variational.importance import (
    average,
    elbo_within,
    log_ratio,
    standard_deviation,
)
from pymc_emf.variational.modes import Energy, find_modes, low_rank_normal
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.regression import Normal, Regressed, ScoreFn, regress_scores

__all__ = ["Search", "WarmStart", "framed_layer"]

#: Starts of the search for modes, and how many of the modes become candidates: of a model of few
#: elements and data; of another one mode.
N_STARTS, N_STARTS_OF_MANY = 12, 4
N_MODES = 3
MANY = 100
#: Scale of the first draws around a mode.
MODE_SCALE = 0.1
N_RANKING_DRAWS = 1000
#: Candidates whose ELBOs in nats differ by less are as good as each other.
SAME_ELBO = 1e-3
#: Where log weights vary by less, in nats, gates need not be closed.
CLOSE = 1.0
#: A normal approximation whose log weights vary by no more than this, in nats, or by so many for
#: each square root of an element, is not sought again from modes in its bulk.
MAX_SD, MAX_SD_EACH = 3.0, 0.1
#: Standard deviations of its prior beyond which no draw of an element is. If the data place it
#: further out, they are so many that its posterior resembles a normal.
REACH_OF_PRIOR = 8.0
#: The value of a gate that a candidate has closed.
CLOSED = 1e-3
#: Scales at which draws around the user's own point are tried, the largest first.
START_SCALES = (1.0, 0.1, 0.01, 0.001)


@dataclass(frozen=True)
class WarmStart:
    """How a fit was started.

    Attributes
    ----------
    chosen : str
        "prior" (the embedded prior as it stands), "start" (the user's point, ``start=`` or
        ``initval=``), "scores" (the normal approximation in the noise of the embedded model to
        which the regression of scores leads from one of these), "mode" (from a mode instead,
        "mode 2" and so on from further ones), "bypass" (the same with all gates closed, which
        is a normal approximation in value space), or "none" if there was nothing to choose from.
    elbos : dict
        Estimated ELBO of every candidate in nats, from the same draws.
    sd : float
        Standard deviation of the log weights at the start in nats, zero where it is exact;
        infinite if it was not estimated.
    """

    chosen: str
    elbos: dict[str, float] = field(default_factory=dict)
    sd: float = np.inf

    @property
    def other(self) -> str:
        """Advice to start elsewhere, but for what has been done."""
        if self.elbos:  # several were compared
            return "pass another start=" if "start" in self.elbos else "pass a start="
        return (
            'fit again with warm_start="auto", which an affine layer as the last of the layers '
            "needs, or pass another start="
        )


@dataclass(frozen=True)
class Candidate:
    """A start of the affine layer, by location and what else its frame takes, and the gates.

    Elements in ``closed`` have gates that are closed: they are in units of value space.
    """

    loc: np.ndarray
    spread: tuple[np.ndarray, ...]
    gates: list[np.ndarray]
    closed: Set[int] = frozenset()


def framed_layer(objective: Objective) -> Framed | None:
    """The layer next to the structured one, if it has a frame."""
    last = objective.layers[-1] if objective.layers else None
    return last if isinstance(last, Framed) else None


class Search:
    """Candidates for the affine layer next to the structured one and the gates, and the best.

    The search goes on in the noise of the structured layer, where the prior is standard normal.
    From the prior, or the user's own point, and from modes that L-BFGS finds from some of the
    points given, a regression of scores leads to normal approximations
    (:mod:`pymc_emf.variational.regression`). Where none of them is close to the posterior, so it
    does with the gates closed, which is PyMC's value space. The candidate with the highest ELBO
    wins; the prior itself, which is the identity layer, is among them.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    rng : Generator
    closed : set of int
        Elements that normal approximations are to have in value space.
    scales : ndarray, optional
        Of the elements' priors there; by default one.
    """

    def __init__(
        self,
        objective: Objective,
        values: Values,
        rng: np.random.Generator,
        closed: Set[int] = frozenset(),
        scales: np.ndarray | None = None,
    ):
        # units of the first normal approximation
        self.units = np.ones(objective.size)
        if scales is not None:
            narrow = [i for i in closed if 0 < scales[i] < AJAR]
            self.units[narrow] = scales[narrow]
        self.objective, self.values, self.rng, self.closed = objective, list(values), rng, closed
        self.gates = objective.own(values, objective.structured.parameters)

    def run(
        self, noise: np.ndarray, log_density: np.ndarray, start: np.ndarray | None
    ) -> tuple[list[np.ndarray], WarmStart]:
        """Values of the best candidate, from points and their log density."""
        objective = self.objective
        layer = framed_layer(objective)
        if layer is None:
            return self.values, WarmStart("none")
        states, found, beyond = {}, {}, set()
        self._draw()

        def add(candidates: dict[str, Candidate]) -> None:
            for name, candidate in candidates.items():
                states[name] = self._state(layer, candidate)
                found[name] = self._log_weights(states[name])
                if self._is_beyond_reach(candidate):
                    beyond.add(name)

        def elbos() -> dict[str, float]:
            near = any(_spread_of(weights) < self._max_sd for weights in found.values())
            return {
                name: elbo_within(weights)
                for name, weights in found.items()
                # a density without bound, such as that of a scale of zero, if not near a normal
                if not (near and name in beyond and not _spread_of(weights) < self._max_sd)
            }

        normals: dict[str, Candidate] = {}
        if objective.size <= DENSE_LIMIT or not layer.dense:
            starts = _spread(log_density, self._few(N_STARTS, N_STARTS_OF_MANY))
            if start is not None:
                starts = np.unique(np.append(0, starts))  # where the user's point is
            with auxiliary("The search for a start", "the fit goes on without it"):
                normals = self._normal_approximations(layer, noise[starts], start)
        add({"prior": Candidate(np.zeros(objective.size), (), self.gates)})
        if start is not None:
            add({"start": Candidate(start, (), self.gates)})
            if not np.isfinite(average(found["start"])):
                states["start"], found["start"] = self._shrunk(layer, start)
        add(normals)
        best = _choose(elbos())
        far = not _spread_of(found[best]) < CLOSE
        if far and objective.structured.own_parameters and layer.dense and len(found) > 1:
            with auxiliary("The search with closed gates", "the fit goes on without it"):
                add(self._bypassed(layer, states[best]))
        chosen = _choose(elbos())
        return states[chosen], WarmStart(chosen, elbos(), _spread_of(found[chosen]))

    def _few(self, number: int, number_of_many: int) -> int:
        few = self.objective.size <= MANY and not self.objective.target.is_heavy
        return number if few else number_of_many

    def _state(self, layer: Framed, candidate: Candidate) -> list[np.ndarray]:
        """All values at a candidate."""
        objective = self.objective
        own = objective.own(self.values, layer.variables)
        values = objective.replace(
            self.values, layer.variables, layer.set_frame(own, candidate.loc, *candidate.spread)
        )
        return objective.replace(values, objective.structured.parameters, candidate.gates)

    def _log_weights(self, values: Values) -> np.ndarray:
        _, log_p, log_q = self.objective.weigh(values, self._draws)
        return log_ratio(log_p, log_q)

    def at(self, layer: Framed, start: np.ndarray) -> tuple[list[np.ndarray], WarmStart]:
        """Values of the user's point, without any rival."""
        self._draw()
        values, _ = self._shrunk(layer, start)
        return values, WarmStart("start")

    def _shrunk(self, layer: Framed, start: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The user's point with a scale at which the model has a density at all draws."""
        for scale in START_SCALES:
            spread = layer.spread_of(np.full(self.objective.size, scale**2))
            values = self._state(layer, Candidate(start, spread, self.gates))
            log_weights = self._log_weights(values)
            if np.isfinite(log_weights).all():
                break
        return values, log_weights

    def _draw(self) -> None:
        """Noise for all comparisons."""
        n_draws = self.objective.target.affordable(N_RANKING_DRAWS)
        noise = self.rng.normal(size=(n_draws, self.objective.size))
        self._draws = noise.astype(pytensor.config.floatX)

    def _score(self, gates: Values) -> ScoreFn:
        """Log density and score in noise, with these gates."""
        objective = self.objective
        values = objective.replace(self.values, objective.structured.parameters, gates)
        return objective.target.score_at(objective.split(values)[1])

    def _normal_approximations(
        self, layer: Framed, starts: np.ndarray, start: np.ndarray | None
    ) -> dict[str, Candidate]:
        """Normal approximations from the prior and from the best modes found."""
        sparse = layer.elimination is not None
        if not layer.dense and not sparse:
            return self._low_rank(layer, self._score(self.gates), starts)
        gates = self._with_gates(self.closed, CLOSED)
        score, family = self._score(gates), _family(layer)
        first = np.zeros(self.objective.size) if start is None else start
        if self.closed:
            first = self._value_of(first)
            starts = first[None]
        found: dict[str, Regressed] = {}

        def try_prior() -> None:
            best = max((known.elbo for known in found.values()), default=-np.inf)
            found["scores"] = regress_scores(
                score, first, self.units, self.rng, family, to_beat=best
            )

        def try_modes() -> None:
            names = iter(["mode", *(f"mode {i + 2}" for i in range(N_MODES))])
            for point in self._modes(score, starts, self._few(N_MODES, 1)):
                if not any(self._is_near(r) and r.normal.holds(point) for r in found.values()):
                    scale = MODE_SCALE * self.units
                    found[next(names)] = regress_scores(score, point, scale, self.rng, family)

        if sparse:
            # modes of many elements and their common scales have next to no mass
            try_prior()
            if not np.isfinite(found["scores"].elbo):
                try_modes()
        elif self.objective.target.is_heavy:
            try_modes()
            if not any(map(self._is_near, found.values())):
                try_prior()
        else:
            try_prior()
            try_modes()
        return {
            name: _candidate(layer, regressed, gates, self.closed)
            for name, regressed in found.items()
            if np.isfinite(regressed.elbo)
        }

    def _modes(self, score: ScoreFn, starts: np.ndarray, n_modes: int) -> list[np.ndarray]:
        """Modes, or the first of the starts if none is found."""
        modes = find_modes(Energy(score), list(starts), n_modes)
        return [mode.point for mode in modes] or [starts[0]]

    @property
    def _max_sd(self) -> float:
        return max(MAX_SD, MAX_SD_EACH * np.sqrt(self.objective.size))

    def _is_near(self, regressed: Regressed) -> bool:
        return regressed.sd < self._max_sd

    def _is_beyond_reach(self, candidate: Candidate) -> bool:
        """Whether a candidate is where no draw of the prior is, in elements that follow it."""
        following = sorted(self.objective.structured.gated_elements - candidate.closed)
        return bool((np.abs(candidate.loc[following]) > REACH_OF_PRIOR).any())

    def _with_gates(self, elements: Set[int], gate: float) -> list[np.ndarray]:
        """Values of the structured layer's parameters, with some gates set."""
        structured = self.objective.structured
        n_own = len(structured.own_parameters)
        own = structured.with_gates(self.gates[:n_own], set(elements), gate)
        return [*own, *self.gates[n_own:]]  # the model's own parameters stay

    def _value_of(self, noise: np.ndarray) -> np.ndarray:
        """Noise of the same point, with some gates closed."""
        _, target_values = self.objective.split(self.values)
        point = noise[None].astype(pytensor.config.floatX)
        value, _, _ = self.objective.target.evaluate_many(target_values, point)
        places = list(self.closed)
        moved = noise.copy()
        moved[places] = np.where(np.isfinite(value[0]), value[0], 0.0)[places]
        return moved

    def _low_rank(self, layer: Framed, score: ScoreFn, starts: np.ndarray) -> dict[str, Candidate]:
        modes = find_modes(Energy(score), list(starts), 1)
        if not modes:
            return {}
        (point, _), *_ = modes
        spread = low_rank_normal(Energy(score), point, layer.rank, self.rng)
        return {"mode": Candidate(point, spread, self.gates)}

    def _bypassed(self, layer: Framed, best: Values) -> dict[str, Candidate]:
        """The normal approximation with closed gates, from where another one is."""
        objective = self.objective
        elements = objective.structured.gated_elements
        closed = self._with_gates(elements, CLOSED)
        centre = objective.structured_noise_of(best, np.zeros_like(self._draws[:1]))
        points, _, _ = objective.target.evaluate_many(objective.split(best)[1], centre)
        if not np.isfinite(points).all():
            return {}
        score = self._score(closed)
        modes = find_modes(Energy(score), list(points), 1)
        loc = modes[0].point if modes else points[0]
        regressed = regress_scores(score, loc, MODE_SCALE, self.rng)
        if not np.isfinite(regressed.elbo):
            return {}
        return {"bypass": _candidate(layer, regressed, closed, elements)}


def _family(layer: Framed) -> Callable[[np.ndarray, float], Any]:
    """Makes normals of the kind that the layer's frame can hold, or of any covariance."""
    if layer.elimination is None or layer.elimination.is_dense:
        return Normal.isotropic
    ways = Factorisation(layer.elimination)
    if isinstance(layer, HeldSums):
        return partial(HeldNormal.isotropic, factorisation=ways, sums=layer.sums)
    return partial(ConditionalNormal.isotropic, factorisation=ways)


def _candidate(layer: Framed, regressed: Regressed, gates: Values, closed: Set[int]) -> Candidate:
    normal = regressed.normal
    if not isinstance(normal, Normal):
        return Candidate(normal.loc, normal.spread, list(gates), closed)
    loc, factor = normal
    return Candidate(loc, layer.spread_of(factor @ factor.T), list(gates), closed)


def _spread_of(log_weights: np.ndarray) -> float:
    """Standard deviation of log weights; infinite if rounding hides what would be zero."""
    sd = standard_deviation(log_weights)
    smallest = np.sqrt(2 * EXACT)
    if sd < smallest and rounding_hides(log_weights, smallest, np.dtype(pytensor.config.floatX)):
        return np.inf
    return sd


def _choose(elbos: dict[str, float]) -> str:
    """Name of the candidate of the highest ELBO, and of those that hardly differ the first."""
    # an infinite ELBO is a density without bound, at which no fit can start
    known = {name: elbo for name, elbo in elbos.items() if np.isfinite(elbo)}
    if not known:
        return next(iter(elbos))
    best = max(known.values())
    return next(name for name, elbo in known.items() if elbo >= best - SAME_ELBO)


def _spread(log_density: np.ndarray, n_starts: int) -> np.ndarray:
    """Indices of the best finite points, and of others from the good to the bad.

    The best points often lie in one and the same basin.
    """
    order = np.argsort(np.where(np.isfinite(log_density), -log_density, np.inf))
    n_finite = int(np.isfinite(log_density).sum())
    n_best = -(-n_starts // 3)
    others = np.linspace(n_best, n_finite - 1, n_starts - n_best).astype(int)
    return order[np.unique(np.clip(np.append(np.arange(n_best), others), 0, n_finite - 1))]
