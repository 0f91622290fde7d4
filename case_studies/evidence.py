"""Log evidence of the benchmark problems, exact or by a particle filter.

The linear-Gaussian problems have normal data. A Brownian motion seen as signs is a chain of
scalars, whose filter is integrated on a grid. In a tree all nodes of a layer have the same
distribution, so that one recursion of characteristic functions from layer to layer gives the
density of the root. Eight Schools is one integral. For the oscillators the data are filtered by
particles, which gives an unbiased estimate of the evidence, and its spread over independent
filters the standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scipy.special import log_expit, logsumexp
from scipy.stats import multivariate_normal, norm

from case_studies.eight_schools import solve
from case_studies.problems import TREE_SIGMAS, lorenz_drift, van_der_pol_drift

#: Particles of one filter, and how many filters there are.
PARTICLES, RUNS = 200_000, 8


def log_evidence(
    name: str, y: Sequence[float], *, sigmas: str = "code", form: str | None = None, seed: int = 0
) -> tuple[float, float]:
    """Log evidence of a problem of :mod:`case_studies.problems`.

    Parameters
    ----------
    name : str
        Such as ``"BRB-c"``.
    y : sequence of float
        NaN where nothing is observed.
    sigmas : {"code", "paper"}
        For a tree.
    form : str, optional
        How the model of a diffusion is spelled, which does not matter here.
    seed : int
        For a particle filter.

    Returns
    -------
    log_evidence, se : float
        In nats; the standard error is zero where it is exact.
    """
    y = np.asarray(y, dtype=float)
    family, _, variant = name.partition("-")
    match family[:2], variant:
        case "ES", _:
            return solve(y).log_evidence, 0.0
        case "BR", "r":
            return brownian_regression(y), 0.0
        case "BR", _:
            return brownian_signs(y), 0.0
        case (("Li" | "Ta"), depth):
            link = "linear" if family == "Lin" else "tanh"
            return tree(y, int(depth), link, *TREE_SIGMAS[sigmas][link]).item(), 0.0
        case "LZ", _:
            return particle_filter(y, lorenz_drift, 3, 0.02, variant, 1.0, 2.0, seed)
        case "VD", _:
            return particle_filter(y, van_der_pol_drift, 2, 0.05, variant, 0.5, 1.0, seed)
    raise KeyError(name)


def brownian_regression(y: np.ndarray, step: float = 0.1, noise: float = 0.15) -> float:
    """Density of the observations of a Brownian motion, which are jointly normal."""
    seen = np.flatnonzero(~np.isnan(y))
    covariance = step**2 * (1 + np.minimum.outer(seen, seen)) + noise**2 * np.eye(len(seen))
    return float(multivariate_normal.logpdf(y[seen], cov=covariance))


def brownian_signs(y: np.ndarray, step: float = 0.1, slope: float = 5.0) -> float:
    """Forward filter of a Brownian motion seen through Bernoulli variables, on a grid.

    The trapezoidal rule's error falls faster than any power of the grid's spacing, which is a fifth
    of a step.
    """
    reach = 8 * step * len(y) ** 0.5
    grid = np.arange(-reach, reach, step / 5)
    transition = norm.pdf(grid[:, None], grid, step) * (step / 5)
    density, log_p = norm.pdf(grid, 0, step), 0.0
    for t, outcome in enumerate(y):
        if t:
            density = transition @ density
        if not np.isnan(outcome):
            density *= np.exp(log_expit((2 * outcome - 1) * slope * grid))
            total = density.sum() * step / 5
            log_p += np.log(total)
            density /= total
    return float(log_p)


def tree(y: np.ndarray, depth: int, link: str, leaf_sigma: float, sigma: float) -> np.ndarray:
    """Log density of the root of a binary tree, at several points.

    A node is the difference of two independent links of the same distribution, plus noise: its
    characteristic function is the squared modulus of that of the link, times that of the noise.
    """
    if link == "linear":
        variance = leaf_sigma**2
        for _ in range(depth - 1):
            variance = 2 * variance + sigma**2
        return norm.logpdf(y, 0, variance**0.5)
    reach = 10 * max(leaf_sigma, 0.3 + sigma)
    x = np.linspace(-reach, reach, 4001)
    frequency = np.linspace(0, 9 / min(leaf_sigma, sigma), 4001)
    cosines = np.cos(np.outer(frequency, np.tanh(x)))  # the distributions are symmetric
    density = norm.pdf(x, 0, leaf_sigma)
    for level in reversed(range(depth - 1)):
        of_link = cosines @ density * (x[1] - x[0])
        of_node = of_link**2 * np.exp(-((sigma * frequency) ** 2) / 2)
        of_node[[0, -1]] /= 2
        at = y if level == 0 else x
        density = np.cos(np.outer(at, frequency)) @ of_node * (frequency[1] / np.pi)
    return np.log(np.maximum(density, np.finfo(float).tiny))


def particle_filter(
    y: np.ndarray,
    drift: Callable,
    n_coordinates: int,
    dt: float,
    variant: str,
    noise: float,
    slope: float,
    seed: int,
    diffusion: float = 0.1,
) -> tuple[float, float]:
    """Evidence of an Euler-Maruyama process whose first coordinate is observed.

    With normal noise the particles are weighted by the density of the next observation given the
    state before it, and moved according to both (the locally optimal proposal: Doucet et al. 2000).
    With signs, which say little about one step, they follow the transition.

    Returns
    -------
    log_evidence, se : float
        Log of the average over independent filters, and its standard error.
    """
    rng = np.random.default_rng(seed)
    runs = np.empty(RUNS)
    for i in range(RUNS):
        locs, scale, log_p = np.zeros((n_coordinates, PARTICLES)), 1.0, 0.0
        for outcome in y:
            state = locs + scale * rng.normal(size=locs.shape)
            if not np.isnan(outcome):
                if variant == "r":
                    log_weights, state[0] = _normal_update(rng, outcome, locs[0], scale, noise)
                else:
                    log_weights = log_expit((2 * outcome - 1) * slope * state[0])
                log_p += logsumexp(log_weights) - np.log(PARTICLES)
                state = state[:, _systematic(rng, log_weights)]
            locs, scale = state + dt * np.stack(drift(state)), dt**0.5 * diffusion
        runs[i] = log_p
    relative = np.exp(runs - runs.max())
    se = relative.std(ddof=1) / relative.mean() / RUNS**0.5
    return float(np.log(relative.mean()) + runs.max()), float(se)


def _normal_update(rng, outcome, loc, scale, noise):
    """Density of an observation with normal noise, and the coordinate given it."""
    total = scale**2 + noise**2
    mean = loc + scale**2 / total * (outcome - loc)
    sd = scale * noise / total**0.5
    return norm.logpdf(outcome, loc, total**0.5), mean + sd * rng.normal(size=loc.shape)


def _systematic(rng, log_weights: np.ndarray) -> np.ndarray:
    """Indices of resampled particles."""
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
    at = (np.arange(len(cumulative)) + rng.uniform()) / len(cumulative) * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, at), len(cumulative) - 1)
