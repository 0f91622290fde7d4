"""Whether fits recover what data were simulated from: simulation-based calibration."""

import logging
import os

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr

from arviz_base import dict_to_dataset
from pymc.backends.arviz import coords_and_dims_for_inferencedata
from pymc.distributions.continuous import FlatRV, HalfFlatRV
from pymc.model import modelcontext
from pymc.progress_bar import CustomProgress, default_progress_theme
from pymc.util import RandomState
from pymc.variational.opvi import VariationalInferenceError
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.theme import Theme
from scipy.stats import chisquare, norm

import pymc_emf

from pymc_emf.engine.storage import read_arrays, write_arrays
from pymc_emf.model.program import Program
from pymc_emf.variational.approximation import EMFApproximation, make_rng
from pymc_emf.variational.diagnosis import MAX_PARETO_K
from pymc_emf.variational.inference import OPTIONS, EMFApprox, check_positive
from pymc_emf.variational.persistence import check_model, check_settings, signature
from pymc_emf.variational.report import Report

__all__ = ["Calibration", "calibrate"]

logger = logging.getLogger(__name__)

FORMAT, VERSION = "pymc-emf calibration", 1

#: Fewest simulations that a bin of the chi-square test shall expect, and most bins.
MIN_EXPECTED, MAX_BINS = 5, 20
#: p-value, corrected for the number of elements, below which ranks are called not uniform.
SUSPICIOUS = 0.01


@dataclass(frozen=True, repr=False)
class Calibration(Report):
    """Ranks of true values among draws from the fits to data that were simulated from them.

    Made by :func:`calibrate`. Where the fits are exact, all ranks are equally likely.

    Attributes
    ----------
    ranks : Dataset
        Of every element of every free variable, the number of draws below the true value, from 0
        to ``draws``, over ``simulation``; only of simulations whose fit succeeded.
    draws : int
        From each fit.
    pareto_k : ndarray, shape (simulations,)
        Pareto k-hat of every fit, NaN where it failed.
    errors : dict
        Numbers of simulations whose fit failed, and why.
    """

    ranks: xr.Dataset
    draws: int
    pareto_k: np.ndarray
    errors: dict[int, str]

    @property
    def simulations(self) -> int:
        """Number of simulations whose fit succeeded."""
        return self.ranks.sizes["simulation"]

    @property
    def p_values(self) -> xr.Dataset:
        """Of a chi-square test of uniform ranks, for every element."""
        return self.ranks.map(self._reduce(_chi_square))

    @property
    def bias(self) -> xr.Dataset:
        """Standard score of the mean rank: positive where draws are too low."""
        return self.ranks.map(self._reduce(_bias))

    @property
    def spread(self) -> xr.Dataset:
        """Standard score of the ranks' variance: positive where draws are too narrow."""
        return self.ranks.map(self._reduce(_spread))

    def _reduce(self, function):
        def reduce(ranks: xr.DataArray) -> xr.DataArray:
            return xr.apply_ufunc(
                function,
                ranks,
                kwargs={"draws": self.draws},
                input_core_dims=[["simulation"]],
                vectorize=True,
            )

        return reduce

    @cached_property
    def _suspects(self) -> dict[str, str]:
        """Variables with an element whose ranks are not uniform, and what is wrong with it."""
        n_tests = sum(p.size for p in self.p_values.data_vars.values())
        found = {}
        for name in map(str, self.ranks.data_vars):
            # the two scores see a slope or a curve long before the test without a direction does
            worst = {
                "too low": self.bias[name].max(),
                "too high": -self.bias[name].min(),
                "too narrow": self.spread[name].max(),
                "too wide": -self.spread[name].min(),
            }
            p_values = {said: 2 * norm.sf(float(score)) for said, score in worst.items()}
            said = min(p_values, key=p_values.__getitem__)
            # three tests of every element
            if p_values[said] * 3 * n_tests < SUSPICIOUS:
                found[name] = f"draws {said}"
            elif float(self.p_values[name].min()) * 3 * n_tests < SUSPICIOUS:
                found[name] = "ranks not uniform"
        return found

    @property
    def advice(self) -> str:
        """What follows, in one sentence."""
        if not self.simulations:
            return "No fit succeeded: see errors."
        if not self._suspects:
            return f"No sign of miscalibration in {self.simulations:,} simulations."
        said = ", ".join(f"{name} ({why})" for name, why in self._suspects.items())
        return (
            f"Do not trust the intervals of {said}: give the fits more steps (n=) or richer "
            "layers, or use approx.nuts."
        )

    def to_datatree(self) -> xr.DataTree:
        """Ranks as fractions, in the group that ArviZ expects of such an analysis.

        Returns
        -------
        DataTree
            With the group ``prior_sbc``, over ``chain`` and ``draw`` (the simulations).
        """
        fractions = ((self.ranks + 0.5) / (self.draws + 1)).rename(simulation="draw")
        return xr.DataTree.from_dict({"prior_sbc": fractions.expand_dims("chain")})

    def _rows(self) -> list[tuple[str, str]]:
        good = self.pareto_k[~np.isnan(self.pareto_k)]
        rows = [
            ("simulations", f"{self.simulations:,}"),
            ("draws of each fit", f"{self.draws:,}"),
            ("k-hat above 0.7", f"{int((good > MAX_PARETO_K).sum()):,} of the fits"),
            ("failed fits", f"{len(self.errors):,}"),
        ]
        if self.simulations:
            for name, p in self.p_values.data_vars.items():
                rows.append((f"smallest p-value of {name}", f"{float(p.min()):.2g} of {p.size:,}"))
        return [*rows, ("advice", self.advice)]


