"""Draws from an approximation, and their form as ArviZ data."""

import logging

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import xarray as xr

from arviz_base import dict_to_dataset
from pymc.backends.arviz import (
    coords_and_dims_for_inferencedata,
    find_constants,
    find_observations,
)
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.variable import TensorVariable

import pymc_emf

from pymc_emf.bijections.numerics.special import normal_logpdf
from pymc_emf.engine.batch import Batched, batch_jax, batch_pytensor
from pymc_emf.engine.garbage import without_collection
from pymc_emf.engine.graph import depends_on_minibatch, draws_at_random, evaluate_once
from pymc_emf.engine.jax import jaxify
from pymc_emf.exceptions import NonFiniteDrawsError
from pymc_emf.variational.importance import HOPELESS_PARETO_K, log_ratio, resample, smooth
from pymc_emf.variational.objective import Objective, Values

__all__ = ["Draws"]

logger = logging.getLogger(__name__)

#: How often draws that are not finite are drawn again.
MAX_REDRAWS = 20
#: Draws among which importance resampling chooses, for each one that is asked for, and at least.
OVERSAMPLING, MIN_CANDIDATES = 10, 10_000


def _length(length: Variable) -> int:
    """Length of a dim; ``eval`` would compile a function even for a constant."""
    if isinstance(length, Constant):
        return int(length.data)
    (found,) = evaluate_once({}, [length])
    return int(found)


def fitting_dims(
    name: str, shape: tuple[int, ...], dims: Sequence[str], lengths: Mapping[str, int]
) -> list[Hashable]:
    """Dims of a variable, None in the place of one that has another length than the axis.

    PyMC does not compare the dims of a deterministic with its shape, and ArviZ stops at a
    conflict. The last axes of the shape are those of the dims.
    """
    event = shape[len(shape) - len(dims) :]
    fitting: list[Hashable] = list(dims)
    for i, (dim, n) in enumerate(zip(dims, event, strict=True)):
        if lengths[dim] != n:
            fitting[i] = None
            logger.warning(
                "%s has %d elements along the dim %s, which has %d: the draws come without the "
                "labels of %s. Give that axis of %s a dim of its own.",
                name,
                n,
                dim,
                lengths[dim],
                dim,
                name,
            )
    return fitting


