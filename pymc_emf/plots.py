"""Plots of a fit by matplotlib, which is imported when the first of them is drawn."""

from __future__ import annotations

import warnings

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import arviz_stats  # noqa: F401 (adds the accessor azstats to xarray's classes)
import numpy as np
import pymc as pm
import xarray as xr

from arviz_base import extract, rcParams, xarray_sel_iter
from arviz_base.labels import BaseLabeller
from arviz_stats.base import array_stats
from pymc.util import RandomState

from pymc_emf.engine.stopping import WINDOW
from pymc_emf.variational.approximation import EMFApproximation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["plot_gates", "plot_loss", "plot_prior_posterior", "plot_truth"]

#: Okabe and Ito's blue and vermilion, which the colour-blind can tell apart, and a grey.
POSTERIOR, TRUTH, PRIOR = "#0072B2", "#D55E00", "0.45"

#: Shares of the draws at either end that a density need not show, of a posterior and of a prior.
#: A prior is shown no further from the posterior than twice the width of nine tenths of that.
TAIL, PRIOR_TAIL, MAX_REACH = 0.001, 0.005, 2.0
#: Loss axes do not zoom in on less, in nats: what remains there is rounding.
MIN_SPAN = 1e-3
#: Elements of a dimension beyond which not all labels are written, numbers and others, or
#: intervals become bands.
MAX_NUMBERS, MAX_LABELS, MAX_INTERVALS = 6, 20, 30
#: Letters that fit below a panel, where labels with more are slanted, and in an inch of a legend.
MAX_LETTERS, LETTERS_PER_INCH = 36, 12
#: Panels side by side, and the size of one, in inches.
COLUMNS, PANEL = 3, (3.4, 2.7)

FilterVars = Literal["like", "regex"] | None


# --- axes --------------------------------------------------------------------------------------


def _require_matplotlib() -> None:
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib; install it with pip install "pymc-emf[plots]".'
        ) from error


def _make_axes(n: int, ax: Any, figsize: tuple[float, float] | None) -> np.ndarray:
    """One-dimensional array of `n` axes: the first of those given, or new ones in a grid."""
    import matplotlib.pyplot as plt

    if ax is not None:
        given = np.ravel(ax)
        if len(given) < n:
            raise ValueError(
                f"The plot has {n} panels and ax only {len(given)}; choose fewer variables with "
                "var_names."
            )
        return given[:n]
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    if figsize is None:
        # a single panel is wider, and has room for its legend
        figsize = (max(PANEL[0] * columns, 6.0), PANEL[1] * rows + (0.7 if n == 1 else 0.3))
    _, grid = plt.subplots(rows, columns, squeeze=False, figsize=figsize, layout="constrained")
    for spare in grid.flat[n:]:
        spare.remove()
    return grid.ravel()[:n]


