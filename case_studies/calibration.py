"""Simulation-based calibration of fits with the model's structure, and of mean field.

``python -m case_studies.calibration`` calibrates Eight Schools and a conjugate regression by
both, prints what the ranks say, and draws them. It goes on where it was interrupted.
"""

from __future__ import annotations

import argparse

from pathlib import Path

import jax
import numpy as np
import pymc as pm

import pymc_emf as emf

from case_studies.problems import SCHOOL_SIGMA

RESULTS = Path("results/calibration")
METHODS = {"EMF": {}, "mean field": {"layers": "mean_field", "embed": False}}


def eight_schools() -> pm.Model:
    """The centred hierarchy, whose data will be simulated."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, SCHOOL_SIGMA, observed=np.zeros(8))
    return model


def regression() -> pm.Model:
    """Two correlated coefficients and known noise: the posterior is normal."""
    x = np.linspace(0.0, 2.0, 20)
    with pm.Model() as model:
        beta = pm.Normal("beta", 0.0, 1.0, shape=2)
        pm.Normal("y", beta[0] + beta[1] * x, 1.0, observed=np.zeros(20))
    return model


MODELS = {"Eight Schools": eight_schools, "regression": regression}


def main() -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(
        prog="python -m case_studies.calibration", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--steps", type=int, default=2000, help="of each fit")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args()
    mpl.use("Agg")
    jax.config.update("jax_enable_x64", True)
    args.folder.mkdir(parents=True, exist_ok=True)
    for title, build in MODELS.items():
        model, found = build(), {}
        for method, options in METHODS.items():
            name = f"{title} {method} {args.steps}".replace(" ", "_").lower()
            found[method] = emf.calibrate(
                model,
                args.simulations,
                n=args.steps,
                random_seed=1,
                checkpoint=args.folder / name,
                **options,
            )
            print(f"\n{title}, {method}\n{found[method]}\n")
        n = len(model.free_RVs)
        size = (3.2 * n, 5.4) if n > 1 else (4.0, 5.4)
        figure, grid = plt.subplots(2, n, figsize=size, layout="constrained", squeeze=False)
        for row, (method, calibration) in zip(grid, found.items(), strict=True):
            emf.plot_ranks(calibration, ax=row)
            for ax in row:
                ax.set_title(f"{ax.get_title()}, {method}")
        path = args.folder / f"{title.replace(' ', '_').lower()}.png"
        figure.savefig(path, dpi=90)
        plt.close(figure)
        print(f"Figure: {path}")


if __name__ == "__main__":
    main()
