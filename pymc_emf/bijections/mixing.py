r"""Conditional distributions whose parameters are mixed with trainable ones (ASVI).

Automatic structured variational inference replaces every parameter of a conditional distribution
by a convex combination, :math:`\lambda\,\theta(x_{<j}) + (1 - \lambda)\,\alpha`, of the one that
the model gives and of a trainable one in the same domain (Ambrogioni et al. 2021, Eq. 5). Which
domain that is tell the checks of PyMC's own log density. In a sequence every step has a location
and a scale of its own to be mixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple, cast

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from pymc.distributions.custom import CustomSymbolicDistRV
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.multivariate import ZeroSumNormalRV
from pymc.logprob.basic import logp
from pymc.logprob.transforms import IntervalTransform, Transform
from pymc.logprob.utils import CheckParameterValue, check_potential_measurability
from pymc.pytensorf import constant_fold
from pymc.vartypes import discrete_types
from pytensor.graph.op import Op
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.variable import TensorVariable
from scipy.special import logit

from pymc_emf._compat import LKJCholeskyCovRV, default_transform
from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import Bijection, Identity, bijection_from_rv
from pymc_emf.bijections.core.compose import Composed
from pymc_emf.bijections.families.time_series import (
    Diffusion,
    Garch,
    LinearRecurrence,
    time_first,
)

__all__ = ["Domain", "Mixing", "Part", "mixed_bijection", "parameter_domains", "used_weights"]


@dataclass(frozen=True)
class Domain:
    """A convex set of parameters, as the image of real numbers.

    Attributes
    ----------
    name : str
    forward : callable
        From real numbers to the set (PyTensor).
    backward : callable
        From the set to real numbers (NumPy).
    """

    name: str
    forward: Callable[[TensorVariable], TensorVariable]
    backward: Callable[[np.ndarray], np.ndarray]


def _covariance(raw):
    """Product of a lower-triangular matrix, whose diagonal is given by its log."""
    diagonal = pt.exp(pt.diagonal(raw, axis1=-2, axis2=-1))
    size = raw.type.shape[-1]
    matrix = raw * np.tri(size, k=-1) + diagonal[..., None] * np.eye(size)
    return matrix @ pt.matrix_transpose(matrix)


def _raw_of_covariance(covariance):
    matrix = np.linalg.cholesky(covariance)
    diagonal = np.log(np.diagonal(matrix, axis1=-2, axis2=-1))
    size = matrix.shape[-1]
    return matrix * np.tri(size, k=-1) + diagonal[..., None] * np.eye(size)


REAL = Domain("real", lambda raw: raw, lambda x: x)
POSITIVE = Domain("positive", pt.exp, np.log)
UNIT = Domain("unit", pt.sigmoid, logit)
COVARIANCE = Domain("covariance", _covariance, _raw_of_covariance)


class Part(NamedTuple):
    """One parameter that is mixed: what the model gives, its domain, and its shape."""

    prior: TensorVariable
    domain: Domain
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights, and of trainable parameters."""
        return int(np.prod(self.shape))


def used_weights(weights, domain: Domain):
    """Weights that count: one a matrix, which keeps a covariance positive definite."""
    return weights[..., :1, :1] if domain is COVARIANCE else weights


class Mixing:
    """Convex combinations whose weights and alternatives stand in one flat vector.

    Parameters
    ----------
    raw : TensorVariable
        Of every part in turn the logits of its weights and its raw alternatives.

    Attributes
    ----------
    parts : list of Part
        What has been mixed so far.
    """

    def __init__(self, raw: TensorVariable):
        self._raw = raw
        self.parts: list[Part] = []

    def halves(
        self, prior: TensorVariable, domain: Domain, shape: Sequence[int]
    ) -> tuple[TensorVariable, TensorVariable]:
        """Weight of the prior's parameter, and its alternative, as the next part."""
        start = 2 * sum(part.size for part in self.parts)
        part = Part(prior, domain, tuple(shape))
        self.parts.append(part)
        middle, end = start + part.size, start + 2 * part.size
        weight = pt.sigmoid(self._raw[start:middle].reshape(part.shape))
        return weight, domain.forward(self._raw[middle:end].reshape(part.shape))

    def __call__(
        self, prior: TensorVariable, domain: Domain, shape: Sequence[int]
    ) -> TensorVariable:
        """Mix a parameter."""
        weight, alternative = self.halves(prior, domain, shape)
        weight = used_weights(weight, domain)
        return weight * prior + (1 - weight) * alternative


