"""Structured variational inference for PyMC models, by embedded-model flows."""

import logging

from importlib.metadata import version

__version__ = version("pymc-emf")

from pymc_emf.engine.garbage import without_collection

with without_collection():  # which takes a fifth of the time
    from pymc_emf.bambi import bambi_draws
    from pymc_emf.bijections import Bijection, bijection, register_bijection
    from pymc_emf.calibration.result import Calibration
    from pymc_emf.calibration.run import calibrate
    from pymc_emf.density.estimator import DensityEstimator
    from pymc_emf.engine.compile import compile_bijection as compile
    from pymc_emf.layers import (
        Affine,
        Chain,
        ConditionalAffine,
        Coupling,
        Elimination,
        Invert,
        LowerTriangular,
        LowRank,
        MaskedAutoregressive,
        MixtureOfGaussians,
        Parallel,
        Permutation,
        Spline,
        StructuredLayer,
        Subset,
        describe,
        eliminate,
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
    from pymc_emf.variational.approximation import EMFApproximation
    from pymc_emf.variational.asvi import ASVI
    from pymc_emf.variational.diagnosis import Diagnosis
    from pymc_emf.variational.importance import ELBO
    from pymc_emf.variational.load import load
    from pymc_emf.variational.method import EMFApprox, fit

# As PyMC does: show what a fit says, unless the user has set up logging.
_log = logging.getLogger(__name__)
if not logging.root.handlers:
    _log.setLevel(logging.INFO)
    if not _log.handlers:
        _log.addHandler(logging.StreamHandler())

__all__ = [
    "ASVI",
    "ELBO",
    "Affine",
    "Bijection",
    "Calibration",
    "Chain",
    "Coupling",
    "Elimination",
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
    "ConditionalAffine",
    "Spline",
    "StructuredLayer",
    "Subset",
    "bambi_draws",
    "bijection",
    "calibrate",
    "compile",
    "describe",
    "eliminate",
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
