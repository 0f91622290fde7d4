"""The fitted approximation: a PyMC Approximation with vectorised sampling and diagnostics."""

import logging
import os

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import xarray as xr

from arviz_base import dict_to_dataset
from pymc.backends.arviz import (
    coords_and_dims_for_inferencedata,
    find_constants,
    find_observations,
)
from pymc.stats.convergence import log_warnings, run_convergence_checks
from pymc.util import RandomState, _get_seeds_per_chain
from pymc.variational.approximations import SingleGroupApproximation
from pymc.variational.opvi import VIState
from pytensor.graph.replace import vectorize_graph
from pytensor.tensor.variable import TensorVariable

import pymc_emf

from pymc_emf.bijections.numerics.special import normal_logpdf
from pymc_emf.engine.batch import Batched, batch_jax, batch_pytensor
from pymc_emf.engine.graph import depends_on_minibatch, draws_at_random
from pymc_emf.engine.jax import jaxify
from pymc_emf.engine.stopping import Stopping
from pymc_emf.exceptions import NonFiniteDrawsError
from pymc_emf.model.parameter import constrained_value
from pymc_emf.variational.diagnosis import (
    HOPELESS_PARETO_K,
    MIN_DRAWS,
    Diagnosis,
    average,
    log_ratio,
    missed_evidence,
    resample,
    smooth,
    standard_deviation,
)
from pymc_emf.variational.group import N_MOMENT_DRAWS, EMFGroup
from pymc_emf.variational.objective import Objective
from pymc_emf.variational.persistence import write
from pymc_emf.variational.transport import Sampler, check_options, sample_noise
from pymc_emf.variational.warm_start import WarmStart

__all__ = ["ELBO", "EMFApproximation", "make_rng"]

logger = logging.getLogger(__name__)

#: How often draws that are not finite are drawn again.
MAX_REDRAWS = 20
#: Draws from the prior by which a missed mode is found.
MAX_PRIOR_DRAWS = 1000
#: Draws among which importance resampling chooses, for each one that is asked for, and at least.
OVERSAMPLING, MIN_CANDIDATES = 10, 10_000


def make_rng(random_seed: RandomState) -> np.random.Generator:
    """Make a generator from anything that PyMC takes as a seed."""
    (seed,) = _get_seeds_per_chain(random_seed, 1)
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class ELBO:
    """Estimate of the evidence lower bound, in nats.

    Attributes
    ----------
    mean, se : float
        Average over the draws and its standard error.
    draws : int
    """

    mean: float
    se: float
    draws: int

    def __str__(self) -> str:
        return f"ELBO {self.mean:.4f} ± {self.se:.4f} nats ({self.draws:,} draws)"


def _check_draws(draws: Any) -> None:
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"draws must be a positive integer, got {draws!r}.")


