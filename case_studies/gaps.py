"""Gaps between losses and the exact -log evidence over the course of a fit, on an axis of nats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Gaps", "show_gaps"]

#: Nats within which a fit is exact, and its losses do not vary but for rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Gaps:
    """Mean losses of the parts of a fit, less the least loss that there is.

    Attributes
    ----------
    steps : ndarray
        Middle of each part.
    means, errors : ndarray
        In nats; the noise of the losses may take the means below zero.
    """

    steps: np.ndarray
    means: np.ndarray
    errors: np.ndarray

    @classmethod
    def of_losses(cls, losses: np.ndarray, log_evidence: float, n_parts: int = 25) -> Gaps:
        """Split the losses of a fit, estimates of the negative ELBO in nats."""
        parts = np.array_split(np.arange(len(losses)), min(n_parts, len(losses)))
        return cls(
            np.array([part.mean() + 1 for part in parts]),
            np.array([losses[part].mean() for part in parts]) + log_evidence,
            np.array([losses[part].std() / np.sqrt(len(part)) for part in parts]),
        )

    @property
    def noise(self) -> float:
        """Two standard errors of a mean in the second half of the fit."""
        return 2 * float(np.median(self.errors[len(self.errors) // 2 :]))


def show_gaps(ax: Axes, gaps: Iterable[Gaps], highest: float | None = None) -> None:
    """Show gaps on a logarithmic axis that is linear and shaded where noise hides their sign.

    A logarithm alone has no place for a mean below zero, and would leave a hole in the line.
    """
    gaps = list(gaps)
    noise = max(min((one.noise for one in gaps), default=0.0), ROUNDING)
    ax.set_yscale("symlog", linthresh=noise, linscale=0.5)
    ax.axhspan(-noise, noise, color="0.94", lw=0, zorder=-1)
    ax.axhline(0.0, color="0.6", lw=0.8, zorder=0)
    lowest = min((one.means.min() for one in gaps), default=0.0)
    ax.set_ylim(min(-noise, lowest), highest)
    first, last = np.ceil(np.log10([noise, ax.get_ylim()[1]])).astype(int)
    decades = np.arange(first, last + 1, max((last - first) // 3, 1))
    ax.set(yticks=[0.0, *10.0**decades], ylim=ax.get_ylim())
