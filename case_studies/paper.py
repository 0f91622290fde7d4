"""The paper's tables with ours beside: ``python -m case_studies.paper``.

Ours are what the campaigns have come to so far. Those in the repository are the records of
``case_studies.variational --standard`` and ``case_studies.density --standard``, which go on where
they were::

    python -m case_studies.variational --standard --problems all --methods all
    python -m case_studies.paper --keep
    python -m case_studies.paper

The first adds fits under ``results``, the second takes them into the repository's records, the
third prints the tables of docs/paper.md. The data of Tables 4 to 7 are simulated afresh for every
run, in the paper and here, so that means over runs differ by the luck of the data; the gap to the
exact evidence does not.
"""

from __future__ import annotations

import argparse
import gzip
import json

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from case_studies.campaign import Task, write
from case_studies.densities import DATA
from case_studies.methods import METHODS, STANDARD

PAPER = Path(__file__).parent / "data" / "paper.json"
KEPT = Path(__file__).parent / "data" / "standard.jsonl.gz"
FOLDERS = {"variational": Path("results", "variational"), "density": Path("results", "density")}

#: What a cell says of a method that the paper does not have, or that we have not run.
NONE = ""
#: And of one of whose fits the noise at the true latents is more than single precision holds.
NO_DENSITY = "−∞"


# --- records ------------------------------------------------------------------------------------


