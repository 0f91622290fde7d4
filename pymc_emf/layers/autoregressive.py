"""Masked autoregressive flows: one class, whose two directions are IAF and MAF."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_emf.layers.base import TriangularLayer
from pymc_emf.layers.network import Network
from pymc_emf.layers.parameters import LOW_PRECISION
from pymc_emf.layers.spline import bend, knots_within, unbend

__all__ = ["MaskedAutoregressive"]


class MaskedAutoregressive(TriangularLayer):
    r"""Autoregressive layer with a masked network (MADE), affine or with splines.

    Forward is one pass of the network, :math:`y_i = m_i(\varepsilon_{<i}) +
    e^{s_i(\varepsilon_{<i})}\varepsilon_i`: the inverse autoregressive flow of Kingma et al.
    (2016). The inverse takes as many passes as there are elements. ``Invert`` of this layer is the
    masked autoregressive flow of Papamakarios et al. (2017), with a fast density.

    With ``knots``, :math:`\varepsilon_i` is first bent by a monotone spline, as that of
    :class:`Spline`, whose derivatives at the knots the network gives as well: the autoregressive
    neural spline flow of Durkan et al. (2019). One such layer makes an element have several modes
    or sharp edges that depend on the elements before, where affine layers only move and stretch.

    Starts within rounding of the identity: the last layer of the network is zero.

    Parameters
    ----------
    size : int
        Length of the vector.
    hidden : sequence of int
        Widths of the hidden layers.
    knots : int
        Number of knots of the splines, odd; 0 for none.
    bound : float
        Their outermost knots lie at plus and minus this.
    reverse : bool
        Condition each element on the later ones instead of the earlier ones. The order of the
        vector itself stays.
    dtype : str
        Precision of the network. What it shifts and scales, and with it the density, has
        ``floatX``.
    random_seed : int, RandomState or Generator, optional
        For the initial weights.

    Raises
    ------
    ValueError
        If ``knots`` is neither 0 nor an odd number of at least three, or ``bound`` is not positive.

    References
    ----------
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, arXiv:1906.04032.
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
        knots: int = 0,
        bound: float = 5.0,
        reverse: bool = False,
        dtype: str = LOW_PRECISION,
        random_seed: int | np.random.Generator | None = None,
    ):
        self.size = size
        self.hidden = tuple(hidden)
        self.reverse = reverse
        self.at = knots_within(bound, knots) if knots else np.empty(0)
        n_outputs = 2 + len(self.at)
        masks = made_masks(size, self.hidden, n_outputs, reverse=reverse)
        self.network = Network(masks, n_outputs, dtype, np.random.default_rng(random_seed))

    def to_value(self, noise):
        shift, log_scale, *log_slopes = self.network(noise)
        if not log_slopes:
            return shift + pt.exp(log_scale) * noise, log_scale
        bent, log_slope = bend(noise, pt.stack(log_slopes, axis=1), self.at)
        return shift + pt.exp(log_scale) * bent, log_scale + log_slope

    def _noise_of(self, value, shift, log_scale, *log_slopes):
        straight = (value - shift) * pt.exp(-log_scale)
        if not log_slopes:
            return straight
        return unbend(straight, pt.stack(log_slopes, axis=1), self.at)[0]

    def to_noise(self, value):
        # One element a pass, the rest still zero: guesses of elements to come may overflow, and
        # in the network's masked products infinity times zero would reach the others as NaN.
        def next_element(i, noise, value):
            known = (value, *self.network(noise))
            return noise[i].set(self._noise_of(*(x[i][None] for x in known))[0])

        order = np.arange(self.size)
        noise = pytensor.scan(
            next_element,
            sequences=[pt.constant(order[::-1] if self.reverse else order)],
            outputs_info=[pt.zeros_like(value)],
            non_sequences=[value],
            return_updates=False,
        )[-1]
        _, log_derivative = self.to_value(noise)
        return noise, -log_derivative

    @property
    def hyperparameters(self):
        of_network = {"hidden": list(self.hidden), "dtype": self.network.dtype}
        splines = {"knots": len(self.at), "bound": float(self.at[-1])} if len(self.at) else {}
        return of_network | {"reverse": self.reverse} | splines

    @property
    def parameters(self):
        return self.network.parameters


def made_masks(
    size: int, hidden: Sequence[int], n_outputs: int = 2, *, reverse: bool = False
) -> list[np.ndarray]:
    """Binary masks that let the outputs of element i see only inputs before i.

    The last mask serves ``n_outputs`` per element, the first of all elements before the second.
    """
    degrees = np.arange(1, size + 1)
    if reverse:
        degrees = degrees[::-1]
    # hidden degrees run over 1..size-1, evenly; a unit of degree k sees inputs up to degree k
    inner = [1 + np.arange(width) * max(size - 1, 1) // width for width in hidden]
    layers = [degrees, *inner]
    masks = [(a[:, None] <= b[None, :]).astype(float) for a, b in pairwise(layers)]
    outputs = np.tile(degrees, n_outputs)
    masks.append((layers[-1][:, None] < outputs[None, :]).astype(float))
    return masks
