"""Monotone functions of a bijection's value, as PyMC finds them in a graph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pytensor.tensor as pt

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

from pymc_emf._compat import default_transform
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.core.compose import Composed, ComposedElementwise, Function
from pymc_emf.bijections.core.elementwise import Elementwise

__all__ = ["Step", "image", "image_of_transform", "monotone_step", "support", "transformed"]


@dataclass(frozen=True, eq=False)
class Step(Elementwise):
    """An elementwise function, one factor of a composition; it may decrease."""

    transform: Transform
    inputs: tuple[Variable, ...]
    #: Of the derivative.
    sign: Any = 1.0
    #: Of several preimages, take the last, the positive one.
    last_branch: bool = False

    def to_value(self, noise):
        value = self.transform.forward(noise, *self.inputs)
        return value, -self.transform.log_jac_det(value, *self.inputs)

    def to_noise(self, value):
        noise = self.transform.backward(value, *self.inputs)
        log_slope = self.transform.log_jac_det(value, *self.inputs)
        return noise[-1] if self.last_branch else noise, log_slope


def transformed(site: Bijection, steps: Sequence[Step], gateable: bool) -> Bijection:
    r"""Apply monotone functions to each element of the value of a bijection.

    Where their composition decreases the noise changes sign, which leaves it standard normal and
    the diagonal of the Jacobian positive. The gate acts in value space if the bijection is
    elementwise. Otherwise it acts on the bijection *inside*: with the gate closed the value is the
    function of the noise.
    """
    function = ComposedElementwise(*steps)
    sign = prod(step.sign for step in steps)
    turn = Function(lambda x: sign * x, lambda x: sign * x, pt.zeros_like)
    if isinstance(site, Elementwise):
        return ComposedElementwise(turn, site, function, gateable=gateable)
    return Composed(turn, site, function, gated_part=1 if gateable else None)


def support(rv: TensorVariable) -> tuple[float, float]:
    """Bounds of a random variable, NaN where they are not known."""
    transform = default_transform(rv.owner.op, rv)
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
