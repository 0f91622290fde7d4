"""Ranks of true values among draws from fits to simulated data, and what they say."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # whose statistics are imported when they are asked for
import xarray as xr

from pymc_emf.report import Report
from pymc_emf.variational.importance import MAX_PARETO_K

__all__ = ["Calibration"]

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
        to ``draws``, over ``axis``; only of simulations whose fit succeeded.
    draws : int
        From each fit.
    pareto_k : ndarray, shape (simulations,)
        Pareto k-hat of every fit, NaN where it failed.
    errors : dict
        Numbers of simulations whose fit failed, and why.
    axis : str
        Name of the axis of simulations; other than "simulation" only if the model has a dim of
        that name.
    """

    ranks: xr.Dataset
    draws: int
    pareto_k: np.ndarray
    errors: dict[int, str]
    axis: str = "simulation"

    @property
    def simulations(self) -> int:
        """Number of simulations whose fit succeeded."""
        return self.ranks.sizes[self.axis]

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
                input_core_dims=[[self.axis]],
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
            p_values = {
                said: 2 * scipy.stats.norm.sf(float(score)) for said, score in worst.items()
            }
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
        fractions = ((self.ranks + 0.5) / (self.draws + 1)).rename({self.axis: "draw"})
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
    return float(scipy.stats.chisquare(observed, len(ranks) * width / (draws + 1)).pvalue)


def _bias(ranks: np.ndarray, draws: int) -> float:
    u = (ranks + 0.5) / (draws + 1)
    return float((u.mean() - 0.5) * np.sqrt(12 * len(u)))


def _spread(ranks: np.ndarray, draws: int) -> float:
    # of a uniform u, (u - 1/2)**2 has mean 1/12 and variance 1/180
    u = (ranks + 0.5) / (draws + 1)
    return float((((u - 0.5) ** 2).mean() - 1 / 12) * np.sqrt(180 * len(u)))
