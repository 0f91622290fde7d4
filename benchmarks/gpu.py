"""The same fits on a CPU and on a GPU, from the call to the draws: ``python -m benchmarks.gpu``.

Every run is a process of its own, to which JAX_PLATFORMS says where to compute. The moments of the
two must agree. NUTS runs beside: nutpie on the CPU, numpyro's on either.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pymc as pm
import xarray as xr

from rich.console import Console
from rich.table import Table

from benchmarks import large, textbook
from benchmarks.records import measure_missing

RECORDS = Path("results/gpu.json")

MODELS: dict[str, Callable[[], pm.Model]] = {
    "eight_schools": textbook.MODELS["eight_schools"],
    "intercepts-1000": large.intercepts,
    "intercepts-10000": partial(large.intercepts, 10_000),
    "intercepts-100000": partial(large.intercepts, 100_000),
    "slopes": large.slopes,
    "item_response": large.item_response,
    "volatility": large.volatility,
    "process": large.process,
    "million_rows": partial(large.million_rows, batch=None),
    "many_groups": partial(large.many_groups, batch=None),
}


def _numpyro(model: pm.Model, seed: int) -> tuple[xr.Dataset, dict]:
    idata = pm.sample(
        large.DEFAULT,
        nuts_sampler="numpyro",
        chains=large.CHAINS,
        random_seed=seed,
        model=model,
        progressbar=False,
        compute_convergence_checks=False,
        nuts_sampler_kwargs={"chain_method": "vectorized"},
    )
    return idata.posterior.to_dataset(), {}


METHODS = {"emf": large.METHODS["emf"], "nutpie": large.METHODS["nutpie"], "numpyro": _numpyro}


def measure(name: str, method: str, seed: int) -> dict:
    """One run, in this process."""
    import jax

    model = MODELS[name]()
    record: dict = {"unknowns": sum(int(np.prod(x.shape)) for x in model.initial_point().values())}
    record["device"] = jax.devices()[0].device_kind
    begin = perf_counter()
    posterior, said = METHODS[method](model, seed)
    record["seconds"] = perf_counter() - begin
    known = [v.name for v in model.free_RVs if posterior[v.name][0, 0].size <= large.COMMON_SIZE]
    record["common"] = {
        name: values.tolist() for name, values in large.moments(posterior, known).items()
    }
    return record | said


def measure_apart(model: str, method: str, platform: str, seed: int, limit: float) -> dict:
    """One run, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "one", model, method, str(seed)]
    environment = os.environ | {"JAX_PLATFORMS": platform}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:]}
    warned = [line for line in done.stderr.splitlines() if "k-hat is" in line or " off: " in line]
    return json.loads(done.stdout.splitlines()[-1]) | {"warned": warned[:1]}


def _apart_from(record: dict, other: dict | None) -> str:
    """Worst differences of common parameters' means, in sd, and of the logs of their sds."""
    if other is None or not record["common"]:
        return ""
    mean, sd = np.concatenate([np.array(v) for v in record["common"].values()], axis=1)
    mean_, sd_ = np.concatenate([np.array(v) for v in other["common"].values()], axis=1)
    return f"{np.abs((mean - mean_) / sd_).max():.2f}, {np.abs(np.log(sd / sd_)).max():.2f}"


def tabulate(records: list[dict]) -> Table:
    """Lay the records out, one row each."""
    table = Table("model", "d", "method", "on")
    for title in ("seconds", "compile", "start", "steps", "ms/step", "k", "from emf on cpu"):
        table.add_column(title, justify="right")
    first = {r["model"]: r for r in records if (r["method"], r["platform"]) == ("emf", "cpu")}
    for record in records:
        row = [record["model"], str(record.get("unknowns", "")), record["method"]]
        row.append(record["platform"])
        if "error" in record:
            table.add_row(*row, record["error"].splitlines()[-1][:60])
            continue
        row.append(f"{record['seconds']:.1f}")
        if timing := record.get("timing"):
            row += [f"{timing[key]:.1f}" for key in ("compile", "warm_start")]
            row += [str(record["stopping"][1]), f"{1000 * timing['step']:.2f}"]
            row.append("" if record["pareto_k"] is None else f"{record['pareto_k']:.2f}")
        else:
            row += [""] * 5
        other = first.get(record["model"])
        row.append(_apart_from(record, other) if other and "common" in other else "")
        table.add_row(*row)
    return table


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="nothing for the campaign")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["emf"], choices=list(METHODS))
    parser.add_argument("--platforms", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one run")
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    if arguments.what:
        _, name, method, seed = arguments.what
        print(json.dumps(measure(name, method, int(seed))))
        return
    cases = [
        {"model": name, "method": method, "platform": platform, "seed": arguments.seed}
        for name in arguments.models
        for method in arguments.methods
        for platform in arguments.platforms
        if method != "nutpie" or platform == "cpu"
    ]
    console = Console(width=150)
    apart = partial(measure_apart, limit=arguments.limit)
    records = measure_missing(cases, apart, arguments.records, console)
    records.sort(key=lambda r: list(MODELS).index(r["model"]))
    console.print(tabulate(records))


if __name__ == "__main__":
    main()
