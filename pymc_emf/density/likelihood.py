"""The log density of data under a flow, as pure functions of the values of its variables."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_emf.density.data import ArraySpace, ModelSpace, Space
from pymc_emf.density.distribution import log_density
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify
from pymc_emf.engine.order import Order
from pymc_emf.layers import Chain, Shape, StructuredLayer, make_layers
from pymc_emf.layers.presets import LayerSpec

__all__ = ["Likelihood"]


class Likelihood:
    """What maximum likelihood averages. Nothing in it changes.

    ``values``, the first argument of its functions, are those of ``flow.variables``.

    Parameters
    ----------
    spec : str, Bijection, callable or sequence of these
        The layers.
    size : int
        Length of an observation.
    rng : Generator
        For initial weights.

    Raises
    ------
    ValueError
        If there is no layer, or one of another size.
    """

    def __init__(self, spec: LayerSpec, size: int, rng: np.random.Generator):
        layers = make_layers(spec, Shape(size), rng)
        if not layers:
            raise ValueError("A DensityEstimator needs at least one layer.")
        self.flow = Chain(layers)
        self.size = size
        last = layers[-1]
        self.space: Space = (
            ModelSpace(last.program) if isinstance(last, StructuredLayer) else ArraySpace(size)
        )
        order = Order(self.flow.variables, self.flow.parameters, self.flow.buffers)
        self.trained, self.fixed, self.join = order.trained, order.fixed, order.join

    @property
    def initial(self) -> list[np.ndarray]:
        """Values that the variables hold."""
        return [v.get_value() for v in self.flow.variables]

    # --- one observation (JAX) ------------------------------------------------------------------

    @cached_property
    def _log_density(self):
        value = pt.vector("value", shape=(self.size,), dtype=pytensor.config.floatX)
        return jaxify([*self.flow.variables, value], [log_density(self.flow, value)])

    def rewrite(self) -> None:
        """Turn the graph into a JAX function now: JAX must not trace that."""
        _ = self._log_density

    def loss(self, trained: Sequence[Any], constants: Any, drawn: jax.Array) -> jax.Array:
        """Negative mean log density of some observations, in nats.

        Parameters
        ----------
        trained : sequence of array
        constants : (sequence of array, array)
            Values of the buffers, and all observations.
        drawn : array
            Indices of those that count.
        """
        fixed, rows = constants
        values = self.join(trained, fixed)
        return -jax.vmap(lambda x: self._log_density(*values, x)[0])(rows[drawn]).mean()

    def draw(self, n_rows: int, batch_size: int):
        """Function that draws the indices of one step from a key."""

        def draw(key):
            if n_rows <= batch_size:
                return jnp.arange(n_rows)
            return jax.random.randint(key, (batch_size,), 0, n_rows)

        return draw

    # --- many observations (NumPy) --------------------------------------------------------------

    @cached_property
    def _log_density_many(self):
        self.rewrite()
        return batch_jax(lambda values, x: self._log_density(*values, x))

    def log_prob(self, values: Sequence[Any], rows: np.ndarray) -> np.ndarray:
        """Log density at vectors, in nats."""
        return self._log_density_many(values, rows)[0]

    @cached_property
    def _forward_many(self):
        noise = pt.vector("noise", shape=(self.size,), dtype=pytensor.config.floatX)
        function = jaxify([*self.flow.variables, noise], [self.flow.forward(noise)[0]])
        return batch_jax(lambda values, e: function(*values, e))

    def forward(self, values: Sequence[Any], noise: np.ndarray) -> np.ndarray:
        """Images of noise, shape (n, size)."""
        return self._forward_many(values, noise)[0]
