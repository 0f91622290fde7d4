"""A fitted density as a distribution of PyMC."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.graph.replace import clone_replace, vectorize_graph
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import logprob_of
from pymc_emf.bijections.core.base import Bijection, register_bijection
from pymc_emf.bijections.numerics.special import normal_logpdf
from pymc_emf.engine.compile import compile_bijection
from pymc_emf.layers.parameters import parameter

__all__ = ["FittedDistribution", "Frozen", "log_density"]


def log_density(flow: Bijection, value: TensorVariable) -> TensorVariable:
    """Log density, in nats, of a flow from standard normal noise at one vector (PyTensor)."""
    noise, log_det = flow.inverse(value)
    return normal_logpdf(noise).sum() + log_det


class Frozen(Bijection):
    """A flow with the values that its variables have now, which training does not change.

    Parameters
    ----------
    flow : Bijection
    """

    gateable = False

    def __init__(self, flow: Bijection):
        self.flow = flow
        self.size = flow.size  # type: ignore[attr-defined]
        # copies, and not constants, which take numba minutes to compile
        self._copies: dict[Any, Any] = {
            v: parameter(v.get_value(), str(v.name), v.type.dtype) for v in flow.variables
        }

    def _freeze(self, outputs):
        return tuple(clone_replace(list(outputs), self._copies))

    @property
    def buffers(self):
        return list(self._copies.values())

    def forward(self, noise):
        return self._freeze(self.flow.forward(noise))

    def inverse(self, value):
        return self._freeze(self.flow.inverse(value))


class FittedDistribution:
    """A fitted density as a prior or a likelihood in any PyMC model.

    It is called as PyMC's distributions are: ``dist("theta")`` inside of a model makes a variable,
    ``dist("y", observed=Y)`` an observed one, and ``dist.dist(...)`` a variable without a model.
    ``shape`` and ``dims`` are optional; the last axis is the event. Under :class:`EMFApprox` a
    variable of one event is embedded by its own flow.

    Parameters
    ----------
    flow : Bijection
        From noise to the event; its parameters are taken as they are now.
    """

    def __init__(self, flow: Bijection):
        self.flow = Frozen(flow)
        self.size = self.flow.size
        self._compiled = compile_bijection(self.flow)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"

    def __call__(self, name: str, **kwargs: Any) -> TensorVariable:
        """Make a variable of the model in context; keywords are those of PyMC's distributions."""
        return _FittedDensity(name, self, **kwargs)

    def dist(self, **kwargs: Any) -> TensorVariable:
        """Make a variable without a model."""
        return _FittedDensity.dist(self, **kwargs)

    @cached_property
    def middle(self) -> np.ndarray:
        """Image of zero noise."""
        return self._compiled.forward(np.zeros(self.size))[0]

    @cached_property
    def _event(self) -> tuple[TensorVariable, TensorVariable]:
        event = pt.vector("event", shape=(self.size,), dtype=pytensor.config.floatX)
        return event, log_density(self.flow, event)

    def logp(self, value: TensorVariable) -> Any:
        """Log density, in nats, at events along the last axis (PyTensor)."""
        event, log_prob = self._event

        def at(vector: Any) -> Any:
            replacements: dict[Any, Any] = {event: vector}
            return clone_replace(log_prob, replacements, rebuild_strict=False)

        if value.ndim == 1:
            return at(value)
        loops = any(v.owner and isinstance(v.owner.op, Scan) for v in ancestors([log_prob]))
        if not loops:
            return vectorize_graph(log_prob, {event: value})
        # PyTensor cannot vectorise a loop
        rows = value.reshape((-1, self.size))
        (each,) = pytensor.scan(
            lambda row: [at(row)],
            sequences=[rows],
            return_updates=False,
            return_list=True,
        )
        return each.reshape(value.shape[:-1])

    def draw(self, rng: np.random.Generator, size: Sequence[int] | None = None) -> np.ndarray:
        """Draw events, over the axes of size."""
        noise = rng.normal(size=(*(size or ()), self.size))
        return self._compiled.forward(noise)[0]


class FittedDensityRV(RandomVariable):
    """The Op of every fitted density, whose instances carry what was fitted.

    Its one parameter is the image of zero noise, which tells PyMC the length of the event.

    Parameters
    ----------
    density : FittedDistribution
    """

    name = "FittedDensity"
    signature = "(d)->(d)"
    dtype = "floatX"
    __props__ = (*RandomVariable.__props__, "density")  # type: ignore[assignment]
    _print_name = ("FittedDensity", r"\operatorname{FittedDensity}")

    def __init__(self, density: FittedDistribution, **props: Any):
        self.density = density
        super().__init__(**props)

    def rng_fn(self, rng, middle, size):
        return self.density.draw(rng, size)


class _FittedDensity(pm.Distribution):
    """What PyMC does when it makes a variable: shape, dims, data, and so on."""

    rv_type = FittedDensityRV

    @classmethod
    def dist(cls, density, **kwargs):
        return super().dist([density.middle], density=density, **kwargs)

    @classmethod
    def rv_op(cls, middle, *, density, rng=None, **kwargs):
        rng = pt.random.shared_rng(seed=None) if rng is None else rng
        op = FittedDensityRV(density)
        return op(middle, rng=rng, return_next_rng=True, **kwargs)[1]

    def support_point(rv, size, middle):
        return pt.zeros_like(rv) + middle


# The registries are for the class: a class for every variable would stay in them for ever.
@logprob_of.register(FittedDensityRV)
def _logp(op, values, rng, size, middle, **kwargs):
    return op.density.logp(*values)


@register_bijection(FittedDensityRV)
def _embed(op, rv, transform):
    return op.density.flow if rv.ndim == 1 and transform is None else None
