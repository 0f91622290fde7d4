r"""``pm.CustomDist(dist=f)``: the graph that f draws from, as a bijection.

PyMC rewrites such a graph into measurable pieces to find its log density; the same pieces are
composed here into a map of noise:

- one random variable is its own bijection;
- an elementwise function of one is applied after its bijection;
- random variables joined into a tensor are triangular in the order in which they depend on each
  other (EMF Eq. 5);
- a scan whose step draws a random variable is one scan, with the gate inside the recursion,
  :math:`u_t = \lambda_t f(\varepsilon_t; u_{<t}) + (1 - \lambda_t)\varepsilon_t`.

A graph with a random draw that is no part of the value has no such map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytensor.tensor as pt

from pymc.distributions.custom import CustomSymbolicDistRV
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.transforms import LogExpM1
from pymc.exceptions import NotConstantValueError
from pymc.logprob.basic import logp
from pymc.logprob.rewriting import construct_ir_fgraph
from pymc.logprob.scan import MeasurableScan
from pymc.logprob.tensor import (
    MeasurableCast,
    MeasurableDimShuffle,
    MeasurableJoin,
    MeasurableMakeVector,
)
from pymc.logprob.transforms import (
    IntervalTransform,
    LogOddsTransform,
    LogTransform,
    MeasurableTransform,
    Transform,
)
from pymc.logprob.utils import check_potential_measurability
from pymc.pytensorf import constant_fold
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Exp
from pytensor.scalar.math import Sigmoid, Softplus
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Bijection, bijection_from_rv, register_bijection
from pymc_emf.bijections.families.recursion import Recursion, values_before
from pymc_emf.bijections.families.shuffled import shuffle
from pymc_emf.bijections.families.transformed import (
    Step,
    image,
    image_of_transform,
    monotone_step,
    support,
    transformed,
)
from pymc_emf.bijections.numerics.tabulated import by_quadrature

__all__ = ["Joined"]

#: What a measurable graph's placeholders stand for.
Given = Mapping[Variable, Variable]


@register_bijection(CustomSymbolicDistRV)
def custom(op, rv, transform):
    # Parameters may be random themselves, other variables of the model: placeholders keep PyMC
    # from measuring them.
    placeholders = [v if isinstance(v, Constant) else v.type() for v in rv.owner.inputs]
    given = {p: v for p, v in zip(placeholders, rv.owner.inputs, strict=True) if p is not v}
    drawn = op.fgraph.bind(placeholders)[op.default_output]
    variable, outer = _cancel(drawn, _bind(transform, rv.owner.inputs))
    (valued,) = construct_ir_fgraph({variable: variable.type()}).outputs
    site = measurable_bijection(valued.owner.inputs[0], outer, given)
    if site is not None or not _has_density(op.make_node(*placeholders).default_output()):
        return site
    return by_quadrature(rv, transform) if op.ndim_supp == 0 else None


def _has_density(rv: TensorVariable) -> bool:
    """Whether PyMC finds a log density, and one that depends on no random draw."""
    try:
        return not check_potential_measurability([logp(rv, rv.type(), warn_rvs=False)])
    except (NotImplementedError, ValueError):
        return False


def measurable_bijection(
    variable: TensorVariable, transform: Transform | None, given: Given
) -> Bijection | None:
    """Bijection of a variable in PyMC's measurable form.

    Parameters
    ----------
    variable : TensorVariable
    transform : Transform or None
        From the variable to its value; uses no inputs of the variable.
    given : mapping
        Replacements of inputs of the variable's graph.

    Returns
    -------
    Bijection or None
    """
    if variable.owner is None:
        return None
    op, inputs = variable.owner.op, variable.owner.inputs
    if isinstance(op, RandomVariable | SymbolicRandomVariable):
        if _draws_besides(variable, transform):
            return None
        return bijection_from_rv(_given([variable], given)[0], transform)
    if isinstance(op, MeasurableCast):
        return measurable_bijection(inputs[0], transform, given)
    if transform is not None and transform.ndim_supp > 0:
        return None
    if isinstance(op, MeasurableTransform):
        return _transformed(variable, transform, given)
    if isinstance(op, MeasurableDimShuffle):
        site = measurable_bijection(inputs[0], transform, given)
        return None if site is None else shuffle(site, op)
    if isinstance(op, MeasurableMakeVector | MeasurableJoin):
        return _joined(variable, transform, given)
    if isinstance(op, MeasurableScan):
        outer = [v for v in inputs if not isinstance(v.type, RandomType)]
        if check_potential_measurability(outer):
            return None
        return Recursion.of(
            _given([variable], given)[0],
            transform,
            lambda step: measurable_bijection(step, transform, {}),
        )
    return None


def _given(variables: Sequence[Variable], given: Given) -> list[Any]:
    return cast(list, graph_replace(variables, dict(given), strict=False))


def _draws_besides(rv: TensorVariable, transform: Transform | None) -> bool:
    """Whether a parameter is random, rather than a distribution of which the bijection is made."""
    parameters = [v for v in rv.owner.inputs if not isinstance(v.type, RandomType)]
    if not check_potential_measurability(parameters):
        return False
    site = bijection_from_rv(rv, transform)
    if site is None:
        return True
    value, _ = site.forward(pt.tensor(dtype=rv.dtype, shape=(None,) * rv.ndim))
    return check_potential_measurability([value])


def _bind(transform: Transform | None, inputs: Sequence[Variable]) -> Transform | None:
    """Evaluate a transform's bounds, so that it needs no inputs of the variable any more."""
    if not isinstance(transform, IntervalTransform):
        return transform
    lower, upper, lower_bounded, upper_bounded = transform.get_a_and_b(inputs)
    bounds = (lower if lower_bounded else None, upper if upper_bounded else None)
    return IntervalTransform(lambda *_: bounds)


