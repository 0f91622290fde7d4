"""Plots by matplotlib, which is imported when the first of them is drawn."""

from pymc_emf.plots.gates import plot_gates
from pymc_emf.plots.loss import plot_loss
from pymc_emf.plots.prior_posterior import plot_prior_posterior
from pymc_emf.plots.ranks import plot_ranks
from pymc_emf.plots.truth import plot_truth

__all__ = ["plot_gates", "plot_loss", "plot_prior_posterior", "plot_ranks", "plot_truth"]
