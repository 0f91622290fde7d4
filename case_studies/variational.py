"""The variational experiments of the EMF paper (§5.4), with the gap to the exact evidence beside.

Every problem is fitted by every method, several times, each time to other data::

    python -m case_studies.variational --quick
    python -m case_studies.variational --problems all --methods all --runs 10 --steps 100000

The first takes a quarter of an hour on two slow cores, the second, which is the paper's protocol,
days. A finished fit is a file of its own under ``results/variational``: an interrupted campaign
continues where it was. The tables are printed, and written there as CSV, NetCDF and text.

The paper has no Van der Pol oscillator, its authors' code does. ``--quick`` leaves it out unless
it is asked for.
"""

from __future__ import annotations

import argparse
import logging
import os

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rich import box
from rich.table import Table

from case_studies.campaign import Task, make_console, read, report, reporter, run, thinned, write
from case_studies.eight_schools import PAPER_ELBO, exact_draws
from case_studies.methods import METHODS, PAPER, QUICK, STANDARD, Settings, fit
from case_studies.paper import unpack
from case_studies.problems import Problem, load, names
from case_studies.simulation import simulate

SERIES = [
    f"{family}{kind}-{outcome}"
    for family in ("BR", "LZ", "VD")
    for kind, outcome in (("S", "r"), ("S", "c"), ("B", "r"), ("B", "c"))
]
TREES = ["Lin-4", "Lin-8", "Tanh-4", "Tanh-8"]
PROBLEMS = ["ES", *SERIES, *TREES]
#: Those of the paper's tables.
PROBLEMS_OF_PAPER = [name for name in PROBLEMS if not name.startswith("VD")]

#: Draws behind the ELBO, and those behind the paper's own.
DRAWS, DRAWS_OF_PAPER = 20_000, 150
#: Draws kept for the figures.
KEPT_DRAWS = 200


@cache
def data(name: str, run: int) -> Problem:
    """Data of one run: those in the repository as far as they go, then simulated ones."""
    if name == "ES":
        return load("ES")
    return load(name, run) if (name, run) in names() else simulate(name, run)


def measure(task: Task, settings: Settings, folder: Path) -> Task:
    """Fit, and write what came of it to a file, at once or not at all."""
    for package in ("pymc", "pymc_emf"):  # k-hat stands in the tables
        logging.getLogger(package).setLevel(logging.ERROR)
    problem = data(task.problem, task.run)
    record: dict[str, Any] = task.labels | {"settings": settings.name, "dim": problem.dim}
    record |= {"log_evidence": -problem.neg_log_evidence, "evidence_se": problem.se}
    begin = perf_counter()
    try:
        callbacks = [reporter(task)]
        approx = fit(problem.model, task.method, settings, task.run, callbacks)
    except FloatingPointError as error:  # a method of the paper that diverges is a result too
        record |= {"error": str(error), "seconds": perf_counter() - begin}
    else:
        seconds = perf_counter() - begin
        elbo = approx.elbo(DRAWS, random_seed=1)
        record |= {
            "elbo": elbo.mean,
            "elbo_se": elbo.se,
            "elbo_of_150": approx.elbo(DRAWS_OF_PAPER, random_seed=2).mean,
            "log_q_of_truth": _log_q_of_truth(approx, problem),
            "pareto_k": approx.pareto_k,
            "seconds": seconds,
            "step": approx.timing["step"],
            "losses": thinned(-np.asarray(approx.hist)),
        }
        if task.run == 0 and task.problem in SERIES:
            _keep_draws(approx, task.path(folder).with_suffix(".nc"))
    write(record, task.path(folder))
    return task


def _log_q_of_truth(approx, problem: Problem) -> float:
    """Log density of the approximation at what made the data: the paper's "forward KL".

    Of Eight Schools, whose data are real, the average over exact draws from the posterior.
    """
    truth = problem.true_latents or exact_draws(problem.observed, 1000, seed=0)
    return float(np.mean(approx.log_prob(truth)))


