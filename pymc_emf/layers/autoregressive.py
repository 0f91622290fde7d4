"""Masked autoregressive flows: one class, whose two directions are IAF and MAF."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.sharedvar import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.base import Triangular
from pymc_emf.layers.parameters import LOW_PRECISION, parameter

__all__ = ["MaskedAutoregressive"]

#: Log scales are kept within this distance of zero, smoothly: one layer can stretch or shrink
#: an element by at most exp(LOG_SCALE_BOUND), so that a wild step cannot overflow the density.
LOG_SCALE_BOUND = 5.0


class MaskedAutoregressive(Triangular):
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
        self.dtype = dtype
        rng = np.random.default_rng(random_seed)
        self.masks = made_masks(size, self.hidden, reverse=reverse)
        self.weights: list[SharedVariable] = []
        self.biases: list[SharedVariable] = []
        for i, mask in enumerate(self.masks):
            last = i == len(self.masks) - 1
            fan_in = np.maximum(mask.sum(axis=0), 1)  # of each unit, through the mask
            weight = rng.normal(size=mask.shape) * mask / np.sqrt(fan_in)
            self.weights.append(parameter(weight * (0.0 if last else 1.0), f"weight_{i}", dtype))
            self.biases.append(parameter(np.zeros(mask.shape[1]), f"bias_{i}", dtype))

    def network(self, vector: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Shift and log scale of every element, each from the elements before it."""
        hidden = vector.astype(self.dtype)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ (weight * self.masks[i].astype("int8")) + bias
            if i < len(self.weights) - 1:
                hidden = hidden * pt.sigmoid(hidden)  # SiLU
        hidden = hidden.astype(vector.dtype)
        shift, raw = hidden[: self.size], hidden[self.size :]
        return shift, LOG_SCALE_BOUND * pt.tanh(raw / LOG_SCALE_BOUND)

    def to_value(self, noise):
        shift, log_scale = self.network(noise)
        return shift + pt.exp(log_scale) * noise, log_scale

    def to_noise(self, value):
        # After k passes the first k elements (the last, if reversed) are exact.
        def improve(noise, value):
            shift, log_scale = self.network(noise)
            return (value - shift) * pt.exp(-log_scale)

        noise = pytensor.scan(
            improve,
            outputs_info=[pt.zeros_like(value)],
            non_sequences=[value],
            n_steps=self.size,
            return_updates=False,
        )[-1]
        _, log_scale = self.network(noise)
        return noise, log_scale

    @property
    def parameters(self):
        return [*self.weights, *self.biases]


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