def mixed_bijection(
    rv: TensorVariable, transform: Transform | None, shape: tuple[int, ...], mixing: Mixing
) -> Bijection:
    """Bijection of a variable whose parameters are mixed with trainable ones.

    A variable without such parameters (uniform, improper, or with no known bijection) gets a
    trainable location and scale of its noise.

    Parameters
    ----------
    rv : TensorVariable
    transform : Transform or None
    shape : tuple of int
        Of its value.
    mixing : Mixing
        Is told the parts.
    """
    n_parts = len(mixing.parts)
    site = _mixed(rv.owner.op, rv, transform, mixing)
    if site is not None and len(mixing.parts) > n_parts:
        return site
    del mixing.parts[n_parts:]
    site = bijection_from_rv(rv, transform) or Identity()
    zero, one = pt.zeros(shape), pt.ones(shape)
    of_noise = LocScale(mixing(zero, REAL, shape), mixing(one, POSITIVE, shape))
    return Composed(of_noise, site)


# --- which parameters are mixed, and where they live ---------------------------------------------

#: By their position, parameters that PyMC does not check, or that have to stay as they are (None):
#: what is ignored, a bound, a size or a table.
UNCHECKED: dict[type[Op], dict[int, Domain | None]] = {
    pm.HalfNormal.rv_type: {0: None},
    pm.Wald.rv_type: {2: None},
    pm.Interpolated.rv_type: {0: None, 1: None, 2: None},
    pm.LKJCorr.rv_type: {0: None, 1: POSITIVE},
    LKJCholeskyCovRV: {0: None, 1: POSITIVE, 2: None},
    pm.StickBreakingWeights.rv_type: {0: POSITIVE, 1: None},
    pm.Triangular.rv_type: {1: None},
    ZeroSumNormalRV: {0: POSITIVE, 1: None},
    pm.MvNormal.rv_type: {1: COVARIANCE},
    pm.MvStudentT.rv_type: {2: COVARIANCE},
    pm.Wishart.rv_type: {1: COVARIANCE},
}

#: Values that all parameters of a family may have together, one of which serves every family; and
#: values outside of narrower domains. Small enough for integers of one byte.
TRIED, NEGATIVE, LARGE = (1, 0.5, 10), -1, 100


def parameter_domains(rv: TensorVariable, transform: Transform | None) -> dict[int, Domain]:
    """Domains of a random variable's parameters, by their position among its node's inputs.

    Left out are parameters that the support depends on, matrices other than covariances, and
    parameters that are distributions.
    """
    op = rv.owner.op
    ndims = getattr(op, "ndims_params", None)
    if ndims is None:
        return {}
    parameters, positions = _parameters(rv)
    known = UNCHECKED.get(type(op), {})
    domains = {i: domain for i, domain in known.items() if domain is not None}
    random = {i for i, p in enumerate(parameters) if check_potential_measurability([p])}
    checked = [
        i
        for i, ndim in enumerate(ndims)
        if i not in known and i not in random and ndim < 2 and parameters[i].dtype != "bool"
    ]
    if checked:
        replaced = {i: p for i, p in enumerate(positions) if i not in random}
        domains |= _checked_domains(rv, transform, replaced, checked)
    # several numbers below one may have to add up to it
    return {positions[i]: d for i, d in sorted(domains.items()) if d is not UNIT or ndims[i] == 0}


def _parameters(rv: TensorVariable) -> tuple[list[TensorVariable], list[int]]:
    """Parameters of a random variable, and their positions among its node's inputs."""
    parameters = list(rv.owner.op.dist_params(rv.owner))
    inputs = enumerate(rv.owner.inputs)  # among which one variable may occur twice
    return parameters, [next(i for i, v in inputs if v is p) for p in parameters]


