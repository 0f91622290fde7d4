"""Monotone functions of a bijection's value, as PyMC finds them in a graph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pymc.distributions.transforms import _default_transform
from pymc.exceptions import NotConstantValueError
from pymc.logprob.transforms import (
    MONOTONICALLY_DECREASING_OPS,
    MONOTONICALLY_INCREASING_OPS,
    IntervalTransform,
    LogOddsTransform,
    LogTransform,
    MeasurableTransform,
    Transform,
)
from pymc.pytensorf import constant_fold
from pytensor.graph.basic import Variable
from pytensor.scalar.basic import Abs, Cosh, Mul, Pow
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.core.elementwise import Elementwise

__all__ = [
    "Step",
    "Transformed",
    "TransformedElementwise",
    "image",
    "image_of_transform",
    "monotone_step",
    "support",
]


@dataclass(frozen=True)
class Step:
    """An elementwise function, one factor of a composition."""

    transform: Transform
    inputs: tuple[Variable, ...]
    sign: Variable | float = 1.0
    #: Of several preimages, take the last, the positive one.
    last_branch: bool = False

    def forward(self, x):
        return self.transform.forward(x, *self.inputs)

    def backward(self, y):
        x = self.transform.backward(y, *self.inputs)
        return x[-1] if self.last_branch else x

    def log_derivative(self, y):
        return -self.transform.log_jac_det(y, *self.inputs)


class Transformed(Bijection):
    r"""A monotone function of each element of the value of a bijection.

    Where the function decreases the noise changes sign, which leaves it standard normal and
    the diagonal of the Jacobian positive. The gate acts on the bijection *inside*: with the gate
    closed the value is the function of the noise. (Elementwise bijections do better, see
    :class:`TransformedElementwise`.)
    """

    def __init__(self, site: Bijection, steps: Sequence[Step], gateable: bool):
        self.site = site
        self.steps = list(steps)
        self.gateable = gateable

    def _sign(self):
        sign: Any = 1.0
        for step in self.steps:
            sign = sign * step.sign
        return sign

    def _outwards(self, x):
        log_derivative = pt.zeros_like(x)
        for step in self.steps:
            x = step.forward(x)
            log_derivative = log_derivative + step.log_derivative(x)
        return x, log_derivative

    def _inwards(self, y):
        log_derivative = pt.zeros_like(y)
        for step in reversed(self.steps):
            log_derivative = log_derivative + step.log_derivative(y)
            y = step.backward(y)
        return y, log_derivative

    def forward(self, noise):
        inner, log_det = self.site.forward(self._sign() * noise)
        value, log_derivative = self._outwards(inner)
        return value, log_det + log_derivative.sum()

    def inverse(self, value):
        inner, log_derivative = self._inwards(value)
        noise, log_det = self.site.inverse(inner)
        return self._sign() * noise, log_det - log_derivative.sum()

    def gated(self, gate):
        return Transformed(self.site.gated(gate), self.steps, self.gateable)


class TransformedElementwise(Transformed, Elementwise):
    """As :class:`Transformed`, of an elementwise bijection, gated in value space."""

    site: Elementwise

    def to_value(self, noise):
        inner, log_slope = self.site.to_value(self._sign() * noise)
        value, log_derivative = self._outwards(inner)
        return value, log_slope + log_derivative

    def to_noise(self, value):
        inner, log_derivative = self._inwards(value)
        noise, log_slope = self.site.to_noise(inner)
        return self._sign() * noise, log_slope + log_derivative

    gated = Elementwise.gated


def support(rv: TensorVariable) -> tuple[float, float]:
    """Bounds of a random variable, NaN where they are not known."""
    transform = _default_transform(rv.owner.op, rv)
    if transform is None:
        return -np.inf, np.inf
    if isinstance(transform, LogTransform):
        return 0.0, np.inf
    if isinstance(transform, LogOddsTransform):
        return 0.0, 1.0
    if isinstance(transform, IntervalTransform):
        lower, upper, *_ = transform.get_a_and_b(rv.owner.inputs)
        return _number(lower), _number(upper)
    return np.nan, np.nan


def _number(variable: Any) -> float:
    """Value of a constant, of which all elements are the same; NaN if it is not one."""
    try:
        (value,) = constant_fold((pt.as_tensor(variable),))
    except NotConstantValueError:
        return np.nan
    value = np.unique(np.asarray(value, dtype=float))
    return float(value[0]) if value.size == 1 else np.nan


def monotone_step(
    op: MeasurableTransform, others: tuple[Variable, ...], bounds: tuple[float, float]
) -> Step | None:
    """Orient one function on an interval, None if it is not monotone there."""
    scalar_op, step = op.scalar_op, Step(op.transform_elemwise, others)
    positive = bounds[0] >= 0
    if isinstance(scalar_op, Mul):
        return replace(step, sign=pt.sign(others[0]))
    if isinstance(scalar_op, Pow):
        power = op.transform_elemwise.power
        if power > 0 and power % 2 == 1:
            return step
        if not positive:
            return None
        even = power % 2 == 0  # then PyMC finds two preimages
        return replace(step, sign=1.0 if power > 0 else -1.0, last_branch=even)
    if isinstance(scalar_op, Abs | Cosh):
        return replace(step, last_branch=True) if positive else None
    if isinstance(scalar_op, MONOTONICALLY_INCREASING_OPS):
        return step
    if isinstance(scalar_op, MONOTONICALLY_DECREASING_OPS):
        return replace(step, sign=-1.0)
    return None


def image(
    op: MeasurableTransform, others: tuple[Variable, ...], bounds: tuple[float, float]
) -> tuple[float, float]:
    """Bounds of a function's values. A factor that is not known is taken to be positive."""
    arguments = [_number(other) for other in others]
    if isinstance(op.scalar_op, Mul) and np.isnan(arguments).any():
        arguments = [1.0]
        bounds = tuple(b if b == 0 or np.isinf(b) else np.nan for b in bounds)  # type: ignore
    if isinstance(op.scalar_op, Pow):
        arguments = [op.transform_elemwise.power]
    with np.errstate(all="ignore"):
        ends = [
            # an end at infinity stays there, whatever is added to it
            b
            if np.isinf(b) and np.isnan(arguments).any()
            else float(op.scalar_op.impl(np.float64(b), *map(np.float64, arguments)))
            for b in bounds
        ]
    return (np.nan, np.nan) if np.isnan(ends).any() else (min(ends), max(ends))


def image_of_transform(transform: Transform, bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds of the values under an increasing transform."""
    if np.isnan(bounds).any():
        return bounds
    with np.errstate(all="ignore"):
        lower, upper = (
            float(constant_fold((transform.forward(pt.constant(b, dtype="float64")),))[0])
            for b in bounds
        )
    return lower, upper
