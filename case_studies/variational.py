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
import json
import logging
import multiprocessing
import os

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from queue import Empty
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from case_studies.eight_schools import PAPER_ELBO, exact_draws
from case_studies.methods import METHODS, PAPER, QUICK, Settings, fit
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
#: Draws kept for the figures, and numbers kept of a loss.
KEPT_DRAWS, KEPT_LOSSES = 200, 500


@dataclass(frozen=True)
class Task:
    """One fit of the campaign: a problem's data of one run, and a method."""

    problem: str
    method: str
    run: int

    def path(self, folder: Path) -> Path:
        return folder / self.problem / f"{self.method}-{self.run}.json"


@cache
def data(name: str, run: int) -> Problem:
    """Data of one run: those in the repository as far as they go, then simulated ones."""
    if name == "ES":
        return load("ES")
    return load(name, run) if (name, run) in names() else simulate(name, run)


#: In a process that fits: where it reports the task and the number of steps done.
_reports: Any = None


def _report_to(reports: Any) -> None:
    global _reports
    _reports = reports


def measure(task: Task, settings: Settings, folder: Path) -> Task:
    """Fit, and write what came of it to a file, at once or not at all."""

    def report(approx, losses, i):
        if _reports is not None:
            _reports.put((task, i))

    for package in ("pymc", "pymc_emf"):  # k-hat stands in the tables
        logging.getLogger(package).setLevel(logging.ERROR)
    problem = data(task.problem, task.run)
    record: dict[str, Any] = asdict(task) | {"settings": settings.name, "dim": problem.dim}
    record |= {"log_evidence": -problem.neg_log_evidence, "evidence_se": problem.se}
    begin = perf_counter()
    try:
        approx = fit(problem.model, task.method, settings, seed=task.run, callbacks=[report])
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
            "losses": _thinned(-np.asarray(approx.hist)),
        }
        if task.run == 0 and task.problem in SERIES:
            _keep_draws(approx, task.path(folder).with_suffix(".nc"))
    path = task.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(path)
    return task


def _log_q_of_truth(approx, problem: Problem) -> float:
    """Log density of the approximation at what made the data: the paper's "forward KL".

    Of Eight Schools, whose data are real, the average over exact draws from the posterior.
    """
    truth = problem.true_latents or exact_draws(problem.observed, 1000, seed=0)
    return float(np.mean(approx.log_prob(truth)))


def _thinned(elbos: np.ndarray) -> list[float]:
    """Averages over equal parts of the fit."""
    parts = np.array_split(elbos, min(KEPT_LOSSES, len(elbos)))
    return [float(part.mean()) for part in parts]


def _keep_draws(approx, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    idata = approx.sample(KEPT_DRAWS, random_seed=3)
    posterior = idata.posterior.to_dataset().astype("float32")
    gates = idata.fit.to_dataset().drop_dims("step")
    xr.DataTree.from_dict({"posterior": posterior, "gates": gates}).to_netcdf(path)


def run(tasks: Sequence[Task], settings: Settings, folder: Path, jobs: int, console: Console):
    """Fit what is not on disk yet, in `jobs` processes."""
    waiting = [task for task in tasks if not task.path(folder).exists()]
    if len(waiting) < len(tasks):
        console.print(f"{len(tasks) - len(waiting)} of {len(tasks)} fits are in {folder} already.")
    columns = (
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    spawn = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    reports = spawn.Queue()
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(jobs, spawn, initializer=_report_to, initargs=(reports,)) as pool,
    ):
        fits = progress.add_task("Fits", total=len(waiting))
        bars: dict[Task, TaskID] = {}
        going = set(waiting)  # a report may arrive after its fit has ended
        pending = {pool.submit(measure, task, settings, folder) for task in waiting}
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for task, steps in _drained(reports):
                if task not in going:
                    continue
                if task not in bars:
                    title = f"{task.problem} {task.method}, run {task.run}"
                    bars[task] = progress.add_task(title, total=settings.n_steps(task.method))
                progress.update(bars[task], completed=steps)
            for future in done:
                task = future.result()
                going.discard(task)
                progress.advance(fits)
                if task in bars:
                    progress.remove_task(bars.pop(task))


def _drained(reports: Any) -> list[tuple[Task, int]]:
    """What has been reported since the last look."""
    found = []
    while True:
        try:
            found.append(reports.get_nowait())
        except Empty:
            return found


def collect(tasks: Iterable[Task], folder: Path) -> pd.DataFrame:
    """All results as a tidy table, one row a fit."""
    records = [json.loads(task.path(folder).read_text(encoding="utf-8")) for task in tasks]
    frame = pd.DataFrame(records).drop(columns="losses", errors="ignore")
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

    settings = QUICK if args.quick else PAPER
    if args.steps is not None and args.steps != settings.steps:
        settings = replace(
            settings,
            name=f"{settings.name}-{args.steps}",
            steps=args.steps,
            steps_of_default=min(args.steps, settings.steps_of_default),
        )
    folder = args.out / settings.name
    n_runs = args.runs or (1 if args.quick else 10)
    tasks = [
        Task(problem, method, i)
        for i in range(n_runs)
        for problem in chosen["problems"]
        for method in chosen["methods"]
    ]
    console = Console()
    if not console.is_terminal:
        console.width = 240  # no window to fit in
    run(tasks, settings, folder, args.jobs, console)

    frame = collect(tasks, folder)
    frame.to_csv(folder / "results.csv", index=False)
    index = ["problem", "method", "run"]
    frame.drop(columns="error").set_index(index).to_xarray().to_netcdf(folder / "results.nc")
    with (folder / "tables.txt").open("w", encoding="utf-8") as file:
        written = Console(file=file, width=240)
        for title, table in tables(frame).items():
            for target in (console, written):
                target.print(title)
                target.print(table)
    console.print(f"{folder}: results.csv, results.nc, tables.txt, and a file for each fit")


if __name__ == "__main__":
    main()