def _line_style(given: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Properties of a line: those that the user gives, under whatever name, come first."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return normalize_kwargs(defaults, Line2D) | normalize_kwargs(dict(given), Line2D)


def _returned(axes: np.ndarray) -> Any:
    return axes[0] if len(axes) == 1 else axes


def _add_legend(axes: np.ndarray, above: bool) -> None:
    """Explain each kind of mark once: above all panels, or in the first of the user's own."""
    found = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if above:
        width = axes[0].figure.get_figwidth()
        in_one_row = sum(len(label) + 5 for label in found) < LETTERS_PER_INCH * width
        axes[0].figure.legend(
            found.values(),
            found.keys(),
            loc="outside upper center",
            ncols=len(found) if in_one_row else 2,
            frameon=False,
        )
    else:
        axes[0].legend(found.values(), found.keys())


def _label_ticks(axis: Axis, coord: xr.DataArray, labeller: BaseLabeller) -> None:
    """Write the labels of a dimension, or some of them, at the positions of its elements."""
    from matplotlib.ticker import MaxNLocator

    n, values = coord.size, coord.values
    limit = MAX_NUMBERS if values.dtype.kind in "iufM" else MAX_LABELS
    if np.issubdtype(values.dtype, np.datetime64):
        values = np.datetime_as_string(values, unit="D")
    ticks = np.arange(n)
    if n > limit:
        ticks = np.asarray(MaxNLocator(5, integer=True).tick_values(0, n - 1), dtype=int)
        ticks = ticks[(ticks >= 0) & (ticks < n)]
    labels = [labeller.dim_coord_to_str(coord.name, values[i], int(i)) for i in ticks]
    axis.set_ticks(ticks, labels=labels)
    if axis is axis.axes.xaxis and sum(len(label) + 2 for label in labels) > MAX_LETTERS:
        for text in axis.get_ticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")


def _positions(ax: Axes, coord: xr.DataArray, labeller: BaseLabeller) -> np.ndarray:
    """Where the elements of a dimension go on the x axis, which is labelled."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(str(coord.name))
    kind = coord.dtype.kind
    if kind == "M":
        locator = AutoDateLocator(maxticks=7)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    elif kind in "iu":
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    elif kind != "f":
        _label_ticks(ax.xaxis, coord, labeller)
        return np.arange(coord.size)
    return coord.values


# --- what is drawn -----------------------------------------------------------------------------


def _group(data: xr.DataTree, name: str) -> xr.Dataset:
    if name not in data.children:
        raise ValueError(
            f"The data have no group {name}, but {', '.join(data.children) or 'none'}; pass the "
            "approximation itself, or the result of its sample()."
        )
    return data[name].to_dataset()


def _posterior(
    data: EMFApproximation | xr.DataTree, draws: int, random_seed: RandomState
) -> xr.Dataset:
    if isinstance(data, xr.DataTree):
        return _group(data, "posterior")
    idata = data.sample(draws, random_seed=random_seed, include_transformed=False)
    return idata.posterior.to_dataset()


def _select(
    data: xr.Dataset,
    var_names: str | Sequence[str] | None,
    filter_vars: FilterVars,
    coords: Mapping[Any, Any] | None = None,
) -> xr.Dataset:
    """Variables and elements that were asked for, as ArviZ understands it."""
    try:
        chosen: Any = extract(
            xr.DataTree.from_dict({"posterior": data}),
            var_names=var_names
            if var_names is None or isinstance(var_names, str)
            else [*var_names],
            filter_vars=filter_vars,
            combined=False,
            keep_dataset=True,
        )
    except KeyError as error:
        raise KeyError(
            f"There is no variable {var_names!r} to plot; there are {', '.join(map(str, data))}."
        ) from error
    return chosen.sel(coords or {})


def _limited(panels: Iterable[Any]) -> list[Any]:
    """As many panels as ArviZ is told to draw."""
    limit = rcParams["plot.max_subplots"]
    if limit is None:
        return list(panels)
    panels = list(islice(panels, limit + 1))
    if len(panels) > limit:
        warnings.warn(
            f"Only the first {limit} panels are drawn; choose variables with var_names or coords, "
            "or raise arviz_base.rcParams['plot.max_subplots'].",
            UserWarning,
            stacklevel=3,
        )
    return panels[:limit]


def _panels(
    data: xr.Dataset, labeller: BaseLabeller, kept: Callable[[xr.DataArray], Sequence[Hashable]]
) -> Iterator[tuple[str, Hashable, dict[Any, Any], list[Hashable]]]:
    """Label, variable, position and own dimensions of every panel."""
    samples = set(rcParams["data.sample_dims"])
    for name, values in data.data_vars.items():
        own = kept(values.isel(dict.fromkeys(samples & set(values.dims), 0)))
        for _, sel, isel in xarray_sel_iter(data, [name], skip_dims=samples | set(own)):
            yield labeller.make_label_flat(str(name), sel, isel), name, isel, list(own)


def _density(values: Any, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Density between two points, from draws; nothing if these do not differ.

    ArviZ's estimate ends at the outermost draws and reflects there what would leak beyond, so that
    it respects bounds.
    """
    values = np.ravel(values)
    inside = values[(values >= low) & (values <= high)]
    if len(inside) < 2 or np.ptp(inside) == 0:
        return np.zeros(0), np.zeros(0)
    x, density, _ = array_stats.kde(inside)
    return x, density * len(inside) / len(values)


def _span(values: Any, tail: float) -> tuple[float, float]:
    values = np.ravel(values)
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return float(low), float(high)


def _draw_density(ax: Axes, x: np.ndarray, y: np.ndarray, **kwargs: Any) -> None:
    (line,) = ax.plot(x, y, **kwargs)
    ax.fill_between(x, y, color=line.get_color(), alpha=0.2, lw=0)
    ax.set_yticks([])


# --- the plots ---------------------------------------------------------------------------------


def plot_loss(
    approx: EMFApproximation | xr.DataTree,
    *,
    window: int | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Plot the loss of every step, and its trend.

    Parameters
    ----------
    approx : EMFApproximation or DataTree
        The second as ``approx.sample`` returns it, with its group ``fit``.
    window : int, optional
        Steps of whose finite losses the trend is the median; their mean would follow single
        huge losses. By default a twentieth of all, and at most the 1,000 of the stopping rule.
    figsize : tuple of float, optional
    ax : Axes, optional
        By default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot` for the trend.

    Returns
    -------
    Axes
        The axis of losses leaves out the first, where they are much larger than the others.

    Raises
    ------
    ValueError
        If no losses were recorded.

    See Also
    --------
    EMFApproximation.diagnose : what the fit is worth, in numbers.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> ax = emf.plot_loss(approx)
    >>> ax.get_ylabel()
    'negative ELBO, nats'
    """
    _require_matplotlib()
    reason = "end"
    if isinstance(approx, xr.DataTree):
        losses = -_group(approx, "fit")["elbo"].values
    else:
        losses = np.asarray(approx.hist, dtype=float)
        if approx.stopping is not None and approx.stopping.reason != "steps":
            reason = approx.stopping.reason
    n, finite = len(losses), np.isfinite(losses)
    if not finite.any():
        raise ValueError("There are no losses to plot: fit with score=True, which records them.")
    if window is None:
        window = min(WINDOW, n // 20)
    window = min(max(window, 1), n)
    shown = xr.DataArray(np.where(finite, losses, np.nan), dims="step", name="loss")
    trend = shown.to_series().rolling(window, center=True, min_periods=1).median().to_numpy()

    axes, above = _make_axes(1, ax, figsize), ax is None
    ax = axes[0]
    steps = np.arange(1, n + 1)
    ax.plot(
        steps,
        shown,
        color="0.75",
        lw=0.6,
        marker="." if n == 1 else None,
        rasterized=n > 10_000,
        label="every step",
    )
    (line,) = ax.plot(
        steps,
        trend,
        **_line_style(kwargs, color=POSTERIOR, lw=1.8, label=f"median of {window:,} steps"),
    )
    ax.plot(
        n,
        trend[finite.nonzero()[0][-1]],
        "o",
        ms=6,
        color=line.get_color(),
        mec="w",
        clip_on=False,
        zorder=3,
        label=f"{reason} after step {n:,}",
    )

    late = losses[n // 2 :][finite[n // 2 :]]
    low, high = np.quantile(losses[finite], [0.005, 0.9])
    if len(late):
        low, high = min(low, np.quantile(late, 0.005)), max(high, np.quantile(late, 0.995))
    margin = max(0.08 * (high - low), (MIN_SPAN - (high - low)) / 2)
    ax.set(
        xlim=(0, n * 1.01),
        ylim=(low - margin, high + margin),
        xlabel="step",
        ylabel="negative ELBO, nats",
    )
    ax.ticklabel_format(axis="y", useOffset=False)
    _add_legend(axes, above)
    return ax


def plot_gates(
    approx: EMFApproximation | xr.DataTree,
    var_names: str | Sequence[str] | None = None,
    *,
    filter_vars: FilterVars = None,
    coords: Mapping[Any, Any] | None = None,
    labeller: BaseLabeller | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
    **kwargs: Any,
) -> Any:
    """Plot the gates over the dims of their variables.

    A gate of one keeps an element's prior in the approximation, a gate of zero bypasses it.
    Scalar variables share the first panel; a variable with one dim has a panel of points, and
    one with more is a heat map of the last two, for each element of the others.

    Parameters
    ----------
    approx : EMFApproximation or DataTree
        The second as ``approx.sample`` returns it, with its group ``fit``.
    var_names : str or sequence of str, optional
        By default all free variables; those that begin with ``~`` are left out.
    filter_vars : {None, "like", "regex"}
        How names are compared, as in ArviZ.
    coords : dict, optional
        Elements to show, by dim.
    labeller : arviz_base.labels.BaseLabeller, optional
        Writes titles and tick labels.
    figsize : tuple of float, optional
    ax : Axes or array of Axes, optional
        At least as many as there are panels. By default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot` for the points.

    Returns
    -------
    Axes or ndarray of Axes
        One for each panel. There are at most ``arviz_base.rcParams["plot.max_subplots"]``.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> ax = emf.plot_gates(approx)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['mu']
    """
    _require_matplotlib()
    labeller = BaseLabeller() if labeller is None else labeller
    if isinstance(approx, xr.DataTree):
        fit = _group(approx, "fit")
        gates = xr.Dataset(
            {
                str(name).removesuffix("_gate"): values
                for name, values in fit.data_vars.items()
                if str(name).endswith("_gate")
            },
            attrs={"sample_dims": []},
        )
    else:
        gates = approx.gates
    gates = _select(gates, var_names, filter_vars, coords)

    scalars = [name for name, values in gates.data_vars.items() if not values.ndim]
    arrays = _panels(gates.drop_vars(scalars), labeller, lambda values: values.dims[-2:])
    panels = _limited([*([None] if scalars else []), *arrays])
    axes = _make_axes(len(panels), ax, figsize)
    for ax, panel in zip(axes, panels, strict=True):
        if panel is None:
            row = gates[scalars].to_dataarray("")
            names = xr.DataArray(
                [labeller.var_name_to_str(str(name)) for name in scalars], dims=[""], name=""
            )
            _draw_gates(ax, row.assign_coords({"": names}), labeller, **kwargs)
            ax.set(title="scalars", xlim=(-0.5, len(scalars) - 0.5))
            continue
        label, name, isel, own = panel
        values = gates[name].isel(isel)
        if len(own) == 1:
            _draw_gates(ax, values, labeller, **kwargs)
        else:
            _draw_heat_map(ax, values, labeller)
        ax.set_title(label)
    return _returned(axes)


def _draw_gates(ax: Axes, gates: xr.DataArray, labeller: BaseLabeller, **kwargs: Any) -> None:
    (dim,) = gates.dims
    x = _positions(ax, gates[dim], labeller)
    size = float(np.clip(40 / np.sqrt(gates.size), 2, 6))  # thousands of points stay apart
    style = {"marker": "o", "ls": "", "ms": size, "mew": 0, "color": POSTERIOR, "clip_on": False}
    ax.plot(x, gates.values, **_line_style(kwargs, **style))
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="gate")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def _draw_heat_map(ax: Axes, gates: xr.DataArray, labeller: BaseLabeller) -> None:
    image = ax.imshow(gates.values, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for axis, dim in zip((ax.yaxis, ax.xaxis), gates.dims, strict=True):
        _label_ticks(axis, gates[dim], labeller)
        axis.set_label_text(str(dim))
    ax.figure.colorbar(image, ax=ax, label="gate", ticks=[0, 0.5, 1])


def plot_prior_posterior(
    approx: EMFApproximation | xr.DataTree,
    var_names: str | Sequence[str] | None = None,
    *,
    draws: int = 2000,
    filter_vars: FilterVars = None,
    coords: Mapping[Any, Any] | None = None,
    labeller: BaseLabeller | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
    random_seed: RandomState = None,
    **kwargs: Any,
) -> Any:
    """Plot the density of the prior and that of the posterior, a panel for each element.

    Parameters
    ----------
    approx : EMFApproximation or DataTree
        The second with groups ``prior`` and ``posterior``.
    var_names : str or sequence of str, optional
        By default all free variables; those that begin with ``~`` are left out.
    draws : int
        From the prior and from the approximation.
    filter_vars : {None, "like", "regex"}
        How names are compared, as in ArviZ.
    coords : dict, optional
        Elements to show, by dim.
    labeller : arviz_base.labels.BaseLabeller, optional
        Writes titles.
    figsize : tuple of float, optional
    ax : Axes or array of Axes, optional
        At least as many as there are panels. By default those of a new figure.
    random_seed : int, RandomState or Generator, optional
        By default the draws of the posterior continue the random stream of the fit.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot` for the posterior.

    Returns
    -------
    Axes or ndarray of Axes
        One for each panel. There are at most ``arviz_base.rcParams["plot.max_subplots"]``.

    Raises
    ------
    ValueError
        If the prior cannot be drawn from, as that of a flat variable.

    See Also
    --------
    arviz_plots.plot_prior_posterior : for data with a prior, and several kinds of density.

    Notes
    -----
    A panel shows the posterior, and of a prior that is much wider only what is near it. The prior
    is that of the distributions; potentials, which cannot be drawn from, are not part of it.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> ax = emf.plot_prior_posterior(approx, "mu")
    >>> [line.get_label() for line in ax.lines]
    ['prior', 'posterior']
    """
    _require_matplotlib()
    labeller = BaseLabeller() if labeller is None else labeller
    posterior = _posterior(approx, draws, random_seed)
    prior_label = "prior"
    if isinstance(approx, xr.DataTree):
        prior = _group(approx, "prior")
        names = [name for name in posterior if name in prior]
        posterior = _select(posterior[names], var_names, filter_vars, coords)
    else:
        model = approx.objective.program.frozen
        if var_names is None:
            var_names = [site.name for site in approx.objective.program.sites_in_model_order]
        posterior = _select(posterior, var_names, filter_vars, coords)
        prior = _draw_prior(model, [str(name) for name in posterior], draws, random_seed)
        if model.potentials:
            prior_label = "prior without potentials"
    prior = prior.sel(coords or {})

    panels = _limited(_panels(posterior, labeller, lambda values: ()))
    axes, above = _make_axes(len(panels), ax, figsize), ax is None
    for ax, (label, name, isel, _) in zip(axes, panels, strict=True):
        before, after = prior[name].isel(isel).values, posterior[name].isel(isel).values
        low, high = _window(before, after)
        _draw_density(ax, *_density(before, low, high), color=PRIOR, ls="--", label=prior_label)
        style = _line_style(kwargs, color=POSTERIOR, label="posterior")
        _draw_density(ax, *_density(after, low, high), **style)
        ax.set_title(label)
        ax.set_ylim(bottom=0)
        if low < high:
            ax.set_xlim(low, high)
    _add_legend(axes, above)
    return _returned(axes)


def _draw_prior(
    model: pm.Model, names: list[str], draws: int, random_seed: RandomState
) -> xr.Dataset:
    with warnings.catch_warnings():
        # the legend says so, and a picture needs no draws in a hurry
        warnings.filterwarnings("ignore", message="The effect of Potentials")
        warnings.filterwarnings("ignore", message="Numba will use object mode")
        try:
            idata = pm.sample_prior_predictive(
                draws, model=model, var_names=names, random_seed=random_seed
            )
        except NotImplementedError as error:
            raise ValueError(
                f"The prior of {', '.join(names)} cannot be drawn from ({error}); choose other "
                "variables with var_names."
            ) from error
    return idata.prior.to_dataset()


def _window(prior: np.ndarray, posterior: np.ndarray) -> tuple[float, float]:
    """From where to where to show two densities: all of the posterior, and the prior near it."""
    low, high = _span(posterior, TAIL)
    first, last = _span(prior, PRIOR_TAIL)
    reach = MAX_REACH * float(np.ptp(_span(posterior, 0.05)))
    return min(low, max(first, low - reach)), max(high, min(last, high + reach))


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
        If the truth of a variable has another shape, or other dims or coords, than its draws.

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
    _require_matplotlib()
    labeller = BaseLabeller() if labeller is None else labeller
    if ci_probs is None:
        ci_probs = (0.5, rcParams["stats.ci_prob"])
    if ci_kind is None:
        ci_kind = rcParams["stats.ci_kind"]
    known: dict[Any, Any] = dict(truth.data_vars if isinstance(truth, xr.DataTree) else truth)
    posterior = _posterior(approx, draws, random_seed)
    names = [name for name in posterior if name in known]
    posterior = _select(
        posterior[names], list(known) if var_names is None else var_names, filter_vars
    )
    aligned = xr.Dataset(
        {name: _align(known[name], values) for name, values in posterior.data_vars.items()}
    )
    posterior, aligned = posterior.sel(coords or {}), aligned.sel(coords or {})

    panels = _limited(_panels(posterior, labeller, _longest))
    axes, above = _make_axes(len(panels), ax, figsize), ax is None
    for ax, (label, name, isel, own) in zip(axes, panels, strict=True):
        values, true = posterior[name].isel(isel), aligned[name].isel(isel)
        if own:
            _draw_intervals(ax, values, true, ci_probs, ci_kind, labeller, **kwargs)
        else:
            x, density = _density(values.values, *_span(values.values, TAIL))
            style = _line_style(kwargs, color=POSTERIOR, label="posterior")
            _draw_density(ax, x, density, **style)
            ax.axvline(float(true), color=TRUTH, label="truth")
            ax.set_ylim(bottom=0)
        ax.set_title(label)
    _add_legend(axes, above)
    return _returned(axes)


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
    (dim,) = truth.dims
    x = _positions(ax, truth[dim], labeller)
    median = draws.median(rcParams["data.sample_dims"]).values
    few = len(x) <= MAX_INTERVALS
    marks: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4} if few else {"lw": 1.4}
    style = _line_style(kwargs, color=POSTERIOR, label="median", **marks)
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
