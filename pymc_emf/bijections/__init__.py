"""Conditional distributions as bijections of standard normal noise, and their registry."""

from pymc_emf.bijections import multivariate, time_series, univariate  # noqa: F401  (register)
from pymc_emf.bijections.base import (
    Bijection,
    Identity,
    bijection,
    bijection_from_rv,
    register_bijection,
)

__all__ = ["Bijection", "Identity", "bijection", "bijection_from_rv", "register_bijection"]
