"""Many short chains of Hamiltonian Monte Carlo at once, from the draws of an approximation.

In the noise of a flow that comes close the posterior is nearly standard normal. Of a standard
normal the motion is known, a rotation of position and momentum, so that only the pull of what is
left, the gradient of the log weight, is taken in steps: they may be long, however many elements
there are (Beskos et al., "Hybrid Monte Carlo on Hilbert spaces", 2011; Shahbaba et al., "Split
Hamiltonian Monte Carlo", 2014). What the chains have come to is the posterior's, however little
the weights of the draws tell.
"""

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["WeightFn", "chains"]

#: Log weights against the standard normal, up to a constant, of shape (chains,), and their
#: gradients, at points (chains, size).
type WeightFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

#: Mean angle of transitions, by which draws of a standard normal forget where they began, and how
#: far angles differ from it, as a posterior that is narrower has periods of its own; first step,
#: and the shortest, for which a posterior is too far from normal.
ANGLE, SPREAD, STEP, MIN_STEP = np.pi / 2, 0.5, np.pi / 4, np.pi / 16
#: Rate at which transitions are to be accepted, and how fast steps adapt to that.
ACCEPTED, ADAPTATION = 0.7, 0.8


def chains(
    weigh: WeightFn, noise: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the chains are after each transition, for as long as one asks.

    Parameters
    ----------
    weigh : callable
        May be asked beside the points where the weight is finite; chains do not go there.
    noise : ndarray, shape (chains, size)
        Where they begin: with a density.
    rng : Generator

    Yields
    ------
    noise, gradient : ndarray, shape (chains, size)
        Those of the log weight. Not to be written to.
    """
    log_weight, pull = weigh(noise)
    step = STEP
    while True:
        momentum = rng.normal(size=noise.shape)
        angle = ANGLE * (1 + SPREAD * rng.uniform(-1, 1))
        n_steps = int(np.ceil(angle / step))
        with np.errstate(over="ignore", invalid="ignore"):
            there, moved, of_there, pull_there = _move(
                weigh, noise, momentum, pull, angle / n_steps, n_steps
            )
            energy, energy_there = (
                (x**2 + p**2).sum(axis=1) / 2 - w
                for x, p, w in ((noise, momentum, log_weight), (there, moved, of_there))
            )
            gain = np.where(np.isfinite(energy_there), energy - energy_there, -np.inf)
        probability = np.exp(np.minimum(gain, 0.0))
        accepted = rng.uniform(size=len(noise)) < probability
        noise = np.where(accepted[:, None], there, noise)
        pull = np.where(accepted[:, None], pull_there, pull)
        log_weight = np.where(accepted, of_there, log_weight)
        step = max(MIN_STEP, step * np.exp(ADAPTATION * (probability.mean() - ACCEPTED)))
        yield noise, pull


def _move(
    weigh: WeightFn,
    noise: np.ndarray,
    momentum: np.ndarray,
    pull: np.ndarray,
    angle: float,
    n_steps: int,
) -> tuple[np.ndarray, ...]:
    """Noise and momentum at the end, and weight and pull there; NaN where one is not finite."""
    cos, sin = np.cos(angle), np.sin(angle)
    momentum = momentum + angle / 2 * pull
    for last in range(n_steps - 1, -1, -1):
        noise, momentum = cos * noise + sin * momentum, cos * momentum - sin * noise
        lost = ~np.isfinite(noise).all(axis=1)
        log_weight, pull = weigh(np.where(lost[:, None], 0.0, noise))
        log_weight = np.where(lost, np.nan, log_weight)
        momentum = momentum + (angle if last else angle / 2) * pull
    return noise, momentum, log_weight, pull