class EMFApproximation(SingleGroupApproximation):
    """Posterior approximation by an embedded-model flow.

    Made by ``pm.fit(method=EMFApprox())`` or :func:`pymc_emf.fit`.

    Attributes
    ----------
    hist : ndarray
        Loss (negative ELBO estimate, nats) of every step.
    warm_start : WarmStart
        How the fit started.
    stopping : Stopping or None
        Why the last fit ended, ``reason`` and ``step``; None before a fit and after one by
        PyMC's own loop.
    pareto_k : float or None
        Pareto k-hat of the log weights at the end of the last fit, which warns above 0.7.
        Minus infinity where all weights are equal, infinity if a mode has been missed.
    timing : dict
        Seconds: "rewrite" (PyTensor), "warm_start", "compile" (of the loop, as far as the fit
        waited for it: XLA works on it during the warm start), "step" (one step), "fit"
        (everything).
    """

    _group_class = EMFGroup

    def __init__(self, objective: Objective, random_seed: RandomState = None):
        model = objective.program.model
        with model:
            super().__init__(objective=objective, model=model)
        self.objective = objective
        self.hist = np.asarray(())
        self.warm_start = WarmStart("none")
        self.stopping: Stopping | None = None
        self.pareto_k: float | None = None
        self.timing: dict[str, float] = {}
        self.recipe: dict[str, Any] = {}  # the method and its options, by which to make it again
        self.compile_kwargs: dict[str, Any] | None = None  # of a fit by PyMC's own loop
        self._rng = make_rng(random_seed)

    @property
    def model(self) -> pm.Model:
        return self.objective.program.model

    @property
    def random_state(self) -> dict[str, Any]:
        """State of the random stream that draws continue where they are given no seed."""
        return dict(self._rng.bit_generator.state)

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def __str__(self) -> str:
        layers = " > ".join(type(layer).__name__ for layer in self.objective.flow.layers)
        return f"EMFApproximation[{self.objective.size}: {layers}]"

    # --- PyMC's symbolic interface -------------------------------------------------------

    def symbolic_sample_over_posterior(self, node, more_replacements=None):
        """Vectorise over draws, where PyMC scans over them one by one."""
        node = self.to_flat_input(node, more_replacements=more_replacements)
        (flat,), (draws,) = self.inputs, self.symbolic_randoms
        return vectorize_graph(node, {flat: draws})

    def use_backend(self, compile_kwargs: dict[str, Any] | None) -> None:
        """Compile what follows with JAX (None) or with PyTensor's ``compile_kwargs``."""
        self.compile_kwargs = compile_kwargs
        for name in ("_constrain", "_weigh", "_log_q"):
            self.__dict__.pop(name, None)

    # --- draws -----------------------------------------------------------------------------

    def _batched(self, event: TensorVariable, outputs: list[Any]) -> Batched:
        """Compile a graph that depends on one event, for many, with the backend of the fit."""
        if self.compile_kwargs is not None:
            return batch_pytensor(event, outputs, **self.compile_kwargs)
        variables = self.objective.variables
        single = jaxify([*variables, event], outputs, check_bounds=self.objective.check_bounds)
        return batch_jax(lambda values, event: tuple(single(*values, event)), variables)

    @cached_property
    def _constrain(self) -> tuple[list[str], Batched]:
        """Names and values of the variables of the model, as a function of the flat value."""
        structured, program = self.objective.structured, self.objective.program
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
    def _weigh(self) -> Batched:
        """Value, log joint density and log density of the approximation, as of noise."""
        batches = self.objective.program.log_density_batches(self.objective.noise("value"))
        if self.compile_kwargs is None or any(depends_on_minibatch(b) for _, b in batches):
            return self.objective.weigh  # which goes over all data
        noise = self.objective.noise()
        value, log_q = self.objective.symbolic_log_q(noise)
        log_p = pt.add(
            *(
                batch.sum() if batch.ndim else len(names) * batch
                for names, batch in self.objective.program.log_density_batches(value)
            )
        )
        return batch_pytensor(noise, [value, log_p, log_q], **self.compile_kwargs)

    def _generator(self, random_seed: RandomState) -> np.random.Generator:
        """Random stream of a seed, or that of the fit."""
        return self._rng if random_seed is None else make_rng(random_seed)

    def _noise(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=(draws, self.objective.size)).astype(pytensor.config.floatX)

    def sample(
        self,
        draws: int = 500,
        *,
        random_seed: RandomState = None,
        return_inferencedata: bool = True,
        include_transformed: bool | None = None,
        importance: bool = False,
        **kwargs: Any,
    ) -> xr.DataTree:
        """Draw from the approximate posterior.

        Parameters
        ----------
        draws : int
            Number of independent draws.
        random_seed : int, RandomState or Generator, optional
            By default the draws continue the random stream of the fit.
        return_inferencedata : bool
            With False, a PyMC ``MultiTrace`` as PyMC's own approximations return it.
        include_transformed : bool, optional
            Whether the posterior has the unconstrained values too; by default as ``fit`` was told.
        importance : bool
            Correct the draws by importance resampling: of ten times as many draws (and at least
            10,000), take some by their Pareto-smoothed weights. A draw may occur more than once.

        Returns
        -------
        xarray.DataTree
            In ArviZ's schema, with one chain: ``posterior`` (free variables and deterministics
            with the model's coords and dims), ``sample_stats`` (``lp``, the log joint density, and
            ``lq``, the log density of the approximation, of each draw in value space, nats),
            ``fit`` (``elbo`` of every step, and the gates), ``observed_data``,
            ``constant_data``. A deterministic of a minibatch, or with
            random draws of its own, is left out, and with minibatches ``lp`` is. With
            ``importance=True`` the statistics have ``log_weight`` too, of each draw before
            resampling, and the attribute ``pareto_k``.

        Raises
        ------
        ValueError
            If ``draws`` is not a positive integer.
        NonFiniteDrawsError
            If next to no draw is a number that floats can hold, at which the model has a density.
            Where some are not, others take their place, with a warning.
        """
        _check_draws(draws)
        if importance and not return_inferencedata:
            raise TypeError("importance=True needs return_inferencedata=True.")
        if not return_inferencedata:
            return super().sample(
                draws, random_seed=random_seed, return_inferencedata=False, **kwargs
            )
        if kwargs:
            raise TypeError(f"sample() got unexpected arguments: {', '.join(kwargs)}.")
        attrs: dict[str, float] = {}
        rng = self._generator(random_seed)
        if importance:
            value, stats, attrs = self._resampled(draws, rng)
        elif self.objective.has_minibatches:  # a log density of all data might take minutes
            value, log_q = self._finite_draws(self.objective.transform, draws, rng)
            stats = {"lq": log_q}
        else:
            value, log_p, log_q = self._finite_draws(self._weigh, draws, rng)
            stats = {"lp": log_p, "lq": log_q}
        tree = self._to_datatree(
            value[None],
            {name: values[None] for name, values in stats.items()},
            include_transformed,
        )
        tree["sample_stats"].attrs |= attrs
        return tree

    def _finite_draws(
        self, evaluate: Batched, draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Draws, and what is evaluated with them: value, log densities.

        Those that floats cannot hold, or where the model has no density, are drawn again.
        """
        outputs = evaluate(self._noise(draws, rng))
        wrong = np.flatnonzero(~self._are_finite(*outputs))
        n_wrong = len(wrong)
        for _ in range(MAX_REDRAWS):
            if not len(wrong):
                break
            again = evaluate(self._noise(len(wrong), rng))
            for old, new in zip(outputs, again, strict=True):
                old[wrong] = new
            wrong = wrong[~self._are_finite(*(output[wrong] for output in outputs))]
        if len(wrong):
            what = self._overflowing(outputs[0][wrong])
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

    def _are_finite(self, value: np.ndarray, *log_densities: np.ndarray) -> np.ndarray:
        """Whether all free variables of each draw are finite, in value space and in their own."""
        finite = np.isfinite(value).all(axis=1)
        for log_density in log_densities:
            finite &= np.isfinite(log_density)
        # only what is huge in value space may overflow on the way to the model's own
        huge = np.log(np.finfo(value.dtype).max)
        suspects = np.flatnonzero(finite & (np.abs(value) > huge).any(axis=1))
        if len(suspects):
            for _, constrained in self._free_variables(value[suspects]):
                axes = tuple(range(1, constrained.ndim))
                finite[suspects] &= np.isfinite(constrained).all(axis=axes)
        return finite

    def _overflowing(self, value: np.ndarray) -> str:
        """What is not finite at these values: a free variable, or else the log density."""
        for name, constrained in self._free_variables(value):
            if not np.isfinite(constrained).all():
                return f"{name} is"
        return "The log density of the model is"

    def _free_variables(self, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Name and values of every free variable at flat values of shape (draws, size)."""
        names, constrain = self._constrain
        free = {site.name for site in self.objective.program.sites}
        constrained = zip(names, constrain(value), strict=True)
        return [(name, array) for name, array in constrained if name in free]

    def nuts(
        self,
        draws: int = 1000,
        *,
        tune: int = 1000,
        chains: int = 4,
        random_seed: RandomState = None,
        target_accept: float = 0.99,
        nuts_sampler: Sampler | None = None,
        nuts: Mapping[str, Any] | None = None,
        progressbar: bool | str = True,
        quiet: bool = False,
        compute_convergence_checks: bool = True,
        include_transformed: bool | None = None,
    ) -> xr.DataTree:
        r"""Draw from the posterior itself, by NUTS in the noise of the fitted flow.

        Where the flow F fits, the posterior in its noise, of density
        :math:`p(y, F(\varepsilon))\,|\det F'(\varepsilon)|`, is nearly standard normal whatever
        its shape was: NUTS takes long steps there, and does not diverge in funnels. Where it
        does not, NUTS still draws from the posterior, if more slowly.

        Parameters
        ----------
        draws, tune, chains : int
            Draws of each chain that are kept, draws before them by which the sampler tunes itself,
            and number of chains. They start from draws of the approximation.
        random_seed : int, RandomState or Generator, optional
            By default the random stream of the fit continues.
        target_accept : float
            Between 0 and 1. High, for where the flow fits badly, in far tails, short steps avoid
            divergences; 0.9 takes half as many steps, and nearly none diverge.
        nuts_sampler : {"pymc", "nutpie", "numpyro", "blackjax"}, optional
            By default nutpie, which is faster, if it is installed, and PyMC's own if not, which
            runs one chain after the other.
        nuts : dict, optional
            Further options of the sampler, for example ``{"max_treedepth": 12}``.
        progressbar, quiet, compute_convergence_checks : bool
            As in ``pm.sample``.
        include_transformed : bool, optional
            As in :meth:`sample`.

        Returns
        -------
        xarray.DataTree
            In ArviZ's schema: ``posterior``, ``fit``, ``observed_data`` and ``constant_data`` as
            :meth:`sample` returns them, and ``sample_stats``, those of the sampler
            (``diverging``, ``n_steps``, ``energy``, ...; of the noise) and ``lp``, the log
            joint density of each draw in value space, in nats. With minibatches it is that of all
            data, as is the density which the sampler sees.

        Raises
        ------
        ValueError
            If ``draws``, ``tune``, ``chains`` or ``target_accept`` is out of range, or there is no
            such sampler.
        ImportError
            If the sampler is not installed.

        References
        ----------
        Hoffman et al., "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
        transport", arXiv:1903.03704.

        Examples
        --------
        >>> import pymc as pm
        >>> import pymc_emf as emf
        >>> with pm.Model() as model:
        ...     mu = pm.Normal("mu", 0.0, 10.0)
        ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
        >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
        >>> idata = approx.nuts(100, tune=200, random_seed=2, progressbar=False, quiet=True)
        >>> dict(idata.posterior.sizes)
        {'chain': 4, 'draw': 100}
        """
        _check_draws(draws)
        sampler = check_options(tune, chains, target_accept, nuts_sampler)
        rng = self._generator(random_seed)
        noise, stats, attrs = sample_noise(
            self.objective,
            draws,
            tune=tune,
            chains=chains,
            random_seed=int(rng.integers(2**30)),
            target_accept=target_accept,
            nuts_sampler=sampler,
            nuts=nuts or {},
            progressbar=progressbar,
            quiet=quiet,
        )
        value, log_p, _ = self.objective.weigh(noise.reshape(-1, noise.shape[-1]))
        stats["lp"] = log_p.reshape(noise.shape[:2])
        tree = self._to_datatree(value.reshape(noise.shape), stats, include_transformed)
        tree["posterior"].attrs |= attrs
        if compute_convergence_checks and not quiet:
            log_warnings(run_convergence_checks(tree, self.model))
        return tree

    def _resampled(self, draws: int, rng: np.random.Generator):
        """Values, statistics and attributes of draws taken by their importance weights."""
        n = self.objective.affordable(max(OVERSAMPLING * draws, MIN_CANDIDATES))
        value, log_p, log_q = self._finite_draws(self._weigh, n, rng)
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
            value[chosen],
            {name: values[chosen] for name, values in stats.items()},
            {"pareto_k": smoothed.pareto_k},
        )

    def _to_datatree(
        self, value: np.ndarray, sample_stats: Mapping[str, Any], include_transformed: bool | None
    ) -> xr.DataTree:
        """Put flat values, of shape (chain, draw, size), and their statistics into groups."""
        # of the model as it was fitted, whatever pm.set_data has done since
        frozen = self.objective.program.frozen
        coords, dims = coords_and_dims_for_inferencedata(frozen)

        def dataset(variables, **kwargs):
            return dict_to_dataset(
                variables, inference_library=pymc_emf, coords=coords, dims=dims, **kwargs
            )

        groups = {
            "posterior": dataset(self._posterior(value, include_transformed)),
            "sample_stats": dataset(sample_stats),
            "fit": self._fit_dataset(),
        }
        for name, variables in (
            ("observed_data", find_observations(frozen)),
            ("constant_data", find_constants(frozen)),
        ):
            if variables:
                groups[name] = dataset(variables, sample_dims=[])
        return xr.DataTree.from_dict(groups)

    def _posterior(
        self, value: np.ndarray, include_transformed: bool | None
    ) -> dict[str, np.ndarray]:
        """Variables of the model at flat values of shape (chain, draw, size), in its order."""
        names, constrain = self._constrain
        arrays = constrain(value.reshape(-1, value.shape[-1]))
        posterior = {
            name: array.reshape(*value.shape[:2], *array.shape[1:])
            for name, array in zip(names, arrays, strict=True)
        }
        if include_transformed is None:
            include_transformed = getattr(self.groups[0], "include_transformed", False)
        if not include_transformed:
            for site in self.objective.program.sites:
                if site.transform is not None:
                    del posterior[site.value_name]
        order = {name: i for i, name in enumerate(self.model.named_vars)}
        return dict(sorted(posterior.items(), key=lambda item: order.get(item[0], -1)))

    def _fit_dataset(self) -> xr.Dataset:
        gates = self.gates.rename({name: f"{name}_gate" for name in self.gates.data_vars})
        elbo = xr.DataArray(-np.asarray(self.hist, dtype=float), dims=["step"], name="elbo")
        return gates.assign(elbo=elbo).assign_attrs(
            inference_library="pymc_emf",
            inference_library_version=pymc_emf.__version__,
            stopped="" if self.stopping is None else self.stopping.reason,
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the approximation to a file, which :func:`pymc_emf.load` reads.

        The file holds numbers and no code; it appears when it is complete.

        Parameters
        ----------
        path : path-like
        """
        write(path, self)

    # --- what the fit says -----------------------------------------------------------------

    @property
    def gates(self) -> xr.Dataset:
        """Gate of every element: 1 where the prior is embedded, 0 where it is bypassed."""
        coords, dims = coords_and_dims_for_inferencedata(self.objective.program.frozen)
        structured = self.objective.structured
        values = structured.gates([p.get_value() for p in structured.own_parameters])
        sites = self.objective.program.sites_in_model_order
        # a transform that drops a dimension leaves elements without the variable's coords
        named: dict[Any, Any] = {
            s.name: dims[s.name] for s in sites if s.shape == s.rv_shape and s.name in dims
        }
        for site in sites:
            if site.shape != site.rv_shape:
                named[site.name] = [f"{site.value_name}_dim_{i}" for i in range(len(site.shape))]
        return dict_to_dataset(
            {site.name: np.array(values[site.name]) for site in sites},
            inference_library=pymc_emf,
            coords=coords,
            dims=named,
            sample_dims=[],
        )

    @property
    def parameters(self) -> xr.Dataset:
        """Trained values of the model's own parameters, made by :func:`pymc_emf.parameter`."""
        return xr.merge(map(constrained_value, self.objective.program.parameters))

    def elbo(self, draws: int = 10_000, *, random_seed: RandomState = None) -> ELBO:
        """Estimate the evidence lower bound from fresh draws.

        Parameters
        ----------
        draws : int
        random_seed : int, RandomState or Generator, optional

        Returns
        -------
        ELBO
            With ``mean`` and its standard error ``se``, in nats.

        Raises
        ------
        ValueError
            If ``draws`` is not a positive integer.
        """
        _check_draws(draws)
        _, log_p, log_q = self._weigh(self._noise(draws, self._generator(random_seed)))
        log_weights = log_ratio(log_p, log_q)
        se = standard_deviation(log_weights, ddof=1) / np.sqrt(draws) if draws > 1 else np.nan
        return ELBO(average(log_weights), float(se), int(draws))

    def diagnose(self, draws: int = 10_000, *, random_seed: RandomState = None) -> Diagnosis:
        """Tell how far the approximation can be trusted, from importance weights of fresh draws.

        Parameters
        ----------
        draws : int
        random_seed : int, RandomState or Generator, optional

        Returns
        -------
        Diagnosis
            Pareto k-hat, ELBO, log evidence, effective number of draws, gates, how the fit
            started and why it ended, and what to do; with text and HTML representations.

        Raises
        ------
        ValueError
            If ``draws`` is not an integer of at least 30.

        Examples
        --------
        >>> import pymc as pm
        >>> import pymc_emf as emf
        >>> with pm.Model() as model:
        ...     mu = pm.Normal("mu", 0.0, 10.0)
        ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
        >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
        >>> approx.diagnose(1000).advice
        'Use it: the importance weights are well-behaved.'
        """
        _check_draws(draws)
        if draws < MIN_DRAWS:
            raise ValueError(f"diagnose needs draws of at least {MIN_DRAWS}, got {draws}.")
        rng = self._generator(random_seed)
        _, log_p, log_q = self._weigh(self._noise(draws, rng))
        log_weights = log_ratio(log_p, log_q)
        smoothed = smooth(log_weights)
        n_prior = self.objective.affordable(min(draws, MAX_PRIOR_DRAWS))
        prior_log_weights = self.objective.prior_log_weights(self._noise(n_prior, rng))
        missed = missed_evidence(smoothed, prior_log_weights)
        se = standard_deviation(log_weights, ddof=1) / np.sqrt(draws) if draws > 1 else np.nan
        stopping = self.stopping
        return Diagnosis(
            pareto_k=np.inf if missed else smoothed.pareto_k,
            missed=missed,
            elbo=average(log_weights),
            elbo_se=float(se),
            log_evidence=smoothed.log_evidence,
            log_evidence_se=smoothed.se,
            ess=smoothed.ess,
            draws=int(draws),
            gates=self.gates,
            warm_start=self.warm_start.chosen,
            stopped="" if stopping is None else f"{stopping.reason}, after step {stopping.step:,}",
        )

    @cached_property
    def _log_q(self) -> Batched:
        value = self.objective.noise("value")
        noise, log_det = self.objective.flow.inverse(value)
        log_q = normal_logpdf(noise).sum() + log_det
        return self._batched(value, [log_q])

    def log_prob(self, point: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Log density of the approximation at unconstrained values.

        Parameters
        ----------
        point : dict or ndarray
            Either a dict from the names of value variables (as in ``model.initial_point()``,
            for example ``"sigma_log__"``) to arrays with common leading batch axes, or an array
            of shape (..., size) in the order of ``model.free_RVs``.

        Returns
        -------
        ndarray
            Of the shape of the batch axes, in nats.

        Raises
        ------
        KeyError
            If a value variable is missing.
        ValueError
            If a value has the wrong shape.
        """
        flat = self._flatten(point)
        batch = flat.shape[:-1]
        (log_q,) = self._log_q(flat.reshape(-1, flat.shape[-1]))
        return log_q.reshape(batch)

    def _flatten(self, point: Mapping[str, Any] | np.ndarray) -> np.ndarray:
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
        for site in self.objective.program.sites_in_model_order:
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

    @property
    def state(self) -> VIState:
        """Posterior means and standard deviations in the model's own space, from draws."""
        posterior = self.sample(N_MOMENT_DRAWS, random_seed=0).posterior.to_dataset()
        return VIState(posterior.mean(("chain", "draw")), posterior.std(("chain", "draw")))
