"""Several models in one flow, side by side and one after the other (EMF §3.4, Figure 1).

Side by side, two models act on disjoint slices of one vector. One after the other, two rivals act
on the same vector, and the gates choose the one that the data follow::

    python -m case_studies.embeddings --quick
    python -m case_studies.embeddings

Data are drawn from one of the models, so that the true density is known, and the excess over its
negative log density is what a fit leaves to be gained. Both commands take less than a minute.
Results end up under ``results/embeddings``.
"""

from __future__ import annotations

import argparse

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

import pymc_emf as emf

from case_studies.campaign import make_console
from case_studies.densities import STRUCTURES, Draw
from case_studies.figures import STYLE

#: Elements of a model, and standard deviation of the steps of both kinds of series.
N, SCALE = 12, 0.3
#: Observations on which densities are compared, the same for every fit.
N_TEST = 20_000
#: Variables at the front that are standard normal whatever their gates are.
IDLE = {"continuity": 1, "smoothness": 2, "hierarchy": 1}
#: Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {"continuity": "#0072B2", "smoothness": "#D55E00"}


@dataclass(frozen=True)
class Flow:
    """Structures, by name, side by side on as many slices, or in sequence from the noise on."""

    structures: tuple[str, ...]
    side_by_side: bool = False
    n: int = N

    def __str__(self) -> str:
        wide = " for all" if self.n > N else ""
        return (" | " if self.side_by_side else " > ").join(self.structures) + wide

    def models(self) -> list[emf.StructuredLayer]:
        """Embed each structure, with one gate for each of its variables."""
        return [
            emf.StructuredLayer(STRUCTURES[name](self.n, 1), gate="variable")
            for name in self.structures
        ]


@dataclass(frozen=True)
class Fitted:
    """A flow after its fit.

    Attributes
    ----------
    data : str
        What it was fitted to.
    flow : Flow
    excess, se : float
        Mean negative log density of fresh observations less the true one, in nats.
    gates : dict
        Of every model in the flow, by the name of its structure, without the idle ones.
    """

    data: str
    flow: Flow
    excess: float
    se: float
    gates: dict[str, np.ndarray]


# --- data ----------------------------------------------------------------------------------------


def draws_of(name: str) -> Draw:
    """Draw observations from a structure, at the scale of its steps."""

    def draw(rng, n):
        x = rng.normal(size=(n, N))
        if name == "continuity":
            x[:, 1:] *= SCALE
            return x.cumsum(axis=1)
        if name == "hierarchy":
            x[:, 1:] += x[:, :1]
            return x
        for t in range(2, N):
            x[:, t] = 2 * x[:, t - 1] - x[:, t - 2] + SCALE * x[:, t]
        return x

    return draw


def _both(rng, n):
    """A walk and a group in one vector."""
    return np.hstack([draws_of(name)(rng, n) for name in ("continuity", "hierarchy")])


def log_density(name: str, x: np.ndarray) -> np.ndarray:
    """Log density of rows that a structure made."""
    if name == "both":
        walk, group = np.hsplit(x, 2)
        return log_density("continuity", walk) + log_density("hierarchy", group)
    noise = x.copy()
    if name == "continuity":
        noise[:, 1:] = np.diff(x) / SCALE
    elif name == "smoothness":
        noise[:, 2:] = np.diff(x, n=2) / SCALE
    else:
        noise[:, 1:] -= x[:, :1]
    n_steps = N - IDLE[name] if name != "hierarchy" else 0
    constant = 0.5 * N * np.log(2 * np.pi) + n_steps * np.log(SCALE)
    return -0.5 * (noise**2).sum(axis=1) - constant


DATA: dict[str, Draw] = {
    "both": _both,
    "continuity": draws_of("continuity"),
    "smoothness": draws_of("smoothness"),
}


# --- fits ----------------------------------------------------------------------------------------

#: Of the data of a walk and a group: the models on their own slices, on each other's, one for all.
SIDE_BY_SIDE = [
    Flow(("continuity", "hierarchy"), side_by_side=True),
    Flow(("hierarchy", "continuity"), side_by_side=True),
    Flow(("continuity",), n=2 * N),
    Flow(("hierarchy",), n=2 * N),
]
#: Of either series: each model alone, and both, in both orders.
IN_SEQUENCE = [
    Flow(("continuity",)),
    Flow(("smoothness",)),
    Flow(("smoothness", "continuity")),
    Flow(("continuity", "smoothness")),
]


