"""Conditional distributions as bijections of standard normal noise, and their registry."""

from pymc_emf.bijections import families  # noqa: F401  (registers them)
from pymc_emf.bijections.core.base import (
    Bijection,
    Identity,
    bijection,
    bijection_from_rv,
    register_bijection,
)

__all__ = ["Bijection", "Identity", "bijection", "bijection_from_rv", "register_bijection"]
