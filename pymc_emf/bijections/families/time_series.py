r"""Sequential families: each time step is a site, and the gate acts inside the recursion.

For a recursion :math:`u_t = f_t(\varepsilon_t; u_{<t})` the gated map is, at every step,
:math:`u_t = \lambda_t f_t(\varepsilon_t; u_{<t}) + (1 - \lambda_t)\varepsilon_t` (EMF Eq. 8).
The inverse knows all of u and is parallel over time.
"""

import math

from collections.abc import Callable, Sequence

import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import (
    Bijection,
    bijection_from_rv,
    let_through,
    register_bijection,
)
from pymc_emf.bijections.core.compose import Rearranged

__all__ = ["Diffusion", "Garch", "LinearRecurrence", "linear_recurrence", "time_first"]

#: Longest recurrence that is solved as a whole by doubling.
MAX_DOUBLED = 256


def linear_recurrence(
    coefficients: Sequence[TensorVariable], start: TensorVariable, drive: TensorVariable
) -> TensorVariable:
    """Solve ``u[t] = sum_i coefficients[i][t] * u[t - 1 - i] + drive[t]`` along the first axis.

    A first-order recurrence is solved in ``log2(T)`` vectorised steps by doubling (Kogge and
    Stone 1973), a long one in blocks, whose cost is linear in T; a higher order by one scan.

    Parameters
    ----------
    coefficients : sequence of TensorVariable, each of shape (T, ...)
        Coefficient of the previous value, of the one before that, ...
    start : TensorVariable, shape (order, ...)
        The first values, oldest first.
    drive : TensorVariable, shape (T, ...)

    Returns
    -------
    TensorVariable, shape (order + T, ...)
    """
    if len(coefficients) == 1 and drive.type.shape[0] is not None:
        (coefficient,) = coefficients
        if drive.type.shape[0] > MAX_DOUBLED and None not in drive.type.shape:
            return _by_blocks(coefficient, start, drive)
        return _by_doubling(coefficient, start, drive)

    order = len(coefficients)

    def step(*arguments):
        (drive_t, *coefficients_t), previous = arguments[: 1 + order], arguments[1 + order :]
        return drive_t + sum(c * u for c, u in zip(coefficients_t, previous, strict=True))

    # a scan of one tap takes the state itself, of several a stack of them
    state = start[0] if order == 1 else {"initial": start, "taps": [-1 - i for i in range(order)]}
    values = pytensor.scan(
        step,
        sequences=[drive, *coefficients],
        outputs_info=[state],
        return_updates=False,
    )
    return pt.concatenate([start, values], axis=0)


def _by_doubling(coefficient, start, drive):
    coefficient = pt.concatenate([pt.zeros_like(start), coefficient], axis=0)
    total = pt.concatenate([start, drive], axis=0)
    length = 1 + drive.type.shape[0]
    shift = 1
    while shift < length:
        # two stretches of the recursion in a row: u -> a2 (a1 u + b1) + b2
        updated = total[shift:] + coefficient[shift:] * total[:-shift]
        product = coefficient[shift:] * coefficient[:-shift]
        total = pt.concatenate([total[:shift], updated], axis=0)
        coefficient = pt.concatenate([coefficient[:shift], product], axis=0)
        shift *= 2
    return total


