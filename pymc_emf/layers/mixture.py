"""Mixture-of-Gaussians layer: elementwise, and multimodal (EMF Eq. 11)."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.families.mixture import MixtureOf
from pymc_emf.layers.base import TriangularLayer, by_element
from pymc_emf.layers.parameters import parameter

__all__ = ["MixtureOfGaussians"]


class MixtureOfGaussians(TriangularLayer):
    r"""Quantile function of a mixture of normals, of every element its own (EMF Eq. 11).

    :math:`x = C^{-1}(\Phi(\varepsilon))` with :math:`C(x) = \sum_k w_k \Phi((x - m_k) / s_k)`.
    The inverse, and with it a density, is a formula; forward is a root.

    Starts with equal weights and scales, and locations evenly over an interval.

    Parameters
    ----------
    size : int
        Length of the vector.
    n_components : int
        Components of each element.
    loc_range : float
        The first locations are evenly spaced between minus and plus this.
    scale : float
        First scale of all components.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Silvestri, Fertig, Moore, Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv:2110.06021.

    Examples
    --------
    >>> import pymc_emf as emf
    >>> layer = emf.MixtureOfGaussians(2, n_components=10)
    >>> noise, log_det = emf.compile(layer).inverse([0.5, 1.0])
    >>> noise.round(2)
    array([0.14, 0.29])
    """

    def __init__(
        self,
        size: int,
        n_components: int = 100,
        *,
        loc_range: float = 4.0,
        scale: float = 1.0,
    ):
        for name, number in (
            ("size", size),
            ("n_components", n_components),
            ("loc_range", loc_range),
            ("scale", scale),
        ):
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number!r}.")
        self.size = size
        self.n_components = n_components
        shape = (size, n_components)
        locs = np.linspace(-loc_range, loc_range, n_components) if n_components > 1 else 0.0
        self.logits = parameter(np.zeros(shape), "logits")
        self.loc = parameter(np.broadcast_to(locs, shape).copy(), "loc")
        self.log_scale = parameter(np.full(shape, np.log(scale)), "log_scale")

    @property
    def _mixture(self) -> MixtureOf:
        components = LocScale(self.loc, pt.exp(self.log_scale))
        return MixtureOf(pt.special.softmax(self.logits, axis=-1), components, self.n_components)

    def to_value(self, noise):
        return self._mixture.to_value(noise)

    def to_noise(self, value):
        return self._mixture.to_noise(value)

    def to_jax(self, size):
        return by_element(self, size)

    @property
    def hyperparameters(self):
        return {"n_components": self.n_components}

    @property
    def parameters(self):
        return [self.logits, self.loc, self.log_scale]
