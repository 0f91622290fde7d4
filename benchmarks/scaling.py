"""How cost and gap grow with the number of unknowns: ``python -m benchmarks.scaling``.

Two models whose evidence is known at any size: a Gaussian random walk of given step seen through
noise, and a hierarchy of many groups, each with a few observations, of unknown mean and spread. The
flow is "coupling", which the default takes beyond 1,000 elements.
"""

from __future__ import annotations

import argparse
import json
import logging

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import jax
import numpy as np
import pymc as pm

from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp
from scipy.stats import halfnorm, norm

import pymc_emf as emf

from benchmarks.common import ELBO_DRAWS

STEP, NOISE = 0.3, 1.0
SPREAD, GROUP_SIZE = 0.7, 5


def walk(size: int) -> tuple[pm.Model, float]:
    """Random walk, and its log evidence by the Kalman filter."""
    rng = np.random.default_rng(size)
    y = np.cumsum(STEP * rng.normal(size=size)) + NOISE * rng.normal(size=size)
    with pm.Model() as model:
        start = pm.Normal.dist(0.0, STEP)
        x = pm.GaussianRandomWalk("x", sigma=STEP, init_dist=start, shape=size)
        pm.Normal("y", x, NOISE, observed=y)
    mean, variance, log_evidence = 0.0, 0.0, 0.0
    for observation in y:
        variance += STEP**2
        total = variance + NOISE**2
        log_evidence += norm.logpdf(observation, mean, total**0.5)
        mean += variance / total * (observation - mean)
        variance *= NOISE**2 / total
    return model, float(log_evidence)


def groups(size: int) -> tuple[pm.Model, float]:
    """Group means around a common mean, and the log evidence by quadrature."""
    rng = np.random.default_rng(size)
    n_groups = size - 2
    y = 2.0 + SPREAD * rng.normal(size=(n_groups, 1)) + rng.normal(size=(n_groups, GROUP_SIZE))
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 10.0)
        tau = pm.HalfNormal("tau", 2.0)
        theta = pm.Normal("theta", mu, tau, shape=n_groups)
        pm.Normal("y", theta[:, None], 1.0, observed=y)

    # Given mean and spread the groups are independent, and their averages suffice.
    average = y.mean(axis=1)
    within = norm.logpdf(y).sum() - norm.logpdf(average, 0.0, GROUP_SIZE**-0.5).sum()
    middle, se = average.mean(), average.std() / n_groups**0.5
    spread = np.sqrt(max(average.var() - 1 / GROUP_SIZE, 0.01))
    reach = np.linspace(-8, 8, 161)
    means = middle + se * reach
    spreads = np.abs(spread + (average.var() / spread) * (2 * n_groups) ** -0.5 * reach)
    spreads = np.unique(spreads[spreads > 1e-3])
    total, squares = average.sum(), (average**2).sum()
    variance = spreads[:, None] ** 2 + 1 / GROUP_SIZE
    deviations = squares - 2 * means * total + n_groups * means**2
    log_density = -0.5 * n_groups * np.log(2 * np.pi * variance) - 0.5 * deviations / variance
    log_density += norm.logpdf(means, 0, 10) + halfnorm.logpdf(spreads, scale=2)[:, None]
    weights = np.gradient(means) * np.gradient(spreads)[:, None]
    return model, float(within + logsumexp(log_density, b=weights))


MODELS: dict[str, Callable[[int], tuple[pm.Model, float]]] = {"walk": walk, "groups": groups}


def measure(name: str, size: int, steps: int, seed: int) -> dict:
    """Fit one model at one size."""
    model, log_evidence = MODELS[name](size)
    begin = perf_counter()
    approx = emf.fit(steps, model=model, layers="coupling", random_seed=seed, progressbar=False)
    wall = perf_counter() - begin
    elbo = approx.elbo(max(ELBO_DRAWS // 10, 1000), random_seed=seed + 1)
    return {
        "model": name,
        "size": size,
        "gap": log_evidence - elbo.mean,
        "se": elbo.se,
        "wall": wall,
        "timing": approx.timing,
        "start": approx.warm_start.chosen,
        "stopping": approx.stopping,
    }


def main() -> None:
    """Print a table, one row a model and size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    logging.getLogger("pymc").setLevel(logging.WARNING)

    table = Table("model", "d", "µs / step", "µs / step / d", "start, s", "whole, s", "gap, nats")
    table.add_column("gap / d")
    table.add_column("from")
    records = []
    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    for name in args.models:
        for size in args.sizes:
            with console.status(f"{name} {size}"):
                r = measure(name, size, args.steps, args.seed)
            records.append(r)
            step = 1e6 * r["timing"]["step"]
            table.add_row(
                name,
                str(size),
                f"{step:.0f}",
                f"{step / size:.2f}",
                f"{r['timing']['warm_start']:.1f}",
                f"{r['wall']:.1f}",
                f"{r['gap']:.3f} ± {r['se']:.3f}",
                f"{r['gap'] / size:.1e}",
                r["start"],
            )
            if args.json:
                args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    console.print(table)


if __name__ == "__main__":
    main()
