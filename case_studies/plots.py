"""Figures of the page on diagnostics: Eight Schools and a random walk, by the package's own plots.

``python -m case_studies.plots docs/_static`` fits both, in a few minutes, and draws a figure
for each function of :mod:`pymc_emf.plots`.
"""

from __future__ import annotations

import argparse

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_emf as emf

from case_studies.figures import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHOOLS = ["Choate", "Deerfield", "Andover", "Exeter", "Hotchkiss", "Lawrenceville", "St. Paul's"]
SCHOOLS += ["Mt. Hermon"]
EFFECT = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERROR = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]

#: Days of the random walk, and those on which it is not observed.
N_DAYS, UNSEEN = 60, range(30, 40)
#: Standard deviations of its steps and of the observations.
STEP, NOISE = 0.5, 0.5


def eight_schools() -> pm.Model:
    """Eight Schools with the half-Cauchy prior of the scale, and the schools' names."""
    with pm.Model(coords={"school": SCHOOLS}) as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, dims="school")
        pm.Normal("y", theta, ERROR, observed=EFFECT, dims="school")
    return model


def random_walk(seed: int) -> tuple[pm.Model, dict[str, np.ndarray]]:
    """A walk observed with noise, but for some days in the middle, and its true values."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0.0, STEP, size=N_DAYS).cumsum()
    seen = np.setdiff1d(np.arange(N_DAYS), UNSEEN)
    with pm.Model(coords={"day": np.arange(N_DAYS)}) as model:
        sd = pm.HalfNormal("step", 1.0)
        start = pm.Normal.dist(0.0, 1.0)
        walk = pm.GaussianRandomWalk("level", 0.0, sd, init_dist=start, dims="day")
        pm.Normal("y", walk[seen], NOISE, observed=rng.normal(level[seen], NOISE))
    return model, {"level": level, "step": np.asarray(STEP)}


def draw(seed: int) -> dict[str, Figure]:
    """Fit both models, and draw a figure for each of the package's plots."""
    schools = emf.fit(5_000, model=eight_schools(), random_seed=seed, progressbar=False)
    model, truth = random_walk(seed)
    walk = emf.fit(5_000, model=model, random_seed=seed, progressbar=False)
    with plt.rc_context(STYLE):
        loss = emf.plot_loss(schools)
        gates = emf.plot_gates(walk, "level", figsize=(7.0, 2.2))
        densities = emf.plot_prior_posterior(
            schools,
            ["mu", "tau", "theta"],
            coords={"school": SCHOOLS[:4]},
            figsize=(7.0, 3.8),
            random_seed=seed,
        )
        series = emf.plot_truth(walk, truth, figsize=(7.0, 2.6), random_seed=seed)
    return {
        "plot_loss": loss.figure,
        "plot_gates": gates.figure,
        "plot_prior_posterior": densities[0].figure,
        "plot_truth": series[0].figure,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Save all figures in a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.plots", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="such as docs/_static")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in draw(args.seed).items():
        path = args.folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        print(path)


if __name__ == "__main__":
    main()
