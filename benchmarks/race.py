"""Small models, from the call to the draws, against nutpie: ``python -m benchmarks.race``.

The twenty textbook models, Eight Schools among them, or any of those in the manner of public
questions that are named, each by the default fit and by nutpie's
default run, in processes of their own that share nothing but the folders in which PyTensor, JAX
and numba keep what they have compiled. Each runs twice: the first time these are empty, the second
time filled.
Both draw as many times, four chains of a thousand and four thousand draws, and check what they
have drawn, as they do by default.

What is in the file of records is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import pymc as pm

from rich.console import Console
from rich.table import Table

from benchmarks import public, textbook
from benchmarks.records import measure_missing

MODELS = textbook.MODELS | public.MODELS
RECORDS = Path("results/race.json")
CHAINS, DRAWS = 4, 1000
CACHES = ("empty", "filled")


def _emf(model: pm.Model, seed: int) -> None:
    import pymc_emf as emf

    approx = emf.fit(model=model, random_seed=seed, progressbar=False)
    approx.sample(CHAINS * DRAWS, random_seed=seed)


def _nutpie(model: pm.Model, seed: int) -> None:
    pm.sample(
        DRAWS,
        nuts_sampler="nutpie",
        chains=CHAINS,
        random_seed=seed,
        model=model,
        progressbar=False,
    )


METHODS = {"emf": _emf, "nutpie": _nutpie}


def seconds(name: str, method: str, seed: int) -> float:
    """Seconds of one run, in this process; what it imports counts."""
    model = MODELS[name]()
    begin = perf_counter()
    METHODS[method](model, seed)
    return perf_counter() - begin


def measure(model: str, method: str, seed: int) -> dict:
    """Two runs, each in a process of its own, with one set of new caches."""
    command = [sys.executable, "-m", "benchmarks.race", "one", model, method, str(seed)]
    found: dict = {}
    with TemporaryDirectory() as folder:
        caches = {
            "PYTENSOR_FLAGS": f"base_compiledir={folder}/pytensor",
            "NUMBA_CACHE_DIR": f"{folder}/numba",
        }
        for cache in CACHES:
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | caches)
            if done.returncode:
                return found | {"error": done.stderr.strip().splitlines()[-1][:200]}
            found[cache] = float(done.stdout.splitlines()[-1])
    return found


def tabulate(records: list[dict]) -> Table:
    """One row a model: seconds of both, with empty and with filled caches."""
    table = Table("model", title="seconds from the call to the draws; * where sooner")
    for cache in CACHES:
        for method in METHODS:
            table.add_column(f"{method}, {cache}", justify="right")
    found = {(r["model"], r["method"]): r for r in records}
    sooner = dict.fromkeys(CACHES, 0)
    for name in MODELS:
        pair = [found.get((name, method), {}) for method in METHODS]
        if not all(pair):
            continue
        row = [name]
        for cache in CACHES:
            ours, theirs = (r.get(cache, float("nan")) for r in pair)
            sooner[cache] += ours <= theirs
            row += [f"{ours:.1f}{'*' if ours <= theirs else ''}", f"{theirs:.1f}"]
        table.add_row(*row)
    table.caption = ", ".join(f"{n} no slower with {cache} caches" for cache, n in sooner.items())
    return table


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="nothing for the campaign")
    parser.add_argument("--models", nargs="+", default=list(textbook.MODELS), choices=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    if arguments.what:
        _, name, method, seed = arguments.what
        print(seconds(name, method, int(seed)))
        return
    console = Console(width=120)
    cases = [
        {"model": name, "method": method, "seed": arguments.seed}
        for name in arguments.models
        for method in METHODS
    ]
    records = measure_missing(cases, measure, arguments.records, console)
    console.print(tabulate(records))


if __name__ == "__main__":
    main()
