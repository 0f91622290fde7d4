"""Conditional distributions as bijections of standard normal noise, and their registry."""

from pymc_emf.bijections import (  # noqa: F401  (they register their families)
    by_density,
    covariance,
    custom,
    generic,
    mixture,
    multivariate,
    ordered,
    simplex,
    student,
    time_series,
    univariate,
)
from pymc_emf.bijections.base import (
    Bijection,
    Identity,
    bijection,
    bijection_from_rv,
    register_bijection,
)

__all__ = ["Bijection", "Identity", "bijection", "bijection_from_rv", "register_bijection"]
