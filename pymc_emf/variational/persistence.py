"""Approximations in files, which hold numbers and no code."""

import os

from collections.abc import Sequence
from typing import Any

import numpy as np
import pymc as pm

from pymc.model import modelcontext

from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.storage import read_arrays
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import LayerSpec
from pymc_emf.program import Program
from pymc_emf.variational.approximation import FORMAT, VERSION, EMFApproximation, signature
from pymc_emf.variational.asvi import ASVI
from pymc_emf.variational.inference import EMFApprox
from pymc_emf.variational.warm_start import WarmStart

__all__ = ["load"]

METHODS = {"EMFApprox": EMFApprox, "ASVI": ASVI}


def load(
    path: str | os.PathLike, model: pm.Model | None = None, *, layers: LayerSpec = None
) -> EMFApproximation:
    """Read an approximation that ``approx.save`` has written.

    Parameters
    ----------
    path : path-like
    model : pymc.Model, optional
        The model that was fitted, made again; by default the one in context. Its free variables
        must have the same names, shapes and transforms.
    layers : str, Bijection, callable or sequence of these, optional
        The layers, if the fit was given others than names: a file holds no code.

    Returns
    -------
    EMFApproximation
        With the parameters, losses, and random stream as they were saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of a newer version, of another model or of other layers.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     approx.save(Path(folder, "fit"))
    ...     again = emf.load(Path(folder, "fit"), model=model)
    >>> again.elbo(random_seed=2).mean == approx.elbo(random_seed=2).mean
    True
    """
    header, arrays = read_arrays(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold an approximation.")
    if header["version"] > VERSION:
        raise ValueError(f"{path} was written by a newer version of this package; update pymc-emf.")
    model = modelcontext(model)
    _check_model(path, header["model"], signature(Program(model)))
    options = dict(header["options"])
    if options.get("layers", "") is None and header["layers"]:
        if layers is None:
            raise ValueError(
                f"{path} is of a fit with layers of its own ({', '.join(header['layers'])}); pass "
                "the same ones as layers=."
            )
        options["layers"] = layers
    approx = METHODS[header["method"]](model, random_seed=0, **options).approx
    *values, hist = arrays
    variables = approx.objective.variables
    names = [type(layer).__name__ for layer in approx.objective.layers]
    if names != header["layers"] or [(v.type.shape, v.type.dtype) for v in variables] != [
        (a.shape, a.dtype.name) for a in values
    ]:
        raise ValueError(
            f"{path} is of other layers ({', '.join(header['layers'])}) than these "
            f"({', '.join(names)}); pass the same ones as layers=."
        )
    store(variables, values)
    _restore(approx, header, hist)
    return approx


def _check_model(path: Any, saved: Sequence[Any], given: Sequence[Any]) -> None:
    """Refuse a file of another model, and say where it differs."""
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


def _restore(approx: EMFApproximation, header: dict[str, Any], hist: np.ndarray) -> None:
    approx.hist = hist
    approx.warm_start = WarmStart(**header["warm_start"])
    stopping = header["stopping"]
    approx.stopping = None if stopping is None else Stopping(*stopping)
    approx.pareto_k = header["pareto_k"]
    approx.timing = header["timing"]
    approx._rng.bit_generator.state = header["random_state"]
