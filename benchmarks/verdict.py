"""Whether the verdict on a fit is right: ``python -m benchmarks.verdict --json FILE``.

Default fits of the textbook models and of models in the manner of public questions
(:mod:`benchmarks.public`), each against a long run of NUTS. A fit misses if an element of a free
variable, on its constrained scale, has a mean more than 0.1 posterior standard deviations off, or
a standard deviation more than 10% off. The verdict should warn of these, and of no others; beside
it stands what Pareto k-hat alone would say. The run can be interrupted and resumed.

``python -m benchmarks.verdict reference`` runs NUTS for the public models that
``data/public.json`` lacks: on the model as written, or, where that mixes badly, in the noise of a
fitted flow.
"""

from __future__ import annotations

import json

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import arviz as az
import numpy as np
import pymc as pm

from rich.console import Console
from rich.table import Table

import pymc_emf as emf

from benchmarks import public, textbook
from benchmarks.common import make_console, make_parser
from benchmarks.records import measure_missing
from benchmarks.textbook import DRAWS, MEAN_TOLERANCE, SD_TOLERANCE, compare
from pymc_emf.variational.importance import MAX_PARETO_K
from pymc_emf.variational.verdict import N_FRESH_DRAWS

REFERENCES = Path(__file__).parent / "data" / "public.json"
MODELS: dict[str, Callable[[], pm.Model]] = textbook.MODELS | public.MODELS
#: Public models whose reference is drawn in the noise of a flow.
BY_FLOW = (
    "decay",
    "drift_diffusion",
    "funnel",
    "overlap",
    "volatility",
    "weibull",
    "weibull_censored",
)
#: Fewer effective draws are no reference.
MIN_ESS = 400


def load_references() -> dict[str, dict]:
    """Moments by NUTS of all models that have them."""
    known = json.loads(REFERENCES.read_text(encoding="utf-8")) if REFERENCES.exists() else {}
    return textbook.load_references() | known


def reference(name: str, seed: int = 20) -> dict[str, Any]:
    """Run NUTS on one of the public models: four chains; the form is that of the textbook's."""
    model = public.MODELS[name]()
    options: dict[str, Any] = {
        "draws": 2500,
        "chains": 4,
        "nuts_sampler": "nutpie",
        "random_seed": seed,
        "progressbar": False,
        "compute_convergence_checks": False,
    }
    if name in BY_FLOW:
        approx = emf.fit(model=model, random_seed=99, progressbar=False)
        idata = approx.nuts(tune=1500, target_accept=0.95, quiet=True, **options)
    else:
        idata = pm.sample(tune=2000, target_accept=0.97, cores=2, model=model, **options)
    variables, rhat, ess = {}, [], []
    for variable in model.free_RVs:
        array = idata.posterior[variable.name].transpose("chain", "draw", ...).to_numpy()
        elements = array.reshape(*array.shape[:2], -1)
        moments = {"mean": elements.mean((0, 1)), "sd": elements.std((0, 1))}
        variables[variable.name] = {
            key: [float(f"{x:.8g}") for x in values] for key, values in moments.items()
        }
        for element in np.moveaxis(elements, -1, 0):
            rhat.append(float(az.rhat(element)))
            ess.append(min(float(az.ess(element, method=m)) for m in ("bulk", "mean", "sd")))
    return {
        "form": "through a flow" if name in BY_FLOW else "as written",
        "draws": 10_000,
        "divergences": int(idata.sample_stats["diverging"].sum()),
        "rhat": round(max(rhat), 4),
        "ess": round(min(ess)),
        "variables": variables,
    }


def write_references(names: list[str], console: Console) -> None:
    """Run NUTS on those of the public models that have no reference yet."""
    for name in (name for name in names if name in public.MODELS):
        known = json.loads(REFERENCES.read_text(encoding="utf-8")) if REFERENCES.exists() else {}
        if name in known:
            continue
        with console.status(name):
            known[name] = reference(name)
        REFERENCES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        said = {key: value for key, value in known[name].items() if key != "variables"}
        console.print(name, said)


