"""The fitted approximation: PyMC's interface, draws and what can be asked of a fit."""

import os

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import xarray as xr

from pymc.stats.convergence import log_warnings, run_convergence_checks
from pymc.util import RandomState
from pymc.variational.approximations import SingleGroupApproximation
from pymc.variational.opvi import VIState
from pytensor.graph.replace import vectorize_graph

from pymc_emf.arguments import check_positive, make_rng
from pymc_emf.engine.interrupts import heard
from pymc_emf.layers.parameters import store
from pymc_emf.model.parameter import constrained_value
from pymc_emf.variational.diagnosis import Diagnosis, diagnose
from pymc_emf.variational.draws import Draws
from pymc_emf.variational.fit_data import fit_dataset, gates_dataset
from pymc_emf.variational.group import N_MOMENT_DRAWS, EMFGroup
from pymc_emf.variational.importance import ELBO, MIN_DRAWS, estimate_elbo, log_ratio
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.record import FitRecord, Recorded
from pymc_emf.variational.saved_fit import write_fit
from pymc_emf.variational.summary import Summary
from pymc_emf.variational.transport import Sampler, check_options, sample_noise
from pymc_emf.variational.verdict import N_FRESH_DRAWS, Drawn, ask_chains, judge

__all__ = ["EMFApproximation"]


