"""Coupling layers: few elements steer all others."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytensor.tensor as pt

from pymc_emf.layers.base import Layer
from pymc_emf.layers.network import Network
from pymc_emf.layers.parameters import LOW_PRECISION

__all__ = ["Coupling"]


class Coupling(Layer):
    r"""Affine coupling layer.

    Some elements stay as they are, and a network computes from them the shift and the scale of all
    others: :math:`y_i = m_i(\varepsilon_S) + e^{s_i(\varepsilon_S)}\varepsilon_i` for i outside of
    S. In a hierarchy where S holds the few common parameters, that is how the many others depend
    on them. Both directions are one pass of the network, whose cost is proportional to the length
    of the vector.

    Starts within rounding of the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    steering : sequence of int
        Positions of the elements S, some but not all.
    hidden : sequence of int
        Widths of the hidden layers.
    dtype : str
        Precision of the network. What it shifts and scales, and with it the density, has
        ``floatX``.
    random_seed : int, RandomState or Generator, optional
        For the initial weights.

    Raises
    ------
    ValueError
        If no element steers, or all do.

    References
    ----------
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, arXiv:1605.08803.

    Examples
    --------
    >>> import pymc_emf as emf
    >>> layer = emf.Coupling(4, [0])
    >>> emf.compile(layer).forward([1.0, 2.0, 3.0, 4.0])[0]
    array([1., 2., 3., 4.])
    """

    def __init__(
        self,
        size: int,
        steering: Sequence[int] | np.ndarray,
        *,
        hidden: Sequence[int] = (64, 64),
        dtype: str = LOW_PRECISION,
        random_seed: int | np.random.Generator | None = None,
    ):
        self.size = size
        self.steering = np.unique(np.asarray(steering, dtype=np.intp))
        if not 0 < len(self.steering) < size:
            raise ValueError(
                f"Some of the {size} elements must steer the others, got {len(self.steering)}."
            )
        self.steered = np.ones(size, dtype="int8")
        self.steered[self.steering] = 0
        self.hidden = tuple(hidden)
        masks = [np.ones(pair) for pair in pairwise([len(self.steering), *hidden, 2 * size])]
        self.network = Network(masks, 2, dtype, np.random.default_rng(random_seed))

    def _shift_and_log_scale(self, vector):
        shift, log_scale = self.network(vector[self.steering])
        return self.steered * shift, self.steered * log_scale

    def forward(self, noise):
        shift, log_scale = self._shift_and_log_scale(noise)
        return shift + pt.exp(log_scale) * noise, log_scale.sum()

    def inverse(self, value):
        shift, log_scale = self._shift_and_log_scale(value)
        return (value - shift) * pt.exp(-log_scale), -log_scale.sum()

    @property
    def hyperparameters(self):
        return {
            "steering": self.steering.tolist(),
            "hidden": list(self.hidden),
            "dtype": self.network.dtype,
        }

    @property
    def parameters(self):
        return self.network.parameters
