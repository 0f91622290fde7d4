r"""Any density on the line as a bijection: its distribution function by quadrature on panels.

For densities of which nothing is known but their values: those of ``pm.CustomDist``, of truncated
variables, and of families or transforms that have no bijection of their own.
"""

from collections.abc import Sequence

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc.distributions.transforms import CircularTransform
from pymc.logprob.transforms import Transform
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import default_transform
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.core.elementwise import Elementwise, Map
from pymc_emf.bijections.numerics.quadrature import ByDensity, gauss_legendre, on_nodes
from pymc_emf.bijections.numerics.root_finding import bracketed_root
from pymc_emf.bijections.numerics.special import noise_from_tails, stop_gradient

__all__ = ["Tabulated", "by_quadrature"]

#: The table ends where the density has fallen by this many nats, which is at noise 10 for a normal.
DEPTH = 60.0
#: Panels on either side of the mode, and the rule on each of them.
N_PANELS = 20
NODES, WEIGHTS = gauss_legendre([0.0, 1.0], 8)
#: Where the mode is looked for: zero and both signs of 1e-5 to 1e8, evenly on the asinh scale.
GRID = np.sinh(np.linspace(-29.0, 29.0, 291)) * 1e-5
#: Distances from the mode, relative to its own size or one.
RADII = np.geomspace(1e-12, 1e20, 161)


def by_quadrature(
    rv: TensorVariable, transform: Transform | None, log_density: Map | None = None
) -> Bijection | None:
    """Bijection of a univariate variable from its log density in value space, by quadrature.

    Parameters
    ----------
    rv : TensorVariable
    transform : Transform or None
        Any that acts on single elements.
    log_density : callable, optional
        Log density of the constrained variable, up to a constant; PyMC's by default.

    Returns
    -------
    Bijection or None
        None if the transform does not act elementwise.
    """
    if transform is not None and (
        getattr(transform, "ndim_supp", 1) != 0 or isinstance(transform, CircularTransform)
    ):
        return None
    inputs = rv.owner.inputs
    constrained = log_density or (lambda x: pm.logp(rv, x, warn_rvs=False))

    def in_value_space(value):
        if transform is None:
            return constrained(value)
        x = transform.backward(value, *inputs)
        return constrained(x) + transform.log_jac_det(value, *inputs)

    # without its transform a bounded variable has no room for the identity
    gateable = transform is not None or default_transform(rv.owner.op, rv) is None
    return Tabulated(in_value_space, gateable=gateable)


class Tabulated(Elementwise):
    """Bijection of a density given up to a constant, by quadrature on panels around its mode.

    The mode is looked for on a grid, then the points where the density has fallen by one nat
    and by ``DEPTH`` on either side. Panels spread between them like the hyperbolic sine, fine at
    the mode and wide in the tails; Gauss-Legendre sums over panels, added up from both ends, give
    both tail probabilities. Densities of one peak, or of peaks of about the same width, come out
    right; a narrow peak far from a dominant one may fall between the nodes. Beyond the table
    there is nothing.

    Parameters
    ----------
    log_density : callable
        Log density of the value, elementwise, up to a constant. It must accept values with
        further leading axes.
    parameters : sequence of TensorVariable, optional
        All that the density depends on. Elements of the same parameters then share a table.
    gateable : bool
        Whether the values fill the real line.
    """

    explicit_forward = False

    def __init__(
        self,
        log_density: Map,
        parameters: Sequence[TensorVariable] | None = None,
        gateable: bool = True,
    ):
        self.log_density = log_density
        self._shared_by = parameters
        self._tables: dict[TensorType, _Table] = {}
        self.gateable = gateable

    def _table(self, event):
        if self._shared_by is not None:
            zero = pt.add(*(pt.zeros_like(p, dtype=event.dtype) for p in self._shared_by))
            zero = pt.shape_padleft(zero, event.ndim - zero.ndim)
        elif None in event.type.shape:
            return _Table(self.log_density, pt.zeros_like(event))
        else:
            zero = pt.zeros(event.type.shape, dtype=event.dtype)
        # one table for all events of a shape, lest a loop makes its own at every step
        if zero.type not in self._tables:
            self._tables[zero.type] = _Table(self.log_density, zero)
        return self._tables[zero.type]

    def to_value(self, noise):
        return self._table(noise).to_value(noise)

    def to_noise(self, value):
        return self._table(value).to_noise(value)


