"""The importance weight of one draw, symbolic and as JAX functions."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from jax.sharding import Sharding
from pytensor.graph.basic import Constant
from pytensor.tensor.sharedvar import SharedVariable
from scipy.stats import norm

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.numerics.special import normal_logpdf
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.graph import expose_minibatches
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers import Chain, StructuredLayer
from pymc_emf.layers.parameters import store
from pymc_emf.model.density import split_batches
from pymc_emf.variational.diagnosis import log_ratio
from pymc_emf.variational.path_gradient import Flow

__all__ = ["Gradient", "Objective"]

Gradient = Literal["path", "reparameterised"]

#: Draws evaluated in one compiled call, and how many numbers they may hold together.
MAX_BATCH_SIZE = 500
MAX_NUMBERS_TOGETHER = 10_000_000
#: With minibatches: rows of data from which a start is searched, and rows times draws that a
#: comparison of candidates or a check may take.
MAX_SEARCH_ROWS = 50_000
MAX_ROWS_TIMES_DRAWS = 200_000_000
#: Numbers that all draws of a comparison or check may hold together; but draws there must be.
MAX_NUMBERS_CHECKED, MIN_DRAWS = 20_000_000, 100


def cover_rows(n_rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Minibatches of one size, and weights with which every row counts the same.

    The rows that are left over by full minibatches fill another one by repetition; what is left
    over of the last repetition is taken off again in the same way, as in Euclid's algorithm.

    Returns
    -------
    indices : ndarray, shape (minibatches, size)
    weights : ndarray, shape (minibatches,)
        They sum to one.
    """
    rows = np.random.default_rng(0).permutation(n_rows)
    n_full = n_rows // size
    minibatches = list(rows[: n_full * size].reshape(n_full, size))
    counts = [1.0] * n_full
    rest, count = rows[n_full * size :], 1.0
    while len(rest):
        repetitions, n_left = divmod(size, len(rest))
        minibatches.append(np.resize(rest, size))
        count /= repetitions
        counts.append(count)
        rest, count = rest[:n_left], -count
    return np.array(minibatches), np.array(counts) * size / n_rows