def _by_blocks(coefficient, start, drive):
    """Solve all blocks at once from zero, then from block to block, and add what they start at."""
    length, *rest = drive.type.shape
    size = math.isqrt(length - 1) + 1
    n_blocks = -(-length // size)

    def cut(series):
        padding = pt.zeros((n_blocks * size - length, *rest), dtype=series.dtype)
        padded = pt.concatenate([series, padding], axis=0)
        return padded.reshape((n_blocks, size, *rest)).swapaxes(0, 1)

    def step(drive_t, coefficient_t, value, product):
        return drive_t + coefficient_t * value, coefficient_t * product

    zero = pt.zeros((n_blocks, *rest), dtype=drive.dtype)
    values, products = pytensor.scan(
        step,
        sequences=[cut(drive), cut(coefficient.astype(drive.dtype))],
        outputs_info=[zero, pt.ones_like(zero)],
        return_updates=False,
    )
    ends = linear_recurrence([products[-1]], start, pt.specify_shape(values[-1], zero.type.shape))
    values = values + products * ends[:-1]
    values = values.swapaxes(0, 1).reshape((n_blocks * size, *rest))
    return pt.concatenate([start, values[:length]], axis=0)


class LinearRecurrence(Bijection):
    """``u[t] = sum_i coefficients[i][t] * u[t - 1 - i] + innovation(noise[t])``.

    Parameters
    ----------
    coefficients : sequence of TensorVariable
        Broadcastable to shape (T - order, ...), first for the latest value.
    start, innovation : Bijection
        From noise to the first ``order`` values, shape (order, ...), and to the later
        innovations, shape (T - order, ...). Time is the first axis of both.
    axis : int
        The axis of time in the value, counted from the end.
    """

    def __init__(
        self,
        coefficients: Sequence[TensorVariable],
        start: Bijection,
        innovation: Bijection,
        axis: int = -1,
    ):
        self.coefficients = coefficients
        self.start = start
        self.innovation = innovation
        self.axis = axis
        self.gateable = start.gateable and innovation.gateable

    @property
    def order(self) -> int:
        return len(self.coefficients)

    def forward(self, noise):
        noise = pt.moveaxis(noise, self.axis, 0)
        start, start_log_det = self.start.forward(noise[: self.order])
        drive, log_det = self.innovation.forward(noise[self.order :])
        coefficients = [pt.broadcast_to(c, drive.shape) for c in self.coefficients]
        value = linear_recurrence(coefficients, start, drive)
        return pt.moveaxis(value, 0, self.axis), start_log_det + log_det

    def inverse(self, value):
        value = pt.moveaxis(value, self.axis, 0)
        order = self.order
        length = value.shape[0]
        expected = sum(
            c * value[order - 1 - i : length - 1 - i] for i, c in enumerate(self.coefficients)
        )
        start, start_log_det = self.start.inverse(value[:order])
        innovation, log_det = self.innovation.inverse(value[order:] - expected)
        noise = pt.concatenate([start, innovation], axis=0)
        return pt.moveaxis(noise, 0, self.axis), start_log_det + log_det

    def gated(self, gate):
        gate = pt.moveaxis(gate, self.axis, 0)
        later = gate[self.order :]
        return LinearRecurrence(
            [later * c for c in self.coefficients],
            self.start.gated(gate[: self.order]),
            self.innovation.gated(later),
            self.axis,
        )


Blend = Callable[..., tuple[TensorVariable, TensorVariable]]


def _gate(loc, scale, gate):
    """Blend the location and scale of a step with those of the noise."""
    return gate * loc, gate * scale + let_through(gate)


class Garch(Bijection):
    r"""GARCH(1,1), time on the last axis.

    :math:`u_t = \lambda_t\sigma_t\varepsilon_t + (1 - \lambda_t)\varepsilon_t` with
    :math:`\sigma_t^2 = \omega + \alpha u_{t-1}^2 + \beta\sigma_{t-1}^2`. The variances given
    all values are a linear recurrence, so that the inverse is parallel over time.

    Parameters
    ----------
    omega, alpha, beta, initial : TensorVariable
        Of the shape of the batch; ``initial`` is the first standard deviation.
    blend, sequences
        As for :class:`Diffusion`; of every time step.
    """

    def __init__(
        self,
        omega: TensorVariable,
        alpha: TensorVariable,
        beta: TensorVariable,
        initial: TensorVariable,
        blend: Blend | None = None,
        sequences: Sequence[TensorVariable] = (),
    ):
        self.omega, self.alpha, self.beta, self.initial = omega, alpha, beta, initial
        self.blend = blend
        self.sequences = list(sequences)

    def _moments(self, variance, sequences):
        loc, scale = pt.zeros_like(variance), pt.sqrt(variance)
        return (loc, scale) if self.blend is None else self.blend(loc, scale, *sequences)

    def _sequences_like(self, event):
        return [pt.moveaxis(pt.broadcast_to(s, event.shape), -1, 0) for s in self.sequences]

    def forward(self, noise):
        sequences = self._sequences_like(noise)
        noise = pt.moveaxis(noise, -1, 0)
        first = pt.broadcast_to(self.initial**2, noise[0].shape).astype(noise.dtype)

        def step(noise_t, *arguments):
            *sequences_t, variance, omega, alpha, beta = arguments
            loc, scale = self._moments(variance, sequences_t)
            value = loc + scale * noise_t
            following = omega + alpha * value**2 + beta * variance
            return following.astype(variance.dtype), value, pt.log(scale)

        _, value, log_scale = pytensor.scan(
            step,
            sequences=[noise, *sequences],
            outputs_info=[first, None, None],
            non_sequences=[self.omega, self.alpha, self.beta],
            return_updates=False,
            strict=True,
        )
        return pt.moveaxis(value, 0, -1), log_scale.sum()

    def inverse(self, value):
        sequences = self._sequences_like(value)
        value = pt.moveaxis(value, -1, 0)
        drive = self.omega + self.alpha * value[:-1] ** 2
        first = pt.broadcast_to(self.initial**2, value[:1].shape).astype(value.dtype)
        beta = pt.broadcast_to(self.beta, drive.shape)
        loc, scale = self._moments(linear_recurrence([beta], first, drive), sequences)
        return pt.moveaxis((value - loc) / scale, 0, -1), -pt.log(scale).sum()

    def gated(self, gate):
        return Garch(self.omega, self.alpha, self.beta, self.initial, _gate, [gate])


class Diffusion(Bijection):
    r"""``u[t] = loc(u[t-1]) + scale(u[t-1]) * noise[t]``, time on the last axis, as one scan.

    Parameters
    ----------
    moments : callable
        ``moments(u, *parameters)`` returns location and scale of the next value.
    parameters : sequence of TensorVariable
        What ``moments`` needs besides the state.
    start : Bijection
        From noise to the first value.
    blend : callable, optional
        ``blend(loc, scale, *sequences)`` returns the location and scale that are used instead.
    sequences : sequence of TensorVariable
        What ``blend`` needs of every time step after the first: broadcastable, time on the last
        axis.
    """

    def __init__(
        self,
        moments: Callable[..., tuple[TensorVariable, TensorVariable]],
        parameters: Sequence[TensorVariable],
        start: Bijection,
        blend: Blend | None = None,
        sequences: Sequence[TensorVariable] = (),
    ):
        self.moments = moments
        self.parameters_of_moments = list(parameters)
        self.start = start
        self.blend = blend
        self.sequences = list(sequences)
        self.gateable = start.gateable

    def _transition(self, state, sequences, parameters):
        """Location and scale of a step."""
        loc, scale = self.moments(state, *parameters)
        return (loc, scale) if self.blend is None else self.blend(loc, scale, *sequences)

    def _log_det(self, scale, event):
        return pt.sum(pt.broadcast_to(pt.log(scale), event.shape))

    def forward(self, noise):
        start, start_log_det = self.start.forward(noise[..., 0])
        sequences = [pt.moveaxis(s, -1, 0) for s in (noise[..., 1:], *self.sequences)]
        n_sequences = len(sequences)

        def step(*arguments):
            noise_t, *sequences_t = arguments[:n_sequences]
            state, *parameters = arguments[n_sequences:]
            loc, scale = self._transition(state, sequences_t, parameters)
            value = loc + scale * noise_t
            return value.astype(state.dtype), pt.broadcast_to(pt.log(scale), state.shape)

        later, log_scale = pytensor.scan(
            step,
            sequences=sequences,
            outputs_info=[start, None],
            non_sequences=self.parameters_of_moments,
            return_updates=False,
            strict=True,
        )
        value = pt.concatenate([start[..., None], pt.moveaxis(later, 0, -1)], axis=-1)
        return value, start_log_det + log_scale.sum()

    def inverse(self, value):
        start, start_log_det = self.start.inverse(value[..., 0])
        later = value[..., 1:]
        # the moments see a trailing axis of time, as they do in PyMC's own log density
        loc, scale = self._transition(
            value[..., :-1], self.sequences, [p[..., None] for p in self.parameters_of_moments]
        )
        noise = pt.concatenate([start[..., None], (later - loc) / scale], axis=-1)
        return noise, start_log_det - self._log_det(scale, later)

    def gated(self, gate):
        start = self.start.gated(gate[..., 0])
        return Diffusion(self.moments, self.parameters_of_moments, start, _gate, [gate[..., 1:]])


@register_bijection(pm.RandomWalk.rv_type)
def random_walk(op, rv, transform):
    if transform is not None:
        return None
    init_dist, innovation_dist, _ = rv.owner.inputs  # shapes (1, ...) and (T - 1, ...)
    start = bijection_from_rv(init_dist, None)
    innovation = bijection_from_rv(innovation_dist, None)
    if start is None or innovation is None:
        return None
    one = pt.ones((), dtype=rv.dtype)
    return LinearRecurrence([one], start, innovation, axis=-op.ndim_supp)


@register_bijection(pm.AR.rv_type)
def auto_regression(op, rv, transform):
    if transform is not None:
        return None
    rhos, sigma, init_dist, _, _ = rv.owner.inputs
    start = bijection_from_rv(init_dist, None)
    if start is None:
        return None
    rhos, sigma = rhos.astype(rv.dtype), sigma.astype(rv.dtype)
    constant = rhos[..., 0] if op.constant_term else pt.zeros((), dtype=rv.dtype)
    first = int(op.constant_term)
    coefficients = [rhos[..., first + i] for i in range(op.ar_order)]
    return LinearRecurrence(coefficients, time_first(start), LocScale(constant, sigma), axis=-1)


def time_first(site: Bijection) -> Bijection:
    """Turn a bijection whose axis of time is the last into one where it is the first."""
    return Rearranged(site, lambda x: pt.moveaxis(x, 0, -1), lambda x: pt.moveaxis(x, -1, 0))


@register_bijection(pm.GARCH11.rv_type)
def garch(op, rv, transform):
    if transform is not None:
        return None
    parameters = [parameter.astype(rv.dtype) for parameter in rv.owner.inputs[:4]]
    return Garch(*parameters)


@register_bijection(pm.EulerMaruyama.rv_type)
def euler_maruyama(op, rv, transform):
    if transform is not None:
        return None
    init_dist, _, *parameters, _ = rv.owner.inputs
    start = bijection_from_rv(init_dist, None)
    if start is None:
        return None
    dt = pt.as_tensor(op.dt).astype(rv.dtype)

    def moments(state, *sde_parameters):
        drift, diffusion = op.sde_fn(state, *sde_parameters)
        return state + dt * drift, pt.sqrt(dt) * diffusion

    return Diffusion(moments, [p.astype(rv.dtype) for p in parameters], start)
