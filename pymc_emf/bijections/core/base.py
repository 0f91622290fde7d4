"""What a bijection is, and the registry from a distribution's Op to its bijection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import pytensor.tensor as pt

from pymc.logprob.transforms import Transform
from pytensor.graph.op import Op
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.sharedvar import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import default_transform

__all__ = [
    "Bijection",
    "Identity",
    "Triangular",
    "bijection",
    "bijection_from_rv",
    "let_through",
    "register_bijection",
]


def let_through(gate: TensorVariable) -> TensorVariable:
    r"""Share of the noise that goes past a gate, :math:`1 - \lambda`.

    As a maximum, because PyTensor would write :math:`\lambda s + (1 - \lambda)` as
    :math:`1 + \lambda s - \lambda`, of which nothing is left if the gate is one and s small.
    """
    return pt.maximum(1 - gate, 0)


class Bijection(ABC):
    """An invertible map of one event, written symbolically in PyTensor.

    A bijection knows nothing of batches: it maps one event, and whoever compiles it
    vectorises. Both directions return the image and ``log|det|`` of *their own* Jacobian,
    a scalar, in nats.

    See Also
    --------
    pymc_emf.compile : a function of arrays from a bijection.
    """

    #: A bijection that cannot be gated, because the identity would leave the support of the
    #: value (a positive variable without a transform), sets this to False.
    gateable: bool = True

    #: Number of axes of one event: one for layers, that of the variable for site maps.
    event_ndim: int = 1

    @abstractmethod
    def forward(self, noise: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Map noise to value; return the value and the scalar ``log|d value / d noise|``."""

    @abstractmethod
    def inverse(self, value: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Map value to noise; return the noise and the scalar ``log|d noise / d value|``."""

    def gated(self, gate: TensorVariable) -> "Bijection":
        r"""Blend with the identity, :math:`\lambda f(\varepsilon) + (1 - \lambda)\varepsilon`.

        The gate acts per element of the value, inside the recursion of sequential families
        (EMF Eq. 8). Gate one is the bijection itself, gate zero the identity.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be gated.")

    @property
    def parameters(self) -> list[SharedVariable]:
        """Trainable shared variables, in a fixed order."""
        return []

    @property
    def buffers(self) -> list[SharedVariable]:
        """Shared variables that are set but not trained, in a fixed order."""
        return []

    @property
    def variables(self) -> list[SharedVariable]:
        """Parameters and buffers, in a fixed order."""
        return [*self.parameters, *self.buffers]


class Triangular(Bijection):
    """A map with a triangular Jacobian, of which the elements' own derivatives are known.

    Both directions return the image and the log of the diagonal of *their own* Jacobian, of the
    shape of the event.
    """

    @abstractmethod
    def to_value(self, noise: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Map noise to value; return the value and ``log(d value / d noise)`` of each element."""

    @abstractmethod
    def to_noise(self, value: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Map value to noise; return the noise and ``log(d noise / d value)`` of each element."""

    def forward(self, noise):
        value, log_slope = self.to_value(noise)
        return value, log_slope.sum()

    def inverse(self, value):
        noise, log_slope = self.to_noise(value)
        return noise, log_slope.sum()


class Identity(Bijection):
    """The map of a bypassed variable: the value is the noise."""

    def forward(self, noise):
        return noise, pt.zeros((), dtype=noise.dtype)

    def inverse(self, value):
        return value, pt.zeros((), dtype=value.dtype)

    def gated(self, gate):
        return self


Builder = Callable[[Op, TensorVariable, Transform | None], Bijection | None]


@singledispatch
def _build(op: Op, rv: TensorVariable, transform: Transform | None) -> Bijection | None:
    """Build the bijection of ``rv``; the answer for an Op that nobody registered is None."""
    return None


def register_bijection(op_type: type[Op]) -> Callable[[Builder], Builder]:
    """Register the bijection of a family of distributions.

    Parameters
    ----------
    op_type : type
        The ``RandomVariable`` or ``SymbolicRandomVariable`` class of the distribution,
        ``type(dist.owner.op)``. Subclasses inherit the registration.

    Returns
    -------
    callable
        A decorator for ``build(op, rv, transform)``, which returns the
        :class:`~pymc_emf.Bijection` from standard normal noise, of the shape of the value, to the
        value of ``rv`` under ``transform`` (None if the variable has none).
        The parameters stand in ``rv.owner.inputs``. It returns None where it does not
        apply, and the variable is bypassed.

    Examples
    --------
    A family with a quantile function needs only that, and its inverse:

    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> import pytensor.tensor as pt
    >>> from pymc_emf.bijections import log_ndtr, ndtri_exp, univariate
    >>> @emf.register_bijection(pm.Moyal.rv_type)
    ... def moyal(op, rv, transform):
    ...     mu, sigma = op.dist_params(rv.owner)  # x = mu - 2 sigma log(-Phi^-1(Phi(noise) / 2))
    ...
    ...     def quantile(noise):
    ...         return mu - 2 * sigma * pt.log(-ndtri_exp(log_ndtr(noise) - pt.log(2)))
    ...
    ...     def noise(x):
    ...         z = (x - mu) / sigma
    ...         return ndtri_exp(log_ndtr(-pt.exp(-z / 2)) + pt.log(2))
    ...
    ...     return univariate(rv, transform, quantile, noise)
    >>> site = emf.compile(emf.bijection(pm.Moyal.dist(0.0, 1.0)))
    >>> site.forward([0.0])[0].round(4)
    array([0.7876])
    """
    return _build.register(op_type)


_REASONS: dict[type[Op], str] = {}


def register_bypass(op_type: type[Op], reason: str) -> None:
    """Say that a family is never embedded, and why."""
    _REASONS[op_type] = reason
    _build.register(op_type)(lambda op, rv, transform: None)


def distribution(rv: TensorVariable) -> Op:
    """Op of a variable's distribution, in whatever order its axes stand."""
    op = rv.owner.op
    return distribution(rv.owner.inputs[0]) if isinstance(op, DimShuffle) else op


def bypass_reason(op: Op) -> str:
    """Why a variable that was not embedded was not."""
    return _REASONS.get(type(op), "no bijection is known")


#: Transforms that make one event of what are independent elements without them.
_BUILD_UNDER: dict[type[Transform], Callable[[TensorVariable, Any], Bijection | None]] = {}


def register_under_transform(transform_type: type[Transform]):
    """Register the bijection of every family under a transform, as ``build(rv, transform)``."""

    def register(build):
        _BUILD_UNDER[transform_type] = build
        return build

    return register


def bijection_from_rv(rv: TensorVariable, transform: Transform | None) -> Bijection | None:
    """Bijection from noise to the value of ``rv`` under ``transform``, None if unknown."""
    if rv.owner is None:
        return None
    for transform_type, build in _BUILD_UNDER.items():
        if isinstance(transform, transform_type) and (site := build(rv, transform)) is not None:
            return site
    return _build(rv.owner.op, rv, transform)


def bijection(dist: TensorVariable, *, transform: Any = "default") -> Bijection:
    r"""Site map of one distribution: standard normal noise to value space.

    For a univariate distribution with distribution function :math:`C` and transform :math:`T`
    it is :math:`u = T(C^{-1}(\Phi(\varepsilon)))` (EMF Eq. 4).

    Parameters
    ----------
    dist : TensorVariable
        A distribution made by PyMC's ``.dist()`` API.
    transform : Transform, None or "default"
        The transform that defines value space; by default the one PyMC gives the
        distribution inside a model. None leaves the value constrained.

    Returns
    -------
    Bijection

    Raises
    ------
    NotImplementedError
        If no bijection is registered for the distribution under that transform.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> site = emf.compile(emf.bijection(pm.HalfNormal.dist(2.0)))
    >>> value, log_det = site.forward([0.0])  # the log of the median
    >>> float(value[0].round(4))
    0.2994
    """
    op = dist.owner.op
    if isinstance(transform, str):
        if transform != "default":
            raise ValueError(
                f'transform must be a Transform, None or "default", got {transform!r}.'
            )
        transform = default_transform(op, dist)
    site = bijection_from_rv(dist, transform)
    if site is None:
        under = "no transform" if transform is None else f"the transform {transform}"
        raise NotImplementedError(
            f"No bijection is registered for {op} with {under}; "
            "register one with pymc_emf.register_bijection."
        )
    site.event_ndim = dist.ndim
    return site
