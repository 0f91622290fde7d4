"""Gates over the dims of their variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from arviz_base.labels import BaseLabeller

from pymc_emf.plots.common import (
    POSTERIOR,
    FilterVars,
    check_source,
    get_group,
    label_ticks,
    limit_panels,
    line_style,
    make_axes,
    make_panels,
    one_or_all,
    place_elements,
    require_matplotlib,
    select_variables,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["plot_gates"]


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
    require_matplotlib()
    check_source(approx)
    labeller = BaseLabeller() if labeller is None else labeller
    if isinstance(approx, xr.DataTree):
        fit = get_group(approx, "fit")
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
    gates = select_variables(gates, var_names, filter_vars, coords)

    scalars = [name for name, values in gates.data_vars.items() if not values.ndim]
    arrays = make_panels(gates.drop_vars(scalars), labeller, lambda values: values.dims[-2:])
    panels = limit_panels([*([None] if scalars else []), *arrays])
    axes = make_axes(len(panels), ax, figsize)
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
    return one_or_all(axes)


def _draw_gates(ax: Axes, gates: xr.DataArray, labeller: BaseLabeller, **kwargs: Any) -> None:
    (dim,) = gates.dims
    x = place_elements(ax, gates[dim], labeller)
    size = float(np.clip(40 / np.sqrt(gates.size), 2, 6))  # thousands of points stay apart
    style = {"marker": "o", "ls": "", "ms": size, "mew": 0, "color": POSTERIOR, "clip_on": False}
    ax.plot(x, gates.values, **line_style(kwargs, **style))
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="gate")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def _draw_heat_map(ax: Axes, gates: xr.DataArray, labeller: BaseLabeller) -> None:
    image = ax.imshow(gates.values, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for axis, dim in zip((ax.yaxis, ax.xaxis), gates.dims, strict=True):
        label_ticks(axis, gates[dim], labeller)
        axis.set_label_text(str(dim))
    ax.figure.colorbar(image, ax=ax, label="gate", ticks=[0, 0.5, 1])
