"""What benchmarks share: the record of a timed fit, fused steps, their parser and console."""

from __future__ import annotations

import argparse
import logging
import math

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from rich.console import Console

ELBO_DRAWS = 20_000
CHUNK = 100


@dataclass(frozen=True)
class Fit:
    """One fit: what it took and how good it is.

    Attributes
    ----------
    compile : float
        Seconds until the first step can run.
    step : float
        Median seconds per step.
    wall : float
        Seconds of the whole fit, compilation included and evaluation of the ELBO excluded.
    elbo, se : float
        The ELBO from fresh draws and its standard error, in nats.
    """

    compile: float
    step: float
    wall: float
    elbo: float
    se: float


def mean_and_se(terms) -> tuple[float, float]:
    """Mean of independent terms, and its standard error."""
    terms = np.asarray(terms)
    return float(terms.mean()), float(terms.std(ddof=1) / math.sqrt(terms.size))


def run_fused(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    steps: int,
    prepare: Callable[[Any, int], tuple[Any, Any]] | None = None,
) -> tuple[Any, float, float]:
    """Run `step` many times, 100 steps a call.

    Parameters
    ----------
    step : callable
        From the state and the step's input to the next state and the loss.
    state
        Any pytree.
    steps : int
        How many.
    prepare : callable, optional
        From the state and a number of steps to the next state and those steps' stacked inputs.

    Returns
    -------
    state, compile, step
        The last state, the seconds that compiling took and the median seconds of a step.
    """
    chunk = math.gcd(steps, CHUNK)

    def run_chunk(state):
        state, inputs = prepare(state, chunk) if prepare else (state, None)
        return jax.lax.scan(step, state, inputs, length=chunk)

    start = perf_counter()
    compiled = jax.jit(run_chunk).lower(state).compile()
    compile_time = perf_counter() - start
    ticks = [perf_counter()]
    for _ in range(steps // chunk):
        state, _ = jax.block_until_ready(compiled(state))
        ticks.append(perf_counter())
    return state, compile_time, float(np.median(np.diff(ticks))) / chunk


def make_parser(description: str | None, seeds: list[int]) -> argparse.ArgumentParser:
    """Parser of a run of fits that can be resumed: their seeds, and the file."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help="of the fits")
    parser.add_argument("--json", type=Path, help="written after every fit, and resumed from")
    return parser


def make_console() -> Console:
    """Console for a table that also says what fits would warn of, in double precision."""
    jax.config.update("jax_enable_x64", True)
    for package in ("pymc", "pymc_emf"):  # the table says it
        logging.getLogger(package).setLevel(logging.ERROR)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    return console