class EMFApproximation(Recorded, SingleGroupApproximation):
    """Posterior approximation by an embedded-model flow.

    Made by ``pm.fit(method=EMFApprox())`` or :func:`pymc_emf.fit`.

    Attributes
    ----------
    hist : ndarray
        Loss (negative ELBO estimate, nats) of every step.
    warm_start : WarmStart
        How the fit started.
    stopping : Stopping or None
        Why the last fit ended, ``reason`` and ``step``; None before a fit.
    verdict : Verdict or None
        On the last fit, at its end; ``verdict.sentence`` is what a poor fit warns of. None if the
        last check was interrupted.
    pareto_k : float or None
        Pareto k-hat of the log weights at the end of the last fit.
        Minus infinity where all weights are equal, infinity if a mode has been missed; None if
        the last check was interrupted.
    timing : dict
        Seconds: "rewrite" (PyTensor), "warm_start", "compile" (of the loop, as far as the fit
        waited for it: XLA works on it during the warm start), "step" (one step), "fit"
        (everything).
    """

    _group_class = EMFGroup

    def __init__(self, prepared: Prepared, random_seed: RandomState = None):
        with prepared.model:
            super().__init__(objective=prepared.objective, model=prepared.program.symbolic)
        self.prepared = prepared
        self.objective: Objective = prepared.objective
        self.record = FitRecord()
        self._draws = Draws(prepared.objective)
        self._rng = make_rng(random_seed)

    # --- values and record --------------------------------------------------------------------

    @property
    def values(self) -> list[np.ndarray]:
        """Values of ``objective.variables``, which PyMC's loop and symbolic interface use."""
        return [v.get_value() for v in self.objective.variables]

    def adopt(self, values: Values, record: FitRecord | None = None) -> None:
        """Take over values, and what is known of the fit that they are from."""
        store(self.objective.variables, values)
        self.record = record or self.record

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

    @property
    def _summary(self) -> Summary:
        return Summary(self.objective, self.record, self.gates)

    def __repr__(self) -> str:
        return repr(self._summary)

    def _repr_html_(self) -> str:
        return self._summary._repr_html_()

    # --- PyMC's symbolic interface -------------------------------------------------------

    def sample_node(self, node, *args, **kwargs):
        """Sample nodes over the posterior as PyMC does, also those of pymc.dims."""
        return super().sample_node(self.objective.program.in_tensors(node), *args, **kwargs)

    def symbolic_sample_over_posterior(self, node, more_replacements=None):
        """Vectorise over draws, where PyMC scans over them one by one."""
        node = self.to_flat_input(node, more_replacements=more_replacements)
        (flat,), (draws,) = self.inputs, self.symbolic_randoms
        return vectorize_graph(node, {flat: draws})

    def use_backend(self, compile_kwargs: dict[str, Any] | None) -> None:
        """Compile what follows with JAX (None) or with PyTensor's ``compile_kwargs``."""
        if compile_kwargs != self._draws.compile_kwargs:
            self._draws = Draws(self.objective, compile_kwargs)

    # --- draws -----------------------------------------------------------------------------

    def _generator(self, random_seed: RandomState) -> np.random.Generator:
        """Random stream of a seed, or that of the fit."""
        return self._rng if random_seed is None else make_rng(random_seed)

    def sample(
        self,
        draws: int = 500,
        *,
        chains: int = 1,
        random_seed: RandomState = None,
        return_inferencedata: bool = True,
        include_transformed: bool | None = None,
        importance: bool = False,
        var_names: Collection[str] | None = None,
        **kwargs: Any,
    ) -> xr.DataTree:
        """Draw from the approximate posterior.

        Parameters
        ----------
        draws : int
            Number of independent draws, of each chain.
        chains : int
            Number of labels by which the draws are told apart, for code that wants several chains.
            All draws are independent, whatever their chain: R-hat says nothing about the fit.
        random_seed : int, RandomState or Generator, optional
            By default the draws continue the random stream of the fit.
        return_inferencedata : bool
            With False, a PyMC ``MultiTrace`` as PyMC's own approximations return it.
        include_transformed : bool, optional
            Whether the posterior has the unconstrained values too; by default as ``fit`` was told.
        importance : bool
            Correct the draws by importance resampling: of ten times as many draws (and at least
            10,000), take some by their Pareto-smoothed weights. A draw may occur more than once.
        var_names : collection of str, optional
            Variables that the posterior shall have; by default all.

        Returns
        -------
        xarray.DataTree
            In ArviZ's schema: ``posterior`` (free variables and deterministics
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
            If ``draws`` or ``chains`` is not a positive integer, or there is no variable of such
            a name.
        NonFiniteDrawsError
            If next to no draw is a number that floats can hold, at which the model has a density.
            Where some are not, others take their place, with a warning.
        """
        check_positive("draws", draws)
        check_positive("chains", chains)
        for asked, name in ((importance, "importance=True"), (chains > 1, "chains=")):
            if asked and not return_inferencedata:
                raise TypeError(f"{name} needs return_inferencedata=True.")
        if not return_inferencedata:
            return super().sample(
                draws, random_seed=random_seed, return_inferencedata=False, **kwargs
            )
        if kwargs:
            raise TypeError(f"sample() got unexpected arguments: {', '.join(kwargs)}.")
        attrs: dict[str, float] = {}
        rng, values, n = self._generator(random_seed), self.values, chains * draws
        if importance:
            flat, stats, attrs = self._draws.resampled(values, n, rng)
        elif self.objective.target.minibatches:  # a log density of all data might take minutes
            flat, log_q = self._draws.finite(self.objective.transform, values, n, rng)
            stats = {"lq": log_q}
        else:
            flat, log_p, log_q = self._draws.finite(self._draws.weigh, values, n, rng)
            stats = {"lp": log_p, "lq": log_q}
        stats = {name: array.reshape(chains, draws) for name, array in stats.items()}
        flat = flat.reshape(chains, draws, -1)
        tree = self._to_datatree(values, flat, stats, include_transformed, var_names)
        tree["sample_stats"].attrs |= attrs
        return tree

    @heard()
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
        :math:`p(y, F(\varepsilon))\,|\det F'(\varepsilon)|`, is nearly standard normal. Where
        it does not, NUTS still draws from the posterior, if more slowly.

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
        KeyboardInterrupt
            After Ctrl-C before anything has been drawn; later, the draws so far are returned.

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
        check_positive("draws", draws)
        sampler = check_options(tune, chains, target_accept, nuts_sampler)
        rng, values = self._generator(random_seed), self.values
        noise, stats, attrs = sample_noise(
            self.objective,
            values,
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
        flat, log_p, _ = self.objective.weigh(values, noise.reshape(-1, noise.shape[-1]))
        stats["lp"] = log_p.reshape(noise.shape[:2])
        tree = self._to_datatree(values, flat.reshape(noise.shape), stats, include_transformed)
        tree["posterior"].attrs |= attrs
        if compute_convergence_checks and not quiet:
            log_warnings(run_convergence_checks(tree, self.model))
        return tree

    def _to_datatree(
        self, values, flat, stats, include_transformed: bool | None, var_names=None
    ) -> xr.DataTree:
        if include_transformed is None:
            include_transformed = getattr(self.groups[0], "include_transformed", False)
        fit = fit_dataset(self.gates, self.record)
        return self._draws.to_datatree(values, flat, stats, fit, include_transformed, var_names)

    def save(self, path: str | os.PathLike) -> None:
        """Write the approximation to a file, which :func:`pymc_emf.load` reads.

        The file holds numbers and no code; it appears when it is complete.

        Parameters
        ----------
        path : path-like
        """
        write_fit(path, self.prepared, self.values, self.record, self.random_state)

    # --- what the fit says -----------------------------------------------------------------

    @property
    def gates(self) -> xr.Dataset:
        """Gate of every element: 1 where the prior is embedded, 0 where it is bypassed."""
        return gates_dataset(self.objective, self.values)

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
        check_positive("draws", draws)
        return estimate_elbo(self._drawn(draws, self._generator(random_seed)).log_weights)

    def _drawn(self, draws: int, rng: np.random.Generator) -> Drawn:
        """Fresh draws with their log importance weights."""
        noise = self._draws.noise(draws, rng)
        value, log_p, log_q = self._draws.weigh(self.values, noise)
        return Drawn(noise, value, log_ratio(log_p, log_q))

    def diagnose(self, draws: int | None = None, *, random_seed: RandomState = None) -> Diagnosis:
        """Tell how far the approximation can be trusted, from importance weights of its draws.

        Parameters
        ----------
        draws : int, optional
            How many fresh ones to ask, with a verdict of their own, which may differ where little
            decides. By default that of the fit is reported, and 10,000 are asked if it has none.
        random_seed : int, RandomState or Generator, optional
            Of fresh draws, of which there are 10,000 where only a seed is given.

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
        'Use it: its draws are worth 1,000 of 1,000 from the posterior.'
        """
        last, fresh = self.verdict, draws is not None or random_seed is not None
        if not fresh and last is not None and last.draws:  # old files have k-hat alone
            return diagnose(last, self.gates, self.record)
        draws = N_FRESH_DRAWS if draws is None else draws
        check_positive("draws", draws)
        if draws < MIN_DRAWS:
            raise ValueError(f"diagnose needs draws of at least {MIN_DRAWS}, got {draws}.")
        rng, gain = self._generator(random_seed), 0.0 if last is None else last.gain
        drawn = self._drawn(draws, rng)
        told = ask_chains(self.objective, self.values, drawn, rng)
        verdict = judge(self.objective, self.values, drawn, rng, gain, self.warm_start.other, told)
        return diagnose(verdict, self.gates, self.record)

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
        flat = self._draws.flatten(point)
        batch = flat.shape[:-1]
        (log_q,) = self._draws.log_q(self.values, flat.reshape(-1, flat.shape[-1]))
        return log_q.reshape(batch)

    @property
    def state(self) -> VIState:
        """Posterior means and standard deviations in the model's own space, from draws."""
        posterior = self.sample(N_MOMENT_DRAWS, random_seed=0).posterior.to_dataset()
        return VIState(posterior.mean(("chain", "draw")), posterior.std(("chain", "draw")))
