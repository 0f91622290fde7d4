"""The variational problems of Silvestri et al. (2022), as PyMC models with known evidence.

============================ ============================================================
name                         model
============================ ============================================================
BRS-r, BRB-r, BRS-c, BRB-c   Brownian motion, 30 steps (:func:`brownian`)
LZS-r, LZB-r, LZS-c, LZB-c   stochastic Lorenz system, 30 steps (:func:`lorenz`)
VDS-r, VDB-r, VDS-c, VDB-c   stochastic Van der Pol oscillator, 120 steps (:func:`van_der_pol`)
ES                           Eight Schools, centred (:func:`eight_schools`)
Lin-4, Lin-8, Tanh-4, Tanh-8 binary trees of 4 or 8 layers (:func:`tree`)
============================ ============================================================

``r`` is regression, ``c`` classification; ``S`` observes every time point, ``B`` (a bridge)
the first and the last third. Each problem but ES and VD comes with two data sets, seeds 0 and 1;
:func:`case_studies.simulation.simulate` makes further ones.

``data/evidence.json`` holds the observations and, in nats, the negative log evidences: the
smallest negative ELBO that any approximation can reach. Those of the linear-Gaussian problems
are exact, those of ``BR*-c``, of the trees and of ES are quadratures with an error below 1e-6,
those of the Lorenz system come from guided particle filters with a standard error.
"""

from __future__ import annotations

import json

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pymc as pm
import pytensor.tensor as pt

SCHOOL_SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)

Outcome = Literal["regression", "classification"]
Form = Literal["steps", "sde"]
#: Standard deviations of the leaves and of the other nodes of the trees, by link.
TREE_SIGMAS = {
    "code": {"linear": (0.2, 0.15), "tanh": (0.1, 0.05)},
    "paper": {"linear": (1.0, 1.0), "tanh": (1.0, 1.0)},
}


@dataclass(frozen=True)
class Problem:
    """A model with data, and what is known about its posterior.

    Attributes
    ----------
    model : pm.Model
        The model, conditioned on the data.
    neg_log_evidence : float
        -log p(y), in nats.
    se : float
        Standard error of `neg_log_evidence`; zero where it is exact.
    dim : int
        Number of latent dimensions.
    true_latents : dict
        Variable name to the value that generated the data; empty for Eight Schools.
    observed : ndarray
        The data; NaN where a bridge observes nothing.
    """

    model: pm.Model
    neg_log_evidence: float
    se: float
    dim: int
    true_latents: dict[str, np.ndarray]
    observed: np.ndarray


def _observe(latent, y: np.ndarray, outcome: Outcome, sigma: float, slope: float) -> None:
    """Condition the model in context on `y`, of the same length as `latent`."""
    if outcome == "regression":
        pm.Normal("y", latent, sigma, observed=y)
    else:
        pm.Bernoulli("y", logit_p=slope * latent, observed=y.astype(int))


def brownian(y: Sequence[float], outcome: Outcome = "regression") -> pm.Model:
    """Brownian motion of step 0.1, seen through noise or through its sign.

    Parameters
    ----------
    y : sequence of float
        One observation a time point, NaN where there is none.
    outcome : {"regression", "classification"}
        Whether y is the state with Gaussian noise or a Bernoulli with logit 5 times the state.
    """
    y = np.asarray(y, dtype=float)
    seen = np.flatnonzero(~np.isnan(y))
    with pm.Model(coords={"time": np.arange(len(y))}) as model:
        x = pm.GaussianRandomWalk("x", sigma=0.1, init_dist=pm.Normal.dist(0, 0.1), dims="time")
        _observe(x[seen], y[seen], outcome, sigma=0.15, slope=5.0)
    return model


def lorenz_drift(state, s=10.0, r=28.0, b=8 / 3):
    """Velocity of the Lorenz system, coordinate by coordinate."""
    x, y, z = state
    return s * (y - x), x * (r - z) - y, x * y - b * z


def van_der_pol_drift(state, mu=1.0):
    """Velocity of the Van der Pol oscillator, coordinate by coordinate."""
    x, v = state
    return v, mu * (1 - x**2) * v - x