class _Table(ByDensity):
    """The panels of one density for each element of a tensor."""

    def __init__(self, log_density: Map, zero: TensorVariable):
        self._log_density = log_density
        self.zero = zero
        self.least = float(np.finfo(zero.dtype).min / 1e8)
        self._tabulate()

    def _safe(self, x):
        """Log density without derivatives, infinities or NaN."""
        y = stop_gradient(self._log_density(x))
        least = pt.constant(self.least, dtype=x.dtype)
        return pt.maximum(pt.where(pt.isnan(y), least, y), least)

    def _shaped(self, x):
        """``x`` with the static shape that a scan forgets."""
        return pt.specify_shape(x, self.zero.type.shape)

    def _tabulate(self):
        self.mode = stop_gradient(self._find_mode())
        peak = self._safe(self.mode)
        self.peak = peak
        size = 1 + pt.abs(self.mode)
        radii = on_nodes(RADII, self.mode) * size
        # for either side: the distance of one nat, and that of the table's end, in panels
        self.width, self.span = {}, {}
        for side in (-1.0, 1.0):
            fall = peak - self._safe(self.mode + side * radii)
            near = self._crossing(side, radii, fall > 1.0, 1.0, first=True)
            end = self._crossing(side, radii, fall > DEPTH, DEPTH, first=False)
            self.width[side] = near
            self.span[side] = pt.arcsinh(end / near) / N_PANELS

        knots = on_nodes(np.arange(-N_PANELS, N_PANELS), self.mode)
        nodes = on_nodes(NODES, pt.as_tensor(knots))
        areas = self._integral(knots + nodes, pt.ones_like(knots))
        none = pt.zeros_like(areas[:1])
        backwards = np.arange(2 * N_PANELS)[::-1].copy()  # never by a negative step
        self.below = pt.concatenate([none, pt.cumsum(areas, axis=0)], axis=0)
        above = pt.cumsum(areas[backwards], axis=0)[backwards]
        self.above = pt.concatenate([above, none], axis=0)
        self.log_mass = pt.log(self.below[-1])

    def _find_mode(self):
        grid = on_nodes(GRID, self.zero) + self.zero
        best = pt.argmax(self._safe(grid), axis=0)
        # not by plain indexing: rolling does not batch an index without axes
        lower, upper = (
            pt.take_along_axis(grid, pt.clip(i, 0, len(GRID) - 1)[None], axis=0)[0]
            for i in (best - 1, best + 1)
        )
        fractions = on_nodes(np.linspace(0.0, 1.0, 17), self.zero)

        def narrow(lower, upper):
            points = lower + fractions * (upper - lower)
            best = pt.argmax(self._safe(points), axis=0)
            step = (upper - lower) / 16
            middle = lower + best * step
            return [
                pt.maximum(middle - step, lower).astype(lower.dtype),
                pt.minimum(middle + step, upper).astype(lower.dtype),
            ]

        lower, upper = pytensor.scan(
            narrow, outputs_info=[lower, upper], n_steps=14, return_updates=False
        )
        return self._shaped((lower[-1] + upper[-1]) / 2)

    def _crossing(self, side, radii, fallen, level, first):
        """Distance at which the density falls below a level, the first or the last time."""
        n = len(RADII)
        if first:
            i = pt.where(fallen.any(axis=0), pt.argmax(fallen, axis=0), n - 1)
        else:
            i = n - pt.argmax(pt.invert(fallen)[np.arange(n)[::-1].copy()], axis=0)
            i = pt.where(fallen.all(axis=0), 0, pt.minimum(i, n - 1))
        upper = pt.log(pt.take_along_axis(radii, i[None], axis=0)[0])
        lower = upper - float(np.log(RADII[1] / RADII[0]))

        def halve(lower, upper):
            middle = (lower + upper) / 2
            out = self.peak - self._safe(self.mode + side * pt.exp(middle)) > level
            return [pt.where(out, lower, middle), pt.where(out, middle, upper)]

        _, upper = pytensor.scan(
            halve, outputs_info=[lower, upper], n_steps=45, return_updates=False
        )
        return stop_gradient(self._shaped(pt.exp(upper[-1])))

    def _place(self, panel):
        """Value at a position in panels, and its derivative."""
        width = pt.where(panel < 0, self.width[-1.0], self.width[1.0])
        span = pt.where(panel < 0, self.span[-1.0], self.span[1.0])
        distance = pt.sign(panel) * width * pt.sinh(pt.abs(panel) * span)
        return self.mode + distance, width * span * pt.cosh(panel * span)

    def _position(self, value):
        """Position in panels of a value."""
        from_mode = value - self.mode
        width = pt.where(from_mode < 0, self.width[-1.0], self.width[1.0])
        span = pt.where(from_mode < 0, self.span[-1.0], self.span[1.0])
        return pt.clip(pt.arcsinh(from_mode / width) / span, -N_PANELS, N_PANELS)

    def _integral(self, panels, length):
        """Integral, relative to the peak, over the positions on the leading axis."""
        value, slope = self._place(panels)
        relative = pt.exp(self._log_density(value) - self.peak)
        weights = on_nodes(WEIGHTS, panels[0])
        return (weights * relative * slope).sum(0) * length

    def _panel(self, position):
        return pt.clip(pt.floor(position), -N_PANELS, N_PANELS - 1)

    def log_density(self, coordinate):
        return self._log_density(coordinate) - self.peak - self.log_mass

    def noise(self, coordinate):
        position = self._position(coordinate)
        panel = stop_gradient(self._panel(position))
        n, i = 2 * N_PANELS + 1, (panel + N_PANELS).astype("int64")[None]
        below, above = (
            pt.take_along_axis(pt.broadcast_to(table, (n, *tuple(i.shape)[1:])), at, axis=0)[0]
            for table, at in ((self.below, i), (self.above, i + 1))
        )
        nodes = on_nodes(NODES, coordinate)
        left, right = position - panel, panel + 1 - position
        below = below + self._integral(panel + left * nodes, left)
        above = above + self._integral(position + right * nodes, right)
        return noise_from_tails(pt.log(below) - self.log_mass, pt.log(above) - self.log_mass)

    def search(self, noise):
        at_knots = stop_gradient(
            noise_from_tails(
                pt.log(self.below[1:-1]) - self.log_mass, pt.log(self.above[1:-1]) - self.log_mass
            )
        )
        lower = (at_knots <= noise).sum(0).astype(noise.dtype) - N_PANELS
        root = bracketed_root(
            lambda position: stop_gradient(self.noise(self._place(position)[0])) - noise,
            lower,
            lower + 1,
            n_steps=12,
        )
        return self._place(root)[0]
