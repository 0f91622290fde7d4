"""The density-estimation experiments of the EMF paper (§5.1-5.3, Tables 1-3).

Every source of data is fitted by every architecture, by maximum likelihood on fresh observations::

    python -m case_studies.density --quick
    python -m case_studies.density --table 1

The first goes over all three tables in minutes; the second, which takes days, is the paper's
protocol. A finished fit is a file of its own under ``results/density``: an interrupted campaign
continues where it was. Tables are printed, and written there as CSV, NetCDF and text.
"""

from __future__ import annotations

import argparse
import os

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import optax
import pandas as pd

from rich import box
from rich.table import Table

import pymc_emf as emf

from case_studies.campaign import Task, make_console, read, report, reporter, run, thinned, write
from case_studies.densities import DATA, STRUCTURES, Data
from case_studies.paper import read_paper, unpack

#: Observations behind a reported density, fewer of the very long ones, and draws kept for figures.
N_TEST, MAX_NUMBERS, KEPT_DRAWS = 20_000, 5_000_000, 1000
#: Components of the mixture layer.
N_COMPONENTS = 100
#: Knots of splines, in two dimensions and in more, and their width: what a processor can train.
N_KNOTS, N_KNOTS_OF_MANY, SPLINE_WIDTH = 41, 9, 128
#: Layers of the deep architectures, the paper's MAF-L among them.
DEEP = 3


@dataclass(frozen=True)
class Settings:
    """How the architectures are trained.

    Attributes
    ----------
    name : str
        Results are kept apart by it.
    steps : dict
        Number of steps for each table.
    hidden : sequence of int
        Widths of the autoregressive networks.
    rate : float or None
        Peak of Adam's cosine schedule; None is the package's own optimiser.
    """

    name: str
    steps: dict[int, int]
    hidden: Sequence[int]
    rate: float | None


#: EMF A.3 and A.4, and the authors' code: batches of 100.
PAPER = Settings("paper", {1: 500_000, 2: 100_000, 3: 400_000}, (512, 512), 1e-4)
#: The paper's networks, by the package's optimiser in fewer steps.
STANDARD = Settings("standard", {1: 60_000, 2: 10_000, 3: 20_000}, (512, 512), None)
#: Minutes on two cores.
QUICK = Settings("quick", {1: 5_000, 2: 2_000, 3: 3_000}, (64, 64), None)


# --- architectures, as lists of layers from the noise to the data --------------------------------


def _maf(data: Data, settings: Settings, n: int = 2, **options: Any) -> list[emf.Bijection]:
    """Masked autoregressive layers, in alternating order."""
    options = {"hidden": settings.hidden} | options
    return [
        emf.Invert(
            emf.MaskedAutoregressive(data.size, reverse=i % 2 == 1, random_seed=i, **options)
        )
        for i in range(n)
    ]


def _splines(data: Data, settings: Settings) -> list[emf.Bijection]:
    """The same with splines, which the paper does not have."""
    hidden = [min(width, SPLINE_WIDTH) for width in settings.hidden]
    return _maf(data, settings, hidden=hidden, knots=_n_knots(data))


def _deep_splines(data: Data, settings: Settings) -> list[emf.Bijection]:
    """As deep as MAF-L, and as wide."""
    return _maf(data, settings, DEEP, knots=_n_knots(data))


def _n_knots(data: Data) -> int:
    return N_KNOTS if data.size == 2 else N_KNOTS_OF_MANY


def _structure(data: Data, name: str, gate: Any = None) -> emf.Bijection:
    return emf.StructuredLayer(STRUCTURES[name](*data.shape), gate=gate)


def _on_top(name: str, flow: Callable = _maf) -> Callable[[Data, Settings], list[emf.Bijection]]:
    def make(data, settings):
        return [*flow(data, settings), _structure(data, name, gate="variable")]

    return make


def _in_the_middle(name: str) -> Callable[[Data, Settings], list[emf.Bijection]]:
    def make(data, settings):
        first, second = _maf(data, settings)
        return [first, _structure(data, name, gate="variable"), second]

    return make


def _mixture(data: Data, loc_range: float, scale: float) -> emf.Bijection:
    return emf.MixtureOfGaussians(data.size, N_COMPONENTS, loc_range=loc_range, scale=scale)


