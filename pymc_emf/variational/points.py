"""Points at which a fit may start: the user's own, and draws from the prior."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import xarray as xr

from pymc.initial_point import convert_str_to_rv_dict, make_initial_point_expression
from pymc.pytensorf import find_rng_nodes, replace_rng_nodes, reseed_rngs
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.xtensor.type import XTensorVariable

from pymc_emf.engine.graph import evaluate_once
from pymc_emf.exceptions import BadStartError
from pymc_emf.model.program import Program
from pymc_emf.variational.importance import log_ratio
from pymc_emf.variational.objective import Objective, Values

__all__ = ["evaluate_prior", "initial_point", "point_in_noise", "prior_scales", "user_point"]

N_PRIOR_DRAWS = 200
#: Draws that tell how wide the priors are.
N_SCALE_DRAWS = 50


def user_point(program: Program, start: Mapping[str, Any] | None) -> dict[str, np.ndarray] | None:
    """Unconstrained values of a start, or of the model's own ``initval``; None without either."""
    initvals = {
        str(rv.name): initval
        for rv, initval in program.model.rvs_to_initial_values.items()
        if initval is not None
    }
    if start is None and all(isinstance(initval, str) for initval in initvals.values()):
        return None
    for name, initval in initvals.items():
        if isinstance(initval, Variable) and {*ancestors([initval])} & {*program.model.free_RVs}:
            raise ValueError(
                f"The initval of {name} depends on other random variables; give it a value."
            )
    start = {name: _in_order(program, name, value) for name, value in (start or {}).items()}
    shapes = {site.value_name: site.shape for site in program.sites_in_model_order}
    shapes |= {site.name: site.rv_shape for site in program.sites_in_model_order}
    for name, value in start.items():
        if name not in shapes:
            raise ValueError(
                f"start has a value of {name!r}, which is none of the model's free variables: "
                f"{', '.join(site.name for site in program.sites_in_model_order)}."
            )
        if not isinstance(value, str | Variable) and np.shape(value) != shapes[name]:
            raise ValueError(
                f"The start of {name} must have shape {shapes[name]}, got {np.shape(value)}."
            )
        if np.iscomplexobj(value):
            raise TypeError(f"The start of {name} must be of real numbers, got {value!r}.")
    point = initial_point(program, start)
    for site in program.sites:
        if not np.isfinite(point[site.value_name]).all():
            of = "start" if {site.name, site.value_name} & start.keys() else "initval"
            raise _outside(of, site.name)
    return point


def _outside(what: str, name: str) -> BadStartError:
    return BadStartError(
        f"The {what} of {name} lies outside of its support; give one within it, or none."
    )


def initial_point(
    program: Program, start: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Unconstrained values at which PyMC's samplers begin, or of a start as far as it says."""
    given = {
        str(rv.name): _in_order(program, str(rv.name), initval)
        for rv, initval in program.model.rvs_to_initial_values.items()
        if initval is not None
    }
    frozen = program.frozen
    point = make_initial_point_expression(
        free_rvs=frozen.free_RVs,
        rvs_to_transforms=frozen.rvs_to_transforms,
        initval_strategies={
            **frozen.rvs_to_initial_values,
            **convert_str_to_rv_dict(frozen, given | dict(start or {})),
        },
        return_transformed=True,
    )
    point = replace_rng_nodes(point)
    reseed_rngs(find_rng_nodes(point), 0)
    # not by PyMC's own function, whose linker imports setuptools, which takes a fifth of a second
    found = evaluate_once({}, point, "fast_compile")
    names = [frozen.rvs_to_values[rv].name for rv in frozen.free_RVs]
    return dict(zip(names, found, strict=True))


def _in_order(program: Program, name: str, value: Any) -> Any:
    """Return what has names for its dimensions as a tensor or an array, in the model's order."""
    dims = program.frozen.named_vars_to_dims.get(name, ())
    if isinstance(value, xr.DataArray | XTensorVariable) and {*value.dims} == {*dims}:
        value = value.transpose(*dims)
    return value.values if isinstance(value, xr.DataArray | XTensorVariable) else value


def prior_scales(objective: Objective, values: Values) -> np.ndarray:
    """Median deviations of all elements in value space, of the prior, shape (size,).

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    """
    structured, target = objective.structured, objective.target
    if not structured.gated_elements:
        return np.ones(objective.size)
    own = objective.own(values, structured.own_parameters)
    prior = objective.replace(values, structured.own_parameters, structured.prior_values(own))
    # the same for every fit: its own stream goes on as if there had been none
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(target.affordable(N_SCALE_DRAWS), objective.size))
    noise = noise.astype(pytensor.config.floatX)
    value, *_ = target.evaluate_many(objective.split(prior)[1], noise)
    with np.errstate(invalid="ignore"):  # what overflows is not narrow
        return np.median(np.abs(value - np.median(value, axis=0)), axis=0)


