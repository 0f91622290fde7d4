"""What all plots share: axes, legends, labels, and which variables are drawn."""

from __future__ import annotations

import warnings

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from arviz_base import extract, rcParams, xarray_sel_iter
from arviz_base.labels import BaseLabeller
from pymc.util import RandomState

from pymc_emf.statistics import arviz_stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from pymc_emf.variational.approximation import EMFApproximation

#: Okabe and Ito's blue and vermilion, which the colour-blind can tell apart, and a grey.
POSTERIOR, TRUTH, PRIOR = "#0072B2", "#D55E00", "0.45"

#: Share of the draws at either end that a density need not show.
TAIL = 0.001
#: Draws from which a density is estimated, at least.
MIN_DRAWS = 200
#: Elements of a dimension beyond which not all labels are written, numbers and others.
MAX_NUMBERS, MAX_LABELS = 6, 20
#: Letters that fit below a panel, where labels with more are slanted, and in an inch of a legend.
MAX_LETTERS, LETTERS_PER_INCH = 36, 12
#: Panels side by side, and the size of one, in inches.
COLUMNS, PANEL = 3, (3.4, 2.7)

FilterVars = Literal["like", "regex"] | None


__all__ = [
    "FilterVars",
    "POSTERIOR",
    "PRIOR",
    "TAIL",
    "TRUTH",
    "add_legend",
    "check_source",
    "draw_density",
    "draw_posterior",
    "estimate_density",
    "get_group",
    "label_ticks",
    "limit_panels",
    "line_style",
    "make_axes",
    "make_panels",
    "one_or_all",
    "place_elements",
    "require_matplotlib",
    "select_variables",
    "span_of",
]

# --- axes --------------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """Raise if matplotlib is not installed, and say how to."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib; install it with pip install "pymc-emf[plots]".'
        ) from error


def make_axes(n: int, ax: Any, figsize: tuple[float, float] | None) -> np.ndarray:
    """One-dimensional array of `n` axes: the first of those given, or new ones in a grid."""
    import matplotlib.pyplot as plt

    if n == 0:
        raise ValueError("There is nothing to plot; choose other variables with var_names.")
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


def line_style(given: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Properties of a line: those that the user gives, under whatever name, come first."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return normalize_kwargs(defaults, Line2D) | normalize_kwargs(dict(given), Line2D)


def one_or_all(axes: np.ndarray) -> Any:
    """Return what a function that may draw several panels returns."""
    return axes[0] if len(axes) == 1 else axes


def add_legend(axes: np.ndarray, above: bool) -> None:
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


def label_ticks(axis: Axis, coord: xr.DataArray, labeller: BaseLabeller) -> None:
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


def place_elements(ax: Axes, coord: xr.DataArray, labeller: BaseLabeller) -> np.ndarray:
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
        label_ticks(ax.xaxis, coord, labeller)
        return np.arange(coord.size)
    return coord.values


# --- what is drawn -----------------------------------------------------------------------------


#: Who makes the groups of the data.
MAKERS = {
    "fit": "the result of approx.sample or approx.nuts",
    "posterior": "data with draws, as approx.sample or pm.sample returns them",
    "prior": "data to which pm.sample_prior_predictive has been added",
}


def get_group(data: xr.DataTree, name: str) -> xr.Dataset:
    """Take a group of the data that must be there."""
    if name not in data.children:
        raise ValueError(
            f"The data have no group {name}, but {', '.join(data.children) or 'none'}; pass the "
            f"approximation itself, or {MAKERS[name]}."
        )
    return data[name].to_dataset()


def check_source(source: Any) -> None:
    """Raise TypeError unless it is an approximation or data with groups."""
    if not isinstance(source, xr.DataTree) and not hasattr(source, "sample_node"):
        kind = type(source).__name__
        raise TypeError(
            f"approx must be an approximation, as pm.fit returns it, or a DataTree, got {kind}."
        )


def draw_posterior(
    data: EMFApproximation | xr.DataTree, draws: int, random_seed: RandomState
) -> xr.Dataset:
    """Draws from the approximation, or those that are there."""
    if isinstance(data, xr.DataTree):
        return get_group(data, "posterior")
    idata = data.sample(draws, random_seed=random_seed, include_transformed=False)
    return idata.posterior.to_dataset()


def select_variables(
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


def limit_panels(panels: Iterable[Any]) -> list[Any]:
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


def make_panels(
    data: xr.Dataset, labeller: BaseLabeller, kept: Callable[[xr.DataArray], Sequence[Hashable]]
) -> Iterator[tuple[str, Hashable, dict[Any, Any], list[Hashable]]]:
    """Label, variable, position and own dimensions of every panel."""
    samples = set(rcParams["data.sample_dims"])
    for name, values in data.data_vars.items():
        own = kept(values.isel(dict.fromkeys(samples & set(values.dims), 0)))
        for _, sel, isel in xarray_sel_iter(data, [name], skip_dims=samples | set(own)):
            yield labeller.make_label_flat(str(name), sel, isel), name, isel, list(own)


def estimate_density(values: Any, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Density between two points, from draws; nothing if these do not differ.

    ArviZ's estimate ends at the outermost draws and reflects there what would leak beyond, so that
    it respects bounds. It takes the draws in between, or the nearest few where there are fewer.
    """
    values = np.ravel(values)
    distance = np.maximum(low - values, values - high)
    n_inside = int((distance <= 0).sum())
    near = values[np.argsort(distance, kind="stable")[: max(n_inside, MIN_DRAWS)]]
    if len(near) < 2 or np.ptp(near) == 0:
        return np.zeros(0), np.zeros(0)
    x, density, _ = arviz_stats().base.array_stats.kde(near)
    density *= len(near) / len(values)
    if n_inside < len(near):
        grid = np.linspace(max(low, x[0]), min(high, x[-1]), len(x))
        x, density = grid, np.interp(grid, x, density)
    return x, density


def span_of(values: Any, tail: float) -> tuple[float, float]:
    """Tell from where to where all but a share of the finite values at either end lie."""
    values = np.ravel(values)
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return float(low), float(high)


def draw_density(ax: Axes, x: np.ndarray, y: np.ndarray, **kwargs: Any) -> None:
    """Draw a line and shade what is below it."""
    (line,) = ax.plot(x, y, **kwargs)
    ax.fill_between(x, y, color=line.get_color(), alpha=0.2, lw=0)
    ax.set_yticks([])
