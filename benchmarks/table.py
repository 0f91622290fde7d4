"""EMF at its defaults on every problem with known evidence: ``python -m benchmarks.table``.

One row a problem and data set: the gap, -ELBO + log p(y) in nats from fresh draws, against the
target, and where the seconds went. With ``--json`` the run can be interrupted and resumed: what is
in the file is not fitted again.
"""

from __future__ import annotations

import argparse
import logging

from functools import partial
from pathlib import Path
from time import perf_counter

import jax

from rich.console import Console
from rich.table import Table

import pymc_emf as emf

from benchmarks.common import ELBO_DRAWS
from benchmarks.records import measure_missing
from case_studies.problems import load, names

#: Largest gap in nats, by the part of the name before the data set.
TARGETS = {
    "ES": 0.005,
    **dict.fromkeys(["BRS-r", "BRB-r", "Lin-4", "Lin-8"], 0.001),
    **dict.fromkeys(["BRS-c", "BRB-c", "Tanh-4"], 0.01),
    **dict.fromkeys(["LZS-r", "LZS-c", "LZB-r", "LZB-c", "Tanh-8"], 0.15),
}


def measure(problem: str, data: int, seed: int, steps: int) -> dict:
    """Fit one data set at the defaults; a record for the table and the file."""
    known = load(problem, data)
    begin = perf_counter()
    approx = emf.fit(steps, model=known.model, random_seed=seed, progressbar=False)
    wall = perf_counter() - begin
    elbo = approx.elbo(ELBO_DRAWS, random_seed=seed + 1)
    return {
        "dim": known.dim,
        "gap": -elbo.mean - known.neg_log_evidence,
        "se": float((elbo.se**2 + known.se**2) ** 0.5),
        "target": TARGETS[problem],
        "wall": wall,
        "timing": approx.timing,
        "start": approx.warm_start.chosen,
        "stopping": approx.stopping,
        "k": approx.pareto_k,
    }


def tabulate(records: list[dict]) -> Table:
    """Lay the records out, one row each."""
    table = Table()
    for column in ("problem", "data", "seed", "d"):
        table.add_column(column, no_wrap=True)
    for column in ("gap, nats", "target", "whole, s", "start, s", "µs / step", "steps", "k"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("from")
    table.add_column("met")
    for r in records:
        table.add_row(
            *(str(r[key]) for key in ("problem", "data", "seed", "dim")),
            f"{r['gap']:.4f} ± {r['se']:.4f}",
            f"{r['target']:g}",
            f"{r['wall']:.1f}",
            f"{r['timing']['warm_start']:.1f}",
            f"{1e6 * r['timing']['step']:.0f}",
            str(r["stopping"][1]),
            f"{r['k']:.2f}",
            r["start"],
            "yes" if r["gap"] <= r["target"] else "no",
        )
    return table


def main() -> None:
    """Fit, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--data", type=int, nargs="+", default=[0, 1], help="data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fits")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="written after every fit, and resumed from")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    logging.getLogger("pymc").setLevel(logging.WARNING)

    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    cases = [
        {"problem": name, "data": data_seed, "seed": seed}
        for name, data_seed in names()
        if name in args.problems and data_seed in args.data
        for seed in args.seeds
    ]
    records = measure_missing(cases, partial(measure, steps=args.steps), args.json, console)
    console.print(tabulate(records))
    met = sum(r["gap"] <= r["target"] for r in records)
    console.print(f"{met} of {len(records)} targets met")


if __name__ == "__main__":
    main()
