"""Gates and losses of a fit as labelled data."""

from typing import Any

import numpy as np
import xarray as xr

from arviz_base import dict_to_dataset
from pymc.backends.arviz import coords_and_dims_for_inferencedata

import pymc_emf

from pymc_emf.arguments import free_name
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.record import FitRecord

__all__ = ["fit_dataset", "gates_dataset"]


def gates_dataset(objective: Objective, values: Values) -> xr.Dataset:
    """Gate of every element, with the variables' coords and dims."""
    coords, dims = coords_and_dims_for_inferencedata(objective.program.frozen)
    structured = objective.structured
    own = objective.own(values, structured.own_parameters)
    gates = structured.gates(own)
    sites = objective.program.sites_in_model_order
    # a transform that drops a dimension leaves elements without the variable's coords
    named: dict[Any, Any] = {
        s.name: dims[s.name] for s in sites if s.shape == s.rv_shape and s.name in dims
    }
    for site in sites:
        if site.shape != site.rv_shape:
            named[site.name] = [f"{site.value_name}_dim_{i}" for i in range(len(site.shape))]
    return dict_to_dataset(
        {site.name: np.array(gates[site.name]) for site in sites},
        inference_library=pymc_emf,
        coords=coords,
        dims=named,
        sample_dims=[],
    )


def fit_dataset(gates: xr.Dataset, record: FitRecord) -> xr.Dataset:
    """Gates, and the ELBO of every step over an axis ``step`` (``step_`` beside a dim ``step``)."""
    gates = gates.rename({name: f"{name}_gate" for name in gates.data_vars})
    step = free_name("step", {*gates.dims, *gates.coords, *gates.data_vars})
    elbo = xr.DataArray(-np.asarray(record.hist, dtype=float), dims=[step], name="elbo")
    return gates.assign(elbo=elbo).assign_attrs(
        inference_library="pymc_emf",
        inference_library_version=pymc_emf.__version__,
        stopped="" if record.stopping is None else record.stopping.reason,
    )