def point_in_noise(
    objective: Objective, values: Values, point: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Structured noise of a point of unconstrained values.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    point : mapping
    """
    program, structured = objective.program, objective.structured
    flat = np.concatenate(
        [np.ravel(point[site.value_name]) for site in program.sites_in_model_order]
    )
    value = objective.noise("value")
    flat = flat.astype(value.dtype)
    own = objective.own(values, structured.parameters)
    known: dict[Variable, Variable] = {
        variable: pt.constant(np.asarray(array, dtype=variable.type.dtype))
        for variable, array in zip(structured.parameters, own, strict=True)
    }
    (inverse,) = graph_replace([structured.inverse(value)[0]], known, strict=False)
    (noise,) = evaluate_once({value: flat}, [inverse])
    if not np.isfinite(noise).all():  # without the rewrites that stabilise it may overflow
        (noise,) = evaluate_once({value: flat}, [inverse], "fast_run")
    for site in program.sites:
        if not np.isfinite(noise[site.noise]).all():
            raise _outside("start", site.name)
    return noise


def evaluate_prior(
    objective: Objective,
    values: Values,
    rng: np.random.Generator,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Log density of the posterior at draws of the structured layer's noise.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
        Of all variables.
    rng : Generator
    start : ndarray, optional
        A further point; without it the first point is zero noise.

    Returns
    -------
    noise : ndarray, shape (points, size)
    log_density : ndarray, shape (points,)
        Unnormalised, pulled back to the noise, in nats.

    Raises
    ------
    BadStartError
        If it is finite at none of them; names the first term of the log density to blame.
    """
    target, (_, target_values) = objective.target, objective.split(values)
    n_draws = target.affordable(N_PRIOR_DRAWS)
    noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)
    noise[0] = 0.0 if start is None else start
    _, log_p, log_det = target.evaluate_many(target_values, noise)
    total = log_ratio(log_p, -log_det)
    if not np.isfinite(total).any():
        held = jax.device_put(list(target_values))
        minibatch = target.minibatches.first
        terms = jax.jit(jax.vmap(lambda e: target.terms(held, e, minibatch)))(noise)
        raise BadStartError(_blame(dict(zip(target.term_names, terms, strict=True))))
    return noise, total


def _blame(terms: dict[str, np.ndarray]) -> str:
    shares = {name: np.isfinite(np.asarray(term)).mean() for name, term in terms.items()}
    name = min(shares, key=shares.__getitem__)
    bad = np.asarray(terms[name])
    n_tried = len(bad)
    bad = bad[~np.isfinite(bad)]
    kind = "NaN" if bad.size and np.isnan(bad).all() else "not finite"
    if bad.size and np.isneginf(bad).all():
        kind = "minus infinity"
    return (
        f"The log density of {name} is {kind} at every point tried, {n_tried} draws from "
        f"the prior; check the parameters and data of {name}, or pass a start= where it is finite."
    )