def _checked_domains(rv, transform, positions, checked) -> dict[int, Domain]:
    """Domains of parameters by what PyMC's log density checks."""
    inputs = list(rv.owner.inputs)
    stand_ins = {i: inputs[position].type() for i, position in positions.items()}
    for i, position in positions.items():
        inputs[position] = stand_ins[i]
    copy = rv.owner.clone_with_new_inputs(inputs).outputs[rv.owner.outputs.index(rv)]
    conditions = _conditions(copy)
    bounding = set(ancestors(_bounds(copy, transform)))

    def holds(base, changed: dict[int, float] | None = None) -> bool:
        values = dict.fromkeys(stand_ins, base) | (changed or {})
        constants = {stand_ins[i]: _filled(stand_ins[i], value) for i, value in values.items()}
        return all(np.all(check) for check in _fold(conditions, constants))

    base = next((x for x in TRIED if holds(x)), None)
    if base is None:
        return {}
    domains = {}
    for i in checked:
        if stand_ins[i] in bounding:
            continue
        if holds(base, {i: NEGATIVE}):
            domains[i] = REAL
        else:
            domains[i] = POSITIVE if holds(base, {i: LARGE}) else UNIT
    return domains


def _filled(variable: TensorVariable, value: float) -> TensorVariable:
    """Constant of a variable's type; a matrix is a multiple of the identity."""
    shape = [n or 1 for n in variable.type.shape]
    square = len(shape) > 1 and shape[-1] == shape[-2]
    array = np.full(shape, value) * (np.eye(shape[-1]) if square else 1)
    return cast(TensorVariable, pt.constant(array.astype(variable.dtype)))


def _conditions(rv: TensorVariable) -> list[TensorVariable]:
    """What PyMC's log density checks of the parameters."""
    try:
        density = logp(rv, rv.type(), warn_rvs=False)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return []
    checks = [
        v.owner
        for v in ancestors([density])
        if v.owner is not None and isinstance(v.owner.op, CheckParameterValue)
    ]
    return [condition for node in checks for condition in node.inputs[1:]]


def _bounds(rv: TensorVariable, transform: Transform | None) -> list[TensorVariable]:
    transforms = (transform, default_transform(rv.owner.op, rv))
    intervals = [t for t in transforms if isinstance(t, IntervalTransform)]
    return [pt.as_tensor(b) for t in intervals for b in t.get_a_and_b(rv.owner.inputs)[:2]]


def _fold(variables, constants) -> Sequence[Any]:
    """Values of conditions; those that depend on more than the parameters count as met."""
    folded = constant_fold(
        cast(list, graph_replace(variables, constants, strict=False)), raise_not_constant=False
    )
    return [x if isinstance(x, np.ndarray | np.generic) else True for x in folded]


def _static(variable: TensorVariable) -> tuple[int, ...]:
    """Shape of a variable of a frozen model."""
    if None not in variable.type.shape:
        return variable.type.shape
    return tuple(int(n) for n in constant_fold(tuple(variable.shape)))


# --- families ------------------------------------------------------------------------------------


@singledispatch
def _mixed(
    op: Op, rv: TensorVariable, transform: Transform | None, mixing: Mixing
) -> Bijection | None:
    """Bijection with mixed parameters, None if there are none or it is not known."""
    return None


@_mixed.register(RandomVariable)
@_mixed.register(SymbolicRandomVariable)
def _(op, rv, transform, mixing):
    changed = _with_mixed_parameters(rv, transform, mixing)
    return bijection_from_rv(changed, transform)


