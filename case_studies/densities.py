"""Data and structures of the density-estimation experiments of the EMF paper (§5.1-5.3, A.1-A.2).

The data are drawn afresh at every call, as in the authors' code. Of all but the real ones the true
density is known, and so is the entropy, below which no negative mean log density can lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pymc as pm

from scipy.special import logit, logsumexp
from scipy.stats import norm

import pymc_emf as emf

__all__ = ["DATA", "STRUCTURES", "Data"]

#: Time steps of a series, and sizes of the data sets that are one observation each.
T, N_IRIS, N_DIGITS = 30, 10, 20

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Data:
    """A source of observations.

    Attributes
    ----------
    table : int
        The paper's table.
    shape : tuple of int
        Of one observation: (2,), or time steps or members of a data set, and coordinates.
    draw : callable
        ``draw(rng, n)`` returns n observations as rows, the last axis of ``shape`` fastest.
    log_density : callable, optional
        True log density of rows.
    entropy : float, optional
        Of that density, in nats.
    """

    table: int
    shape: tuple[int, ...]
    draw: Draw
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    entropy: float | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def _normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


# --- two dimensions (Table 1) ------------------------------------------------------------------

_DIAGONAL = 1 / np.sqrt(2)
#: Centres and standard deviation; the authors' code scales both by 1 / 1.414.
CENTRES = (
    4
    / 1.414
    * np.array(
        [(1, 0), (-1, 0), (0, 1), (0, -1)]
        + [(a * _DIAGONAL, b * _DIAGONAL) for a in (1, -1) for b in (1, -1)]
    )
)
SPREAD = 0.5 / 1.414


def _eight_gaussians(rng, n):
    return CENTRES[rng.integers(8, size=n)] + SPREAD * rng.normal(size=(n, 2))


def _log_eight_gaussians(x):
    each = _normal(x[:, None], CENTRES, SPREAD).sum(axis=-1)
    return logsumexp(each, axis=1) - np.log(8)


def _entropy_of_eight_gaussians():
    """By a sum over a grid, which of so smooth a density is exact to nine digits."""
    axis = np.arange(-6.0, 6.0, 0.05)
    log_density = _log_eight_gaussians(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    return float(-(np.exp(log_density) * log_density).sum() * 0.05**2)


def _checkerboard(rng, n):
    x = rng.uniform(-2, 2, size=n)
    y = rng.uniform(size=n) - 2 * rng.integers(2, size=n) + np.floor(x) % 2
    return 2 * np.column_stack([x, y])


def _log_checkerboard(x):
    square = np.floor(x / 2)
    inside = (np.abs(x) <= 4).all(axis=1) & (square.sum(axis=1) % 2 == 0)
    return np.where(inside, -np.log(32), -np.inf)


# --- time series (Table 3): rows are (time, coordinate) -----------------------------------------


def _walk(rng, n, first, step, scale):
    """A series whose steps are normal: the first of scale `first`, then around `step(x)`."""
    x = [first * rng.normal(size=n)]
    for _ in range(T - 1):
        x.append(step(x[-1]) + scale * rng.normal(size=n))
    return np.stack(x, axis=1)


def _log_walk(x, first, step, scale):
    return _normal(x[:, 0], 0, first) + _normal(x[:, 1:], step(x[:, :-1]), scale).sum(axis=1)


def _entropy_of_walk(first, scale, dim=1):
    return dim * float(norm.entropy(scale=first) + (T - 1) * norm.entropy(scale=scale))


def _same(x):
    return x


def _decayed(x):
    return 0.8 * x


def _brownian(rng, n):
    return np.exp(_walk(rng, n, 0.1, _same, 0.1))


def _log_brownian(x):
    return _log_walk(np.log(x), 0.1, _same, 0.1) - np.log(x).sum(axis=1)


def _ornstein(rng, n):
    return _walk(rng, n, 5.0, _decayed, 0.5)


def _log_ornstein(x):
    return _log_walk(x, 5.0, _decayed, 0.5)


STEP, DIFFUSION = 0.02, 0.1 * np.sqrt(0.02)


def _lorenz_step(v):
    x, y, z = np.moveaxis(v, -1, 0)
    drift = [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]
    return v + STEP * np.stack(drift, axis=-1)


def _lorenz(rng, n):
    v = [rng.normal(size=(n, 3))]
    for _ in range(T - 1):
        v.append(_lorenz_step(v[-1]) + DIFFUSION * rng.normal(size=(n, 3)))
    return np.stack(v, axis=1).reshape(n, -1)


def _log_lorenz(x):
    v = x.reshape(-1, T, 3)
    steps = _normal(v[:, 1:], _lorenz_step(v[:, :-1]), DIFFUSION).sum(axis=(1, 2))
    return _normal(v[:, 0], 0, 1).sum(axis=1) + steps


# --- data sets as observations (Table 2): the mean and n - 1 members of one class ----------------


@cache
def _classes(name: str) -> list[np.ndarray]:
    """Members of each class; the digits dequantised, as logs or logits (A.1.1)."""
    from sklearn import datasets

    name, _, scale = name.partition("-")
    loaded = getattr(datasets, f"load_{name}")()
    x = loaded.data
    if name == "digits":
        jitter = np.random.default_rng(42).uniform(size=x.shape)
        margin = 1e-6
        share = margin + (1 - 2 * margin) * (x + jitter) / 17
        x = logit(share) if scale == "logit" else np.log(share)
    return [x[loaded.target == label] for label in np.unique(loaded.target)]


def _data_sets(name: str, size: int) -> Draw:
    def draw(rng, n):
        classes = _classes(name)
        labels = rng.integers(len(classes), size=n)
        drawn = np.empty((n, size, classes[0].shape[1]))
        for label, members in enumerate(classes):
            (rows,) = np.nonzero(labels == label)
            order = rng.random((len(rows), len(members))).argpartition(size - 1, axis=1)[:, :size]
            chosen = members[order]
            drawn[rows, 0] = chosen.mean(axis=1)
            drawn[rows, 1:] = chosen[:, : size - 1]
        return drawn.reshape(n, -1)

    return draw


DATA = {
    "8 gaussians": Data(
        1, (2,), _eight_gaussians, _log_eight_gaussians, _entropy_of_eight_gaussians()
    ),
    "checkerboard": Data(1, (2,), _checkerboard, _log_checkerboard, float(np.log(32))),
    "IRIS": Data(2, (N_IRIS, 4), _data_sets("iris", N_IRIS)),
    # the paper's numbers are of logs, as in its authors' code of the time, which has logits now
    "digits": Data(2, (N_DIGITS, 64), _data_sets("digits", N_DIGITS)),
    "digits-logit": Data(2, (N_DIGITS, 64), _data_sets("digits-logit", N_DIGITS)),
    # of which the logarithm is a walk around zero, so that its Jacobian adds nothing
    "Brownian": Data(3, (T, 1), _brownian, _log_brownian, _entropy_of_walk(0.1, 0.1)),
    "Ornstein-Uhlenbeck": Data(3, (T, 1), _ornstein, _log_ornstein, _entropy_of_walk(5.0, 0.5)),
    "Lorenz": Data(3, (T, 3), _lorenz, _log_lorenz, _entropy_of_walk(1.0, DIFFUSION, 3)),
}


# --- structures (A.2) ---------------------------------------------------------------------------


def continuity(n: int, dim: int) -> pm.Model:
    """Each value near the one before; the scale of the steps is trained."""
    with pm.Model() as model:
        scale = emf.parameter("scale", np.ones(dim), positive=True)
        x = pm.Normal("x_0", 0.0, 1.0, shape=dim)
        for t in range(1, n):
            x = pm.Normal(f"x_{t}", x, scale)
    return model


def smoothness(n: int, dim: int) -> pm.Model:
    """Each value near where the two before point to; the scale of the steps is trained."""
    with pm.Model() as model:
        scale = emf.parameter("scale", np.ones(dim), positive=True)
        before, x = (pm.Normal(f"x_{t}", 0.0, 1.0, shape=dim) for t in range(2))
        for t in range(2, n):
            before, x = x, pm.Normal(f"x_{t}", 2 * x - before, scale)
    return model


def hierarchy(n: int, dim: int) -> pm.Model:
    """A mean and n - 1 values around it, all of scale one."""
    with pm.Model() as model:
        mean = pm.Normal("mean", 0.0, 1.0, shape=dim)
        for i in range(1, n):
            pm.Normal(f"x_{i}", mean, 1.0)
    return model


STRUCTURES = {"continuity": continuity, "smoothness": smoothness, "hierarchy": hierarchy}