def kept() -> list[dict[str, Any]]:
    """Records in the repository."""
    if not KEPT.exists():
        return []
    with gzip.open(KEPT, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def found() -> Iterator[dict[str, Any]]:
    """Records under ``results``, without their losses."""
    for kind, folder in FOLDERS.items():
        for path in sorted(folder.glob(f"{STANDARD.name}*/*/*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            record.pop("losses", None)
            yield {"kind": kind, **record}


def _key(record: dict[str, Any]) -> tuple:
    return tuple(record[name] for name in ("kind", "problem", "method", "run", "settings"))


def keep() -> int:
    """Take the records under ``results`` into the repository's; return how many there are."""
    records = {_key(record): record for record in [*kept(), *found()]}
    lines = [json.dumps(records[key]) + "\n" for key in sorted(records)]
    with (
        KEPT.open("wb") as raw,
        gzip.GzipFile(
            "", "wb", fileobj=raw, mtime=0
        ) as file,  # the same bytes for the same records
    ):
        file.write("".join(lines).encode())
    return len(lines)


def unpack(kind: str, tasks: Sequence[Task], settings: str, folder: Path) -> None:
    """Write the kept records of tasks as the files that a campaign looks for."""
    wanted = {(kind, t.problem, t.method, t.run, settings): t for t in tasks}
    for record in kept():
        task = wanted.get(_key(record))
        if task is not None and not task.path(folder).exists():
            write({"losses": [], **record}, task.path(folder))


# --- tables -------------------------------------------------------------------------------------


def read_paper() -> dict[str, Any]:
    """The paper's tables, by their numbers."""
    return json.loads(PAPER.read_text(encoding="utf-8"))["tables"]


class Tables:
    """Cells of the paper's tables, and ours.

    Parameters
    ----------
    records : sequence of dict
    """

    def __init__(self, records: Sequence[dict[str, Any]]):
        self.paper = read_paper()
        self.records: dict[tuple, list[dict[str, Any]]] = {}
        for record in records:
            other = record["settings"].removeprefix(STANDARD.name).removeprefix("-")
            method = f"{record['method']}, {other.replace('-', ' ')}" if other else record["method"]
            key = (record["kind"], record["problem"], method)
            self.records.setdefault(key, []).append(record)

    def _values(self, kind: str, problem: str, method: str, column: str) -> np.ndarray:
        chosen = self.records.get((kind, problem, method), [])
        return np.array([r[column] for r in chosen if r.get(column) is not None])

    def ours(self, problem: str, method: str, column: str, sign: float = 1.0) -> str:
        """Mean and standard error over runs."""
        return _cell(sign * self._values("variational", problem, method, column))

    def gap(self, problem: str, method: str) -> str:
        evidence = self._values("variational", problem, method, "log_evidence")
        elbo = self._values("variational", problem, method, "elbo")
        return _cell(evidence - elbo) if len(elbo) == len(evidence) else NONE

    def at_truth(self, problem: str, method: str) -> str:
        """Log q at the true latents; where it is no number the noise there has overflown."""
        log_q = self._values("variational", problem, method, "log_q_of_truth")
        return _cell(np.where(np.isnan(log_q), -np.inf, log_q))

    def density(self, problem: str, method: str) -> str:
        values = self._values("density", problem, method, "neg_log_density")
        if len(values) == 1:
            (se,) = self._values("density", problem, method, "se")
            return f"{values[0]:.3f} ± {se:.3f}"
        return _cell(values)

    def of_paper(self, tables: Sequence[str], problem: str, method: str) -> str:
        for table in tables:
            cell = self.paper[table]["rows"].get(problem, {}).get(method)
            if cell is not None:
                mean, se = cell
                return f"{_number(mean)} ± {_number(se)}"
        return NONE

    def problems(self, tables: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(p for table in tables for p in self.paper[table]["rows"]))

    def n_runs(self, problem: str) -> int:
        """Data sets that every method has been fitted to."""
        counts = [len(self._values("variational", problem, m, "elbo")) for m in METHODS]
        return min(counts)

    # --- as Markdown -----------------------------------------------------------------------------

    def densities(self, table: str) -> list[str]:
        """Tables 1 to 3."""
        problems = self.problems([table])
        methods = dict.fromkeys(m for p in problems for m in self.paper[table]["rows"][p])
        beyond = (m for kind, p, m in self.records if kind == "density" and p in problems)
        methods |= dict.fromkeys(beyond)  # these come last, other settings beside the usual ones
        bases = list(dict.fromkeys(m.partition(", ")[0] for m in methods))
        lines = _head(["", *(f"{p}, {who}" for p in problems for who in ("ours", "paper"))])
        for method in sorted(methods, key=lambda m: (bases.index(m.partition(", ")[0]), m)):
            cells = [
                text
                for p in problems
                for text in (self.density(p, method), self.of_paper([table], p, method))
            ]
            lines.append(_row([method, *cells]))
        floors = [DATA[p].entropy for p in problems]
        if any(floor is not None for floor in floors):
            cells = [text for e in floors for text in ("" if e is None else f"{e:.3f}", "")]
            lines.append(_row(["*entropy*", *cells]))
        return lines

    def elbos(self) -> list[str]:
        """Tables 4, 5 and 7: gap, -ELBO, and the paper's -ELBO."""
        tables = ["4", "5", "7"]
        lines = _head(["problem (runs)", "method", "gap", "−ELBO", "−ELBO, paper"])
        for problem in self.problems(tables):
            for i, method in enumerate(METHODS):
                name = f"{problem} ({self.n_runs(problem)})" if i == 0 else ""
                cells = [self.gap(problem, method), self.ours(problem, method, "elbo", -1.0)]
                lines.append(_row([name, method, *cells, self.of_paper(tables, problem, method)]))
        return lines

    def log_q(self) -> list[str]:
        """Tables 6 and 7: log q at the true latents."""
        tables = ["6", "7 log q"]
        lines = _head(["problem", "method", "ours", "paper"])
        for problem in self.problems(tables):
            for i, method in enumerate(METHODS):
                cells = [self.at_truth(problem, method), self.of_paper(tables, problem, method)]
                lines.append(_row([problem if i == 0 else "", method, *cells]))
        return lines


def _number(value: float) -> str:
    if abs(value) >= 1e5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _cell(values: np.ndarray) -> str:
    if not len(values):
        return NONE
    if np.isneginf(values).any():
        return NO_DENSITY
    mean = _number(float(values.mean()))
    if len(values) == 1:
        return mean
    return f"{mean} ± {_number(float(values.std(ddof=1) / np.sqrt(len(values))))}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("-", "−") if cell[:1] in "-0123456789" else cell
                             for cell in cells) + " |"  # fmt: skip


def _head(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "| --- |" + " ---: |" * (len(titles) - 1)]


def markdown(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """All tables, by title."""
    tables = Tables(records)
    made = {f"Table {table}": tables.densities(table) for table in ("1", "2", "3")}
    made |= {"Tables 4, 5 and 7": tables.elbos(), "Tables 6 and 7": tables.log_q()}
    return {title: "\n".join(lines) for title, lines in made.items()}


def main() -> None:
    """Print the tables, or take new records into the repository."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="take what is under results")
    args = parser.parse_args()
    if args.keep:
        print(f"{keep()} records in {KEPT.name}")
        return
    for title, text in markdown(kept()).items():
        print(f"\n{title}\n\n{text}")


if __name__ == "__main__":
    main()
