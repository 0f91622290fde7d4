"""Where the fit starts: candidates for the affine layer, ranked by their ELBO."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytensor

from scipy.optimize import minimize

from pymc_emf.exceptions import BadStartError
from pymc_emf.layers import Affine, LowerTriangular
from pymc_emf.variational.objective import Objective

__all__ = ["WarmStart", "evaluate_prior", "start_at", "warm_start"]

#: Longest vector for which a dense Hessian is computed.
DENSE_LIMIT = 1000
N_PRIOR_DRAWS = 200
N_STARTS = 3
N_RANKING_DRAWS = 1000


@dataclass(frozen=True)
class WarmStart:
    """How a fit was started.

    Attributes
    ----------
    chosen : str
        "laplace", "prior" (the embedded prior as it stands), "start" (the user's point), or
        "none" if there was nothing to choose from.
    elbos : dict
        Estimated ELBO of every candidate in nats, from the same draws.
    """

    chosen: str
    elbos: dict[str, float] = field(default_factory=dict)


Normal = tuple[np.ndarray, np.ndarray | None]


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
    noise = rng.normal(size=(N_PRIOR_DRAWS, objective.size)).astype(pytensor.config.floatX)
    noise[0] = 0.0 if start is None else start
    # one minibatch for all, or the best points would be those with the luckiest one
    seeds = np.full(N_PRIOR_DRAWS, rng.integers(2**31))
    _, log_p, log_det = objective.evaluate_many(noise, seeds)
    total = log_p + log_det
    if not np.isfinite(total).any():
        gates = [jnp.asarray(p.get_value()) for p in objective.structured.parameters]
        minibatches = objective.draw_minibatches(jax.random.key(seeds[0]))
        terms = jax.jit(jax.vmap(lambda e: objective.terms(gates, e, minibatches)))(noise)
        raise BadStartError(_blame(dict(zip(objective.term_names, terms, strict=True))))
    return noise, total


def _blame(terms: dict[str, np.ndarray]) -> str:
    shares = {name: np.isfinite(np.asarray(term)).mean() for name, term in terms.items()}
    name = min(shares, key=shares.__getitem__)
    bad = np.asarray(terms[name])
    bad = bad[~np.isfinite(bad)]
    kind = "NaN" if bad.size and np.isnan(bad).all() else "not finite"
    if bad.size and np.isneginf(bad).all():
        kind = "minus infinity"
    return (
        f"The log density of {name} is {kind} at every point tried, {N_PRIOR_DRAWS} draws from "
        f"the prior; check the parameters and data of {name}, or pass a start= where it is finite."
    )


def warm_start(
    objective: Objective,
    rng: np.random.Generator,
    noise: np.ndarray,
    log_density: np.ndarray,
    start: np.ndarray | None = None,
) -> WarmStart:
    """Set the affine layer next to the structured one to the best of several candidates.

    Optimisation runs in the noise of the structured layer, where the prior is standard normal:
    L-BFGS and damped Newton from the best of the points given lead to modes; the Hessian at the
    best mode gives a normal approximation. The prior itself, which is the identity layer, is the
    rival. The candidate with the highest ELBO wins, the other layers being near the identity.

    Parameters
    ----------
    objective : Objective
        Its last flow layer is set in place if it is affine.
    rng : Generator
    noise, log_density : ndarray
        From :func:`evaluate_prior`.
    start : ndarray, optional
        The user's point of structured noise.
    """
    layer = _affine_layer(objective)
    if layer is None:
        return WarmStart("none")

    candidates: dict[str, Normal] = {"prior": (np.zeros(objective.size), None)}
    starts = [noise[i] for i in _best(log_density)]
    if start is not None:
        candidates["start"] = start, None
        starts.insert(0, start)
    if objective.size <= DENSE_LIMIT:
        laplace = _laplace(objective, rng, starts)
        if laplace is not None:
            candidates["laplace"] = laplace

    draws = rng.normal(size=(N_RANKING_DRAWS, objective.size)).astype(noise.dtype)
    seeds = rng.integers(2**31, size=N_RANKING_DRAWS)
    elbos = {}
    for name, candidate in candidates.items():
        layer.set(*candidate)
        _, log_p, log_q = objective.weigh(draws, seeds)
        elbos[name] = float(np.mean(log_p - log_q))
    # an infinite ELBO is a density without bound, at which no fit can start
    chosen = max(elbos, key=lambda name: elbos[name] if np.isfinite(elbos[name]) else -np.inf)
    layer.set(*candidates[chosen])
    return WarmStart(chosen, elbos)


def start_at(objective: Objective, start: np.ndarray) -> WarmStart:
    """Shift the affine layer, if there is one, to a point of structured noise."""
    layer = _affine_layer(objective)
    if layer is None:
        raise ValueError("A start needs an affine layer as the last of the layers; add one.")
    layer.set(start)
    return WarmStart("start")


def _affine_layer(objective: Objective) -> Affine | LowerTriangular | None:
    """The layer next to the structured one, if it is affine."""
    last = objective.layers[-1] if objective.layers else None
    return last if isinstance(last, Affine | LowerTriangular) else None


def _best(log_density: np.ndarray) -> np.ndarray:
    """Indices of the best finite points, best first."""
    order = np.argsort(np.where(np.isfinite(log_density), -log_density, np.inf))
    return order[: min(N_STARTS, int(np.isfinite(log_density).sum()))]


def _laplace(
    objective: Objective, rng: np.random.Generator, starts: list[np.ndarray]
) -> Normal | None:
    """Mean and Cholesky factor of the normal approximation at the best mode found."""
    dtype = pytensor.config.floatX
    gates = [jnp.asarray(p.get_value()) for p in objective.structured.parameters]
    minibatches = objective.draw_minibatches(jax.random.key(int(rng.integers(2**31))))

    def energy(noise):
        return -objective.pulled_back(gates, noise, minibatches)

    value_and_gradient = jax.jit(jax.value_and_grad(energy))

    def function(noise):
        value, gradient = value_and_gradient(noise.astype(dtype))
        value, gradient = float(value), np.asarray(gradient, dtype=float)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return 1e300, np.zeros_like(gradient)
        return value, gradient

    def gradient(noise):
        value, slope = function(noise)
        return slope if value < 1e300 else np.full_like(slope, np.nan)

    def hessian(noise):
        return _hessian(gradient, noise, float(np.finfo(dtype).eps))

    options = {"maxiter": 1000}
    modes = [
        minimize(function, point.astype(float), jac=True, method="L-BFGS-B", options=options)
        for point in starts
    ]
    modes = [mode for mode in modes if mode.fun < 1e300 and np.isfinite(mode.x).all()]
    if not modes:
        return None
    mode, precision = _newton(function, hessian, min(modes, key=lambda mode: mode.fun).x)
    if not np.isfinite(precision).all():
        return None
    eigenvalues, vectors = np.linalg.eigh(precision)
    # a direction that is flat or bends the wrong way keeps the prior's unit scale
    eigenvalues = np.where(eigenvalues < 1e-2, 1.0, eigenvalues)
    covariance = (vectors / eigenvalues) @ vectors.T
    return mode, np.linalg.cholesky(covariance)


def _hessian(gradient, point: np.ndarray, eps: float) -> np.ndarray:
    """Hessian by differences of the gradient, which need no further compilation.

    One-sided differences tell how fast the density changes along each element; central ones
    with steps on that scale follow.
    """
    size, here = len(point), gradient(point)
    steps = np.sqrt(eps) * (1 + np.abs(point))
    axes = np.eye(size)
    ahead = [(gradient(point + steps[i] * axes[i])[i] - here[i]) / steps[i] for i in range(size)]
    steps = eps ** (1 / 5) / np.sqrt(np.maximum(np.abs(np.nan_to_num(ahead)), 1.0))
    rows = [
        (gradient(point + step * axis) - gradient(point - step * axis)) / (2 * step)
        for step, axis in zip(steps, axes, strict=True)
    ]
    return (np.array(rows) + np.transpose(rows)) / 2


def _newton(
    function, hessian, point: np.ndarray, n_steps: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Polish a mode by damped Newton steps, as long as they descend; return the Hessian too."""
    value, gradient = function(point)
    curvature = hessian(point)
    for _ in range(n_steps):
        if not np.isfinite(curvature).all() or np.abs(gradient).max() < 1e-7:
            break
        eigenvalues, vectors = np.linalg.eigh(curvature)
        step = -(vectors / np.maximum(np.abs(eigenvalues), 1e-3)) @ (vectors.T @ gradient)
        for damping in (1.0, 0.3, 0.1, 0.01):
            new_value, new_gradient = function(point + damping * step)
            if new_value < value:
                point, value, gradient = point + damping * step, new_value, new_gradient
                curvature = hessian(point)
                break
        else:
            break
    return point, curvature