class Objective:
    r"""What the fit averages: :math:`\log p(y, u) - \log q(u)` at :math:`u = F(A(\varepsilon))`.

    The flow layers A lead from standard normal noise to the noise of the structured layer F.
    The two are compiled apart and composed in JAX, so that the warm start, which works between
    them, shares the compiled model with the fit.

    Parameters
    ----------
    layers : sequence of Bijection
        From the noise onwards; may be empty.
    structured : StructuredLayer
    gradient : {"path", "reparameterised"}
        How :meth:`loss` is differentiated in the parameters of the layers.
    """

    def __init__(
        self,
        layers: Sequence[Bijection],
        structured: StructuredLayer,
        gradient: Gradient = "path",
    ):
        self.layers = tuple(layers)
        self.gradient = gradient
        self.structured = structured
        self.program = structured.program
        self.flow = Chain([*self.layers, structured])

    @property
    def size(self) -> int:
        return self.program.size

    @property
    def layer_parameters(self) -> list[SharedVariable]:
        return [p for layer in self.layers for p in layer.parameters]

    @property
    def parameters(self) -> list[SharedVariable]:
        """All trainable variables, those of the layers first, then the gates."""
        return [*self.layer_parameters, *self.structured.parameters]

    @property
    def data(self) -> list[SharedVariable]:
        """Observed data, as far as they may change from fit to fit."""
        return list(self.program.data.values())

    @property
    def buffers(self) -> list[SharedVariable]:
        """What the fit leaves alone: what the warm start has set, and data that may change."""
        return [*(b for layer in self.layers for b in layer.buffers), *self.data]

    @property
    def layer_variables(self) -> list[SharedVariable]:
        """Parameters and buffers of the layers, layer by layer."""
        return [v for layer in self.layers for v in layer.variables]

    @property
    def target_variables(self) -> list[SharedVariable]:
        """Parameters of the structured layer, and data that may change."""
        return [*self.structured.parameters, *self.data]

    @property
    def variables(self) -> list[SharedVariable]:
        """Parameters and buffers, in the order in which the JAX functions take their values."""
        return [*self.layer_variables, *self.target_variables]

    @property
    def check_bounds(self) -> bool:
        return self.program.model.check_bounds

    def noise(self, name: str = "noise"):
        """Make a new symbolic noise vector."""
        return pt.vector(name, shape=(self.size,), dtype=pytensor.config.floatX)

    @cached_property
    def _target(self):
        """JAX function of the target's variables, structured noise and minibatch indices.

        Returns the value, the log-density terms of the model, batch by batch, and log|det F|.
        """
        noise = self.noise()
        value, log_det = self.structured.forward(noise)
        batches = self.program.log_density_batches(value)
        self._batch_names = [names for names, _ in batches]
        terms = [batch for _, batch in batches]
        outputs, self._minibatches = expose_minibatches([value, *terms, log_det])
        indices = [index for index, _ in self._minibatches]
        inputs = [*self.target_variables, noise, *indices]
        try:
            return jaxify(inputs, outputs, check_bounds=self.check_bounds)
        except NotImplementedError as error:
            for names, term in zip(self._batch_names, outputs[1:-1], strict=True):
                try:
                    jaxify(inputs, [term])
                except NotImplementedError as reason:
                    raise NotImplementedError(
                        f"The log density of {names[0]} cannot be compiled. {reason}"
                    ) from error
            raise

    @cached_property
    def _flow(self) -> Flow:
        return Flow(self.layers, self.size)

    def rewrite(self) -> None:
        """Turn the graphs into JAX functions now, rather than at first use."""
        _ = self._flow, self._target

    def draw_minibatches(self, key: jax.Array) -> list[jax.Array]:
        """Row indices of one minibatch, for every ``pm.Minibatch`` of the model."""
        _ = self._target  # finds the minibatches
        keys = jax.random.split(key, max(len(self._minibatches), 1))
        return [
            jax.random.randint(k, index.type.shape, 0, n_rows)
            for k, (index, n_rows) in zip(keys, self._minibatches, strict=False)
        ]

    @cached_property
    def sweep(self) -> list[np.ndarray]:
        """Minibatches that hold all rows of data together, for every ``pm.Minibatch``.

        Arrays of row indices, shape (minibatches, rows); the rows are in random order.
        """
        _ = self._target  # finds the minibatches
        rng = np.random.default_rng(0)
        shapes = [(n_rows, index.type.shape[0]) for index, n_rows in self._minibatches]
        n = max((-(-n_rows // size) for n_rows, size in shapes), default=0)
        return [np.resize(rng.permutation(n_rows), (n, size)) for n_rows, size in shapes]

    @cached_property
    def cover(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Minibatches and weights by which their log densities add up to that of all data.

        Arrays of row indices, shape (minibatches, rows), for every ``pm.Minibatch``; where there
        are several, each goes over its rows while the others stay. The weights sum to one.
        """
        _ = self._target  # finds the minibatches
        covers = [cover_rows(n_rows, index.type.shape[0]) for index, n_rows in self._minibatches]
        first = [indices[:1] for indices, _ in covers]
        parts = [
            [
                indices if i == moving else one.repeat(len(indices), axis=0)
                for i, one in enumerate(first)
            ]
            for moving, (indices, _) in enumerate(covers)
        ]
        weights = [weights for _, weights in covers]
        if len(covers) > 1:  # what does not depend on any of them has been counted each time
            parts.append(first)
            weights.append(np.array([1.0 - len(covers)]))
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)], np.concatenate(weights)

    @property
    def has_minibatches(self) -> bool:
        return bool(self.sweep)

    @property
    def first_minibatches(self) -> list[np.ndarray]:
        """One minibatch for every ``pm.Minibatch`` of the model, always the same."""
        return [indices[0] for indices in self.sweep]

    def affordable(self, n_draws: int) -> int:
        """Number of draws for a comparison or check, fewer if they or the data are very long."""
        n_rows = max((indices.size for indices in self.sweep), default=1)
        n_draws = min(n_draws, max(MAX_ROWS_TIMES_DRAWS // n_rows, MIN_DRAWS))
        return min(n_draws, max(MAX_NUMBERS_CHECKED // self.size, MIN_DRAWS))

    @property
    def term_names(self) -> list[str]:
        """Names of the log-density terms."""
        return self.program.term_names

    def terms(self, target, noise, minibatches):
        """Log-density terms, in order of ``term_names``, at structured noise (JAX)."""
        _, *batches, _ = self._target(*target, noise, *minibatches)
        terms = split_batches(list(zip(self._batch_names, batches, strict=True)))
        return [terms[name] for name in self.term_names]

    def evaluate(self, target, noise, minibatches):
        """Value, log joint density and log|det F| at structured noise (JAX)."""
        value, *batches, log_det = self._target(*target, noise, *minibatches)
        totals = [
            batch.sum() if jnp.ndim(batch) else len(names) * batch
            for names, batch in zip(self._batch_names, batches, strict=True)
        ]
        return value, sum(totals), log_det

    def evaluate_all(self, target, noise):
        """The same, of all data (JAX)."""
        value, log_p, log_det = self.evaluate(target, noise, self.first_minibatches)
        if self.has_minibatches:
            minibatches, weights = self.cover
            each = jax.lax.map(lambda m: self.evaluate(target, noise, m)[1], minibatches)
            log_p = (weights.astype(each.dtype) * each).sum()
        return value, log_p, log_det

    def pulled_back(self, target, noise, minibatches):
        """Log density of the posterior, unnormalised, in the structured layer's noise (JAX)."""
        _, log_p, log_det = self.evaluate(target, noise, minibatches)
        return log_p + log_det

    def structured_noise(self, layer_values, noise):
        """Map noise through the flow layers; returns log|det A| too (JAX)."""
        return self._flow.forward(layer_values, noise)

    def pulled_back_to_noise(self, values, noise):
        """Log density of the posterior, unnormalised, in the flow's noise, of all data (JAX)."""
        layer_values, target = self.split(values)
        inner, base_log_det = self.structured_noise(layer_values, noise)
        _, log_p, log_det = self.evaluate_all(target, inner)
        return log_p + base_log_det + log_det

    def draw(self, key: jax.Array, n_draws: int, sharding: Sharding | None = None):
        """Noise and minibatch of one step (JAX); the noise may be distributed over devices."""
        noise_key, minibatch_key = jax.random.split(key)
        # made in single precision, which takes a third of the time and reaches five deviations
        noise = jax.random.normal(noise_key, (n_draws, self.size), dtype=jnp.float32)
        if sharding is not None:
            noise = jax.lax.with_sharding_constraint(noise, sharding)
        return noise.astype(pytensor.config.floatX), self.draw_minibatches(minibatch_key)

    def split(self, values):
        """Values of ``variables`` as those of the layers and those of the target."""
        n_layer_variables = len(self.layer_variables)
        return values[:n_layer_variables], values[n_layer_variables:]

    def loss(self, parameters, buffers, drawn):
        """Negative ELBO in nats, from the draws of one step (JAX).

        Its derivative is an unbiased estimate of that of the negative ELBO: of the layers'
        parameters by the path derivative or by reparameterisation, of the gates by the latter.

        Parameters
        ----------
        parameters, buffers : sequence of array
            Values of the variables of those names.
        drawn : tuple
            What :meth:`draw` returns: noise of shape (draws, size) and a minibatch.
        """
        noise, minibatches = drawn
        known = dict(zip(self.parameters, parameters, strict=True))
        known |= zip(self.buffers, buffers, strict=True)
        layer_values, target = self.split([known[v] for v in self.variables])
        inner, log_det = jax.vmap(lambda e: self.structured_noise(layer_values, e))(noise)
        log_p = jax.vmap(lambda e: self.pulled_back(target, e, minibatches))(inner)
        log_q = jax.scipy.stats.norm.logpdf(noise).sum(axis=1) - log_det
        if self.gradient == "path":
            log_q = self._along_the_path(layer_values, noise, inner, log_q)
        return (log_q - log_p).mean()

    def _along_the_path(self, layer_values, noise, inner, log_q):
        """The same ``log_q``, whose derivative sees the draws move but not the density."""
        _, score = self._flow.push(jax.lax.stop_gradient(layer_values), noise, -noise)
        movement = inner - jax.lax.stop_gradient(inner)
        return jax.lax.stop_gradient(log_q) + (jax.lax.stop_gradient(score) * movement).sum(axis=1)

    @cached_property
    def energy(self):
        """Minus the log density at one point of structured noise, with gradients.

        ``energy(gates, noise)`` returns it and its derivatives in the noise and in the gates.
        """

        def energy(noise, gates, data, minibatches):
            return -self.pulled_back([*gates, *data], noise, minibatches)

        derive = jax.value_and_grad(energy, argnums=(0, 1))

        @jax.jit
        def average(noise, gates, data):
            if not self.has_minibatches:
                return derive(noise, gates, data, [])
            n_rows = max(minibatches.shape[1] for minibatches in self.sweep)
            searched = [m[: max(MAX_SEARCH_ROWS // n_rows, 1)] for m in self.sweep]
            each = jax.lax.map(
                lambda minibatches: derive(noise, gates, data, minibatches), searched
            )
            return jax.tree.map(lambda x: x.mean(axis=0), each)

        def function(gates, noise):
            data = [jnp.asarray(v.get_value()) for v in self.data]
            value, (slope, gate_slopes) = average(noise, gates, data)
            return value, slope, gate_slopes

        return function

    # The warm start, the final check and the draws share these two, which compile once: a batch
    # has one size, whatever the number of events.

    @cached_property
    def flow_many(self):
        """Structured noise and log|det A| of many draws of noise."""
        return batch_jax(self.structured_noise, self.layer_variables, size=self.batch_size)

    @cached_property
    def evaluate_many(self):
        """Value, log joint density of all data and log|det F| at many points of noise."""
        return batch_jax(self.evaluate_all, self.target_variables, size=self.batch_size)

    @cached_property
    def _constrain_many(self):
        """Value and log|det F| at many points of structured noise."""

        def single(target, noise):
            value, _, log_det = self.evaluate(target, noise, self.first_minibatches)
            return value, log_det

        return batch_jax(single, self.target_variables, size=self.batch_size)

    def weigh(self, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value, log joint density and log density of the approximation at many draws.

        Parameters
        ----------
        noise : ndarray, shape (draws, size)
        """
        inner, base_log_det = self.flow_many(noise)
        value, log_p, log_det = self.evaluate_many(inner)
        return value, log_p, norm.logpdf(noise).sum(axis=1) - base_log_det - log_det

    def prior_log_weights(self, noise: np.ndarray) -> np.ndarray:
        """Log importance weights, in nats, of draws from the embedded prior instead.

        Parameters
        ----------
        noise : ndarray, shape (draws, size)
            Standard normal.
        """
        own = self.structured.own_parameters
        held = [p.get_value() for p in own]
        try:
            store(own, self.structured.prior_values(held))
            _, log_p, log_det = self.evaluate_many(noise)
        finally:
            store(own, held)
        return log_ratio(log_p, norm.logpdf(noise).sum(axis=1) - log_det)

    def transform(self, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value and log density of the approximation at many draws, without a look at the data."""
        inner, base_log_det = self.flow_many(noise)
        value, log_det = self._constrain_many(inner)
        return value, norm.logpdf(noise).sum(axis=1) - base_log_det - log_det

    @property
    def batch_size(self) -> int:
        """Number of draws that are evaluated together, fewer the more data the model has."""
        frozen = self.program.frozen
        data = [np.size(v.data) for v in frozen.rvs_to_values.values() if isinstance(v, Constant)]
        data += [np.size(v.get_value(borrow=True)) for v in self.data]
        return int(np.clip(MAX_NUMBERS_TOGETHER // (self.size + sum(data)), 1, MAX_BATCH_SIZE))

    def symbolic_log_q(self, noise):
        """Map noise to value; returns the log density of the approximation there (PyTensor)."""
        value, log_det = self.flow.forward(noise)
        return value, normal_logpdf(noise).sum() - log_det