def _keep_draws(approx, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    idata = approx.sample(KEPT_DRAWS, random_seed=3)
    posterior = idata.posterior.to_dataset().astype("float32")
    gates = idata.fit.to_dataset().drop_dims("step")
    xr.DataTree.from_dict({"posterior": posterior, "gates": gates}).to_netcdf(path)


def collect(tasks: Iterable[Task], folder: Path) -> pd.DataFrame:
    """All results as a tidy table, one row a fit."""
    frame = pd.DataFrame(read(tasks, folder)).drop(columns="losses", errors="ignore")
    for column in ("elbo", "elbo_se", "elbo_of_150", "log_q_of_truth", "pareto_k", "error"):
        if column not in frame:
            frame[column] = np.nan
    frame["gap"] = frame["log_evidence"] - frame["elbo"]
    return frame


def tabulate(frame: pd.DataFrame, column: str, sign: int = 1) -> Table:
    """One row a method and one column a problem: mean and standard error over the runs.

    Of a single run, the standard error over its draws.
    """
    problems = [p for p in PROBLEMS if p in set(frame["problem"])]
    table = Table("method", box=box.SIMPLE, pad_edge=False)
    for problem in problems:
        table.add_column(problem, justify="right", no_wrap=True)
    for method in [m for m in METHODS if m in set(frame["method"])]:
        cells = []
        for problem in problems:
            chosen = frame[(frame["method"] == method) & (frame["problem"] == problem)]
            values = sign * chosen[column].dropna()
            if values.empty:
                cells.append("failed" if chosen["error"].notna().any() else "")
                continue
            se = values.sem() if len(values) > 1 else chosen["elbo_se"].iloc[0]
            if abs(values.mean()) >= 1e6:  # a flow that extrapolates exponentially
                cells.append(f"{values.mean():.0e}")
                continue
            digits = 3 if abs(values.mean()) < 100 else 1
            spread = f" ± {se:.{digits}f}" if column in ("elbo", "gap") or len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        table.add_row(method, *cells)
    if column == "elbo" and "ES" in problems:  # the paper's other data were drawn anew
        paper = [f"{PAPER_ELBO:.3f}" if problem == "ES" else "" for problem in problems]
        table.add_row("GEMF-T, paper", *paper)
    return table


def tables(frame: pd.DataFrame) -> dict[str, Table]:
    """What the paper reports, and what it does not, by title."""
    made = {}
    for kind, problems in {
        "time series": SERIES,
        "Eight Schools and trees": ["ES", *TREES],
    }.items():
        part = frame[frame["problem"].isin(problems)]
        if part.empty:
            continue
        made |= {
            f"-ELBO in nats, {kind} (Tables 4, 5 and 7)": tabulate(part, "elbo", -1),
            f"log q at the true latents, {kind} (Tables 6 and 7)": tabulate(part, "log_q_of_truth"),
            f"Gap to the exact log evidence in nats, {kind}": tabulate(part, "gap"),
            f"Pareto k-hat, {kind}": tabulate(part, "pareto_k"),
            f"Seconds of a fit with compilation, {kind}": tabulate(part, "seconds"),
        }
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, print the tables, say where the files are."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.variational", description=__doc__.partition("\n")[0]
    )
    everything = "all, or some of "
    parser.add_argument(
        "--problems",
        nargs="+",
        metavar="NAME",
        help=everything + ", ".join(PROBLEMS),
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help=everything + ", ".join(METHODS),
    )
    parser.add_argument("--runs", type=int, help="data sets (10, or 1 with --quick)")
    parser.add_argument("--steps", type=int, help=f"({PAPER.steps}, or {QUICK.steps} with --quick)")
    parser.add_argument("--quick", action="store_true", help="narrow networks, few steps")
    parser.add_argument("--standard", action="store_true", help="narrow networks, until they end")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--out", type=Path, default=Path("results", "variational"))
    args = parser.parse_args(argv)
    if args.problems is None:
        args.problems = PROBLEMS_OF_PAPER if args.quick else ["all"]
    chosen = {}
    for option, known in (("problems", PROBLEMS), ("methods", list(METHODS))):
        given = getattr(args, option)
        unknown = set(given) - {"all", *known}
        if unknown:
            parser.error(
                f"unknown {option}: {', '.join(sorted(unknown))}; choose {', '.join(known)}"
            )
        chosen[option] = known if "all" in given else [name for name in known if name in given]

    settings = QUICK if args.quick else STANDARD if args.standard else PAPER
    if args.steps is not None and args.steps != settings.steps:
        settings = replace(
            settings,
            name=f"{settings.name}-{args.steps}-steps",
            steps=args.steps,
            steps_of_default=min(args.steps, settings.steps_of_default),
        )
    folder = args.out / settings.name
    n_runs = args.runs or (1 if args.quick else 10)
    tasks = [
        Task(problem, method, i, settings.n_steps(method))
        for i in range(n_runs)
        for problem in chosen["problems"]
        for method in chosen["methods"]
    ]
    console = make_console()
    unpack("variational", tasks, settings.name, folder)
    run(tasks, partial(measure, settings=settings, folder=folder), folder, args.jobs, console)

    frame = collect(tasks, folder)
    report(frame, tables(frame), folder, console)


if __name__ == "__main__":
    main()
