"""Conditional distributions as bijections of standard normal noise, and what to write them with."""

from pymc_emf.bijections import families  # noqa: F401  (registers them)
from pymc_emf.bijections.core.affine import LocScale, TriangularAffine
from pymc_emf.bijections.core.base import (
    Bijection,
    Identity,
    Triangular,
    bijection,
    bijection_from_rv,
    register_bijection,
)
from pymc_emf.bijections.core.compose import Composed, ComposedElementwise, Function, Rearranged
from pymc_emf.bijections.core.elementwise import Elementwise
from pymc_emf.bijections.numerics.log_concave import LogConcave
from pymc_emf.bijections.numerics.quantile import Support, in_value_space, univariate
from pymc_emf.bijections.numerics.special import log_ndtr, ndtri_exp, noise_from_tails, tails

__all__ = [
    # from a distribution to its bijection
    "bijection",
    "bijection_from_rv",
    "register_bijection",
    # univariate families
    "LogConcave",
    "Support",
    "in_value_space",
    "univariate",
    "log_ndtr",
    "ndtri_exp",
    "noise_from_tails",
    "tails",
    # what a bijection is, and those that others are made of
    "Bijection",
    "Composed",
    "ComposedElementwise",
    "Elementwise",
    "Function",
    "Identity",
    "LocScale",
    "Rearranged",
    "Triangular",
    "TriangularAffine",
]