def _diffusion(
    y: np.ndarray,
    coordinates: str,
    drift: Callable,
    parameters: tuple[float, ...],
    form: Form,
    dt: float,
    diffusion: float,
    observation: tuple[Outcome, float, float],
) -> pm.Model:
    """Stochastic differential equation, of which the first coordinate is observed."""
    y = np.asarray(y, dtype=float)
    seen = np.flatnonzero(~np.isnan(y))
    coords = {"coordinate": list(coordinates), "time": np.arange(len(y))}
    n = len(coordinates)
    with pm.Model(coords=coords) as model:
        if form == "sde":
            v = pm.EulerMaruyama(
                "v",
                dt,
                lambda state, *pars: (pt.stack(drift(_rows(state, n), *pars)), diffusion),
                parameters,
                init_dist=pm.Normal.dist(0, 1, shape=n),
                shape=(n, len(y)),
                steps=len(y) - 1,
                dims=("coordinate", "time"),
                initval=np.zeros((n, len(y))),
            )
            first = v[0, seen]
        else:
            v = [pm.Normal("v_0", 0, 1, dims="coordinate")]
            for t in range(1, len(y)):
                mu = v[-1] + dt * pt.stack(drift(_rows(v[-1], n), *parameters))
                v.append(pm.Normal(f"v_{t}", mu, np.sqrt(dt) * diffusion, dims="coordinate"))
            first = pt.stack([v[t][0] for t in seen])
        _observe(first, y[seen], *observation)
    return model


def _rows(state, n: int) -> list:
    return [state[i] for i in range(n)]


def lorenz(
    y: Sequence[float],
    outcome: Outcome = "regression",
    form: Form = "steps",
    dt: float = 0.02,
    diffusion: float = 0.1,
) -> pm.Model:
    """Stochastic Lorenz system, of which the first coordinate is observed.

    Parameters
    ----------
    y : sequence of float
        One observation a time point, NaN where there is none.
    outcome : {"regression", "classification"}
        Whether y is the coordinate with Gaussian noise or a Bernoulli with logit twice the
        coordinate.
    form : {"steps", "sde"}
        The same density in two spellings, see Notes.
    dt, diffusion : float
        Time step and diffusion coefficient.

    Notes
    -----
    The recursion's state is a vector whose coordinates drive each other, for which PyMC has no
    distribution of its own. ``"steps"`` is what users write: a Python loop with one variable
    ``v_t`` of shape 3 a time step. ``"sde"`` is one :class:`pymc.EulerMaruyama` variable ``v``
    of shape (3, time). It takes the coordinates for a batch and lets the drift couple the batch,
    which its density and its draws allow as long as no further batch dimension is added.
    """
    parameters = (10.0, 28.0, 8 / 3)
    return _diffusion(y, "xyz", lorenz_drift, parameters, form, dt, diffusion, (outcome, 1.0, 2.0))


def van_der_pol(
    y: Sequence[float],
    outcome: Outcome = "regression",
    form: Form = "sde",
    dt: float = 0.05,
    diffusion: float = 0.1,
) -> pm.Model:
    """Stochastic Van der Pol oscillator with mu = 1, of which the position is observed.

    Parameters
    ----------
    y : sequence of float
        One observation a time point, NaN where there is none.
    outcome : {"regression", "classification"}
        Whether y is the position with Gaussian noise of 0.5 or a Bernoulli whose logit it is.
    form : {"sde", "steps"}
        As for :func:`lorenz`: one variable ``v`` of shape (2, time), or one ``v_t`` a time step.
    dt, diffusion : float
        Time step and diffusion coefficient.
    """
    return _diffusion(y, "xv", van_der_pol_drift, (1.0,), form, dt, diffusion, (outcome, 0.5, 1.0))


def eight_schools(y: Sequence[float], sigma: Sequence[float] = SCHOOL_SIGMA) -> pm.Model:
    """Eight Schools, in the centred parameterisation.

    Parameters
    ----------
    y : sequence of float
        Estimated effect of each school.
    sigma : sequence of float
        Standard error of each estimate.
    """
    with pm.Model(coords={"school": np.arange(len(y))}) as model:
        mu = pm.Normal("mu", 0, 10)
        log_tau = pm.Normal("log_tau", 5, 1)
        theta = pm.Normal("theta", mu, pt.exp(log_tau), dims="school")
        pm.Normal("y", theta, np.asarray(sigma), observed=np.asarray(y), dims="school")
    return model


