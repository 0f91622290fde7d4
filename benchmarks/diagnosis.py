"""Whether ``approx.diagnose()`` can be believed: ``python -m benchmarks.diagnosis``.

Default fits of every problem with known evidence, and fits that are poor on purpose: Pareto k-hat,
and how far the evidence by importance sampling is from the exact one, in standard errors of both.
Where k-hat is below 0.7 that should be less than three; of the poor fits it should be above. With
``--json`` the run can be interrupted and resumed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rich.table import Table

import pymc_emf as emf

from benchmarks.common import ELBO_DRAWS, make_console, make_parser
from benchmarks.records import measure_missing
from benchmarks.table import TARGETS
from case_studies.problems import load, names

MEAN_FIELD = {"layers": "mean_field", "embed": False}
COLD = {"warm_start": False}
#: Fits that nobody should trust, and why.
POOR: list[tuple[str, str]] = [
    ("BRB-c", "mean field"),
    ("ES", "mean field"),
    ("LZB-r", "cold start"),
    ("LZB-c", "cold start"),
]
DEFAULT = "default"
OPTIONS: dict[str, dict[str, Any]] = {DEFAULT: {}, "mean field": MEAN_FIELD, "cold start": COLD}


def cases(seeds: list[int]) -> list[dict[str, Any]]:
    """Problem, data set, seed, and name of the fit."""
    good = [(name, data, DEFAULT) for name, data in names() if name in TARGETS]
    poor = [(name, 0, kind) for name, kind in POOR]
    return [
        {"problem": name, "data": data, "seed": seed, "fit": kind}
        for name, data, kind in (*good, *poor)
        for seed in seeds
    ]


def measure(problem: str, data: int, seed: int, fit: str, steps: int) -> dict[str, Any]:
    """Fit, and compare what the fit says of itself with what is known."""
    known = load(problem, data)
    options = OPTIONS[fit]
    approx = emf.fit(steps, model=known.model, random_seed=seed, progressbar=False, **options)
    found = approx.diagnose(ELBO_DRAWS, random_seed=seed + 1)
    return {
        "k": found.pareto_k,
        "gap": -found.elbo - known.neg_log_evidence,
        "error": found.log_evidence + known.neg_log_evidence,
        "se": float(np.hypot(found.log_evidence_se, known.se)),
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
    parser = make_parser(__doc__, seeds=[0])
    parser.add_argument("--problems", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    console = make_console()
    records = measure_missing(
        (case for case in cases(args.seeds) if case["problem"] in args.problems),
        partial(measure, steps=args.steps),
        args.json,
        console,
    )
    console.print(tabulate(records))
    verdicts = [is_right(r) for r in records]
    console.print(
        f"{verdicts.count(True)} right, {verdicts.count(False)} wrong, "
        f"{verdicts.count(None)} default fits that warn"
    )


if __name__ == "__main__":
    main()