def _emf_m(data: Data, settings: Settings) -> list[emf.Bijection]:
    first, second = _maf(data, settings)
    return [first, _mixture(data, 10.0, 3.0), second]


#: For each table, from data and settings to layers. "T" is a structured layer on top, "M" one
#: in the middle, "G" a gated one; (c) is continuity and (s) smoothness. MAF-L has three layers,
#: B-MAF continuity beneath the flow. Not of the paper are NSF, a neural spline flow, and what is
#: deep (L) and has a model on top.
ARCHITECTURES: dict[int, dict[str, Callable[[Data, Settings], list[emf.Bijection]]]] = {
    1: {
        "EMF-T": lambda data, s: [*_maf(data, s), _mixture(data, 4.0, 1.0)],
        "EMF-M": _emf_m,
        "MAF": _maf,
        "MAF-L": partial(_maf, n=DEEP),
        "NSF": _splines,
    },
    2: {
        "GEMF-T": _on_top("hierarchy"),
        "GEMF-M": _in_the_middle("hierarchy"),
        "MAF": _maf,
        "MAF-L": partial(_maf, n=DEEP),
        "GEMF-L": _on_top("hierarchy", partial(_maf, n=DEEP)),
        "GNSF-T": _on_top("hierarchy", _splines),
        "GNSF-L": _on_top("hierarchy", _deep_splines),
    },
    3: {
        "GEMF-T(c)": _on_top("continuity"),
        "GEMF-T(s)": _on_top("smoothness"),
        "GEMF-M(c)": _in_the_middle("continuity"),
        "MAF": _maf,
        "MAF-L": partial(_maf, n=DEEP),
        "B-MAF": lambda data, s: [_structure(data, "continuity"), *_maf(data, s)],
        "GEMF-L(c)": _on_top("continuity", partial(_maf, n=DEEP)),
        "GNSF-T(c)": _on_top("continuity", _splines),
        "GNSF-L(c)": _on_top("continuity", _deep_splines),
    },
}

# --- the campaign --------------------------------------------------------------------------------