#: The inverse of each transform, as a user writes it.
INVERSES = {LogTransform: Exp, LogOddsTransform: Sigmoid, LogExpM1: Softplus}


def _cancel(
    variable: TensorVariable, transform: Transform | None
) -> tuple[TensorVariable, Transform | None]:
    """Drop a transform and the function it undoes; in a tail their product would be rounded."""
    inverse = INVERSES.get(type(transform))
    op = None if variable.owner is None else variable.owner.op
    if inverse is None or not isinstance(op, Elemwise) or not isinstance(op.scalar_op, inverse):
        return variable, transform
    return variable.owner.inputs[0], None


def _transformed(
    variable: TensorVariable, transform: Transform | None, given: Given
) -> Bijection | None:
    pieces = []
    while isinstance(variable.owner.op, MeasurableTransform):
        node = variable.owner
        others = list(node.inputs)
        variable = others.pop(node.op.measurable_input_idx)
        if check_potential_measurability(others):
            return None
        pieces.append((node.op, tuple(_given(others, given))))
    site = measurable_bijection(variable, None, given)
    if site is None:
        return None
    bounds, steps = support(variable), []
    for op, others in reversed(pieces):
        step = monotone_step(op, others, bounds)
        if step is None:
            return None
        steps.append(step)
        bounds = image(op, others, bounds)
    if transform is not None:
        steps.append(Step(transform, ()))
        bounds = image_of_transform(transform, bounds)
    unbounded = bounds == (-np.inf, np.inf)
    return transformed(site, steps, gateable=unbounded)


@dataclass(frozen=True)
class _Part:
    """One of the variables joined: its placeholder in the others, and where it stands."""

    build: Callable[[Given], Bijection | None]
    placeholder: TensorVariable
    index: Any


class Joined(Bijection):
    """Bijections of variables that are joined to one tensor and may depend on each other.

    Parameters
    ----------
    parts : sequence
        Parents first.
    transform : Transform or None
        Of all of them, elementwise.
    """

    def __init__(
        self,
        parts: Sequence[_Part],
        transform: Transform | None,
        gateable: bool,
        gate: TensorVariable | None = None,
    ):
        self.parts = parts
        self.transform = transform
        self.gateable = gateable
        self.gate = gate

    def _constrain(self, value):
        return value if self.transform is None else self.transform.backward(value)

    def _site(self, part: _Part, known: Given) -> Bijection:
        site = cast(Bijection, part.build(known))
        return site if self.gate is None else site.gated(self.gate[part.index])

    def forward(self, noise):
        value, log_dets = noise, []
        known: dict[Variable, Variable] = {}
        for part in self.parts:
            piece, log_det = self._site(part, known).forward(noise[part.index])
            value = value[part.index].set(piece.astype(noise.dtype))
            known[part.placeholder] = self._constrain(piece).astype(part.placeholder.dtype)
            log_dets.append(log_det)
        return value, pt.add(*log_dets)

    def inverse(self, value):
        noise, log_dets = value, []
        known: dict[Variable, Variable] = {
            part.placeholder: self._constrain(value[part.index]).astype(part.placeholder.dtype)
            for part in self.parts
        }
        for part in self.parts:
            piece, log_det = self._site(part, known).inverse(value[part.index])
            noise = noise[part.index].set(piece.astype(value.dtype))
            log_dets.append(log_det)
        return noise, pt.add(*log_dets)

    def gated(self, gate):
        return Joined(self.parts, self.transform, self.gateable, gate)


def _joined(
    variable: TensorVariable, transform: Transform | None, given: Given
) -> Bijection | None:
    # PyMC marks the variables joined as having values, by which the others see them
    op, promised = variable.owner.op, variable.owner.inputs
    bases = [p.owner.inputs[0] for p in promised]
    placeholders = [base.type() for base in bases]
    if isinstance(op, MeasurableJoin):
        try:
            lengths = constant_fold(_given([_shape(base)[op.axis] for base in bases], given))
        except NotConstantValueError:
            return None
        stops = np.cumsum([int(length) for length in lengths])
        before = (slice(None),) * (op.axis % variable.ndim)
        indices: list[Any] = [
            (*before, slice(int(stop - length), int(stop)))
            for stop, length in zip(stops, lengths, strict=True)
        ]
    else:
        indices = list(range(len(bases)))

    parts: list[_Part] = []
    gateable = True
    for i in _parents_first(bases, promised):
        others = {
            p: q for j, (p, q) in enumerate(zip(promised, placeholders, strict=True)) if j != i
        }
        (base,) = _given([bases[i]], others)

        def build(known, base=base):
            return measurable_bijection(base, transform, {**given, **known})

        site = build({})
        if site is None:
            return None
        gateable = gateable and site.gateable
        parts.append(_Part(build, placeholders[i], indices[i]))
    return Joined(parts, transform, gateable)


def _shape(variable: TensorVariable) -> list[Any]:
    shape: list[Any] = list(variable.shape)
    if isinstance(variable.owner.op, MeasurableScan):  # counts the values before the first step
        shape[0] = shape[0] - values_before(variable)
    return shape


def _parents_first(bases: Sequence[Variable], promised: Sequence[Variable]) -> list[int]:
    """Order of the variables joined; each depends on others through what PyMC promised."""
    parents = [
        {j for j, p in enumerate(promised) if j != i and p in set(ancestors([base]))}
        for i, base in enumerate(bases)
    ]
    order: list[int] = []
    while len(order) < len(bases):
        order.append(
            next(i for i in range(len(bases)) if i not in order and parents[i] <= set(order))
        )
    return order