def _chi_square(ranks: np.ndarray, draws: int) -> float:
    n_bins = min(MAX_BINS, draws + 1, len(ranks) // MIN_EXPECTED)
    if n_bins < 2:
        return np.nan
    observed = np.bincount(ranks * n_bins // (draws + 1), minlength=n_bins)
    width = np.bincount(np.arange(draws + 1) * n_bins // (draws + 1))
    return float(chisquare(observed, len(ranks) * width / (draws + 1)).pvalue)


def _bias(ranks: np.ndarray, draws: int) -> float:
    u = (ranks + 0.5) / (draws + 1)
    return float((u.mean() - 0.5) * np.sqrt(12 * len(u)))


def _spread(ranks: np.ndarray, draws: int) -> float:
    # of a uniform u, (u - 1/2)**2 has mean 1/12 and variance 1/180
    u = (ranks + 0.5) / (draws + 1)
    return float((((u - 0.5) ** 2).mean() - 1 / 12) * np.sqrt(180 * len(u)))


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
    model = modelcontext(model)
    check_positive("simulations", simulations)
    check_positive("n", n)
    check_positive("draws", draws)
    if unknown := kwargs.keys() - OPTIONS - _FIT_ARGUMENTS:
        raise TypeError(f"calibrate() got unexpected arguments: {', '.join(sorted(unknown))}.")
    options = {name: kwargs.pop(name) for name in OPTIONS & kwargs.keys()}
    if method is None:
        method = EMFApprox(**options)
    elif options:
        raise TypeError(f"Give {', '.join(sorted(options))} to the method, or leave out method=.")
    program = Program(model, data_may_change=True)  # which minibatches cannot
    _check_simulates(model, program)
    settings = {
        "draws": draws,
        "n": n,
        **kwargs,
        "method": type(method).__name__,
        **method._options(),
    }
    file = _File(checkpoint, program, settings, random_seed)
    simulated = _simulate(model, program, simulations, file.seed)
    done = file.take_up(simulated)
    fitter = _Fitter(model, method, n, draws, file.seed, kwargs)
    progress = CustomProgress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(theme=progressbar_theme),
        disable=not progressbar,
    )
    try:
        with progress, _quiet():
            task = progress.add_task("Calibrating", total=simulations, completed=len(done))
            for i in range(len(done), simulations):
                done.append(fitter.rank(i, simulated))
                file.write(done, simulated)
                progress.update(task, advance=1)
    except KeyboardInterrupt:
        logger.info("Interrupted after %d of %d simulations.", len(done), simulations)
    return _summarise(model, program, done[:simulations], draws)


#: Arguments of the fit that are passed on.
_FIT_ARGUMENTS = {"obj_n_mc", "obj_optimizer", "total_grad_norm_constraint", "tol", "devices"}


@dataclass(frozen=True)
class _Ranked:
    """One simulation: a rank for every element of the free variables, or why there is none."""

    ranks: np.ndarray
    pareto_k: float
    error: str = ""


Simulated = dict[str, np.ndarray]


class _Fitter:
    """Fits one simulation after the other with the same compiled functions."""

    def __init__(self, model, method, n, draws, seed, kwargs):
        method._expect_other_data(model)
        self.model, self.method, self.n, self.draws = model, method, n, draws
        self.seed, self.kwargs = seed, kwargs

    def rank(self, i: int, simulated: Simulated) -> _Ranked:
        """Fit to the data of simulation ``i``, and rank its true values."""
        names = [rv.name for rv in self.model.free_RVs]
        truths = [simulated[name][i] for name in names]
        nothing = np.full(sum(map(np.size, truths)), -1)
        try:
            self.method._renew({name: x[i] for name, x in simulated.items()}, [self.seed, i])
            approx: EMFApproximation = self.method.fit(self.n, progressbar=False, **self.kwargs)
        except VariationalInferenceError as error:
            return _Ranked(nothing, np.nan, str(error))
        posterior = approx.sample(self.draws).posterior
        ranks = [
            (posterior[name].values[0] < truth).sum(axis=0).ravel()
            for name, truth in zip(names, truths, strict=True)
        ]
        k = np.nan if approx.pareto_k is None else approx.pareto_k
        return _Ranked(np.concatenate(ranks), k)


class _File:
    """Ranks in a file, if there shall be one."""

    def __init__(self, path, program: Program, settings: dict[str, Any], random_seed: RandomState):
        self.path = None if path is None else Path(path)
        self.header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": signature(program),
            "settings": {name: _plain(value) for name, value in settings.items()},
        }
        self._saved = None
        if self.path is not None and not self.path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {self.path.parent} for the checkpoint.")
        if self.path is not None and self.path.exists():
            header, arrays = read_arrays(self.path)
            if header.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold a calibration.")
            if header["version"] > VERSION:
                raise ValueError(
                    f"{path} was written by a newer version of this package; update pymc-emf."
                )
            check_model(self.path, header["model"], program)
            check_settings(self.path, header["settings"], self.header["settings"])
            self._saved = header, arrays
        saved_seed = None if self._saved is None else self._saved[0]["seed"]
        if random_seed is None and saved_seed is not None:
            self.seed = saved_seed
        else:
            self.seed = int(make_rng(random_seed).integers(2**31))
        if saved_seed not in (None, self.seed):
            raise ValueError(
                f"{path} was begun with another random_seed; give another checkpoint=, or delete "
                "the file."
            )
        self.header["seed"] = self.seed

    def take_up(self, simulated: Simulated) -> list[_Ranked]:
        """Read what was done, if it was on the same simulations."""
        if self._saved is None:
            return []
        header, (ranks, pareto_k, *means) = self._saved
        n = min(len(ranks), len(next(iter(simulated.values()))))
        for saved, now in zip(means, _means(simulated), strict=True):
            if not np.allclose(saved[:n], now[:n], equal_nan=True):
                raise ValueError(
                    f"{self.path} is of another model: it simulates other data; give "
                    "another checkpoint=, or delete the file."
                )
        errors = header["errors"]
        return [
            _Ranked(ranks[i], float(pareto_k[i]), errors.get(str(i), "")) for i in range(len(ranks))
        ]

    def write(self, done: list[_Ranked], simulated: Simulated) -> None:
        if self.path is None:
            return
        errors = {i: each.error for i, each in enumerate(done) if each.error}
        arrays = [np.array([d.ranks for d in done]), np.array([d.pareto_k for d in done])]
        means = [mean[: len(done)] for mean in _means(simulated)]
        write_arrays(self.path, self.header | {"errors": errors}, [*arrays, *means])


def _means(simulated: Simulated) -> list[np.ndarray]:
    """Mean of each variable in each simulation, by which they are known again."""
    return [x.reshape(len(x), -1).mean(axis=1, dtype=float) for x in simulated.values()]


def _plain(value: Any) -> Any:
    """Of settings that a file cannot hold, whether they were given."""
    value = value.item() if isinstance(value, np.generic) else value
    known = value is None or isinstance(value, bool | int | float | str | list | tuple)
    return value if known else "own"


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


def _summarise(model: pm.Model, program: Program, done: list[_Ranked], draws: int) -> Calibration:
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
    dataset = dict_to_dataset(
        ranks,
        inference_library=pymc_emf,
        coords={**coords, "simulation": good},
        dims=dims,
        sample_dims=["simulation"],
    )
    return Calibration(
        dataset,
        draws,
        np.array([each.pareto_k for each in done]),
        {i: each.error for i, each in enumerate(done) if each.error},
    )
