"""Univariate distributions known by their densities: quadrature, then root finding (EMF A.5)."""

from abc import abstractmethod
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.elementwise import Elementwise, derivative
from pymc_emf.bijections.numerics.special import as_one, normal_logpdf, stop_gradient

__all__ = ["ByDensity", "gauss_legendre", "on_nodes"]


def gauss_legendre(edges: list[float], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the composite rule of n points between each two edges."""
    x, weights = np.polynomial.legendre.leggauss(n)
    half = np.diff(edges)[:, None] / 2
    centre = (np.asarray(edges[:-1]) + np.asarray(edges[1:]))[:, None] / 2
    return (centre + half * x).ravel(), (half * weights).ravel()


def on_nodes(x: np.ndarray, like: TensorVariable) -> np.ndarray:
    """Nodes along a new leading axis, to broadcast against ``like``."""
    return np.expand_dims(x, tuple(range(1, like.ndim + 1))).astype(like.dtype)


class ByDensity(Elementwise):
    """Bijection of a density whose distribution function can be computed.

    A subclass says how noise follows from a coordinate and finds a coordinate near the quantile;
    one Halley step polishes it. Cubically convergent, it has not only the value of the quantile
    but also its first and second derivatives in the noise and in every parameter: no derivative
    passes through the search.
    """

    explicit_forward = False

    #: The value is the coordinate plus this.
    origin: Any = 0.0

    @abstractmethod
    def log_density(self, coordinate: TensorVariable) -> TensorVariable:
        """Log density of the coordinate, in nats."""

    @abstractmethod
    def noise(self, coordinate: TensorVariable) -> TensorVariable:
        """Noise at the coordinate, from the distribution function."""

    @abstractmethod
    def search(self, noise: TensorVariable) -> TensorVariable:
        """Coordinate near the quantile at the noise."""

    def _halley(self, coordinate, noise):
        """Step towards the quantile, cubically convergent."""
        here = self.noise(coordinate)
        slope = pt.exp(self.log_density(coordinate) - normal_logpdf(here))  # of the noise
        curvature = here * slope + derivative(self.log_density, coordinate)  # over the slope
        newton = (here - noise) / slope
        return coordinate - newton / pt.clip(1 - newton * curvature / 2, 0.5, 2.0)

    def to_value(self, noise):
        root = stop_gradient(self.search(stop_gradient(noise)))
        coordinate = self._halley(root, noise)
        return self.origin + coordinate, normal_logpdf(noise) - self.log_density(coordinate)

    def to_noise(self, value):
        coordinate = as_one(value - self.origin)  # small beside both, and is added to
        noise = self.noise(coordinate)
        return noise, self.log_density(coordinate) - normal_logpdf(noise)
