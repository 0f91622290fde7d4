"""Prior against posterior."""

from __future__ import annotations

import warnings

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import xarray as xr

from arviz_base.labels import BaseLabeller
from pymc.util import RandomState

from pymc_emf.plots.common import (
    POSTERIOR,
    PRIOR,
    TAIL,
    FilterVars,
    add_legend,
    check_source,
    draw_density,
    draw_posterior,
    estimate_density,
    get_group,
    limit_panels,
    line_style,
    make_axes,
    make_panels,
    one_or_all,
    require_matplotlib,
    select_variables,
    span_of,
)

if TYPE_CHECKING:
    pass

    from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["plot_prior_posterior"]

#: Share of the prior's draws at either end that need not be shown; and it is shown no further from
#: the posterior than twice the width of nine tenths of that.
PRIOR_TAIL, MAX_REACH = 0.005, 2.0


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
    KeyError
        If a variable is not there.

    See Also
    --------
    arviz_plots.plot_prior_posterior : for data with a prior, and several kinds of density.

    Notes
    -----
    A panel shows the posterior, and of a prior that is much wider only what is near it. The prior
    is that of the distributions; potentials, which cannot be drawn from, are not part of it. Of a
    variable whose prior cannot be drawn from, a flat one for example, the posterior stands alone.

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
    require_matplotlib()
    check_source(approx)
    labeller = BaseLabeller() if labeller is None else labeller
    posterior = draw_posterior(approx, draws, random_seed)
    prior_label = "prior"
    if isinstance(approx, xr.DataTree):
        prior = get_group(approx, "prior").sel(coords or {})
        if var_names is None:
            var_names = [str(name) for name in posterior if name in prior]
        posterior = select_variables(posterior, var_names, filter_vars, coords)
    else:
        model = approx.objective.program.frozen
        if var_names is None:
            var_names = [site.name for site in approx.objective.program.sites_in_model_order]
        posterior = select_variables(posterior, var_names, filter_vars, coords)
        prior = _draw_prior(model, posterior.isel(chain=[0]), draws, random_seed)
        if model.potentials:
            prior_label = "prior without potentials"
    panels = limit_panels(make_panels(posterior, labeller, lambda values: ()))
    axes, above = make_axes(len(panels), ax, figsize), ax is None
    for ax, (label, name, isel, _) in zip(axes, panels, strict=True):
        after = posterior[name].isel(isel).values
        low, high = span_of(after, TAIL)
        if name in prior:
            before = prior[name].isel(isel).values
            low, high = _window(before, after)
            draw_density(
                ax, *estimate_density(before, low, high), color=PRIOR, ls="--", label=prior_label
            )
        style = line_style(kwargs, color=POSTERIOR, label="posterior")
        draw_density(ax, *estimate_density(after, low, high), **style)
        ax.set_title(label)
        ax.set_ylim(bottom=0)
        if low < high:
            ax.set_xlim(low, high)
    add_legend(axes, above)
    return one_or_all(axes)


def _draw_prior(
    model: pm.Model, posterior: xr.Dataset, draws: int, random_seed: RandomState
) -> xr.Dataset:
    """Draws from the prior of the variables that can be drawn from."""
    names = [str(name) for name in posterior]
    with warnings.catch_warnings():
        # a picture needs no draws in a hurry
        warnings.filterwarnings("ignore", message="Numba will use object mode")
        try:
            groups = [pm.draw([model[name] for name in names], draws, random_seed=random_seed)]
        except NotImplementedError:  # one by one, to leave out those that are to blame
            groups = []
            for name in names:
                try:
                    groups.append([pm.draw(model[name], draws, random_seed=random_seed)])
                except NotImplementedError:
                    groups.append([None])
    drawn = zip(names, [values for group in groups for values in group], strict=True)
    return xr.Dataset(
        {
            name: posterior[name].isel(draw=[0] * draws).drop_vars("draw").copy(data=values[None])
            for name, values in drawn
            if values is not None
        }
    )


def _window(prior: np.ndarray, posterior: np.ndarray) -> tuple[float, float]:
    """From where to where to show two densities: all of the posterior, and the prior near it."""
    low, high = span_of(posterior, TAIL)
    first, last = span_of(prior, PRIOR_TAIL)
    reach = MAX_REACH * float(np.ptp(span_of(posterior, 0.05)))
    return min(low, max(first, low - reach)), max(high, min(last, high + reach))
