"""Whether fits recover what data were simulated from: simulation-based calibration."""

import logging
import os

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pymc as pm

from arviz_base import dict_to_dataset
from pymc.backends.arviz import coords_and_dims_for_inferencedata
from pymc.distributions.continuous import FlatRV, HalfFlatRV
from pymc.progress_bar import default_progress_theme
from pymc.util import RandomState
from rich.progress import MofNCompleteColumn
from rich.theme import Theme

import pymc_emf

from pymc_emf.arguments import check_positive, free_name, model_of, progress_bar
from pymc_emf.calibration.fitter import Fitter, Ranked, Simulated
from pymc_emf.calibration.result import Calibration
from pymc_emf.calibration.saved import File
from pymc_emf.engine.interrupts import heard
from pymc_emf.model.program import Program
from pymc_emf.variational.method import OPTIONS, EMFApprox
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.prepare import prepare

__all__ = ["calibrate"]

logger = logging.getLogger(__name__)

#: Arguments of the fit that are passed on.
_FIT_ARGUMENTS = {"obj_n_mc", "obj_optimizer", "total_grad_norm_constraint", "tol", "devices"}


@heard()
def calibrate(
    model: pm.Model | None = None,
    simulations: int = 100,
    *,
    n: int = 10_000,
    draws: int = 999,
    method: EMFApprox | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    progressbar_theme: Theme = default_progress_theme,
    checkpoint: str | os.PathLike | None = None,
    **kwargs: Any,
) -> Calibration:
    r"""Check fits of a model on data that it has simulated itself.

    For each simulation :math:`\theta \sim p(\theta)` and :math:`y \sim p(y \mid \theta)` are
    drawn, the model is fitted to :math:`y`, and the rank of every true value among draws from the
    fit is noted. Were the fits the posteriors, the ranks would be uniform. Compilation is done
    once for all fits.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the model in context. Its observations give the shape of the simulated ones.
    simulations : int
        A hundred show what is badly off; several hundred, what is slightly.
    n : int
        Steps of each fit, as for :meth:`EMFApprox.fit`.
    draws : int
        Draws of each fit among which the true values are ranked.
    method : EMFApprox or ASVI, optional
        By default :class:`EMFApprox` with those of its options that are among ``kwargs``.
    random_seed : int, RandomState or Generator, optional
    progressbar : bool
    progressbar_theme : rich.theme.Theme
    checkpoint : path-like, optional
        File to which the ranks are written after every simulation. If it exists, the rest is
        done, with the result of a calibration that was not interrupted.
    **kwargs
        Options of :class:`EMFApprox` and arguments of :meth:`EMFApprox.fit`: ``layers``,
        ``gate``, ..., ``obj_n_mc``, ``obj_optimizer``, ``total_grad_norm_constraint``, ``tol``,
        ``devices``.

    Returns
    -------
    Calibration
        Ranks and tests. After Ctrl-C, of the simulations that were done.

    Raises
    ------
    ValueError
        If the model cannot simulate its data: it has no observations, a potential, a flat prior,
        minibatches, or a transform that changes the prior; or if the file is of another
        calibration.

    See Also
    --------
    EMFApproximation.diagnose : what one fit to the data at hand says of itself.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", arXiv:1804.06788. Yao, Vehtari, Simpson, Gelman, "Yes, but did
    it work? Evaluating variational inference", ICML 2018, arXiv:1802.02538.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> found = emf.calibrate(model, simulations=50, n=200, random_seed=1, progressbar=False)
    >>> found.advice
    'No sign of miscalibration in 50 simulations.'
    """
    model = model_of(model)
    for name, number in (("simulations", simulations), ("n", n), ("draws", draws)):
        check_positive(name, number)
    if unknown := kwargs.keys() - OPTIONS - _FIT_ARGUMENTS:
        raise TypeError(f"calibrate() got unexpected arguments: {', '.join(sorted(unknown))}.")
    given = {name: kwargs.pop(name) for name in OPTIONS & kwargs.keys()}
    if method is None:
        method = EMFApprox(**given)
    elif given:
        raise TypeError(f"Give {', '.join(sorted(given))} to the method, or leave out method=.")
    ask, options = FitOptions(n, progressbar=False, **kwargs), method.options
    program = Program(model, data_may_change=True)  # which minibatches cannot
    _check_simulates(model, program)
    settings = {"draws": int(draws), **ask.settings(), **options.settings()}
    settings |= {"method": options.method}
    file = File(checkpoint, random_seed)
    prepared = prepare(program, options, np.random.default_rng([file.seed, 0]))
    file.check(prepared, settings)
    simulated = _simulate(model, program, simulations, file.seed)
    fitter, done = Fitter(prepared, ask, draws, file.seed), file.done()
    bar = progress_bar(progressbar, progressbar_theme, MofNCompleteColumn())
    try:
        with bar, _quiet():
            task = bar.add_task("Calibrating", total=simulations, completed=len(done))
            for i in range(len(done), simulations):
                done.append(fitter.rank(i, simulated))
                file.write(done)
                bar.update(task, advance=1)
    except KeyboardInterrupt:
        logger.info("Interrupted after %d of %d simulations.", len(done), simulations)
    return _summarise(model, program, done[:simulations], draws)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what single fits say; the result sums it up."""
    package = logging.getLogger("pymc_emf")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)


def _simulate(model: pm.Model, program: Program, n: int, seed: int) -> Simulated:
    """Draw free and observed variables from the model, over a first axis."""
    variables = [*model.free_RVs, *model.observed_RVs]
    transforms = {rv: model.rvs_to_transforms[rv] for rv in model.free_RVs}
    constrained = [rv for rv, transform in transforms.items() if transform is not None]
    unconstrained = [transforms[rv].forward(rv, *rv.owner.inputs) for rv in constrained]
    # at least two, or the first axis would be missing
    drawn = pm.draw([*variables, *unconstrained], draws=max(n, 2), random_seed=seed)
    for rv, values in zip(constrained, drawn[len(variables) :], strict=True):
        if np.isnan(values).any():
            raise ValueError(
                f"The prior of {rv.name} depends on its transform, "
                f"{type(transforms[rv]).__name__}, which simulations from the model do not obey; "
                "calibrate needs a distribution that draws such values itself."
            )
    return {str(rv.name): np.asarray(x[:n]) for rv, x in zip(variables, drawn, strict=False)}


def _check_simulates(model: pm.Model, program: Program) -> None:
    if not model.observed_RVs:
        raise ValueError("The model has no observed variable; calibrate has nothing to simulate.")
    if model.potentials:
        raise ValueError(
            f"The model has a potential, {model.potentials[0].name}, which simulations from it do "
            "not obey; calibrate needs a model that draws its data itself."
        )
    for site in program.sites:
        if isinstance(site.rv.owner.op, FlatRV | HalfFlatRV):
            raise ValueError(
                f"{site.name} has an improper prior, from which calibrate cannot draw; give it a "
                "proper one."
            )


def _summarise(model: pm.Model, program: Program, done: list[Ranked], draws: int) -> Calibration:
    good = [i for i, each in enumerate(done) if not each.error]
    ranks: Mapping[str, np.ndarray] = {}
    n_all = sum(np.prod(site.rv_shape, dtype=int) for site in program.sites)
    stacked = np.array([done[i].ranks for i in good], dtype=int).reshape(len(good), n_all)
    start, ranks = 0, {}
    for site in program.sites_in_model_order:
        stop = start + int(np.prod(site.rv_shape))
        ranks[site.name] = stacked[:, start:stop].reshape(len(good), *site.rv_shape)
        start = stop
    coords, dims = coords_and_dims_for_inferencedata(program.frozen)
    axis = free_name("simulation", {*coords, *ranks, *(d for of in dims.values() for d in of)})
    dataset = dict_to_dataset(
        ranks,
        inference_library=pymc_emf,
        coords={**coords, axis: good},
        dims=dims,
        sample_dims=[axis],
    )
    return Calibration(
        dataset,
        draws,
        np.array([each.pareto_k for each in done]),
        {i: each.error for i, each in enumerate(done) if each.error},
        axis,
    )
