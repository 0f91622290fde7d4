"""Elementwise monotone splines."""

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.layers.base import TriangularLayer, by_element
from pymc_emf.layers.parameters import parameter

__all__ = ["Spline", "bend", "knots_within", "unbend"]


class Spline(TriangularLayer):
    r"""Elementwise monotone quadratic spline, linear in the tails.

    The derivative of every element's curve is positive and piecewise linear: its logs at evenly
    spaced knots are trained, and beyond the outermost knots it is constant. Zero stays zero.
    Affine layers give every element the tails of a normal distribution; this one bends them.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    bound : float
        The outermost knots lie at plus and minus this.
    knots : int
        Number of knots, odd, so that zero is one.

    Raises
    ------
    ValueError
        If there is no odd number of at least three knots, or ``bound`` is not positive.

    References
    ----------
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, arXiv:1906.04032.
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2019,
    arXiv:1808.03856, for piecewise linear derivatives.

    Examples
    --------
    >>> import pymc_emf as emf
    >>> layer = emf.Spline(2)
    >>> emf.compile(layer).forward([-7.0, 0.5])[0]
    array([-7. ,  0.5])
    """

    def __init__(self, size: int, *, bound: float = 5.0, knots: int = 11):
        self.size = size
        self.at = knots_within(bound, knots)
        self.log_slopes = parameter(np.zeros((size, knots)), "log_slopes")

    def to_value(self, noise):
        return bend(noise, self.log_slopes, self.at)

    def to_noise(self, value):
        return unbend(value, self.log_slopes, self.at)

    def to_jax(self, size):
        return by_element(self, size)

    @property
    def hyperparameters(self):
        return {"bound": float(self.at[-1]), "knots": len(self.at)}

    @property
    def parameters(self):
        return [self.log_slopes]


def knots_within(bound: float, knots: int) -> np.ndarray:
    """Evenly spaced knots, of which zero is one; raises ValueError as :class:`Spline` does."""
    whole = isinstance(knots, int | np.integer) and not isinstance(knots, bool)
    if not whole or knots < 3 or knots % 2 == 0:
        raise ValueError(f"knots must be an odd number of at least 3, got {knots!r}.")
    if not bound > 0:
        raise ValueError(f"bound must be positive, got {bound!r}.")
    return np.linspace(-bound, bound, knots)


def bend(
    noise: TensorVariable, log_slopes: TensorVariable, at: np.ndarray
) -> tuple[TensorVariable, TensorVariable]:
    """Images of all elements, each under a spline of its own, and the logs of its derivatives.

    Parameters
    ----------
    noise : tensor, shape (size,)
    log_slopes : tensor, shape (size, knots)
        Logs of the derivatives at the knots; its shape is static.
    at : ndarray, shape (knots,)
        See :func:`knots_within`.
    """
    pieces = _pieces(log_slopes, at)
    knot, image, slope, curvature = _piece_of(noise, at.astype(noise.dtype), pieces)
    along = noise - knot
    return image + along * (slope + curvature * along / 2), pt.log(slope + curvature * along)


def unbend(
    value: TensorVariable, log_slopes: TensorVariable, at: np.ndarray
) -> tuple[TensorVariable, TensorVariable]:
    """The inverse of :func:`bend`, and the logs of its derivatives."""
    pieces = _pieces(log_slopes, at)
    knot, image, slope, curvature = _piece_of(value, pieces[1][:, 1:], pieces)
    up = value - image
    end_slope = pt.sqrt(slope**2 + 2 * curvature * up)
    return knot + 2 * up / (slope + end_slope), -pt.log(end_slope)


def _pieces(log_slopes, at):
    """Knot, image, slope and curvature of every piece of the splines: (size, knots + 1) each.

    The first piece hangs on its right end, all others on their left ones.
    """
    slopes = pt.exp(log_slopes)
    step = at[1] - at[0]
    rises = step * (slopes[:, 1:] + slopes[:, :-1]) / 2
    images = pt.concatenate([pt.zeros_like(slopes[:, :1]), pt.cumsum(rises, axis=1)], axis=1)
    middle = len(at) // 2
    images = images - images[:, middle : middle + 1]
    flat = pt.zeros_like(slopes[:, :1])
    bends = pt.concatenate([flat, (slopes[:, 1:] - slopes[:, :-1]) / step, flat], axis=1)
    knots = np.concatenate([at[:1], at]).astype(slopes.dtype)
    images, slopes = (pt.concatenate([x[:, :1], x], axis=1) for x in (images, slopes))
    return pt.broadcast_to(knots, images.shape), images, slopes, bends


def _piece_of(vector, ends, pieces):
    """Knot, image, slope and curvature of the piece that every element lies in."""
    index = (vector[:, None] >= ends).sum(axis=1)
    every = np.arange(pieces[1].type.shape[0])
    # one by one: all four from a stacked table, or by a mask, take twice as long
    return [of_all[every, index] for of_all in pieces]
