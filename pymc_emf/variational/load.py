"""Approximations read from files."""

import os

from typing import Any

import numpy as np
import pymc as pm

from pymc_emf.arguments import model_of
from pymc_emf.layers.conditional_affine import ConditionalAffine
from pymc_emf.layers.presets import LayerSpec
from pymc_emf.model.program import Program
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.asvi import ASVIOptions
from pymc_emf.variational.files import probe_noise, read_file
from pymc_emf.variational.options import Options
from pymc_emf.variational.prepare import prepare
from pymc_emf.variational.saved_fit import read_record, values_of

__all__ = ["load"]

OPTIONS: dict[str, Any] = {options.method: options for options in (Options, ASVIOptions)}


def load(
    path: str | os.PathLike, model: pm.Model | None = None, *, layers: LayerSpec = None
) -> EMFApproximation:
    """Read an approximation that ``approx.save``, or a fit with ``checkpoint=``, has written.

    Parameters
    ----------
    path : path-like
    model : pymc.Model, optional
        The model that was fitted, made again with the same data; by default the one in context.
    layers : str, Bijection, callable or sequence of these, optional
        The layers, if the fit was given others than names: a file holds no code.

    Returns
    -------
    EMFApproximation
        With the parameters, losses, and random stream as they were saved; of a checkpoint, as
        the fit stood there. ``fit(checkpoint=...)`` is what continues it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of a newer version, of another model or other data, or of other
        layers. They are known by their names, shapes, transforms and hyperparameters, and by the
        log densities of model and approximation at a few points.

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
    saved = read_file(path, "approximation")
    model = model_of(model)
    program = Program(model)
    saved.check_variables(program)
    method = saved.header["method"]
    if method not in OPTIONS:
        raise ValueError(
            f"{path} is of a fit by {method}, a method that this package does not have; load it "
            "where that method is defined, or fit again by EMFApprox."
        )
    options = dict(saved.header["options"])
    options.pop("root_finder", None)  # of the first version
    if options.get("layers", "") is None and saved.layer_names:
        if layers is None:
            raise ValueError(
                f"{path} is of a fit with layers of its own "
                f"({', '.join(saved.layer_names)}); pass the same ones as layers=."
            )
        options["layers"] = layers
    # that this is of use was found by trying, which other digits may answer otherwise
    steered = ConditionalAffine.__name__ in saved.layer_names
    prepared = prepare(program, OPTIONS[method](**options), np.random.default_rng(0), steered)
    values, objective = values_of(saved, prepared), prepared.objective
    saved.check_densities(lambda: objective.weigh(values, probe_noise(objective.size))[1:])
    approx = EMFApproximation(prepared, random_seed=0)
    approx.adopt(values, read_record(saved, len(values)))
    approx.random_state = saved.header["random_state"]
    return approx