class Draws:
    """Draws from a flow, and what they are in the model, as functions of the flow's values.

    Parameters
    ----------
    objective : Objective
    compile_kwargs : dict, optional
        Of PyTensor, if it shall compile them and read the variables' own values; by default JAX
        does.
    """

    def __init__(self, objective: Objective, compile_kwargs: dict[str, Any] | None = None):
        self.objective = objective
        self.program = objective.program
        self.compile_kwargs = compile_kwargs

    def noise(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Standard normal noise, shape (draws, size)."""
        return rng.normal(size=(draws, self.objective.size)).astype(pytensor.config.floatX)

    # --- compiled functions -----------------------------------------------------------------------

    def _batched(self, event: TensorVariable, outputs: list[Any]) -> Callable[..., Any]:
        """Compile a graph that depends on one event, for many; a function of values and events."""
        if self.compile_kwargs is not None:
            compiled = batch_pytensor(event, outputs, **self.compile_kwargs)
            return lambda values, events: compiled(events)
        objective = self.objective
        check_bounds = objective.target.check_bounds
        single = jaxify([*objective.variables, event], outputs, check_bounds=check_bounds)
        return batch_jax(lambda values, event: tuple(single(*values, event)))

    @cached_property
    def _constrain(self) -> tuple[list[str], Callable[..., Any]]:
        """Names and values of the variables of the model, as a function of the flat value."""
        structured, program = self.objective.structured, self.program
        value = self.objective.noise("value")
        constrained = structured.constrain(value)
        outputs: dict[str, TensorVariable] = {str(rv.name): x for rv, x in constrained.items()}
        for site in program.sites:
            if site.transform is not None:
                outputs[site.value_name] = site.take(value)
        deterministics = [
            det for det in program.frozen.deterministics if not depends_on_minibatch(det)
        ]
        given = program.given(deterministics, constrained) if deterministics else []
        outputs.update(
            (det.name, x)
            for det, x in zip(deterministics, given, strict=True)
            if not draws_at_random(x)
        )
        try:
            return list(outputs), self._batched(value, list(outputs.values()))
        except NotImplementedError as error:
            for name, x in outputs.items():
                try:
                    self._batched(value, [x])
                except NotImplementedError as reason:
                    raise NotImplementedError(f"{name} cannot be compiled. {reason}") from error
            raise

    @cached_property
    def weigh(self) -> Callable[[Values, np.ndarray], tuple[np.ndarray, ...]]:
        """Value, log joint density and log density of the approximation, as of noise."""
        objective = self.objective
        if self.compile_kwargs is None or objective.target.minibatches:
            return objective.weigh  # which goes over all data
        noise = objective.noise()
        value, log_q = objective.symbolic_log_q(noise)
        log_p = pt.add(
            *(
                batch.sum() if batch.ndim else len(names) * batch
                for names, batch in self.program.log_density_batches(value)
            )
        )
        return self._batched(noise, [value, log_p, log_q])

    @cached_property
    def log_q(self) -> Callable[[Values, np.ndarray], tuple[np.ndarray, ...]]:
        """Log density of the approximation, as of the flat value."""
        value = self.objective.noise("value")
        noise, log_det = self.objective.flow.inverse(value)
        return self._batched(value, [normal_logpdf(noise).sum() + log_det])

    # --- draws that floats can hold ---------------------------------------------------------------

    def finite(
        self, evaluate: Batched, values: Values, draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Draws, and what is evaluated with them: value, log densities.

        Those that floats cannot hold, or where the model has no density, are drawn again.

        Parameters
        ----------
        evaluate : callable
            Of values and noise.
        values : sequence of array
        draws : int
        rng : Generator

        Raises
        ------
        NonFiniteDrawsError
            If next to none is finite.
        """
        outputs = evaluate(values, self.noise(draws, rng))
        wrong = np.flatnonzero(~self._are_finite(values, *outputs))
        n_wrong = len(wrong)
        for _ in range(MAX_REDRAWS):
            if not len(wrong):
                break
            again = evaluate(values, self.noise(len(wrong), rng))
            for old, new in zip(outputs, again, strict=True):
                old[wrong] = new
            wrong = wrong[~self._are_finite(values, *(output[wrong] for output in outputs))]
        if len(wrong):
            what = self._overflowing(values, outputs[0][wrong])
            raise NonFiniteDrawsError(
                f"{what} not finite at {n_wrong:,} of {draws:,} draws, and at most of those in "
                "their place; check the scales of the priors, or give the fit more steps (n=)."
            )
        if n_wrong:
            logger.warning(
                "Others took the place of %d of %d draws that overflowed, or where the model has "
                "no density; check the scales of the priors.",
                n_wrong,
                draws,
            )
        return outputs

    def resampled(self, values: Values, draws: int, rng: np.random.Generator):
        """Values, statistics and attributes of draws taken by their importance weights."""
        n = self.objective.target.affordable(max(OVERSAMPLING * draws, MIN_CANDIDATES))
        flat, log_p, log_q = self.finite(self.weigh, values, n, rng)
        smoothed = smooth(log_ratio(log_p, log_q))
        if not smoothed.pareto_k <= HOPELESS_PARETO_K:
            logger.warning(
                "Pareto k-hat is %.2f, above %.1f: importance resampling cannot mend the "
                "approximation. Give the fit more steps (n=), or use approx.nuts().",
                smoothed.pareto_k,
                HOPELESS_PARETO_K,
            )
        chosen = resample(smoothed.log_weights, draws, rng)
        stats = {"lp": log_p, "lq": log_q, "log_weight": smoothed.log_weights}
        return (
            flat[chosen],
            {name: array[chosen] for name, array in stats.items()},
            {"pareto_k": smoothed.pareto_k},
        )

    def posterior(
        self, values: Values, draws: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Draws of the free variables by name, each with a first axis of draws."""
        flat, *_ = self.finite(self.weigh, values, draws, rng)
        return dict(self._free_variables(values, flat))

    def _are_finite(
        self, values: Values, flat: np.ndarray, *log_densities: np.ndarray
    ) -> np.ndarray:
        """Whether all free variables of each draw are finite, in value space and in their own."""
        finite = np.isfinite(flat).all(axis=1)
        for log_density in log_densities:
            finite &= np.isfinite(log_density)
        # only what is huge in value space may overflow on the way to the model's own
        huge = np.log(np.finfo(flat.dtype).max)
        suspects = np.flatnonzero(finite & (np.abs(flat) > huge).any(axis=1))
        if len(suspects):
            for _, constrained in self._free_variables(values, flat[suspects]):
                axes = tuple(range(1, constrained.ndim))
                finite[suspects] &= np.isfinite(constrained).all(axis=axes)
        return finite

    def _overflowing(self, values: Values, flat: np.ndarray) -> str:
        """What is not finite at these values: a free variable, or else the log density."""
        for name, constrained in self._free_variables(values, flat):
            if not np.isfinite(constrained).all():
                return f"{name} is"
        return "The log density of the model is"

    def _free_variables(self, values: Values, flat: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Name and values of every free variable at flat values of shape (draws, size)."""
        names, constrain = self._constrain
        free = {site.name for site in self.program.sites}
        constrained = zip(names, constrain(values, flat), strict=True)
        return [(name, array) for name, array in constrained if name in free]

    # --- as ArviZ data ----------------------------------------------------------------------------

    @without_collection()
    def to_datatree(
        self,
        values: Values,
        flat: np.ndarray,
        sample_stats: Mapping[str, Any],
        fit: xr.Dataset,
        include_transformed: bool,
        var_names: Collection[str] | None = None,
    ) -> xr.DataTree:
        """Put flat values, of shape (chain, draw, size), and what belongs to them into groups."""
        # of the model as it was fitted, whatever pm.set_data has done since
        frozen = self.program.frozen
        coords, dims = coords_and_dims_for_inferencedata(frozen)
        lengths = {dim: _length(length) for dim, length in frozen.dim_lengths.items()}

        def dataset(variables, **kwargs):
            fitting: dict[Hashable, Sequence[Hashable]] = {
                name: fitting_dims(name, array.shape, dims[name], lengths)
                for name, array in variables.items()
                if name in dims
            }
            return dict_to_dataset(
                variables, inference_library=pymc_emf, coords=coords, dims=fitting, **kwargs
            )

        posterior = self._posterior(values, flat, include_transformed)
        if var_names is not None:
            if unknown := [name for name in var_names if name not in posterior]:
                raise ValueError(
                    f"There is no {', '.join(unknown)} among the variables; there are "
                    f"{', '.join(posterior)}."
                )
            posterior = {name: x for name, x in posterior.items() if name in var_names}
        groups = {
            "posterior": dataset(posterior),
            "sample_stats": dataset(sample_stats),
            "fit": fit,
        }
        for name, variables in (
            ("observed_data", find_observations(frozen) | self._data_of(values)),
            ("constant_data", find_constants(frozen)),
        ):
            if variables:
                groups[name] = dataset(variables, sample_dims=[])
        return xr.DataTree.from_dict(groups)

    def _data_of(self, values: Values) -> dict[str, np.ndarray]:
        """Data that may change from fit to fit, as they are among the values."""
        data = self.program.data
        return dict(zip(data, self.objective.own(values, list(data.values())), strict=True))

    def _posterior(
        self, values: Values, flat: np.ndarray, include_transformed: bool
    ) -> dict[str, np.ndarray]:
        """Variables of the model at flat values of shape (chain, draw, size), in its order."""
        names, constrain = self._constrain
        arrays = constrain(values, flat.reshape(-1, flat.shape[-1]))
        posterior = {
            name: array.reshape(*flat.shape[:2], *array.shape[1:])
            for name, array in zip(names, arrays, strict=True)
        }
        if not include_transformed:
            for site in self.program.sites:
                if site.transform is not None:
                    del posterior[site.value_name]
        order = {name: i for i, name in enumerate(self.program.model.named_vars)}
        return dict(sorted(posterior.items(), key=lambda item: order.get(item[0], -1)))

    def flatten(self, point: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Unconstrained values, by name or in a row, as arrays of shape (..., size)."""
        dtype = pytensor.config.floatX
        if not isinstance(point, Mapping):
            flat = np.asarray(point, dtype=dtype)
            if flat.ndim == 0 or flat.shape[-1] != self.objective.size:
                raise ValueError(
                    f"The last axis of the values must have {self.objective.size} elements, "
                    f"got shape {flat.shape}."
                )
            return flat
        pieces = []
        for site in self.program.sites_in_model_order:
            if site.value_name not in point:
                raise KeyError(
                    f"The point lacks the unconstrained value {site.value_name} of {site.name}."
                )
            value = np.asarray(point[site.value_name], dtype=dtype)
            n_batch = value.ndim - len(site.shape)
            if n_batch < 0 or value.shape[n_batch:] != site.shape:
                raise ValueError(
                    f"The value {site.value_name} must end in shape {site.shape}, "
                    f"got shape {value.shape}."
                )
            pieces.append(value.reshape(*value.shape[:n_batch], site.size))
        batch = np.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
        return np.concatenate([np.broadcast_to(p, (*batch, p.shape[-1])) for p in pieces], axis=-1)
