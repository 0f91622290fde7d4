"""Noise of the gradient by estimator and by kind of draws: ``python -m benchmarks.gradients``.

At some states of the default fit, the variance of the gradient of the loss over many sets of draws,
relative to that of the plain estimator: reparameterised gradients, independent draws. The median
over the parameters of the layers (an optimiser like Adam scales each of them for itself).
"""

from __future__ import annotations

import argparse
import logging

import jax
import jax.numpy as jnp
import numpy as np

from rich.console import Console
from rich.table import Table
from scipy.stats import norm, qmc

import pymc_emf as emf

from case_studies.problems import load, names
from pymc_emf.variational.objective import Objective

#: Draws of one step, a power of two for Sobol's sequence, and sets of them.
DRAWS, SETS = 64, 100


def independent(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(size=(DRAWS, size))


def antithetic(rng: np.random.Generator, size: int) -> np.ndarray:
    half = rng.normal(size=(DRAWS // 2, size))
    return np.concatenate([half, -half])


def sobol(rng: np.random.Generator, size: int) -> np.ndarray:
    points = qmc.Sobol(size, scramble=True, rng=rng).random(DRAWS)
    return norm.ppf(np.clip(points, 1e-10, 1 - 1e-10))


KINDS = {"independent": independent, "antithetic": antithetic, "Sobol": sobol}


def variances(objective, estimator: str, kind: str) -> np.ndarray:
    """Variance of each parameter's gradient over sets of draws."""
    values = [jnp.asarray(v.get_value()) for v in objective.variables]
    parameters = objective.own(values, objective.layer_parameters)
    gates = objective.own(values, objective.structured.parameters)
    fixed = objective.fixed(values)
    objective = Objective(objective.layers, objective.structured, estimator)
    objective.rewrite()

    @jax.jit
    def gradient(noise):
        def loss(values):
            return objective.loss([*values, *gates], fixed, (noise, []))

        return jnp.concatenate([g.ravel() for g in jax.grad(loss)(parameters)])

    rng = np.random.default_rng(0)
    found = [gradient(KINDS[kind](rng, objective.size)) for _ in range(SETS)]
    return np.var(found, axis=0)


def main() -> None:
    """Print a table, one row a problem and state."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--problems",
        nargs="+",
        default=["ES", "BRB-c", "LZS-c", "Tanh-4"],
        choices=sorted(dict(names())),
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 5_000])
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for package in ("pymc", "pymc_emf"):
        logging.getLogger(package).setLevel(logging.ERROR)

    table = Table("problem", "after steps")
    cases = [(e, k) for e in ("reparameterised", "path") for k in KINDS][1:]
    for estimator, kind in cases:
        table.add_column(f"{estimator}, {kind}", justify="right")
    console = Console()
    if not console.is_terminal:
        console.width = 200  # no window to fit in
    for name in args.problems:
        for steps in args.steps:
            with console.status(f"{name} {steps}"):
                approx = emf.fit(steps, model=load(name).model, random_seed=0, progressbar=False)
                plain = variances(approx.objective, "reparameterised", "independent")
                used = plain > 0  # weights of masked connections have no gradient
                ratios = [
                    np.median(variances(approx.objective, *case)[used] / plain[used])
                    for case in cases
                ]
            table.add_row(name, str(steps), *(f"{ratio:.2g}" for ratio in ratios))
    console.print(table)


if __name__ == "__main__":
    main()