def _with_mixed_parameters(rv, transform, mixing, leave=()):
    """Copy of a random variable, all parameters but those in the domains of ``leave`` mixed."""
    op, inputs = rv.owner.op, list(rv.owner.inputs)
    batch = _static(rv)[: rv.ndim - op.ndim_supp]
    # elements that a transform or the user's own graph takes together share their parameters
    own_graph = isinstance(op, CustomSymbolicDistRV)
    jointly = own_graph or (transform is not None and transform.ndim_supp > op.ndim_supp)
    domains = parameter_domains(rv, transform)
    if not domains:
        return rv
    _, positions = _parameters(rv)
    for position, domain in domains.items():
        parameter = inputs[position]
        if domain in leave or (own_graph and parameter.dtype in discrete_types):
            continue  # the user's graph takes integers only where it has them
        own = _static(parameter)
        n_batch = parameter.ndim - op.ndims_params[positions.index(position)]
        shape = own if jointly else (*batch, *own[n_batch:])
        mixed = mixing(parameter.astype(rv.dtype), domain, shape)
        inputs[position] = mixed.astype(parameter.dtype if own_graph else rv.dtype)
    if own_graph or isinstance(op, RandomVariable):
        return op.make_node(*inputs).outputs[rv.owner.outputs.index(rv)]
    # the graph inside depends on the shapes of the parameters
    return op.rv_op(*(inputs[position] for position in positions), size=batch)


def _mixed_inner(rv, mixing, leave=()):
    """Bijection of a distribution that is an input of another one."""
    return bijection_from_rv(_with_mixed_parameters(rv, None, mixing, leave), None)


@_mixed.register(pm.RandomWalk.rv_type)
def _(op, rv, transform, mixing):
    if transform is not None:
        return None
    init_dist, innovation_dist, _ = rv.owner.inputs
    start = _mixed_inner(init_dist, mixing)
    # the location of a step is that of its innovation and the value before
    innovation = _mixed_inner(innovation_dist, mixing, leave=(REAL,))
    if start is None or innovation is None:
        return None
    before = pt.moveaxis(rv, -op.ndim_supp, 0)[:-1]
    weight, location = mixing.halves(before, REAL, _static(before))
    shift = LocScale((1 - weight) * location, pt.ones((), dtype=rv.dtype))
    return LinearRecurrence([weight], start, Composed(innovation, shift), axis=-op.ndim_supp)


@_mixed.register(pm.AR.rv_type)
def _(op, rv, transform, mixing):
    if transform is not None:
        return None
    rhos, sigma, init_dist, _, _ = rv.owner.inputs
    start = _mixed_inner(init_dist, mixing)
    if start is None:
        return None
    later = pt.moveaxis(rv, -1, 0)[op.ar_order :]  # about where they are expected
    shape = _static(later)
    first = int(op.constant_term)
    weight, location = mixing.halves(later, REAL, shape)
    constant = rhos[..., 0] if op.constant_term else pt.zeros(())
    innovation = LocScale(
        weight * constant + (1 - weight) * location, mixing(sigma, POSITIVE, shape)
    )
    coefficients = [weight * rhos[..., first + i] for i in range(op.ar_order)]
    return LinearRecurrence(coefficients, time_first(start), innovation, axis=-1)


def _mixed_moments(mixing, location, scale, shape):
    """Blend of the moments of a step, and what it needs of every step, time last."""

    def blend(loc, scale, loc_weight, other_loc, scale_weight, other_scale):
        return (
            loc_weight * loc + (1 - loc_weight) * other_loc,
            scale_weight * scale + (1 - scale_weight) * other_scale,
        )

    halves = (*mixing.halves(location, REAL, shape), *mixing.halves(scale, POSITIVE, shape))
    return blend, halves


@_mixed.register(pm.EulerMaruyama.rv_type)
def _(op, rv, transform, mixing):
    site = bijection_from_rv(rv, transform)
    if not isinstance(site, Diffusion):
        return None
    start = _mixed_inner(rv.owner.inputs[0], mixing)
    if start is None:
        return None
    later = rv[..., 1:]
    _, scale = site.moments(rv[..., :-1], *[p[..., None] for p in site.parameters_of_moments])
    blend, halves = _mixed_moments(mixing, later, scale, _static(later))
    return Diffusion(site.moments, site.parameters_of_moments, start, blend, halves)


@_mixed.register(pm.GARCH11.rv_type)
def _(op, rv, transform, mixing):
    site = bijection_from_rv(rv, transform)
    if not isinstance(site, Garch):
        return None
    scale = site.initial[..., None] if site.initial.ndim else site.initial
    blend, halves = _mixed_moments(mixing, pt.zeros_like(rv), scale, _static(rv))
    return Garch(site.omega, site.alpha, site.beta, site.initial, blend, halves)
