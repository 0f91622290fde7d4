"""Figures of a campaign of :mod:`case_studies.variational`, from its files.

``python -m case_studies.figures results/variational/quick`` draws, beside those files, the
posterior of every time series over time by several methods (the paper's Figures 5 and 6), with the
gates of the default fit, and the losses of all methods.
"""

from __future__ import annotations

import argparse
import json

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from matplotlib import rc_context
from matplotlib.figure import Figure

from case_studies.gaps import Gaps, show_gaps
from case_studies.methods import METHODS
from case_studies.variational import PROBLEMS, SERIES, data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which the colour-blind can tell apart, and dashes.
COLOURS = {
    "GEMF-T": "#0072B2",
    "default": "#000000",
    "EMF-T": "#56B4E9",
    "MF-GEMF-T": "#009E73",
    "MVN-GEMF-T": "#E69F00",
    "IAF": "#CC79A7",
    "MVN": "#F0E442",
    "MF": "#D55E00",
    "ASVI": "#999999",
}
#: Methods whose posteriors are drawn over time, from top to bottom.
SHOWN = ["default", "GEMF-T", "ASVI", "IAF", "MF"]

#: Points of a line of losses, and the highest gap that is shown: a first step may lie above.
N_POINTS, HIGHEST = 50, 1e6

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def path_over_time(variables: dict[str, np.ndarray]) -> np.ndarray:
    """Latent series of a problem, (..., coordinate, time), from its variables.

    Parameters
    ----------
    variables : dict
        Either of one variable, or of one for each time step, ``v_0``, ``v_1`` and so on.
    """
    if "x" in variables:
        return variables["x"][..., None, :]
    if "v" in variables:
        return variables["v"]
    return np.stack([variables[f"v_{t}"] for t in range(len(variables))], axis=-1)


def _read(folder: Path, problem: str, method: str) -> xr.DataTree | None:
    path = folder / problem / f"{method}-0.nc"
    return xr.open_datatree(path) if path.exists() else None


def _variables(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(name): values.values for name, values in dataset.data_vars.items()}


def plot_series(folder: Path, name: str) -> Figure | None:
    """Posterior of one problem over time: bands of 50 and 90 %, truth and observations.

    A row a method and a column a coordinate; the last row has the gates of the default fit.
    """
    read = {method: _read(folder, name, method) for method in SHOWN}
    fits = {method: tree for method, tree in read.items() if tree is not None}
    if not fits:
        return None
    problem = data(name, 0)
    truth = path_over_time(problem.true_latents)
    n_rows = len(fits) + ("default" in fits)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 * max(len(truth), 2), 1.5 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, len(truth), sharex=True, squeeze=False)
        paths = {
            method: path_over_time(_variables(tree["posterior"].to_dataset()))[0]
            for method, tree in fits.items()
        }
        reference = next(iter(paths.values()))  # a method lost in another mode sets no limits
        for row, (method, draws) in zip(axes, paths.items(), strict=False):
            for i, ax in enumerate(row):
                _plot_band(ax, draws[:, i], truth[i], COLOURS[method])
            row[0].set_ylabel(method)
            if name.endswith("-r"):
                row[0].plot(problem.observed, ".", color="0.3", ms=3, zorder=3)
        for i in range(len(truth)):
            low, high = np.quantile(reference[:, i], [0.05, 0.95], axis=0)
            low, high = min(low.min(), truth[i].min()), max(high.max(), truth[i].max())
            margin = 0.1 * (high - low)
            for other in axes[: len(fits), i]:
                other.set_ylim(low - margin, high + margin)
        axes[0, 0].set_title(f"{name}: 50 and 90 % bands, truth (dashed), observations (dots)")
        if "default" in fits:
            gates = path_over_time(
                {
                    gate.removesuffix("_gate"): values
                    for gate, values in _variables(fits["default"]["gates"].to_dataset()).items()
                }
            )
            for i, ax in enumerate(axes[-1]):
                ax.plot(gates[i], color=COLOURS["default"], lw=1.2)
                ax.set(ylim=(-0.05, 1.05), xlabel="time")
            axes[-1, 0].set_ylabel("gates\nof default")
    return figure


def _plot_band(ax: Axes, draws: np.ndarray, truth: np.ndarray, colour: str) -> None:
    time = np.arange(len(truth))
    for share, alpha in ((0.9, 0.2), (0.5, 0.35)):
        low, high = np.quantile(draws, [0.5 - share / 2, 0.5 + share / 2], axis=0)
        ax.fill_between(time, low, high, color=colour, alpha=alpha, lw=0)
    ax.plot(time, np.median(draws, axis=0), color=colour, lw=1.2)
    ax.plot(time, truth, color="k", ls=(0, (3, 1.5)), lw=1)


def plot_losses(folder: Path, problems: Sequence[str]) -> Figure:
    """Loss minus the exact -log evidence, a panel a problem and a line a method."""
    n_columns = min(4, len(problems))
    n_rows = -(-len(problems) // n_columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.8 * n_columns, 2.0 * n_rows + 0.5), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
        for ax, name in zip(axes.flat, problems, strict=False):
            gaps: list[Gaps] = []
            for method in (m for m in METHODS if m in COLOURS):
                path = folder / name / f"{method}-0.json"
                if not path.exists():
                    continue
                record = json.loads(path.read_text(encoding="utf-8"))
                losses = -np.asarray(record.get("losses", []))  # it has their negatives
                if not losses.size:
                    continue
                found = Gaps.of_losses(losses, record["log_evidence"], N_POINTS)
                share = found.steps / len(losses)
                ax.plot(share, found.means, color=COLOURS[method], lw=1.4, label=method)
                gaps.append(found)
            show_gaps(ax, gaps, HIGHEST)
            ax.set(title=name, xlim=(0, 1))
        for ax in axes.flat[len(problems) :]:
            ax.remove()
        figure.supxlabel("share of the steps")
        figure.supylabel("gap, nats")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all figures that the files of a campaign allow."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.figures", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="such as results/variational/quick")
    args = parser.parse_args(argv)
    there = [name for name in PROBLEMS if any((args.folder / name).glob("*-0.json"))]
    if not there:
        parser.error(f"{args.folder} has no results; run python -m case_studies.variational first")
    figures = {name: plot_series(args.folder, name) for name in there if name in SERIES}
    figures["losses"] = plot_losses(args.folder, there)
    for name, figure in figures.items():
        if figure is not None:
            path = args.folder / f"{name}.png"
            figure.savefig(path, dpi=140)
            print(path)


if __name__ == "__main__":
    main()
