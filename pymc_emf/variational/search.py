"""Candidates for a start, and the race that decides between them."""

from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp
import numpy as np
import pytensor

from pymc_emf.engine.stopping import EXACT, rounding_hides
from pymc_emf.layers.base import Framed
from pymc_emf.layers.gates import gate_parameter
from pymc_emf.layers.presets import DENSE_LIMIT
from pymc_emf.variational.importance import average, log_ratio, standard_deviation
from pymc_emf.variational.modes import Energy, find_modes, low_rank_normal
from pymc_emf.variational.objective import Objective, Values

__all__ = ["Search", "Trial", "WarmStart", "framed_layer"]

#: Starts of the search for modes, and how many of the modes become candidates.
N_STARTS = 12
N_MODES = 3
N_RANKING_DRAWS = 1000
#: Candidates whose ELBOs in nats differ by less are as good as each other.
SAME_ELBO = 1e-3
#: A start whose log weights vary by less, in nats, needs no comparison by training.
CLOSE = 1.0
#: Nats behind the best by which a normal approximation is out of the race.
FAR_BEHIND = 100.0
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
        "prior" (the embedded prior as it stands), "start" (the
        user's point, ``start=`` or ``initval=``), "laplace"
        (normal approximation at a mode in the noise of the embedded model, "laplace 2" and so
        on at further modes), "bypass" (the same with all gates closed, which is the normal
        approximation in value space), or "none" if there was nothing to choose from.
    elbos : dict
        Estimated ELBO of every candidate in nats, from the same draws.
    sd : float
        Standard deviation of the log weights at the start in nats, zero where it is exact;
        infinite if it was not estimated.
    trained_elbos : dict
        ELBO of every candidate that was trained for a while, afterwards; empty if none was.
    n_steps : int
        Steps of the fit that were spent on this training.
    """

    chosen: str
    elbos: dict[str, float] = field(default_factory=dict)
    sd: float = np.inf
    trained_elbos: dict[str, float] = field(default_factory=dict)
    n_steps: int = 0


@dataclass(frozen=True)
class Candidate:
    """A start of the affine layer, by location and what else its frame takes, and the gates."""

    loc: np.ndarray
    spread: tuple[np.ndarray, ...]
    gates: list[np.ndarray]


class Trial(Protocol):
    """Trains values for ``n`` steps, and returns what became of them."""

    n: int

    def __call__(self, values: Values) -> list[np.ndarray]: ...


def framed_layer(objective: Objective) -> Framed | None:
    """The layer next to the structured one, if it has a frame."""
    last = objective.layers[-1] if objective.layers else None
    return last if isinstance(last, Framed) else None


class Search:
    """Candidates for the affine layer next to the structured one and the gates, and the best.

    Optimisation runs in the noise of the structured layer, where the prior is standard normal:
    L-BFGS and damped Newton from some of the points given lead to modes; the Hessian at a mode
    gives a normal approximation. So it does with the gates closed, which is PyMC's value space.
    The prior itself, which is the identity layer, is the rival.

    The candidate with the highest ELBO wins. If it is far from the posterior, first all of them
    are trained for a while: the mode of a funnel is a spike of next to no mass, from which the
    fit would not find out, and the prior, however wide, leads into the bulk.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    rng : Generator
    train : Trial or None
        Trains values for some steps.
    max_steps : int
        No further round of training begins once these are spent.
    """

    def __init__(
        self,
        objective: Objective,
        values: Values,
        rng: np.random.Generator,
        train: "Trial | None",
        max_steps: int,
    ):
        self.objective, self.values, self.rng = objective, list(values), rng
        self.train, self.max_steps = train, max_steps
        self.gates = objective.own(values, objective.structured.parameters)

    def run(
        self, noise: np.ndarray, log_density: np.ndarray, start: np.ndarray | None
    ) -> tuple[list[np.ndarray], WarmStart]:
        """Values of the best candidate, from points and their log density."""
        objective = self.objective
        layer = framed_layer(objective)
        if layer is None:
            return self.values, WarmStart("none")
        starts = _spread(log_density)
        candidates = {"prior": Candidate(np.zeros(objective.size), (), self.gates)}
        if start is not None:
            starts = np.unique(np.append(0, starts))  # where the user's point is
            candidates["start"] = Candidate(start, (), self.gates)
        if objective.size <= DENSE_LIMIT or not layer.dense:
            candidates |= self._normal_approximations(layer, noise[starts])

        self._draw()
        states = {name: self._state(layer, c) for name, c in candidates.items()}
        found = {name: self._log_weights(values) for name, values in states.items()}
        if start is not None and not np.isfinite(average(found["start"])):
            states["start"], found["start"] = self._shrunk(layer, start)
        elbos = {name: average(weights) for name, weights in found.items()}
        chosen = _choose(elbos)
        sd = _spread_of(found[chosen])
        if self.train is None or sd < CLOSE or len(candidates) == 1:
            return states[chosen], WarmStart(chosen, elbos, sd)
        return self._race(layer, states, found, elbos)

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

    def _race(self, layer, states, found, elbos) -> tuple[list[np.ndarray], WarmStart]:
        """Train candidates in rounds, until it shows which one leads to the posterior."""
        train = self.train
        assert train is not None
        states = {name: states[name] for name in _worth_training(elbos)}
        histories, after = {name: [elbos[name]] for name in states}, dict(elbos)
        racing, n_steps, close = list(states), 0, False
        chosen = _choose(elbos)
        while len(racing) > 1 and n_steps < self.max_steps and not close:
            for name in racing:
                states[name] = train(states[name])
                n_steps += train.n
                found[name] = self._log_weights(states[name])
                histories[name].append(average(found[name]))
            after = {name: history[-1] for name, history in histories.items()}
            chosen = _choose(after)
            close = standard_deviation(found[chosen]) < CLOSE
            racing = _may_win({name: histories[name] for name in racing})
        if not close:  # or else there is hardly anything left to rise to
            chosen = _choose({name: _expected(history) for name, history in histories.items()})
        own = self.objective.own(states[chosen], layer.variables)
        values = self.objective.replace(states[chosen], layer.variables, layer.reframe(own))
        report = WarmStart(chosen, elbos, _spread_of(found[chosen]), after, n_steps)
        return values, report

    def _normal_approximations(self, layer: Framed, starts: np.ndarray) -> dict[str, Candidate]:
        """Normal approximations at the best modes found, with the gates as they are and closed."""
        objective = self.objective
        found = self._at_modes(layer, "laplace", self.gates, starts, N_MODES)
        own = objective.structured.own_parameters
        if own and found:
            closed = [np.full_like(gate, gate_parameter(CLOSED)) for gate in self.gates]
            closed[len(own) :] = self.gates[len(own) :]  # the model's own parameters stay
            locs = np.array([candidate.loc for candidate in found.values()])
            _, target_values = objective.split(self.values)
            points, _, _ = objective.target.evaluate_many(target_values, locs.astype(starts.dtype))
            found |= self._at_modes(layer, "bypass", closed, points, 1)
        return found

    def _at_modes(self, layer, prefix, gates, starts, n_modes) -> dict[str, Candidate]:
        objective = self.objective
        values = objective.replace(self.values, objective.structured.parameters, gates)
        held = [jnp.asarray(value) for value in objective.split(values)[1]]
        energy = Energy(lambda e: objective.target.energy(held, e)[:2], pytensor.config.floatX)
        found: dict[str, Candidate] = {}
        if not layer.dense:
            for mode in find_modes(energy, starts, 1, curved=False):
                spread = low_rank_normal(energy, mode.point, layer.rank, self.rng)
                found[prefix] = Candidate(mode.point, spread, gates)
            return found
        for mode in find_modes(energy, starts, n_modes, curved=True):
            name = f"{prefix} {len(found) + 1}" if found else prefix
            loc, cholesky = mode.normal()
            found[name] = Candidate(loc, (cholesky,), gates)
        return found


def _spread_of(log_weights: np.ndarray) -> float:
    """Standard deviation of log weights; infinite if rounding hides what would be zero."""
    sd = standard_deviation(log_weights)
    smallest = np.sqrt(2 * EXACT)
    if sd < smallest and rounding_hides(log_weights, smallest, np.dtype(pytensor.config.floatX)):
        return np.inf
    return sd


def _may_win(histories: dict[str, list[float]]) -> list[str]:
    """Those who would have the highest ELBO if they rose once more as they just have."""
    last = {name: np.nan_to_num(history[-1], nan=-np.inf) for name, history in histories.items()}
    best = max(last, key=last.__getitem__)
    rising = [name for name, h in histories.items() if 2 * h[-1] - h[-2] > last[best]]
    return [best, *(name for name in rising if name != best)]


def _expected(history: list[float]) -> float:
    """ELBO after one more round of training like the last one.

    What the first round gains says nothing of the next: it leads from the start, wherever that
    is, to where the log density is of an ordinary size.
    """
    rise = history[-1] - history[-2] if len(history) > 2 else 0.0
    return history[-1] + max(rise, 0.0)


def _choose(elbos: dict[str, float]) -> str:
    """Name of the candidate of the highest ELBO, and of those that hardly differ the first."""
    # an infinite ELBO is a density without bound, at which no fit can start
    known = {name: elbo for name, elbo in elbos.items() if np.isfinite(elbo)}
    if not known:
        return next(iter(elbos))
    best = max(known.values())
    return next(name for name, elbo in known.items() if elbo >= best - SAME_ELBO)


def _worth_training(elbos: dict[str, float]) -> list[str]:
    """The prior, whatever its ELBO, and those of the others that are not far behind the best."""
    others = {name: elbo for name, elbo in elbos.items() if name != "prior"}
    best = max((elbo for elbo in others.values() if np.isfinite(elbo)), default=0.0)
    return ["prior", *(name for name, elbo in others.items() if elbo >= best - FAR_BEHIND)]


def _spread(log_density: np.ndarray) -> np.ndarray:
    """Indices of the best finite points, and of others from the good to the bad.

    The best points often lie in one and the same basin.
    """
    order = np.argsort(np.where(np.isfinite(log_density), -log_density, np.inf))
    n_finite = int(np.isfinite(log_density).sum())
    n_best = N_STARTS // 3
    others = np.linspace(n_best, n_finite - 1, N_STARTS - n_best).astype(int)
    return order[np.unique(np.clip(np.append(np.arange(n_best), others), 0, n_finite - 1))]
