"""Where the fit starts: candidates for the affine layer, ranked by their ELBO."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytensor

from pymc_emf.exceptions import BadStartError
from pymc_emf.layers import Affine, LowerTriangular, LowRank
from pymc_emf.layers.gates import gate_parameter
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import DENSE_LIMIT
from pymc_emf.variational.diagnosis import average, log_ratio, standard_deviation
from pymc_emf.variational.modes import Energy, find_modes, low_rank_normal
from pymc_emf.variational.objective import Objective

__all__ = ["WarmStart", "evaluate_prior", "gate_sensitivity", "start_at", "warm_start"]

N_PRIOR_DRAWS = 200
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
#: Draws from which the sensitivity to the gates is taken.
N_SENSITIVITY_DRAWS = 50
#: The value of a gate that a candidate has closed.
CLOSED = 1e-3


@dataclass(frozen=True)
class WarmStart:
    """How a fit was started.

    Attributes
    ----------
    chosen : str
        "prior" (the embedded prior as it stands), "start" (the user's point), "laplace"
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


AffineLayer = Affine | LowRank | LowerTriangular


@dataclass(frozen=True)
class Candidate:
    """A start of the affine layer, by location and what else its ``set`` takes, and the gates."""

    loc: np.ndarray
    spread: tuple[np.ndarray, ...]
    gates: list[np.ndarray]


def evaluate_prior(
    objective: Objective, rng: np.random.Generator, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log density of the posterior at draws of the structured layer's noise.

    Parameters
    ----------
    objective : Objective
    rng : Generator
    start : ndarray, optional
        A further point; without it the second point is zero noise.

    Returns
    -------
    noise : ndarray, shape (points, size)
    log_density : ndarray, shape (points,)
        Unnormalised, pulled back to the noise, in nats.

    Raises
    ------
    BadStartError
        If it is finite at none of them; names the first term of the log density to blame.
    """
    n_draws = objective.affordable(N_PRIOR_DRAWS)
    noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)
    noise[0] = 0.0 if start is None else start
    _, log_p, log_det = objective.evaluate_many(noise)
    total = log_ratio(log_p, -log_det)
    if not np.isfinite(total).any():
        target = [jnp.asarray(v.get_value()) for v in objective.target_variables]
        minibatches = objective.first_minibatches
        terms = jax.jit(jax.vmap(lambda e: objective.terms(target, e, minibatches)))(noise)
        raise BadStartError(_blame(dict(zip(objective.term_names, terms, strict=True))))
    return noise, total


def _blame(terms: dict[str, np.ndarray]) -> str:
    shares = {name: np.isfinite(np.asarray(term)).mean() for name, term in terms.items()}
    name = min(shares, key=shares.__getitem__)
    bad = np.asarray(terms[name])
    n_tried = len(bad)
    bad = bad[~np.isfinite(bad)]
    kind = "NaN" if bad.size and np.isnan(bad).all() else "not finite"
    if bad.size and np.isneginf(bad).all():
        kind = "minus infinity"
    return (
        f"The log density of {name} is {kind} at every point tried, {n_tried} draws from "
        f"the prior; check the parameters and data of {name}, or pass a start= where it is finite."
    )


def warm_start(
    objective: Objective,
    rng: np.random.Generator,
    noise: np.ndarray,
    log_density: np.ndarray,
    start: np.ndarray | None = None,
    train: Callable[[], int] | None = None,
    max_steps: int = 0,
) -> WarmStart:
    """Set the affine layer next to the structured one, and the gates, to the best candidate.

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
        Its last flow layer is set in place if it is affine.
    rng : Generator
    noise, log_density : ndarray
        From :func:`evaluate_prior`.
    start : ndarray, optional
        The user's point of structured noise.
    train : callable, optional
        Trains the parameters of the objective in place for some steps, and returns their number.
    max_steps : int
        No further round of training begins once these are spent.
    """
    layer = _affine_layer(objective)
    if layer is None:
        return WarmStart("none")
    gates = [p.get_value() for p in objective.structured.parameters]
    candidates = {"prior": Candidate(np.zeros(objective.size), (), gates)}
    starts = _spread(log_density)
    if start is not None:
        candidates["start"] = Candidate(start, (), gates)
        starts = np.unique(np.append(0, starts))  # where the user's point is
    if objective.size <= DENSE_LIMIT or isinstance(layer, LowRank):
        candidates |= _laplace(objective, layer, rng, noise[starts])

    n_draws = objective.affordable(N_RANKING_DRAWS)
    draws = rng.normal(size=(n_draws, objective.size)).astype(noise.dtype)

    def log_weights() -> np.ndarray:
        _, log_p, log_q = objective.weigh(draws)
        return log_ratio(log_p, log_q)

    found: dict[str, np.ndarray] = {}
    for name, candidate in candidates.items():
        _apply(objective, layer, candidate)
        found[name] = log_weights()
    elbos = {name: average(weights) for name, weights in found.items()}
    chosen = _choose(elbos)
    sd = standard_deviation(found[chosen])
    if train is None or sd < CLOSE or len(candidates) == 1:
        _apply(objective, layer, candidates[chosen])
        return WarmStart(chosen, elbos, sd)

    variables = objective.variables
    states = {}
    for name in _worth_training(elbos):
        _apply(objective, layer, candidates[name])
        states[name] = [v.get_value() for v in variables]
    histories, after = {name: [elbos[name]] for name in states}, dict(elbos)
    racing, n_steps, close = list(states), 0, False
    while len(racing) > 1 and n_steps < max_steps and not close:
        for name in racing:
            store(variables, states[name])
            n_steps += train()
            states[name] = [v.get_value() for v in variables]
            found[name] = log_weights()
            histories[name].append(average(found[name]))
        after = {name: history[-1] for name, history in histories.items()}
        chosen = _choose(after)
        close = standard_deviation(found[chosen]) < CLOSE
        racing = _may_win({name: histories[name] for name in racing})
    if not close:  # or else there is hardly anything left to rise to
        chosen = _choose({name: _expected(history) for name, history in histories.items()})
    store(variables, states[chosen])
    layer.reframe()
    return WarmStart(chosen, elbos, standard_deviation(found[chosen]), after, n_steps)


def _may_win(histories: dict[str, list[float]]) -> list[str]:
    """Those who would have the highest ELBO if they rose once more as they just have."""
    last = {name: np.nan_to_num(history[-1], nan=-np.inf) for name, history in histories.items()}
    best = max(last, key=last.__getitem__)
    rising = [name for name, h in histories.items() if 2 * h[-1] - h[-2] > last[best]]
    return [best, *(name for name in rising if name != best)]


def _expected(history: list[float]) -> float:
    """ELBO after one more round of training like the last one.

    What the first round gains, which leads out of the wilderness, says nothing of the next.
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


def _apply(objective: Objective, layer: AffineLayer, candidate: Candidate) -> None:
    layer.set(candidate.loc, *candidate.spread)
    store(objective.structured.parameters, candidate.gates)


def gate_sensitivity(objective: Objective, rng: np.random.Generator) -> list[np.ndarray]:
    """How much the log density changes with each gate's parameter, at typical draws.

    The median size of the derivative in nats, with that of the log density in whitened noise
    about one. Where a prior is much wider than the posterior, the least movement of its gate
    moves the draws by many posterior standard deviations.
    """
    noise = rng.normal(size=(N_SENSITIVITY_DRAWS, objective.size))
    inner, _ = objective.flow_many(noise.astype(pytensor.config.floatX))
    gates = [jnp.asarray(p.get_value()) for p in objective.structured.parameters]
    slopes = [objective.energy(gates, point)[2] for point in inner]
    return [np.median(np.abs(of_one), axis=0) for of_one in zip(*slopes, strict=True)]


def start_at(objective: Objective, start: np.ndarray) -> WarmStart:
    """Shift the affine layer, if there is one, to a point of structured noise."""
    layer = _affine_layer(objective)
    if layer is None:
        raise ValueError("A start needs an affine layer as the last of the layers; add one.")
    layer.set(start)
    return WarmStart("start")


def _affine_layer(objective: Objective) -> AffineLayer | None:
    """The layer next to the structured one, if it is affine."""
    last = objective.layers[-1] if objective.layers else None
    return last if isinstance(last, AffineLayer) else None


def _spread(log_density: np.ndarray) -> np.ndarray:
    """Indices of the best finite points, and of others from the good to the bad.

    The best points often lie in one and the same basin.
    """
    order = np.argsort(np.where(np.isfinite(log_density), -log_density, np.inf))
    n_finite = int(np.isfinite(log_density).sum())
    n_best = N_STARTS // 3
    others = np.linspace(n_best, n_finite - 1, N_STARTS - n_best).astype(int)
    return order[np.unique(np.clip(np.append(np.arange(n_best), others), 0, n_finite - 1))]


def _laplace(
    objective: Objective, layer: AffineLayer, rng: np.random.Generator, starts: np.ndarray
) -> dict[str, Candidate]:
    """Normal approximations at the best modes found, with the gates as they are and closed."""
    parameters = objective.structured.parameters

    def energy(gates):
        gates = [jnp.asarray(gate) for gate in gates]

        def function(noise):
            value, gradient, _ = objective.energy(gates, noise)
            return value, gradient

        return Energy(function, pytensor.config.floatX)

    def search(prefix, gates, starts, n_modes):
        function = energy(gates)
        found: dict[str, Candidate] = {}
        if isinstance(layer, LowRank):
            for mode in find_modes(function, starts, 1, curved=False):
                spread = low_rank_normal(function, mode.point, layer.rank, rng)
                found[prefix] = Candidate(mode.point, spread, gates)
            return found
        for mode in find_modes(function, starts, n_modes, curved=True):
            name = f"{prefix} {len(found) + 1}" if found else prefix
            loc, cholesky = mode.normal()
            found[name] = Candidate(loc, (cholesky,), gates)
        return found

    gates = [p.get_value() for p in parameters]
    found = search("laplace", gates, starts, N_MODES)
    if objective.structured.own_parameters and found:
        closed = [np.full_like(gate, gate_parameter(CLOSED)) for gate in gates]
        n_gates = len(objective.structured.own_parameters)
        closed[n_gates:] = gates[n_gates:]  # the model's own parameters stay
        locs = np.array([candidate.loc for candidate in found.values()])
        values, _, _ = objective.evaluate_many(locs.astype(starts.dtype))
        found |= search("bypass", closed, values, 1)
    return found
