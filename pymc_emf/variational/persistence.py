"""Files that hold an approximation: numbers, and no code."""

import os

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.storage import read_arrays, write_arrays
from pymc_emf.layers.parameters import store
from pymc_emf.model.program import Program
from pymc_emf.variational.warm_start import WarmStart

if TYPE_CHECKING:
    from pymc_emf.variational.approximation import EMFApproximation

__all__ = [
    "FORMAT",
    "VERSION",
    "Saved",
    "check_layers",
    "check_model",
    "check_settings",
    "read",
    "restore",
    "signature",
    "write",
]

FORMAT, VERSION = "pymc-emf approximation", 1


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes
    ----------
    path : path-like
    header : dict
        What is said about the approximation.
    values : list of ndarray
        Of the variables of its objective.
    hist : ndarray
    further : list of ndarray
        What a checkpoint needs beyond them.
    """

    path: str | os.PathLike
    header: dict[str, Any]
    values: list[np.ndarray]
    hist: np.ndarray
    further: list[np.ndarray]


def write(
    path: str | os.PathLike,
    approx: "EMFApproximation",
    header: dict[str, Any] | None = None,
    further: Sequence[np.ndarray] = (),
) -> None:
    """Write an approximation to a file, at once or not at all.

    Parameters
    ----------
    path : path-like
    approx : EMFApproximation
    header : dict, optional
        Entries that are added, or replace those of the same name.
    further : sequence of ndarray
    """
    values = [v.get_value() for v in approx.objective.variables]
    entries = {
        "format": FORMAT,
        "version": VERSION,
        "model": signature(approx.objective.program),
        "method": approx.recipe["method"],
        "options": approx.recipe["options"],
        "layers": [type(layer).__name__ for layer in approx.objective.layers],
        "n_values": len(values),
        "warm_start": asdict(approx.warm_start),
        "stopping": approx.stopping,
        "pareto_k": approx.pareto_k,
        "timing": approx.timing,
        "random_state": approx.random_state,
    }
    hist = np.asarray(approx.hist, dtype=float)
    write_arrays(path, entries | (header or {}), [*values, hist, *further])


def read(path: str | os.PathLike) -> Saved:
    """Read what :func:`write` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, none of ours, or of a newer version.
    """
    header, arrays = read_arrays(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold an approximation.")
    if header["version"] > VERSION:
        raise ValueError(f"{path} was written by a newer version of this package; update pymc-emf.")
    n = header["n_values"]
    return Saved(path, header, arrays[:n], arrays[n], arrays[n + 1 :])


def signature(program: Program) -> list[Any]:
    """Name, shape and transform of every free variable, as JSON can hold them."""
    return [
        [s.name, list(s.shape), "none" if s.transform is None else type(s.transform).__name__]
        for s in program.sites_in_model_order
    ]


def check_model(path: str | os.PathLike, saved: Sequence[Any], program: Program) -> None:
    """Refuse a file of another model, and say where it differs."""
    given = signature(program)
    names = [name for name, *_ in saved]
    others = [name for name, *_ in given]
    if names != others:
        raise ValueError(
            f"{path} is of another model: its free variables are {', '.join(names)}, those of "
            f"the model {', '.join(others)}."
        )
    for (name, *old), (_, *new) in zip(saved, given, strict=True):
        if old != new:
            raise ValueError(
                f"{path} is of another model: the variable {name} has shape and transform "
                f"{old[0]}, {old[1]} in the file, and {new[0]}, {new[1]} in the model."
            )


def check_settings(path: str | os.PathLike, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a file of something that was begun with other settings, and name the first."""
    for name in {**given, **saved}:
        old, new = saved.get(name), given.get(name)
        if old == new:
            continue
        # the state of a random stream says nothing to a reader
        values = "" if name == "random_seed" else f" ({old}, and here {new})"
        raise ValueError(
            f"{path} was begun with another {name}{values}; give another checkpoint=, or delete "
            "the file."
        )


def check_layers(approx: "EMFApproximation", saved: Saved) -> None:
    """Refuse a file whose layers, or the shapes of their parameters, are others."""
    variables = approx.objective.variables
    names = [type(layer).__name__ for layer in approx.objective.layers]
    if names != saved.header["layers"] or [(v.type.shape, v.type.dtype) for v in variables] != [
        (a.shape, a.dtype.name) for a in saved.values
    ]:
        raise ValueError(
            f"{saved.path} is of other layers ({', '.join(saved.header['layers'])}) than these "
            f"({', '.join(names)}); pass the same ones as layers=."
        )


def restore(approx: "EMFApproximation", saved: Saved) -> None:
    """Bring an approximation to where it was when the file was written."""
    check_layers(approx, saved)
    header = saved.header
    store(approx.objective.variables, saved.values)
    approx.hist = saved.hist
    approx.warm_start = WarmStart(**header["warm_start"])
    stopping = header["stopping"]
    approx.stopping = None if stopping is None else Stopping(*stopping)
    approx.pareto_k = header["pareto_k"]
    approx.timing = header["timing"]
    approx.random_state = header["random_state"]
