"""Ranks of simulation-based calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arviz_base.labels import BaseLabeller

from pymc_emf.plots.common import (
    POSTERIOR,
    FilterVars,
    line_style,
    make_axes,
    one_or_all,
    require_matplotlib,
    select_variables,
)
from pymc_emf.statistics import arviz_stats

if TYPE_CHECKING:  # results are looked at, not made
    from pymc_emf.calibration.result import Calibration

__all__ = ["plot_ranks"]

#: Simulations by which the band is found.
N_BAND = 1000


def plot_ranks(
    calibration: Calibration,
    var_names: str | Sequence[str] | None = None,
    *,
    ci_prob: float = 0.99,
    filter_vars: FilterVars = None,
    coords: Mapping[Any, Any] | None = None,
    labeller: BaseLabeller | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Any = None,
    **kwargs: Any,
) -> Any:
    """Plot how the ranks of true values deviate from uniform ones.

    For each variable, the empirical distribution function of its ranks minus that of uniform
    ones, a line for each element, and a band that holds all of a line with probability `ci_prob`.
    Draws that are too narrow give a line that rises first and then falls below zero, draws that
    are too wide the reverse; draws that are too high lie above zero, draws that are too low below.

    Parameters
    ----------
    calibration : Calibration
    var_names : str or sequence of str, optional
        By default all; those that begin with ``~`` are left out.
    ci_prob : float
    filter_vars : {None, "like", "regex"}
        How names are compared, as in ArviZ.
    coords : dict, optional
        Elements to show, by dim.
    labeller : arviz_base.labels.BaseLabeller, optional
        Writes titles.
    figsize : tuple of float, optional
    ax : Axes or array of Axes, optional
        At least as many as there are variables. By default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.plot`.

    Returns
    -------
    Axes or ndarray of Axes
        One for each variable.

    References
    ----------
    Säilynoja, Bürkner, Vehtari, "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison", 2022, arXiv:2103.10522.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> found = emf.calibrate(model, simulations=50, n=200, random_seed=1, progressbar=False)
    >>> ax = emf.plot_ranks(found)
    >>> ax.get_title()
    'mu'
    """
    require_matplotlib()
    if not hasattr(calibration, "ranks"):
        kind = type(calibration).__name__
        raise TypeError(f"calibration must be what emf.calibrate returns, got {kind}.")
    if not calibration.simulations:
        raise ValueError("No fit succeeded, so that there are no ranks; see calibration.errors.")
    labeller = BaseLabeller() if labeller is None else labeller
    ranks = calibration.ranks.assign_attrs(sample_dims=["simulation"])
    ranks = select_variables(ranks, var_names, filter_vars, coords)
    # a rank among n draws stands for one of n + 1 equal parts
    fractions = (ranks + 0.5) / (calibration.draws + 1)
    axes = make_axes(len(ranks), ax, figsize)
    for ax, (name, values) in zip(axes, fractions.data_vars.items(), strict=True):
        style = line_style(kwargs, color=POSTERIOR, lw=1.0, alpha=0.8)
        ecdf_pit = arviz_stats().ecdf_utils.ecdf_pit
        for line in values.values.reshape(len(values), -1).T:
            x, ecdf, low, high = ecdf_pit(line, ci_prob, N_BAND, rng=np.random.default_rng(0))
            ax.plot(x, ecdf - x, **style)
        ax.fill_between(x, low - x, high - x, color="0.85", lw=0, zorder=0)
        ax.axhline(0.0, color="0.5", lw=0.8, zorder=0)
        ax.set(
            title=labeller.var_name_to_str(str(name)),
            xlabel="rank of the true value",
            ylabel="ECDF - uniform",
            xlim=(0, 1),
        )
    return one_or_all(axes)
