"""Figures of a campaign of :mod:`case_studies.density`, from its files.

``python -m case_studies.density_figures results/density/quick`` draws, beside those files, the
densities in two dimensions (the paper's Figure 3), draws beside data (Figures 10 to 12) and the
training losses (Figures 7 to 9).
"""

from __future__ import annotations

import argparse
import json

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matplotlib import rc_context
from matplotlib.figure import Figure

from case_studies.densities import DATA
from case_studies.density import ARCHITECTURES
from case_studies.figures import STYLE

#: Okabe and Ito's colours, which the colour-blind can tell apart.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
#: Of those that come round to a colour once more.
LINES = ["-", "--"]
N_SERIES, N_DIGITS_SHOWN = 40, 8


def _kept(folder: Path, name: str) -> dict[str, np.lib.npyio.NpzFile]:
    """What is kept of each architecture fitted to these data."""
    paths = {m: folder / name / f"{m}-0.npz" for m in ARCHITECTURES[DATA[name].table]}
    return {m: np.load(path) for m, path in paths.items() if path.exists()}


def _grid(n_rows: int, n_columns: int, width: float = 2.2, height: float = 2.2):
    figure = Figure(figsize=(width * n_columns, height * n_rows + 0.3), layout="constrained")
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def plot_densities(folder: Path, names: Sequence[str]) -> Figure:
    """True and fitted densities in two dimensions: a row for each source of data."""
    n_columns = 1 + max(len(_kept(folder, name)) for name in names)
    figure, axes = _grid(len(names), n_columns)
    for row, name in zip(axes, names, strict=True):
        kept = _kept(folder, name)
        axis = next(iter(kept.values()))["axis"]
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        true = np.exp(DATA[name].log_density(grid))
        panels = {"true density": true} | {m: np.exp(k["log_density"]) for m, k in kept.items()}
        for ax, (title, density) in zip(row, panels.items(), strict=False):
            ax.imshow(
                density.reshape(len(axis), -1),
                extent=(axis[0], axis[-1]) * 2,
                origin="lower",
                cmap="cividis",
                vmin=0,
                vmax=true.max(),
            )
            ax.set(title=title, xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def plot_series(folder: Path, names: Sequence[str]) -> Figure:
    """Series from the data and from each architecture, first coordinate: a row a source."""
    n_columns = 1 + max(len(_kept(folder, name)) for name in names)
    figure, axes = _grid(len(names), n_columns, height=1.8)
    for row, name in zip(axes, names, strict=True):
        data = DATA[name]
        true = data.draw(np.random.default_rng(0), N_SERIES)
        panels = {"data": true} | {m: k["draws"] for m, k in _kept(folder, name).items()}
        for i, (ax, (title, rows)) in enumerate(zip(row, panels.items(), strict=False)):
            series = rows[:N_SERIES].reshape(-1, *data.shape)[..., 0]
            ax.plot(series.T, color="0.3" if i == 0 else PALETTE[0], lw=0.6, alpha=0.5)
            low, high = true.reshape(-1, *data.shape)[..., 0].min(), true[:, :: data.shape[1]].max()
            margin = 0.2 * (high - low)
            ax.set(title=title, ylim=(low - margin, high + margin), xticks=[])
            if i:
                ax.set_yticks([])
        row[0].set_ylabel(name)
    return figure


def plot_digits(folder: Path) -> Figure:
    """The mean and first members of data sets of digits: two rows for each architecture."""
    data, kept = DATA["digits"], _kept(folder, "digits")
    true = data.draw(np.random.default_rng(0), 2)
    panels = {"data": true} | {m: k["draws"] for m, k in kept.items()}
    n = len(panels)
    figure = Figure(figsize=(0.75 * N_DIGITS_SHOWN, 1.75 * n), layout="constrained")
    for part, (title, rows) in zip(
        figure.subfigures(n, squeeze=False).flat, panels.items(), strict=True
    ):
        images = np.exp(rows[:2].reshape(2, *data.shape)).reshape(2, -1, 8, 8)  # of logs
        for row, sets in zip(part.subplots(2, N_DIGITS_SHOWN), images, strict=True):
            for ax, image in zip(row, sets, strict=False):
                ax.imshow(image, cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
        part.suptitle(f"{title}: a mean and its members", fontsize=8, x=0.01, ha="left")
    return figure


def plot_losses(folder: Path, names: Sequence[str]) -> Figure:
    """Training losses, a panel for each source of data."""
    n_columns = min(4, len(names))
    figure, axes = _grid(-(-len(names) // n_columns), n_columns, width=2.9, height=2.3)
    for ax, name in zip(axes.flat, names, strict=False):
        lowest, highest = [], []
        for i, method in enumerate(ARCHITECTURES[DATA[name].table]):
            path = folder / name / f"{method}-0.json"
            if not path.exists():
                continue
            losses = json.loads(path.read_text(encoding="utf-8")).get("losses", [])
            means = [part.mean() for part in np.array_split(losses, 50)]
            more, i = divmod(i, len(PALETTE))
            style = {"color": PALETTE[i], "ls": LINES[more]}
            ax.plot((np.arange(50) + 0.5) / 50, means, lw=1.3, label=method, **style)
            lowest.append(means[-1])
            highest.append(np.quantile(means, 0.8))  # spikes may leave the panel
        floor = DATA[name].entropy
        if floor is not None:
            ax.axhline(floor, color="k", lw=0.8, ls=(0, (3, 2)), label="entropy")
            lowest.append(floor)
        low, high = min(lowest), max(highest)
        ax.set(title=name, xlim=(0, 1), ylim=(low - 0.05 * (high - low), high))
        ax.legend(loc="upper right", framealpha=0.85, edgecolor="none", fontsize=7)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    figure.supxlabel("share of the steps")
    figure.supylabel("negative log density, nats")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all figures that the files of a campaign allow."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.density_figures", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="such as results/density/quick")
    args = parser.parse_args(argv)
    there = [name for name in DATA if _kept(args.folder, name)]
    if not there:
        parser.error(f"{args.folder} has no results; run python -m case_studies.density first")
    with rc_context(STYLE):
        fitted = [name for name in DATA if any((args.folder / name).glob("*-0.json"))]
        figures = {"losses": plot_losses(args.folder, fitted)} if fitted else {}
        for title, table, plot in (("densities", 1, plot_densities), ("series", 3, plot_series)):
            names = [name for name in there if DATA[name].table == table]
            if names:
                figures[title] = plot(args.folder, names)
        if "digits" in there:
            figures["digits"] = plot_digits(args.folder)
        for name, figure in figures.items():
            path = args.folder / f"{name}.png"
            figure.savefig(path, dpi=100)
            print(path)


if __name__ == "__main__":
    main()
