"""Whether ``approx.diagnose()`` can be believed: ``python -m benchmarks.diagnosis``.

Default fits of every problem with known evidence, and fits that are poor on purpose: Pareto k-hat,
and how far the evidence by importance sampling is from the exact one, in standard errors of both.
Where k-hat is below 0.7 that should be less than three; of the poor fits it should be above. With
``--json`` the run can be interrupted and resumed.
"""

from __future__ import annotations

import argparse
import json
import logging

from pathlib import Path
from typing import Any

import jax
import numpy as np

from rich.console import Console
from rich.table import Table

import pymc_emf as emf

from benchmarks.common import ELBO_DRAWS
from benchmarks.table import TARGETS
from case_studies.problems import load, names

MEAN_FIELD = {"layers": "mean_field", "embed": False}
COLD = {"warm_start": False}
#: Fits that nobody should trust, and why.
POOR: list[tuple[str, str, dict[str, Any]]] = [
    ("BRB-c", "mean field", MEAN_FIELD),
    ("ES", "mean field", MEAN_FIELD),
    ("LZB-r", "cold start", COLD),
    ("LZB-c", "cold start", COLD),
]
DEFAULT = "default"


def cases(seeds: list[int]) -> list[tuple[str, int, int, str, dict[str, Any]]]:
    """Problem, data set, seed, name of the fit and its options."""
    good = [(name, data, DEFAULT, {}) for name, data in names() if name in TARGETS]
    poor = [(name, 0, kind, options) for name, kind, options in POOR]
    return [
        (name, data, seed, kind, options)
        for name, data, kind, options in (*good, *poor)
        for seed in seeds
    ]


def measure(name, data, seed, kind, options, steps) -> dict[str, Any]:
    """Fit, and compare what the fit says of itself with what is known."""
    problem = load(name, data)
    approx = emf.fit(steps, model=problem.model, random_seed=seed, progressbar=False, **options)
    found = approx.diagnose(ELBO_DRAWS, random_seed=seed + 1)
    error = found.log_evidence + problem.neg_log_evidence
    return {
        "problem": name,
        "data": data,
        "seed": seed,
        "fit": kind,
        "k": found.pareto_k,
        "gap": -found.elbo - problem.neg_log_evidence,
        "error": error,
        "se": float(np.hypot(found.log_evidence_se, problem.se)),
        "ess": found.ess,
        "advice": found.advice,
    }


def is_right(record: dict[str, Any]) -> bool | None:
    """Whether the diagnosis is; None where a default fit itself says that it is none to trust."""
    trusted = record["k"] < 0.7
    if record["fit"] != DEFAULT:
        return not trusted
    # the rounding of what has no Monte Carlo error
    return abs(record["error"]) < 3 * record["se"] + 1e-6 if trusted else None


def tabulate(records: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("problem", "data", "seed", "fit"):
        table.add_column(column, no_wrap=True)
    for column in ("k-hat", "gap, nats", "error of the evidence", "ESS of 20,000"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("right")
    for r in records:
        table.add_row(
            *(str(r[key]) for key in ("problem", "data", "seed", "fit")),
            f"{r['k']:.2f}",
            f"{r['gap']:.4f}",
            f"{r['error']:+.4f} ± {r['se']:.4f}",
            f"{r['ess']:,.0f}",
            {True: "yes", False: "NO", None: "warns"}[is_right(r)],
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fits")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="written after every fit, and resumed from")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for package in ("pymc", "pymc_emf"):  # the table says it
        logging.getLogger(package).setLevel(logging.ERROR)

    console = Console()
    if not console.is_terminal:
        console.width = 160  # no window to fit in
    records = []
    if args.json and args.json.exists():
        records = json.loads(args.json.read_text(encoding="utf-8"))
    keys = ("problem", "data", "seed", "fit")
    done = {tuple(r[key] for key in keys) for r in records}
    for case in cases(args.seeds):
        if case[0] not in args.problems or case[:4] in done:
            continue
        with console.status(" ".join(map(str, case[:4]))):
            records.append(measure(*case, args.steps))
        jax.clear_caches()
        if args.json:
            args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    console.print(tabulate(records))
    verdicts = [is_right(r) for r in records]
    console.print(
        f"{verdicts.count(True)} right, {verdicts.count(False)} wrong, "
        f"{verdicts.count(None)} default fits that warn"
    )


if __name__ == "__main__":
    main()
