"""Structured variational inference for PyMC models, by embedded-model flows."""

from importlib.metadata import version

__version__ = version("pymc-emf")

from pymc_emf.bijections import Bijection, bijection, register_bijection
from pymc_emf.density.estimator import DensityEstimator
from pymc_emf.engine.compile import compile_bijection as compile
from pymc_emf.layers import (
    Affine,
    Chain,
    Coupling,
    Invert,
    LowerTriangular,
    LowRank,
    MaskedAutoregressive,
    MixtureOfGaussians,
    Parallel,
    Permutation,
    Spline,
    StructuredLayer,
    describe,
)
from pymc_emf.model.parameter import parameter
from pymc_emf.model.program import Program
from pymc_emf.plots import (
    plot_gates,
    plot_loss,
    plot_prior_posterior,
    plot_ranks,
    plot_truth,
)
from pymc_emf.variational.approximation import ELBO, EMFApproximation
from pymc_emf.variational.asvi import ASVI
from pymc_emf.variational.calibration import Calibration, calibrate
from pymc_emf.variational.diagnosis import Diagnosis
from pymc_emf.variational.inference import EMFApprox, fit
from pymc_emf.variational.loading import load

__all__ = [
    "ASVI",
    "ELBO",
    "Affine",
    "Bijection",
    "Calibration",
    "Chain",
    "Coupling",
    "DensityEstimator",
    "Diagnosis",
    "EMFApprox",
    "EMFApproximation",
    "Invert",
    "LowRank",
    "LowerTriangular",
    "MaskedAutoregressive",
    "MixtureOfGaussians",
    "Parallel",
    "Permutation",
    "Program",
    "Spline",
    "StructuredLayer",
    "bijection",
    "calibrate",
    "compile",
    "describe",
    "fit",
    "load",
    "parameter",
    "plot_gates",
    "plot_loss",
    "plot_prior_posterior",
    "plot_ranks",
    "plot_truth",
    "register_bijection",
]