def measure(name: str, known: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fit one model; how far it is off, and what it says of itself."""
    model, begin = MODELS[name](), perf_counter()
    record: dict[str, Any] = {}
    try:
        approx = emf.fit(model=model, random_seed=seed, progressbar=False)
        record["seconds"] = perf_counter() - begin
        posterior = approx.sample(DRAWS, random_seed=seed + 1).posterior.dataset
    except Exception as error:  # an error is an answer as well
        return record | {"error": f"{type(error).__name__}: {error}"}
    errors = compare(posterior, known)
    mean_at = max(errors, key=lambda label: abs(errors[label][0]))
    sd_at = max(errors, key=lambda label: abs(np.log(errors[label][1])))
    verdicts = {
        "fit": approx.verdict,
        "later": approx.diagnose(N_FRESH_DRAWS, random_seed=seed).verdict,
    }
    said = {
        when: {
            "k": verdict.pareto_k,
            "effective": verdict.effective,
            "gap": verdict.gap,
            "good": verdict.is_good,
            "sentence": verdict.sentence,
        }
        for when, verdict in verdicts.items()
        if verdict is not None
    }
    return record | {
        "mean_at": mean_at,
        "mean_error": errors[mean_at][0],
        "sd_at": sd_at,
        "sd_ratio": errors[sd_at][1],
        **said,
    }


def misses(record: dict[str, Any]) -> bool:
    """Whether a fit is further off than it may be."""
    off = abs(record["sd_ratio"] - 1) > SD_TOLERANCE
    return abs(record["mean_error"]) > MEAN_TOLERANCE or off


def tabulate(records: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("model", "seed"):
        table.add_column(column, no_wrap=True)
    for column in ("Δmean / sd", "sd / sd", "k-hat", "effective", "gap, nats"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("misses", "warns", "of fresh draws"):
        table.add_column(column)
    words = {True: "yes", False: ""}
    for r in records:
        if "error" in r:
            table.add_row(r["model"], str(r["seed"]), r["error"].partition(":")[0])
            continue
        fit = r["fit"]
        table.add_row(
            r["model"],
            str(r["seed"]),
            f"{r['mean_error']:+.2f}",
            f"{r['sd_ratio']:.2f}",
            f"{fit['k']:.2f}",
            f"{fit['effective']:.2f}",
            f"{fit['gap']:.3f}",
            words[misses(r)],
            words[not fit["good"]],
            words[not r["later"]["good"]],
        )
    return table


def confusion(records: list[dict[str, Any]]) -> str:
    """Misses that pass and false alarms, of the verdicts and of k-hat alone."""
    done = [r for r in records if "error" not in r]
    rules: dict[str, Callable[[dict[str, Any]], bool]] = {
        "the fit's verdict": lambda r: not r["fit"]["good"],
        "that on fresh draws": lambda r: not r["later"]["good"],
        "k-hat alone at the end of the fit": lambda r: not r["fit"]["k"] <= MAX_PARETO_K,
    }
    missed = [r for r in done if misses(r)]
    lines = [f"{len(missed)} of {len(done)} fits miss"]
    for name, warns in rules.items():
        passed = sum(not warns(r) for r in missed)
        false = sum(warns(r) for r in done if not misses(r))
        lines.append(f"{name}: {passed} misses pass, {false} alarms are false")
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__, seeds=[0, 1])
    parser.add_argument("command", nargs="?", choices=["fit", "reference"], default="fit")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = parser.parse_args()
    console = make_console()
    if args.command == "reference":
        write_references(args.models, console)
        return
    known = load_references()
    judged = [name for name in args.models if known.get(name, {"ess": 0})["ess"] >= MIN_ESS]
    records = measure_missing(
        ({"model": name, "seed": seed} for seed in args.seeds for name in judged),
        lambda model, seed: measure(model, known[model], seed),
        args.json,
        console,
    )
    console.print(tabulate(records))
    console.print(confusion(records))


if __name__ == "__main__":
    main()
