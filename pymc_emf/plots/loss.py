"""The course of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pymc_emf.arguments import check_positive
from pymc_emf.plots.common import (
    POSTERIOR,
    add_legend,
    check_source,
    get_group,
    line_style,
    make_axes,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pymc_emf.variational.approximation import EMFApproximation

__all__ = ["plot_loss"]

#: Steps over which the trend is the median, at most.
MAX_WINDOW = 1000

#: Loss axes do not zoom in on less, in nats: what remains there is rounding.
MIN_SPAN = 1e-3


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
    require_matplotlib()
    check_source(approx)
    if window is not None:
        check_positive("window", window)
    losses, ended = _read_losses(approx)
    n = len(losses)
    window = min(MAX_WINDOW, n // 20) if window is None else window
    window = min(max(window, 1), n)
    trend = _running_median(losses, window)

    axes, above = make_axes(1, ax, figsize), ax is None
    ax = axes[0]
    steps = np.arange(1, n + 1)
    ax.plot(
        steps,
        losses,
        color="0.75",
        lw=0.6,
        marker="." if n == 1 else None,
        rasterized=n > 10_000,
        label="every step",
    )
    (line,) = ax.plot(
        steps,
        trend,
        **line_style(kwargs, color=POSTERIOR, lw=1.8, label=f"median of {window:,} steps"),
    )
    ax.plot(
        n,
        trend[np.isfinite(losses)][-1],
        "o",
        ms=6,
        color=line.get_color(),
        mec="w",
        clip_on=False,
        zorder=3,
        label=f"{ended} after step {n:,}",
    )

    ax.set(
        xlim=(0, n * 1.01),
        ylim=_limits(losses),
        xlabel="step",
        ylabel="negative ELBO, nats",
    )
    ax.ticklabel_format(axis="y", useOffset=False)
    add_legend(axes, above)
    return ax


def _read_losses(approx: EMFApproximation | xr.DataTree) -> tuple[np.ndarray, str]:
    """Losses of all steps, NaN where they are not finite, and how the fit ended."""
    if isinstance(approx, xr.DataTree):
        fit = get_group(approx, "fit")
        losses, stopped = -fit["elbo"].values, fit.attrs.get("stopped", "")
    else:
        losses = np.asarray(approx.hist, dtype=float)
        stopped = "" if approx.stopping is None else approx.stopping.reason
    finite = np.isfinite(losses)
    if not finite.any():
        raise ValueError("There are no losses to plot: fit with score=True, which records them.")
    return np.where(finite, losses, np.nan), "end" if stopped in ("", "steps") else stopped


def _running_median(losses: np.ndarray, window: int) -> np.ndarray:
    """Median of the losses in a window around each step."""
    series = xr.DataArray(losses, dims="step", name="loss").to_series()
    return series.rolling(window, center=True, min_periods=1).median().to_numpy()


def _limits(losses: np.ndarray) -> tuple[float, float]:
    """Ends of the axis: most losses, and next to all of the second half."""
    finite = losses[np.isfinite(losses)]
    late = losses[len(losses) // 2 :]
    late = late[np.isfinite(late)]
    low, high = np.quantile(finite, [0.005, 0.9])
    if len(late):
        low, high = min(low, np.quantile(late, 0.005)), max(high, np.quantile(late, 0.995))
    margin = max(0.08 * (high - low), (MIN_SPAN - (high - low)) / 2)
    return float(low - margin), float(high + margin)
