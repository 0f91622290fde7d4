"""Elementwise monotone splines."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.layers.base import TriangularLayer, by_element
from pymc_emf.layers.parameters import parameter

__all__ = ["Spline"]


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
        whole = isinstance(knots, int | np.integer) and not isinstance(knots, bool)
        if not whole or knots < 3 or knots % 2 == 0:
            raise ValueError(f"knots must be an odd number of at least 3, got {knots!r}.")
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound!r}.")
        self.size = size
        self.at = np.linspace(-bound, bound, knots)
        self.log_slopes = parameter(np.zeros((size, knots)), "log_slopes")

    @property
    def _pieces(self):
        """Knot, image, slope and curvature of every piece of the curves: (size, knots + 1) each.

        The first piece hangs on its right end, all others on their left ones.
        """
        slopes = pt.exp(self.log_slopes)
        step = self.at[1] - self.at[0]
        rises = step * (slopes[:, 1:] + slopes[:, :-1]) / 2
        images = pt.concatenate([pt.zeros_like(slopes[:, :1]), pt.cumsum(rises, axis=1)], axis=1)
        middle = len(self.at) // 2
        images = images - images[:, middle : middle + 1]
        flat = pt.zeros_like(slopes[:, :1])
        bends = pt.concatenate([flat, (slopes[:, 1:] - slopes[:, :-1]) / step, flat], axis=1)
        knots = np.concatenate([self.at[:1], self.at]).astype(slopes.dtype)
        images, slopes = (pt.concatenate([x[:, :1], x], axis=1) for x in (images, slopes))
        return pt.broadcast_to(knots, images.shape), images, slopes, bends

    def _piece_of(self, vector, ends):
        """Knot, image, slope and curvature of the piece that every element lies in."""
        index = (vector[:, None] >= ends).sum(axis=1)
        # one by one: all four from a stacked table, or by a mask, take twice as long
        return [pieces[np.arange(self.size), index] for pieces in self._pieces]

    def to_value(self, noise):
        knot, image, slope, bend = self._piece_of(noise, self.at.astype(noise.dtype))
        along = noise - knot
        return image + along * (slope + bend * along / 2), pt.log(slope + bend * along)

    def to_noise(self, value):
        _, images, _, _ = self._pieces
        knot, image, slope, bend = self._piece_of(value, images[:, 1:])
        up = value - image
        end_slope = pt.sqrt(slope**2 + 2 * bend * up)
        return knot + 2 * up / (slope + end_slope), -pt.log(end_slope)

    def to_jax(self, size):
        return by_element(self, size)

    @property
    def hyperparameters(self):
        return {"bound": float(self.at[-1]), "knots": len(self.at)}

    @property
    def parameters(self):
        return [self.log_slopes]
