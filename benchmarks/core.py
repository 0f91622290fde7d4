"""EMF against its peers, in one run: ``python -m benchmarks.core``.

One row a method and problem: seconds to compile, microseconds a step (median, also as a multiple
of the floor of :mod:`benchmarks.floor` at the problem's size), and for each number of steps the
gap, -ELBO + log p(y) in nats from fresh draws, with the wall time of the whole fit. Each number of
steps is a fit of its own, for the learning rates decay; compilation is that of the first and time a
step the smallest. EMF runs at its defaults, the peers as :mod:`benchmarks.peers` says.

With ``--json`` the run can be interrupted and resumed: a problem that is in the file is not fitted
again. ``--problems all`` is every problem with known evidence.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from pathlib import Path
from time import perf_counter

import jax

from rich.console import Console
from rich.table import Table

from benchmarks import handwritten
from benchmarks.common import ELBO_DRAWS, Fit
from benchmarks.floor import floor
from benchmarks.peers import PEERS
from case_studies.problems import Problem, load, names


def fit_emf(name: str, problem: Problem, steps: int, draws: int, seed: int) -> Fit:
    """Fit by `emf.fit`, at its defaults."""
    import pymc_emf as emf  # the peers can be timed without it

    start = perf_counter()
    approx = emf.fit(steps, model=problem.model, random_seed=seed, progressbar=False)
    wall = perf_counter() - start
    elbo = approx.elbo(draws=ELBO_DRAWS, random_seed=seed + 1)
    timing = approx.timing
    return Fit(timing["compile"], timing["step"], wall, float(elbo.mean), float(elbo.se))


def fit_by_hand(name: str, problem: Problem, steps: int, draws: int, seed: int) -> Fit | None:
    """Fit Eight Schools in plain JAX; nothing else is written by hand."""
    return handwritten.fit(steps, draws, seed) if name == "ES" else None


METHODS: dict[str, Callable[[str, Problem, int, int, int], Fit | None]] = {
    "EMF": fit_emf,
    "handwritten": fit_by_hand,
    **PEERS,
}


def measure(name: str, methods: list[str], steps: list[int], draws: int, seed: int) -> list[dict]:
    """Fit one problem by several methods.

    Returns
    -------
    list of dict
        One record a method, for the table and the JSON file.
    """
    problem = load(name)
    base = floor(problem.dim, draws)
    records = [{"problem": name, "method": "floor", "step": base, "floor": base, "fits": {}}]
    for method in methods:
        fits: dict[str, dict] = {}  # by the number of steps, as JSON has keys
        for n in steps:
            try:
                result = METHODS[method](name, problem, n, draws, seed)
            except Exception as error:  # a peer that fails is a row of the table as well
                logging.getLogger(__name__).exception("%s fails on %s", method, name)
                fits[str(n)] = {"error": f"{type(error).__name__}: {error}"}
                continue
            if result is not None:
                fits[str(n)] = asdict(result) | {"gap": -result.elbo - problem.neg_log_evidence}
        if fits:
            done = [fit for fit in fits.values() if "error" not in fit]
            records.append(
                {
                    "problem": name,
                    "method": method,
                    "compile": done[0]["compile"] if done else None,
                    "step": min(fit["step"] for fit in done) if done else None,
                    "floor": base,
                    "fits": fits,
                }
            )
    return records


def tabulate(records: list[dict], steps: list[int]) -> Table:
    """Lay the records out, one row each."""
    table = Table()
    for column in ("problem", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("compile, s", "µs / step", "× floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for n in steps:
        table.add_column(f"gap, {n:,} steps", justify="right", no_wrap=True)
        table.add_column("wall, s", justify="right", no_wrap=True)
    previous = None
    for record in records:
        if previous not in (None, record["problem"]):
            table.add_section()
        name = "" if record["problem"] == previous else record["problem"]
        previous = record["problem"]
        row = [name, record["method"]]
        compile_time, step = record.get("compile"), record["step"]
        row.append("" if compile_time is None else f"{compile_time:.1f}")
        row += ["", ""] if step is None else [f"{1e6 * step:.0f}", f"{step / record['floor']:.1f}"]
        for n in steps:
            fit = record["fits"].get(str(n))
            if fit is None:
                row += ["", ""]
            elif "error" in fit:
                row += ["failed", ""]
            else:
                row += [f"{fit['gap']:.4f} ± {fit['se']:.4f}", f"{fit['wall']:.1f}"]
        table.add_row(*row)
    return table


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pymc-emf", "pymc", "pytensor", "jax", "numpyro"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def main() -> None:
    """Run the benchmark, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", nargs="+", default=["ES", "BRB-c", "Lin-8"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--draws", type=int, default=50, help="draws a step, of all but EMF")
    parser.add_argument("--seed", type=int, default=0, help="of the fit; data sets are seed 0")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    problems = list(dict(names())) if args.problems == ["all"] else args.problems
    jax.config.update("jax_enable_x64", True)

    logging.getLogger("pymc").setLevel(logging.WARNING)

    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    report = {
        "draws": args.draws,
        "seed": args.seed,
        "elbo_draws": ELBO_DRAWS,
        "cores": cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": _versions(),
    }
    records = []
    if args.json and args.json.exists():
        records = json.loads(args.json.read_text(encoding="utf-8"))["records"]
    done = {record["problem"] for record in records}
    for name in [p for p in problems if p not in done]:
        with console.status(name):
            records += measure(name, args.methods, args.steps, args.draws, args.seed)
        if args.json:
            text = json.dumps(report | {"records": records}, indent=1)
            args.json.write_text(text + "\n", encoding="utf-8")
    console.print(tabulate(records, args.steps))


if __name__ == "__main__":
    main()