def fit(data: str, flow: Flow, steps: int, seed: int = 1) -> Fitted:
    """Fit a flow by maximum likelihood to fresh draws.

    Parameters
    ----------
    data : str
        One of ``DATA``.
    flow : Flow
    steps, seed : int
    """
    models = flow.models()
    layers = emf.Parallel(models, [N] * len(models)) if flow.side_by_side else models
    estimator = emf.DensityEstimator(layers, random_seed=seed)
    estimator.fit(DATA[data], n=steps, progressbar=False)
    test = DATA[data](np.random.default_rng(seed + 1), N_TEST)
    lost = log_density(data, test) - estimator.log_prob(test)
    gates = {}
    for name, model in zip(flow.structures, models, strict=True):
        trained = model.gates([p.get_value() for p in model.own_parameters])
        gates[name] = np.array([gate.item() for gate in trained.values()])[IDLE[name] :]
    return Fitted(data, flow, lost.mean(), lost.std() / np.sqrt(N_TEST), gates)


# --- results -------------------------------------------------------------------------------------


def tabulate(fitted: Sequence[Fitted]) -> Table:
    """Excess, and the mean and range of the gates of each model."""
    table = Table("data", "flow", box=box.SIMPLE, pad_edge=False)
    table.add_column("excess, nats", justify="right")
    table.add_column("gates")
    for one in fitted:
        gates = ", ".join(
            f"{name} {g.mean():.2f} ({g.min():.2f} to {g.max():.2f})"
            for name, g in one.gates.items()
        )
        table.add_row(one.data, str(one.flow), f"{one.excess:.3f} ± {one.se:.3f}", gates)
    return table


def plot_gates(fitted: Sequence[Fitted]) -> Figure:
    """Gates of two rivals over the elements: a row for each source, a column for each order."""
    rivals = [one for one in fitted if one.data != "both" and len(one.flow.structures) > 1]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axes = figure.subplots(2, len(rivals) // 2, sharex=True, sharey=True, squeeze=False)
        for ax, one in zip(axes.flat, rivals, strict=True):
            for name, gates in one.gates.items():
                at = np.arange(IDLE[name], N)
                ax.plot(at, gates, "o-", ms=3.5, lw=1.2, color=COLOURS[name], label=name)
            ax.set(ylim=(-0.05, 1.05), title=f"data of {one.data}; {one.flow}")
        for ax in axes[-1]:
            ax.set_xlabel("element of the series")
        axes[1, 0].legend(loc="center left", frameon=False)
        figure.supylabel("gate", fontsize=9)
    return figure


def measure(steps: int) -> list[Fitted]:
    """Fit all flows."""
    tasks = [("both", flow) for flow in SIDE_BY_SIDE]
    tasks += [(name, flow) for name in ("continuity", "smoothness") for flow in IN_SEQUENCE]
    return [fit(data, flow, steps) for data, flow in tasks]


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, print the table, draw the gates, say where the files are."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.embeddings", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="2,000 steps rather than 6,000")
    parser.add_argument("--steps", type=int, help="of every fit")
    parser.add_argument("--out", type=Path, default=Path("results", "embeddings"))
    args = parser.parse_args(argv)
    fitted = measure(args.steps or (2_000 if args.quick else 6_000))
    console = make_console()
    console.print("Excess of the negative log density over the true one, and gates (range)")
    console.print(tabulate(fitted))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "data": one.data,
            "flow": str(one.flow),
            "excess": one.excess,
            "se": one.se,
            "structure": name,
            "element": IDLE[name] + i,
            "gate": gate,
        }
        for one in fitted
        for name, gates in one.gates.items()
        for i, gate in enumerate(gates)
    ]
    pd.DataFrame(rows).to_csv(args.out / "results.csv", index=False)
    plot_gates(fitted).savefig(args.out / "embeddings.png", dpi=120)
    console.print(f"{args.out}: results.csv, embeddings.png")


if __name__ == "__main__":
    main()
