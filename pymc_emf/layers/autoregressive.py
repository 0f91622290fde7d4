"""Masked autoregressive flows: one class, whose two directions are IAF and MAF."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_emf.layers.base import TriangularLayer
from pymc_emf.layers.network import Network
from pymc_emf.layers.parameters import LOW_PRECISION

__all__ = ["MaskedAutoregressive"]


class MaskedAutoregressive(TriangularLayer):
    r"""Affine autoregressive layer with a masked network (MADE).

    Forward is one pass of the network, :math:`y_i = m_i(\varepsilon_{<i}) +
    e^{s_i(\varepsilon_{<i})}\varepsilon_i`: the inverse autoregressive flow of Kingma et al.
    (2016). The inverse takes as many passes as there are elements. ``Invert`` of this layer is the
    masked autoregressive flow of Papamakarios et al. (2017), with a fast density.

    Starts within rounding of the identity: the last layer of the network is zero.

    Parameters
    ----------
    size : int
        Length of the vector.
    hidden : sequence of int
        Widths of the hidden layers.
    reverse : bool
        Condition each element on the later ones instead of the earlier ones. The order of the
        vector itself stays.
    dtype : str
        Precision of the network. What it shifts and scales, and with it the density, has
        ``floatX``.
    random_seed : int, RandomState or Generator, optional
        For the initial weights.

    References
    ----------
    Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015, arXiv:1502.03509.
    Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016,
    arXiv:1606.04934.
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", 2017, arXiv:1705.07057.
    """

    def __init__(
        self,
        size: int,
        *,
        hidden: Sequence[int] = (64, 64),
        reverse: bool = False,
        dtype: str = LOW_PRECISION,
        random_seed: int | np.random.Generator | None = None,
    ):
        self.size = size
        self.hidden = tuple(hidden)
        self.reverse = reverse
        masks = made_masks(size, self.hidden, reverse=reverse)
        self.network = Network(masks, dtype, np.random.default_rng(random_seed))

    def to_value(self, noise):
        shift, log_scale = self.network(noise)
        return shift + pt.exp(log_scale) * noise, log_scale

    def to_noise(self, value):
        # One element a pass, the rest still zero: guesses of elements to come may overflow, and
        # in the network's masked products infinity times zero would reach the others as NaN.
        def next_element(i, noise, value):
            shift, log_scale = self.network(noise)
            return noise[i].set((value[i] - shift[i]) * pt.exp(-log_scale[i]))

        order = np.arange(self.size)
        noise = pytensor.scan(
            next_element,
            sequences=[pt.constant(order[::-1] if self.reverse else order)],
            outputs_info=[pt.zeros_like(value)],
            non_sequences=[value],
            return_updates=False,
        )[-1]
        _, log_scale = self.network(noise)
        return noise, -log_scale

    @property
    def hyperparameters(self):
        return {"hidden": list(self.hidden), "reverse": self.reverse, "dtype": self.network.dtype}

    @property
    def parameters(self):
        return self.network.parameters


def made_masks(size: int, hidden: Sequence[int], *, reverse: bool = False) -> list[np.ndarray]:
    """Binary masks that let output i of a network see only inputs before i.

    The last mask serves two outputs per element, all shifts before all log scales.
    """
    degrees = np.arange(1, size + 1)
    if reverse:
        degrees = degrees[::-1]
    # hidden degrees run over 1..size-1, evenly; a unit of degree k sees inputs up to degree k
    inner = [1 + np.arange(width) * max(size - 1, 1) // width for width in hidden]
    layers = [degrees, *inner]
    masks = [(a[:, None] <= b[None, :]).astype(float) for a, b in pairwise(layers)]
    outputs = np.concatenate([degrees, degrees])
    masks.append((layers[-1][:, None] < outputs[None, :]).astype(float))
    return masks
