"""NUTS through the flow against plain NUTS: ``python -m benchmarks.transport``.

Two models on which plain NUTS diverges, Eight Schools with centred effects and Neal's funnel in
nine dimensions, sampled by the same sampler in the noise of the default fit (``approx.nuts``) and
in the model's own space (``pm.sample``), there also with the acceptance rate that ``approx.nuts``
aims at. One row a model, method and seed: divergences, smallest bulk ESS over all unknowns,
leapfrog steps of the kept draws, the smallest ESS per thousand of them, and seconds of sampling,
compilation included; the fit has a column of its own.
"""

from __future__ import annotations

import argparse
import json
import logging

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import arviz_stats
import jax
import pymc as pm
import xarray as xr

from rich.console import Console
from rich.table import Table

import pymc_emf as emf

EFFECT = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERROR = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
#: Aim of approx.nuts by default.
TARGET_ACCEPT = 0.99


def schools() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, ERROR, observed=EFFECT)
    return model


def funnel() -> pm.Model:
    with pm.Model() as model:
        v = pm.Normal("v", 0.0, 3.0)
        pm.Normal("x", 0.0, pm.math.exp(v / 2), shape=8)
    return model


MODELS: dict[str, Callable[[], pm.Model]] = {"schools": schools, "funnel": funnel}


def judge(model: pm.Model, idata: xr.DataTree) -> dict:
    """Divergences, smallest bulk ESS, leapfrog steps and one per the other."""
    names = [rv.name for rv in model.free_RVs]
    ess = arviz_stats.ess(idata, var_names=names)
    smallest = min(float(x.min()) for x in ess.data_vars.values())
    steps = int(idata["sample_stats"]["n_steps"].sum())
    return {
        "divergences": int(idata["sample_stats"]["diverging"].sum()),
        "ess": smallest,
        "gradients": steps,
        "ess_per_gradient": smallest / steps,
    }


def measure(name: str, sampler: str, steps: int, draws: int, seed: int) -> list[dict]:
    """Sample one model in all ways; one record each."""
    model = MODELS[name]()
    begin = perf_counter()
    approx = emf.fit(steps, model=model, random_seed=seed, progressbar=False)
    fit = perf_counter() - begin
    options = {
        "tune": draws,
        "chains": 4,
        "random_seed": seed,
        "nuts_sampler": sampler,
        "progressbar": False,
    }
    methods: dict[str, Callable[[], xr.DataTree]] = {
        "approx.nuts": lambda: approx.nuts(draws, **options),
        "pm.sample": lambda: pm.sample(draws, model=model, cores=1, **options),
        f"pm.sample, {TARGET_ACCEPT}": lambda: pm.sample(
            draws, model=model, cores=1, target_accept=TARGET_ACCEPT, **options
        ),
    }
    records = []
    for method, run in methods.items():
        begin = perf_counter()
        idata = run()
        record = {"model": name, "method": method, "sampler": sampler, "seed": seed, "fit": fit}
        records.append(record | {"wall": perf_counter() - begin} | judge(model, idata))
        records[-1]["pareto_k"] = approx.pareto_k
    for record in records:
        record["ratio"] = records[0]["ess_per_gradient"] / record["ess_per_gradient"]
    return records


def main() -> None:
    """Print a table, one row a model, seed and method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sampler", default="pymc", choices=["pymc", "nutpie"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for package in ("pymc", "pymc_emf"):
        logging.getLogger(package).setLevel(logging.CRITICAL)

    table = Table("model", "seed", "method")
    for column in ("divergences", "min ESS", "gradients", "ESS / 1,000", "gain", "s", "fit, s"):
        table.add_column(column, justify="right")
    records = []
    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    for name in args.models:
        for seed in args.seeds:
            with console.status(f"{name} {seed}"):
                found = measure(name, args.sampler, args.steps, args.draws, seed)
            records += found
            for r in found:
                table.add_row(
                    name,
                    str(seed),
                    r["method"],
                    str(r["divergences"]),
                    f"{r['ess']:.0f}",
                    f"{r['gradients']:,}",
                    f"{1000 * r['ess_per_gradient']:.1f}",
                    f"{r['ratio']:.1f}",
                    f"{r['wall']:.1f}",
                    f"{r['fit']:.1f}",
                )
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    console.print(table)


if __name__ == "__main__":
    main()
