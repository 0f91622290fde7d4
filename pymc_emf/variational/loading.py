"""Approximations read from files."""

import os

import pymc as pm

from pymc.model import modelcontext

from pymc_emf.layers.presets import LayerSpec
from pymc_emf.model.program import Program
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.asvi import ASVI
from pymc_emf.variational.inference import EMFApprox
from pymc_emf.variational.persistence import check_model, read, restore

__all__ = ["load"]

METHODS = {"EMFApprox": EMFApprox, "ASVI": ASVI}


def load(
    path: str | os.PathLike, model: pm.Model | None = None, *, layers: LayerSpec = None
) -> EMFApproximation:
    """Read an approximation that ``approx.save``, or a fit with ``checkpoint=``, has written.

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
        With the parameters, losses, and random stream as they were saved; of a checkpoint, as
        the fit stood there. ``fit(checkpoint=...)`` is what continues it.

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
    saved = read(path)
    model = modelcontext(model)
    check_model(path, saved.header["model"], Program(model))
    options = dict(saved.header["options"])
    if options.get("layers", "") is None and saved.header["layers"]:
        if layers is None:
            raise ValueError(
                f"{path} is of a fit with layers of its own "
                f"({', '.join(saved.header['layers'])}); pass the same ones as layers=."
            )
        options["layers"] = layers
    approx = METHODS[saved.header["method"]](model, random_seed=0, **options).approx
    restore(approx, saved)
    return approx
