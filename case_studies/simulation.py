"""Fresh data sets of the benchmark problems, drawn from their own models."""

from __future__ import annotations

import zlib

import numpy as np
import pymc as pm

from case_studies.evidence import log_evidence
from case_studies.problems import Problem, build

#: Time points of a series.
LENGTHS = {"BR": 30, "LZ": 30, "VD": 120}


def template(name: str) -> np.ndarray:
    """Observations of a problem before there are any: zeros, and NaN where nothing is observed."""
    family = name.partition("-")[0]
    if family in ("Lin", "Tanh"):
        return np.zeros(1)
    length = LENGTHS[family[:2]]
    y = np.zeros(length)
    if family.endswith("B"):  # a bridge
        y[length // 3 : length - length // 3] = np.nan
    return y


def simulate(name: str, seed: int = 0, **options) -> Problem:
    """Draw latent variables and data from the model of a problem.

    Parameters
    ----------
    name : str
        Such as ``"BRB-c"``; any but ``"ES"``, whose data are real.
    seed : int
        The same seed gives the same data.
    **options
        ``form`` of a diffusion or ``sigmas`` of a tree, for the model's function.

    Returns
    -------
    Problem
        With the latent variables that made the data. Its evidence is computed by
        :func:`case_studies.evidence.log_evidence`.
    """
    blank = template(name)
    model = build(name, blank, **options)
    (observed,) = model.observed_RVs
    drawn = pm.draw(
        [observed, *model.free_RVs],
        random_seed=np.random.default_rng([seed, zlib.crc32(name.encode())]),
        mode="FAST_COMPILE",
    )
    y = blank.copy()
    y[~np.isnan(y)] = drawn[0]
    latents = {rv.name: value for rv, value in zip(model.free_RVs, drawn[1:], strict=True)}
    log_p, se = log_evidence(name, y, **options)
    return Problem(
        model=build(name, y, **options),
        neg_log_evidence=-log_p,
        se=se,
        dim=sum(value.size for value in latents.values()),
        true_latents=latents,
        observed=y,
    )
