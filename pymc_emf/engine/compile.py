"""A bijection as functions of arrays."""

from functools import cache, partial

import numpy as np
import pytensor
import pytensor.tensor as pt

from numpy.typing import ArrayLike

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify

__all__ = ["CompiledBijection", "compile_bijection"]


class CompiledBijection:
    """Both directions of a bijection as jitted, batched functions of NumPy arrays."""

    def __init__(self, bijection: Bijection):
        self.bijection = bijection
        self._compiled = cache(self._compile)

    def forward(self, noise: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Map noise to value.

        Parameters
        ----------
        noise : array_like, shape (..., *event)
            Any number of batch axes before those of the event.

        Returns
        -------
        value : ndarray, shape (..., *event)
        log_det : ndarray, shape (...)
            ``log|d value / d noise|``, in nats.
        """
        return self._run("forward", noise)

    def inverse(self, value: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Map value to noise, as :meth:`forward` the other way round."""
        return self._run("inverse", value)

    def _run(self, direction, events):
        events = np.asarray(events, dtype=pytensor.config.floatX)
        split = events.ndim - self.bijection.event_ndim
        if split < 0:
            raise ValueError(
                f"{type(self.bijection).__name__} acts on events of "
                f"{self.bijection.event_ndim} axes, got an array of {events.ndim}."
            )
        batch, event = events.shape[:split], events.shape[split:]
        size = getattr(self.bijection, "size", None)
        if size is not None and event != (size,):
            raise ValueError(
                f"{type(self.bijection).__name__} acts on vectors of {size} elements, got an "
                f"array of shape {events.shape}."
            )
        values = [v.get_value() for v in self.bijection.variables]
        image, log_det = self._compiled(direction, event)(values, events.reshape((-1, *event)))
        return image.reshape((*batch, *image.shape[1:])), log_det.reshape(batch)

    def _compile(self, direction, shape):
        event = pt.tensor("event", shape=shape, dtype=pytensor.config.floatX)
        variables = self.bijection.variables
        outputs = getattr(self.bijection, direction)(event)
        single = jaxify([*variables, event], outputs)
        return batch_jax(partial(_with_variables, single))


def _with_variables(single, values, event):
    return tuple(single(*values, event))


def compile_bijection(bijection: Bijection) -> CompiledBijection:
    """Compile a bijection to jitted, batched functions of arrays, by JAX.

    Parameters
    ----------
    bijection : Bijection
        A layer, a site map or a composition of them. Trainable parameters are read at every
        call.

    Returns
    -------
    CompiledBijection
        With methods ``forward(array)`` and ``inverse(array)``, each returning an array and
        ``log|det|`` in nats. They compile at the first call for a shape of event.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> site = emf.compile(emf.bijection(pm.Normal.dist(1.0, 2.0)))
    >>> value, log_det = site.forward([-1.0, 0.0, 1.0])
    >>> value
    array([-1.,  1.,  3.])
    >>> log_det.round(4)
    array([0.6931, 0.6931, 0.6931])
    """
    return CompiledBijection(bijection)
