"""Posterior draws against known values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from arviz_base import rcParams
from arviz_base.labels import BaseLabeller
from pymc.util import RandomState

from pymc_emf.plots.common import (
    POSTERIOR,
    TAIL,
    TRUTH,
    FilterVars,
    add_legend,
    check_source,
    draw_density,
    draw_posterior,
    estimate_density,
    limit_panels,
    line_style,
    make_axes,
    make_panels,
    one_or_all,
    place_elements,
    require_matplotlib,
    select_variables,
    span_of,
)
from pymc_emf.statistics import arviz_stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["plot_truth"]

#: Elements beyond which intervals become bands.
MAX_INTERVALS = 30


def plot_truth(
    approx: EMFApproximation | xr.DataTree,
    truth: Mapping[str, Any] | xr.Dataset | xr.DataTree,
    var_names: str | Sequence[str] | None = None,
    *,
    draws: int = 2000,
    ci_probs: tuple[float, float] | None = None,
    ci_kind: Literal["eti", "hdi"] | None = None,
    filter_vars: FilterVars = None,
    coords: Mapping[Any, Any] | None = None,
    labeller: BaseLabeller | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
    random_seed: RandomState = None,
    **kwargs: Any,
) -> Any:
    """Plot posterior draws against known true values.

    A variable with dims is drawn along the longest of them, as its median and two intervals of
    each element, with a panel for each element of the other dims; a scalar one as its density.

    Parameters
    ----------
    approx : EMFApproximation or DataTree
        The second with a group ``posterior``.
    truth : dict, Dataset or DataTree
        From names of variables, deterministics included, to their true values.
    var_names : str or sequence of str, optional
        By default all those of the truth; names that begin with ``~`` are left out.
    draws : int
        From the approximation.
    ci_probs : tuple of two float, optional
        Probabilities of the intervals, by default 0.5 and ``arviz_base.rcParams["stats.ci_prob"]``.
    ci_kind : {"eti", "hdi"}, optional
        Kind of the intervals, by default ``arviz_base.rcParams["stats.ci_kind"]``.
    filter_vars : {None, "like", "regex"}
        How names are compared, as in ArviZ.
    coords : dict, optional
        Elements to show, by dim.
    labeller : arviz_base.labels.BaseLabeller, optional
        Writes titles and tick labels.
    figsize : tuple of float, optional
    ax : Axes or array of Axes, optional
        At least as many as there are panels. By default those of a new figure.
    random_seed : int, RandomState or Generator, optional
        By default the draws continue the random stream of the fit.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot` for the median or the density.

    Returns
    -------
    Axes or ndarray of Axes
        One for each panel. There are at most ``arviz_base.rcParams["plot.max_subplots"]``.

    Raises
    ------
    KeyError
        If a variable is not there.
    ValueError
        If the truth of a variable has another shape, or other dims or coords, than its draws, or
        ``ci_probs`` or ``ci_kind`` is none.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model(coords={"day": range(3)}) as model:
    ...     x = pm.GaussianRandomWalk("x", 1.0, init_dist=pm.Normal.dist(), dims="day")
    ...     y = pm.Normal("y", x, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> ax = emf.plot_truth(approx, {"x": [0.8, 1.9, 2.7]})
    >>> ax.get_xlabel()
    'day'
    """
    require_matplotlib()
    check_source(approx)
    labeller = BaseLabeller() if labeller is None else labeller
    if ci_probs is None:
        ci_probs = (0.5, rcParams["stats.ci_prob"])
    if np.shape(ci_probs) != (2,) or not all(0 < prob < 1 for prob in ci_probs):
        raise ValueError(f"ci_probs must be two probabilities, got {ci_probs!r}.")
    if ci_kind is None:
        ci_kind = rcParams["stats.ci_kind"]
    if ci_kind not in ("eti", "hdi"):
        raise ValueError(f'ci_kind must be "eti" or "hdi", got {ci_kind!r}.')
    if not isinstance(truth, Mapping | xr.DataTree):
        kind = type(truth).__name__
        raise TypeError(f"truth must map names of variables to their values, got {kind}.")
    known: dict[Any, Any] = dict(truth.data_vars if isinstance(truth, xr.DataTree) else truth)
    posterior = draw_posterior(approx, draws, random_seed)
    posterior = select_variables(
        posterior, list(known) if var_names is None else var_names, filter_vars
    )
    if unknown := [str(name) for name in posterior if name not in known]:
        raise KeyError(
            f"The truth has no values of {', '.join(unknown)}; choose others with var_names."
        )
    aligned = xr.Dataset(
        {name: _align(known[name], values) for name, values in posterior.data_vars.items()}
    )
    posterior, aligned = posterior.sel(coords or {}), aligned.sel(coords or {})

    panels = limit_panels(make_panels(posterior, labeller, _longest))
    axes, above = make_axes(len(panels), ax, figsize), ax is None
    for ax, (label, name, isel, own) in zip(axes, panels, strict=True):
        values, true = posterior[name].isel(isel), aligned[name].isel(isel)
        if own:
            _draw_intervals(ax, values, true, ci_probs, ci_kind, labeller, **kwargs)
        else:
            x, density = estimate_density(values.values, *span_of(values.values, TAIL))
            style = line_style(kwargs, color=POSTERIOR, label="posterior")
            draw_density(ax, x, density, **style)
            ax.axvline(float(true), color=TRUTH, label="truth")
            ax.set_ylim(bottom=0)
        ax.set_title(label)
    add_legend(axes, above)
    return one_or_all(axes)


def _longest(values: xr.DataArray) -> list[Hashable]:
    return sorted(values.dims, key=lambda dim: values.sizes[dim])[-1:]


def _align(truth: Any, draws: xr.DataArray) -> xr.DataArray:
    """True values with the dims and coords of the draws."""
    one = draws.isel(dict.fromkeys(rcParams["data.sample_dims"], 0), drop=True)
    if isinstance(truth, xr.DataArray):
        if set(truth.dims) != set(one.dims):
            raise ValueError(
                f"The truth of {one.name} has dims {truth.dims}, its draws {one.dims}."
            )
        try:
            truth = truth.sel({dim: one[dim] for dim in one.dims if dim in truth.coords})
        except KeyError as error:
            raise ValueError(f"The truth of {one.name} lacks coords of its draws.") from error
        truth = truth.transpose(*one.dims)
    values = np.asarray(truth, dtype=float)
    if values.shape != one.shape:
        raise ValueError(
            f"The truth of {one.name} must have shape {one.shape}, got {values.shape}."
        )
    return one.copy(data=values)


def _draw_intervals(
    ax: Axes,
    draws: xr.DataArray,
    truth: xr.DataArray,
    ci_probs: tuple[float, float],
    ci_kind: str,
    labeller: BaseLabeller,
    **kwargs: Any,
) -> None:
    """Median and intervals along a dimension: bars where elements are few, bands otherwise."""
    arviz_stats()  # adds the accessor azstats
    (dim,) = truth.dims
    x = place_elements(ax, truth[dim], labeller)
    median = draws.median(rcParams["data.sample_dims"]).values
    few = len(x) <= MAX_INTERVALS
    marks: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4} if few else {"lw": 1.4}
    style = line_style(kwargs, color=POSTERIOR, label="median", **marks)
    (line,) = ax.plot(x, median, **style)
    for prob, alpha, width in zip(sorted(ci_probs), (0.45, 0.22), (3.0, 1.2), strict=True):
        ci = getattr(draws.azstats, ci_kind)(prob=prob)
        low, high = (ci.sel(ci_bound=bound).values for bound in ("lower", "upper"))
        colour, label = line.get_color(), f"{prob:.0%}"
        if few:
            ax.vlines(x, low, high, lw=width, color=colour, label=label)
        else:
            ax.fill_between(x, low, high, alpha=alpha, lw=0, color=colour, label=label)
    marks = {"ls": "", "marker": "D", "ms": 4} if few else {"lw": 1.2, "ls": (0, (3, 1.5))}
    ax.plot(x, truth.values, color=TRUTH, label="truth", zorder=3, **marks)
