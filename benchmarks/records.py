"""Campaigns that can be put down and taken up: what is in a file of records is not run again."""

from __future__ import annotations

import gc
import json
import sys

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

__all__ = ["measure_missing"]


def measure_missing(
    cases: Iterable[dict[str, Any]],
    measure: Callable[..., dict[str, Any]],
    path: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure what a file lacks, and write it after every one.

    Parameters
    ----------
    cases : iterable of dict
        What tells one record from another.
    measure : callable
        Gets the items of a case as keywords, and returns what it has found.
    path : Path, optional
    console : Console

    Returns
    -------
    list of dict
        All records, of the file too: a case and what was found.
    """
    records = []
    if path is not None and path.exists():
        records = json.loads(path.read_text(encoding="utf-8"))
    for case in cases:
        if any(case.items() <= record.items() for record in records):
            continue
        with console.status(" ".join(map(str, case.values()))):
            records.append(case | measure(**case))
        if jax := sys.modules.get("jax"):  # what was compiled would fill the memory
            jax.clear_caches()
        gc.collect()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records
