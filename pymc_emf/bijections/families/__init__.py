"""PyMC's distributions as bijections, each as one registered function; importing registers them."""

from pymc_emf.bijections.families import (  # noqa: F401
    by_density,
    covariance,
    custom,
    generic,
    mixture,
    multivariate,
    ordered,
    shuffled,
    simplex,
    student,
    time_series,
    univariate,
)
