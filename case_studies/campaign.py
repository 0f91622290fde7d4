"""Campaigns of fits: in several processes, resumable, with progress over fits and steps."""

from __future__ import annotations

import json
import multiprocessing
import os

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pandas as pd

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

#: Numbers kept of a loss.
KEPT_LOSSES = 500


@dataclass(frozen=True)
class Task:
    """One fit of a campaign: the data of one run of a problem, and a method.

    Attributes
    ----------
    problem, method : str
    run : int
    n_steps : int
    """

    problem: str
    method: str
    run: int
    n_steps: int

    @property
    def labels(self) -> dict[str, Any]:
        """What names the fit in a table."""
        return {"problem": self.problem, "method": self.method, "run": self.run}

    def path(self, folder: Path) -> Path:
        """File of the finished fit."""
        return folder / self.problem / f"{self.method}-{self.run}.json"


# --- in a process that fits --------------------------------------------------------------------

#: Where it reports the task and the number of steps done.
_reports: Any = None


def _report_to(reports: Any) -> None:
    global _reports
    _reports = reports


def reporter(task: Task) -> Callable[[Any, Any, int], None]:
    """Make a callback that tells the campaign how many steps are done."""

    def report(fit, losses, i):
        if _reports is not None:
            _reports.put((task, i))

    return report


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write what came of a fit, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(path)


def thinned(losses: np.ndarray) -> list[float]:
    """Averages over equal parts of a fit."""
    parts = np.array_split(losses, min(KEPT_LOSSES, len(losses)))
    return [float(part.mean()) for part in parts]


# --- the campaign ------------------------------------------------------------------------------


def make_console() -> Console:
    """Make a console, wide if there is no window that it must fit in."""
    console = Console()
    if not console.is_terminal:
        console.width = 240
    return console


def run(
    tasks: Sequence[Task],
    measure: Callable[[Task], Task],
    folder: Path,
    jobs: int,
    console: Console,
) -> None:
    """Fit what is not on disk yet, in several processes.

    Parameters
    ----------
    tasks : sequence of Task
    measure : callable
        Fits a task and writes its file, in another process.
    folder : Path
    jobs : int
        Number of processes.
    console : Console
    """
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
        pending = {pool.submit(measure, task) for task in waiting}
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for task, steps in _drained(reports):
                if task not in going:
                    continue
                if task not in bars:
                    title = f"{task.problem} {task.method}, run {task.run}"
                    bars[task] = progress.add_task(title, total=task.n_steps)
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


def read(tasks: Iterable[Task], folder: Path) -> list[dict[str, Any]]:
    """What came of finished fits."""
    return [json.loads(task.path(folder).read_text(encoding="utf-8")) for task in tasks]


def report(
    frame: pd.DataFrame, tables: Mapping[str, Table], folder: Path, console: Console
) -> None:
    """Print tables, write them and the tidy results, and say where they are."""
    frame.to_csv(folder / "results.csv", index=False)
    numbers = frame.drop(columns="error", errors="ignore")
    index = ["problem", "method", "run"]
    numbers.set_index(index).to_xarray().to_netcdf(folder / "results.nc")
    with (folder / "tables.txt").open("w", encoding="utf-8") as file:
        written = Console(file=file, width=240)
        for title, table in tables.items():
            for target in (console, written):
                target.print(title)
                target.print(table)
    console.print(f"{folder}: results.csv, results.nc, tables.txt, and a file for each fit")