def measure(task: Task, settings: Settings, folder: Path) -> Task:
    """Fit, and write what came of it."""
    data = DATA[task.problem]
    begin = perf_counter()
    layers = ARCHITECTURES[data.table][task.method](data, settings)
    estimator = emf.DensityEstimator(layers, random_seed=task.run)
    rate = settings.rate
    optimizer = (
        None if rate is None else optax.adam(optax.cosine_decay_schedule(rate, task.n_steps))
    )
    record: dict[str, Any] = task.labels | {"settings": settings.name}
    try:
        estimator.fit(
            data.draw,
            task.n_steps,
            callbacks=[reporter(task)],
            progressbar=False,
            obj_optimizer=optimizer,
        )
    except FloatingPointError as error:  # an architecture that diverges is a result too
        record["error"] = str(error)
    else:
        seconds = perf_counter() - begin
        record |= evaluate(estimator, data) | {
            "seconds": seconds,
            "losses": thinned(estimator.hist),
        }
        if task.run == 0:
            path = task.path(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            keep_for_figures(estimator, data, path.with_suffix(".npz"))
    write(record, task.path(folder))
    return task


def evaluate(estimator: emf.DensityEstimator, data: Data) -> dict[str, float]:
    """Negative mean log density of fresh observations, in nats.

    Where the true density is known, its mean over the same observations is a control variate: what
    they happen to be does not count.
    """
    n = min(N_TEST, MAX_NUMBERS // data.size)
    rows = data.draw(np.random.default_rng(1), n)
    losses = -estimator.log_prob(rows)
    if data.log_density is not None:
        losses += data.log_density(rows) + data.entropy
    return {"neg_log_density": float(losses.mean()), "se": float(losses.std() / np.sqrt(n))}


def keep_for_figures(estimator: emf.DensityEstimator, data: Data, path: Path) -> None:
    """Density on a grid, of two dimensions, or draws."""
    if data.size == 2:
        axis = np.linspace(-4.5, 4.5, 200)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        np.savez_compressed(path, axis=axis, log_density=estimator.log_prob(grid))
        return
    drawn = estimator.sample(KEPT_DRAWS, random_seed=2)
    rows = [drawn[name].values.reshape(KEPT_DRAWS, -1) for name in drawn.data_vars]
    np.savez_compressed(path, draws=np.concatenate(rows, axis=1).astype("float32"))


def tabulate(frame: pd.DataFrame, table: int) -> Table:
    """One row an architecture, one column a source of data: negative mean log density in nats."""
    sources = [name for name in DATA if name in set(frame["problem"])]
    rows = [m for m in ARCHITECTURES[table] if m in set(frame["method"])]
    made = Table("architecture", box=box.SIMPLE, pad_edge=False)
    for name in sources:
        made.add_column(name, justify="right", no_wrap=True)
    for method in rows:
        cells = []
        for name in sources:
            chosen = frame[(frame["method"] == method) & (frame["problem"] == name)]
            values = chosen["neg_log_density"].dropna()
            if values.empty:
                cells.append("failed" if len(chosen) else "")
                continue
            se = values.sem() if len(values) > 1 else chosen["se"].iloc[0]
            cells.append(f"{values.mean():.3f} ± {se:.3f}")
        made.add_row(method, *cells)
    paper = read_paper()[str(table)]["rows"]
    for method in rows:
        if any(method in paper.get(name, {}) for name in sources):
            cells = [paper.get(name, {}).get(method) for name in sources]
            made.add_row(
                f"{method}, paper",
                *("" if cell is None else f"{cell[0]:.3f} ± {cell[1]:.3f}" for cell in cells),
            )
    if any(DATA[name].entropy is not None for name in sources):
        entropies = [DATA[name].entropy for name in sources]
        made.add_row("entropy", *("" if e is None else f"{e:.3f}" for e in entropies))
    return made


def tables(frame: pd.DataFrame) -> dict[str, Table]:
    """The paper's tables, and the time it took."""
    made = {}
    for table in ARCHITECTURES:
        part = frame[[DATA[name].table == table for name in frame["problem"]]]
        if not part.empty:
            title = f"Table {table}: negative mean log density of fresh observations, nats"
            made[title] = tabulate(part, table)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, print the tables, draw the figures, say where the files are."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.density", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--table", type=int, choices=list(ARCHITECTURES), help="by default all")
    parser.add_argument(
        "--data", nargs="+", metavar="NAME", help="all, or some of " + ", ".join(DATA)
    )
    methods = dict.fromkeys(m for table in ARCHITECTURES.values() for m in table)
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="all, or some of " + ", ".join(methods)
    )
    parser.add_argument("--runs", type=int, help="seeds (5, or 1 with --quick)")
    parser.add_argument("--steps", type=int, help="of every fit")
    parser.add_argument("--rate", type=float, help="peak of Adam's cosine schedule, of every fit")
    parser.add_argument("--quick", action="store_true", help="narrow networks, few steps")
    parser.add_argument("--standard", action="store_true", help="narrower networks, fewer steps")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--out", type=Path, default=Path("results", "density"))
    args = parser.parse_args(argv)
    for option, given, known in (("data", args.data, DATA), ("methods", args.methods, methods)):
        if unknown := set(given or ()) - {"all", *known}:
            parser.error(f"unknown {option}: {', '.join(unknown)}; choose {', '.join(known)}")

    settings = QUICK if args.quick else STANDARD if args.standard else PAPER
    if args.steps is not None:
        steps = dict.fromkeys(settings.steps, args.steps)
        settings = replace(settings, name=f"{settings.name}-{args.steps}-steps", steps=steps)
    if args.rate is not None:
        settings = replace(settings, name=f"{settings.name}-rate-{args.rate:g}", rate=args.rate)
    folder = args.out / settings.name
    tasks = [
        Task(name, method, i, settings.steps[data.table])
        for i in range(args.runs or (1 if args.quick else 5))
        for name, data in DATA.items()
        for method in ARCHITECTURES[data.table]
        if args.table in (None, data.table)
        and (args.data is None or name in args.data or "all" in args.data)
        and (args.methods is None or method in args.methods or "all" in args.methods)
    ]
    if not tasks:
        parser.error("nothing to fit: no such method for these data")
    console = make_console()
    unpack("density", tasks, settings.name, folder)
    run(tasks, partial(measure, settings=settings, folder=folder), folder, args.jobs, console)
    frame = pd.DataFrame(read(tasks, folder)).drop(columns="losses", errors="ignore")
    for column in ("neg_log_density", "se", "seconds"):
        if column not in frame:
            frame[column] = np.nan
    report(frame, tables(frame), folder, console)


if __name__ == "__main__":
    main()
