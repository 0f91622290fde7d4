"""Quantiles of known distributions, by tables that are made once."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc.pytensorf import constant_fold
from pytensor.compile.mode import Mode
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.elementwise import Elementwise, derivative
from pymc_emf.bijections.numerics.quadrature import ByDensity
from pymc_emf.bijections.numerics.special import as_one
from pymc_emf.bijections.numerics.table_files import kept_on_disk

__all__ = ["interpolated"]

#: A table reaches from minus to plus this noise, the quantile of 1e-197, in so many pieces for
#: each unit.
REACH, PIECES = 30, 16
N_PIECES = 2 * REACH * PIECES
#: Distributions that are worth a table each.
MAX_TABLES = 32
#: Error halfway between two entries, in units of noise, above which there is no table: that of
#: the quadrature is up to 3e-7.
MAX_ERROR = 1e-6


def interpolated(make: Callable[..., ByDensity], *parameters: TensorVariable) -> Elementwise:
    """Bijection of a density, from a table where its parameters are known numbers.

    The graph of a quadrature and a search takes long to rewrite, to compile and to run, which is
    a waste where its result is one and the same curve.

    Parameters
    ----------
    make : callable
        The bijection of some parameters.
    *parameters : TensorVariable
    """
    site = make(*parameters)
    folded = constant_fold([pt.as_tensor(p) for p in parameters], raise_not_constant=False)
    if not all(isinstance(number, np.ndarray) and number.size for number in folded):
        return site
    numbers = np.stack(np.broadcast_arrays(*folded), axis=-1).astype(float)
    distinct, which = np.unique(numbers.reshape(-1, len(parameters)), axis=0, return_inverse=True)
    if len(distinct) > MAX_TABLES:
        return site
    tables = _tables(make, tuple(map(tuple, distinct.T.tolist())))
    if tables is None:
        return site
    which = which.reshape(numbers.shape[:-1]) if len(distinct) > 1 else np.array(0)
    return _Interpolated(site, tables, which)


@lru_cache(maxsize=256)
def _tables(
    make: Callable[..., ByDensity], parameters: tuple[tuple[float, ...], ...]
) -> tuple[np.ndarray, ...] | None:
    """Piecewise polynomials of fifth degree, from quantiles and two derivatives of them.

    Returns
    -------
    tuple of ndarray, shape (tables * pieces,), or None
        The coefficients of each power, the lowest first, in units of a piece; None if they are
        not as exact as the quantiles.
    """
    key = f"{make.__module__}.{make.__qualname__} {parameters} {pytensor.config.floatX}"
    return kept_on_disk(key, lambda: _make_tables(make, parameters))


def _make_tables(
    make: Callable[..., ByDensity], parameters: tuple[tuple[float, ...], ...]
) -> tuple[np.ndarray, ...] | None:
    n_tables = len(parameters[0])
    # every second entry is there to compare with
    noise = np.repeat(np.linspace(-REACH, REACH, 2 * N_PIECES + 1)[:, None], n_tables, axis=1)
    site = make(*(pt.constant(np.array(numbers)) for numbers in parameters))
    z = pt.matrix("noise", shape=noise.shape, dtype="float64")
    value, log_slope = site.to_value(z)
    outputs = [value, log_slope, derivative(site.log_density, value - site.origin)]
    with (
        pytensor.config.change_flags(linker="py", cxx=""),  # of the loops within, too
        np.errstate(all="ignore"),
    ):
        # node by node, as it is evaluated once
        function = pytensor.function([z], outputs, mode=Mode("py", "None"))
        exact, log_slopes, falls = (found.T for found in function(noise))
        slope = np.exp(log_slopes)
        bend = -slope * (noise.T + falls * slope)
        begin, first, second = exact, slope / PIECES, bend / PIECES**2
        low = begin[:, :-1:2], first[:, :-1:2], second[:, :-1:2] / 2
        rise = begin[:, 2::2] - sum(low)
        turn = first[:, 2::2] - low[1] - 2 * low[2]
        change = second[:, 2::2] - 2 * low[2]
        high = (
            10 * rise - 4 * turn + change / 2,
            -15 * rise + 7 * turn - change,
            6 * rise - 3 * turn + change / 2,
        )
        halfway = sum(c / 2**k for k, c in enumerate((*low, *high)))
        error = np.abs(halfway - exact[:, 1::2]) / slope[:, 1::2]
    if not (error < MAX_ERROR).all():
        return None
    return tuple(c.ravel() for c in (*low, *high))


class _Interpolated(Elementwise):
    """The curves of tables, straight beyond their ends."""

    def __init__(self, site: ByDensity, tables: tuple[np.ndarray, ...], which: np.ndarray):
        self.site, self.tables, self.which = site, tables, which

    def to_value(self, noise):
        inside = pt.clip(noise, float(-REACH), float(REACH)).astype(noise.dtype)
        piece = pt.where(pt.isnan(inside), 0, (inside + REACH) * PIECES).astype("int64")
        piece = pt.clip(piece, 0, N_PIECES - 1)
        begin = as_one(piece.astype(noise.dtype) / PIECES - REACH)  # has no digits to be lost
        t = (inside - begin) * PIECES
        entry = self.which * N_PIECES + piece
        c = [pt.constant(of_all, dtype=noise.dtype)[entry] for of_all in self.tables]
        value = c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))))
        slope = c[1] + t * (2 * c[2] + t * (3 * c[3] + t * (4 * c[4] + t * 5 * c[5])))
        return value + slope * PIECES * (noise - inside), pt.log(slope * PIECES)

    def to_noise(self, value):
        near, _ = self.site.to_noise(value)
        # beyond the ends the density may have no digits, and the curve is straight
        for reach, is_beyond in ((-REACH, pt.lt), (REACH, pt.gt)):
            end = pt.full_like(value, float(reach))
            near = pt.where(is_beyond(value, self.to_value(end)[0]), end, near)
        there, log_slope = self.to_value(near)
        noise = near - (there - value) * pt.exp(-log_slope)  # the curve's own, to all digits
        return noise, -self.to_value(noise)[1]
