"""Approximations in files."""

import os

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pymc_emf.engine.stopping import Stopping
from pymc_emf.variational.files import Identity, Saved, probe_noise, write_file
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.record import FitRecord
from pymc_emf.variational.search import WarmStart
from pymc_emf.variational.verdict import Verdict

__all__ = ["identity_of", "read_record", "values_of", "write_fit"]


def identity_of(objective: Objective, values: Values) -> Identity:
    """Identity of a flow with these values."""
    _, log_p, log_q = objective.weigh(values, probe_noise(objective.size))
    return Identity.of(objective.layers, objective.program, log_p, log_q)


def write_fit(
    path: str | os.PathLike,
    prepared: Prepared,
    values: Values,
    record: FitRecord,
    random_state: dict[str, Any],
    header: Mapping[str, Any] | None = None,
    further: Sequence[np.ndarray] = (),
) -> None:
    """Write an approximation, and what a checkpoint needs beyond it.

    Parameters
    ----------
    path : path-like
    prepared : Prepared
    values : sequence of ndarray
    record : FitRecord
    random_state : dict
        Of the stream that draws continue.
    header : dict, optional
        Further entries.
    further : sequence of ndarray
        Further arrays.
    """
    entries = {
        "method": prepared.options.method,
        "options": prepared.options.to_file(),
        "n_values": len(values),
        "warm_start": asdict(record.warm_start),
        "stopping": record.stopping,
        "verdict": None if record.verdict is None else record.verdict.to_file(),
        "timing": record.timing,
        "random_state": random_state,
    }
    hist = np.asarray(record.hist, dtype=float)
    write_file(
        path,
        "approximation",
        identity_of(prepared.objective, values),
        entries | dict(header or {}),
        [*(np.asarray(value) for value in values), hist, *further],
    )


def values_of(saved: Saved, prepared: Prepared) -> list[np.ndarray]:
    """Values of the variables in a file, which must be of the same layers.

    Raises
    ------
    ValueError
    """
    objective = prepared.objective
    values = saved.arrays[: saved.header["n_values"]]
    saved.check_layers(
        objective.layers, objective.variables, values, "pass the same ones as layers="
    )
    return values


def read_record(saved: Saved, n_values: int) -> FitRecord:
    """What a file tells of its fit."""
    header, stopping = saved.header, saved.header["stopping"]
    return FitRecord(
        saved.arrays[n_values],
        WarmStart(**{key: header["warm_start"][key] for key in ("chosen", "elbos", "sd")}),
        None if stopping is None else Stopping(*stopping),
        _verdict_of(header),
        header["timing"],
    )


def _verdict_of(header: Mapping[str, Any]) -> Verdict | None:
    """The verdict in a file; older ones have k-hat alone."""
    if header.get("verdict") is not None:
        return Verdict.from_file(header["verdict"])
    k = header.get("pareto_k")
    return None if k is None else Verdict(k)
