"""Draws from a fit of a Bambi model, as Bambi's own sampler returns them."""

import inspect

from typing import Any

import xarray as xr

from pymc.util import RandomState

from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["bambi_draws"]


def bambi_draws(
    model: Any,
    approx: EMFApproximation | xr.DataTree,
    draws: int = 1000,
    *,
    random_seed: RandomState = None,
    importance: bool = False,
    omit_offsets: bool = True,
    include_response_params: bool = False,
) -> xr.DataTree:
    """Draw from a fit of a Bambi model, in the form in which Bambi's own sampler returns draws.

    Bambi centres the predictors before it builds the PyMC model, and moves the intercepts back in
    the draws of its samplers, but not in those of a variational fit, where ``model.predict`` and
    all that rests on it would be wrong. Here Bambi's own clean-up is applied to them.

    Parameters
    ----------
    model : bambi.Model
    approx : EMFApproximation or xarray.DataTree
        What ``model.fit(inference_method="vi", method=emf.EMFApprox())`` returned, or draws of the
        PyMC model that nobody has moved yet: from ``approx.nuts()``, or from another variational
        approximation.
    draws : int
        Number of independent draws; of an approximation, as the next two.
    random_seed : int, RandomState or Generator, optional
        By default the draws continue the random stream of the fit.
    importance : bool
        As in :meth:`EMFApproximation.sample`.
    omit_offsets, include_response_params : bool
        As in ``model.fit``: whether to leave out the standardised group effects, and whether to
        compute the parameters of the response, such as ``mu``, for every observation.

    Returns
    -------
    xarray.DataTree
        For ``model.predict``, ``model.compute_log_likelihood``, ``bmb.interpret`` and ArviZ; with
        the groups of :meth:`EMFApproximation.sample`.

    Raises
    ------
    ValueError
        If the Bambi model has not been built, the approximation is of another model, or the draws
        have been through this before.
    TypeError
        If ``approx`` is neither an approximation of this package nor draws.
    KeyError
        If the draws lack a variable of the model.
    NotImplementedError
        If this version of Bambi has no such clean-up.

    Examples
    --------
    >>> import bambi as bmb
    >>> import numpy as np
    >>> import pandas as pd
    >>> import pymc_emf as emf
    >>> x = np.linspace(5.0, 8.0, 30)
    >>> data = pd.DataFrame({"x": x, "y": 2.0 * x + np.sin(9.0 * x)})
    >>> model = bmb.Model("y ~ x", data)
    >>> method = emf.EMFApprox(random_seed=1)
    >>> approx = model.fit(inference_method="vi", method=method, n=1000, progressbar=False)
    >>> idata = emf.bambi_draws(model, approx, random_seed=2)
    >>> model.predict(idata)
    >>> print(round(data["y"].mean(), 1), round(float(idata.posterior["mu"].mean()), 1))
    13.1 13.1
    """
    if getattr(model, "backend", None) is None:
        raise ValueError(
            "The Bambi model has not been built; call model.fit(inference_method='vi', ...) first."
        )
    clean_up = _clean_up(model.backend)
    names = _sampled(model)
    if isinstance(approx, xr.DataTree):
        tree = _chosen(approx, names)
    elif not isinstance(approx, EMFApproximation):
        raise TypeError(
            f"approx must be an EMFApproximation or a DataTree, got {type(approx).__name__}; of "
            "another approximation pass draws, approx.sample(1000)."
        )
    elif approx.model is not model.backend.model:
        raise ValueError(
            "approx is of another model than the one that Bambi has built last; fit again, or "
            "pass the Bambi model that was fitted."
        )
    else:
        tree = approx.sample(draws, random_seed=random_seed, importance=importance, var_names=names)
    return clean_up(
        idata=tree, omit_offsets=omit_offsets, include_response_params=include_response_params
    )


def _clean_up(backend: Any) -> Any:
    """Bambi's own, which is private: its name and arguments may change."""
    clean_up = getattr(backend, "_clean_results", None)
    expected = {"idata", "omit_offsets", "include_response_params"}
    if clean_up is None or set(inspect.signature(clean_up).parameters) != expected:
        raise NotImplementedError(
            "bambi_draws knows the clean-up of Bambi 0.21, PyMCModel._clean_results, which the "
            "installed version has not; install bambi==0.21.0, or make the model with "
            "center_predictors=False and use approx.sample()."
        )
    return clean_up


def _sampled(model: Any) -> list[str]:
    """Names of the variables that Bambi asks its samplers for.

    It leaves out deterministics that are parameters of the response, one for each observation.
    """
    pymc_model, parameters = model.backend.model, model.family.likelihood.params
    computed = [det.name for det in pymc_model.deterministics if det.name not in parameters]
    return [rv.name for rv in pymc_model.free_RVs] + computed


def _chosen(draws: xr.DataTree, names: list[str]) -> xr.DataTree:
    """Copy of draws with these variables, unless they have been moved already."""
    posterior = draws["posterior"].to_dataset()
    if posterior.attrs.get("modeling_interface") == "bambi":
        raise ValueError(
            "The intercepts of these draws have been moved already; use them as they are."
        )
    missing = [name for name in names if name not in posterior]
    if missing:
        raise KeyError(f"The draws lack {', '.join(missing)}, which the Bambi model has.")
    chosen = draws.copy()
    chosen["posterior"] = xr.DataTree(posterior[names])
    return chosen