def tree(
    y: float,
    depth: int,
    link: Literal["linear", "tanh"] = "linear",
    sigmas: Literal["code", "paper"] = "code",
) -> pm.Model:
    """Binary tree of `depth` layers, of which only the root is observed.

    Each node is normal around the difference of its two children's links.

    Parameters
    ----------
    y : float
        The root, layer 0.
    depth : int
        Number of layers; the first, ``layer_{depth - 1}``, has 2 ** (depth - 1) nodes.
    link : {"linear", "tanh"}
        The function of each child.
    sigmas : {"code", "paper"}
        Standard deviations as in the code of the EMF paper's authors, 0.2 for the leaves and 0.15
        for the others (0.1 and 0.05 with tanh), or one, as the paper's appendix has them.
    """
    leaf_sigma, sigma = TREE_SIGMAS[sigmas][link]
    with pm.Model() as model:
        layer = pm.Normal(f"layer_{depth - 1}", 0, leaf_sigma, shape=2 ** (depth - 1))
        for level in reversed(range(depth - 1)):
            child = layer if link == "linear" else pt.tanh(layer)
            mu = child[0::2] - child[1::2]
            if level:
                layer = pm.Normal(f"layer_{level}", mu, sigma, shape=2**level)
            else:
                pm.Normal("y", mu, sigma, observed=np.atleast_1d(y))
    return model


@cache
def _evidence() -> dict[str, dict[str, dict[str, Any]]]:
    text = files("case_studies").joinpath("data", "evidence.json").read_text(encoding="utf-8")
    return json.loads(text)


def names() -> list[tuple[str, int]]:
    """Every problem's name and seed, as :func:`load` takes them."""
    return [(name, int(seed)) for name, seeds in _evidence().items() for seed in seeds]


def build(name: str, y: np.ndarray, **options) -> pm.Model:
    """Build the model of a problem, given its data.

    Parameters
    ----------
    name : str
        Such as ``"BRB-c"``, ``"VDS-r"`` or ``"Tanh-6"``.
    y : ndarray
        NaN where a bridge observes nothing.
    **options
        Passed on to the model's function.
    """
    family, _, variant = name.partition("-")
    if family == "ES":
        return eight_schools(y, **options)
    if family in ("Lin", "Tanh"):
        link = "linear" if family == "Lin" else "tanh"
        return tree(y.item(), int(variant), link, **options)
    series = {"BR": brownian, "LZ": lorenz, "VD": van_der_pol}[family[:2]]
    return series(y, "regression" if variant == "r" else "classification", **options)


def load(name: str, seed: int = 0, **options) -> Problem:
    """Build a benchmark problem.

    Parameters
    ----------
    name : str
        One of the names above, such as ``"BRB-c"``.
    seed : int
        Which data set.
    **options
        Passed on to the model's function, as ``form="sde"`` to :func:`lorenz`.

    Examples
    --------
    >>> from case_studies.problems import load
    >>> problem = load("ES")
    >>> problem.dim, round(problem.neg_log_evidence, 3)
    (10, 36.131)
    """
    try:
        record = _evidence()[name][str(seed)]
    except KeyError:
        raise KeyError(f"no problem {name!r} with seed {seed}; there are {names()}") from None
    y = np.array(record["y"], dtype=float)  # None becomes NaN
    latents = {k: np.array(v) for k, v in record.get("true_latents", {}).items()}
    model = build(name, y, **options)
    if name.startswith("LZ"):
        path = latents.pop("v")
        if "v" in model.named_vars:
            latents["v"] = path.T
        else:
            latents = {f"v_{t}": state for t, state in enumerate(path)}
    return Problem(
        model=model,
        neg_log_evidence=record["neg_log_evidence"],
        se=record["se"],
        dim=record["dim"],
        true_latents=latents,
        observed=y,
    )
