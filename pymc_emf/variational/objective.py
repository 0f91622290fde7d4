"""The ELBO of one flow: layers before a structured one, as pure functions of their values."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from jax.sharding import Sharding
from pytensor.tensor.sharedvar import SharedVariable

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.numerics.special import normal_logpdf
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.order import Order
from pymc_emf.layers import Chain, StructuredLayer
from pymc_emf.layers.flow import Flow
from pymc_emf.variational.importance import log_ratio
from pymc_emf.variational.target import Target

__all__ = ["Gradient", "Objective", "Values"]

#: A draw's score has no more than so many times the norm that is the median of those of a step.
MAX_SHARE = 1000.0

Gradient = Literal["path", "reparameterised"]

#: Arrays in the order of the variables that a function names.
type Values = Sequence[Any]


class Objective:
    r"""What the fit averages: :math:`\log p(y, u) - \log q(u)` at :math:`u = F(A(\varepsilon))`.

    The flow layers A lead from standard normal noise to the noise of the structured layer F.
    The two are compiled apart and composed in JAX, so that the start, which works between
    them, shares the compiled model with the fit.

    Nothing in it changes. ``values``, the first argument of its functions, are those of
    :attr:`variables`; the variables themselves only name them and hold initial ones.

    Parameters
    ----------
    layers : sequence of Bijection
        From the noise onwards; may be empty.
    structured : StructuredLayer
    gradient : {"path", "reparameterised"}
        How :meth:`loss` is differentiated in the parameters of the layers.
    target : Target, optional
        Of the structured layer, if there is one already.
    """

    def __init__(
        self,
        layers: Sequence[Bijection],
        structured: StructuredLayer,
        gradient: Gradient = "path",
        target: Target | None = None,
    ):
        self.layers = tuple(layers)
        self.gradient = gradient
        self.structured = structured
        self.program = structured.program
        self.target = Target(structured) if target is None else target
        self.flow = Chain([*self.layers, structured])
        order = Order(self.variables, self.parameters, self.buffers)
        self.trained, self.fixed, self.join = order.trained, order.fixed, order.join

    @property
    def size(self) -> int:
        return self.program.size

    # --- variables and their values -------------------------------------------------------------

    @property
    def layer_parameters(self) -> list[SharedVariable]:
        return [p for layer in self.layers for p in layer.parameters]

    @property
    def parameters(self) -> list[SharedVariable]:
        """All trainable variables, those of the layers first, then the structured layer's."""
        return [*self.layer_parameters, *self.structured.parameters]

    @property
    def buffers(self) -> list[SharedVariable]:
        """What the steps leave alone: frames, and data that may change."""
        return [*(b for layer in self.layers for b in layer.buffers), *self.target.data]

    @property
    def layer_variables(self) -> list[SharedVariable]:
        """Parameters and buffers of the layers, layer by layer."""
        return [v for layer in self.layers for v in layer.variables]

    @property
    def variables(self) -> list[SharedVariable]:
        """Parameters and buffers, in the order in which functions take their values."""
        return [*self.layer_variables, *self.target.variables]

    def split(self, values: Values) -> tuple[Values, Values]:
        """Values of the layers, and of the target."""
        n_layer_variables = len(self.layer_variables)
        return values[:n_layer_variables], values[n_layer_variables:]

    def replace(self, values: Values, variables: Sequence[SharedVariable], new: Values):
        """All values, with those of some variables replaced."""
        known = dict(zip(map(id, variables), new, strict=True))
        return [known.get(id(v), value) for v, value in zip(self.variables, values, strict=True)]

    def own(self, values: Values, variables: Sequence[SharedVariable]) -> list[Any]:
        """Of all values those of some variables."""
        known = dict(zip(map(id, self.variables), values, strict=True))
        return [known[id(v)] for v in variables]

    # --- symbolic (PyTensor) --------------------------------------------------------------------

    def noise(self, name: str = "noise"):
        """Make a new symbolic noise vector."""
        return pt.vector(name, shape=(self.size,), dtype=pytensor.config.floatX)

    def symbolic_log_q(self, noise):
        """Map noise to value; returns the log density of the approximation there."""
        value, log_det = self.flow.forward(noise)
        # integers in a model's graph make double precision of single
        return value.astype(noise.dtype), normal_logpdf(noise).sum() - log_det

    # --- one step (JAX) -------------------------------------------------------------------------

    @cached_property
    def _flow(self) -> Flow:
        return Flow(self.layers, self.size)

    def rewrite(self) -> None:
        """Turn the graphs into JAX functions now, rather than at first use."""
        _ = self._flow
        self.target.rewrite()

    def structured_noise(self, layer_values: Values, noise):
        """Map noise through the flow layers; returns log|det A| too."""
        return self._flow.forward(layer_values, noise)

    def log_density_in_noise(self, values: Values, noise):
        """Log density of the posterior, unnormalised, in the flow's noise, of all data."""
        layer_values, target_values = self.split(values)
        inner, base_log_det = self.structured_noise(layer_values, noise)
        _, log_p, log_det = self.target.evaluate_all(target_values, inner)
        return log_p + base_log_det + log_det

    def draw(self, key: jax.Array, n_draws: int, sharding: Sharding | None = None):
        """Noise and minibatch of one step; the noise may be distributed over devices."""
        noise_key, minibatch_key = jax.random.split(key)
        # made in single precision, which takes a third of the time and reaches five deviations
        noise = jax.random.normal(noise_key, (n_draws, self.size), dtype=jnp.float32)
        if sharding is not None:
            noise = jax.lax.with_sharding_constraint(noise, sharding)
        return noise.astype(pytensor.config.floatX), self.target.minibatches.draw(minibatch_key)

    def loss(self, trained: Values, fixed: Values, drawn):
        """Negative ELBO in nats, from the draws of one step.

        Its derivative estimates that of the negative ELBO: of the layers' parameters by the path
        derivative or by reparameterisation, of the gates by the latter. It is unbiased, but for
        the path derivative of autoregressive layers, whose score is exact to a thousandth
        (:data:`pymc_emf.layers.base.SCORE_TOLERANCE`), and for draws that are far worse than the
        others of the step: those have a bounded share in the derivative.

        Draws at which the model has no density are left out, which makes it the ELBO of the
        approximation given that it has one; the log of the share of the others belongs to it, in
        the value and in the derivative of the path. Only if all are left out is the result not
        finite.

        Parameters
        ----------
        trained, fixed : sequence of array
            Values of ``parameters`` and of ``buffers``.
        drawn : tuple
            What :meth:`draw` returns: noise of shape (draws, size) and a minibatch.
        """
        noise, minibatch = drawn
        layer_values, target_values = self.split(self.join(trained, fixed))
        inner, log_det = jax.vmap(lambda e: self.structured_noise(layer_values, e))(noise)
        log_p, usable = self._guarded(target_values, inner, minibatch)
        log_q = jax.scipy.stats.norm.logpdf(noise).sum(axis=1) - log_det
        at_left_out = 0.0
        if self.gradient == "path":
            log_q, at_left_out = self._along_the_path(layer_values, noise, inner, log_q)
        terms = jnp.where(usable, log_q - log_p, at_left_out)
        n_usable = usable.sum()
        within = terms.sum() / jnp.maximum(n_usable, 1)
        return jnp.where(n_usable > 0, within - jnp.log(n_usable / len(usable)), jnp.nan)

    def _guarded(self, target_values: Values, inner, minibatch):
        """Log density of the target, with finite and bounded derivatives, and where there is one.

        A derivative that is not finite at one draw would make that of every sum so.
        """
        n_own = len(self.structured.parameters)
        own, data = target_values[:n_own], target_values[n_own:]

        def log_density(own, e):
            return self.target.log_density([*own, *data], e, minibatch)

        derivatives = jax.vmap(jax.value_and_grad(log_density, argnums=(0, 1)), in_axes=(None, 0))
        log_p, (slopes, score) = derivatives(*map(jax.lax.stop_gradient, (own, inner)))
        norms = jnp.sqrt((score**2).sum(axis=1))
        usable = jnp.isfinite(log_p) & jnp.isfinite(norms)
        flat = [slope.reshape(len(norms), -1) for slope in slopes]
        for slope in flat:
            usable &= jnp.isfinite(slope).all(axis=1)
        most = MAX_SHARE * jnp.nanmedian(jnp.where(usable, norms, jnp.nan))
        share = jnp.where(norms > most, most / norms, 1.0)[:, None]

        def along(derivative, x):
            weighed = jnp.where(usable[:, None], share * derivative, 0.0)
            return (weighed * (x - jax.lax.stop_gradient(x))).sum(axis=1)

        log_p = jnp.where(usable, log_p, 0.0) + along(score, inner)
        for slope, x in zip(flat, own, strict=True):
            log_p += along(slope, jnp.ravel(x))
        return log_p, usable

    def _along_the_path(self, layer_values, noise, inner, log_q):
        """The same ``log_q``, whose derivative sees the draws move but not the density.

        And zero, whose derivative is that of the density where the draws are.
        """
        _, score = self._flow.push(jax.lax.stop_gradient(layer_values), noise, -noise)
        movement = inner - jax.lax.stop_gradient(inner)
        moved = (jax.lax.stop_gradient(score) * movement).sum(axis=1)
        value = jax.lax.stop_gradient(log_q)
        return value + moved, log_q - value - moved

    def terms(self, values: Values, noise, minibatch) -> dict[str, Any]:
        """Log-density terms by their names, at some draws of the flow's noise."""
        layer_values, target_values = self.split(values)

        def single(noise):
            inner, _ = self.structured_noise(layer_values, noise)
            return self.target.terms(target_values, inner, minibatch)

        return dict(zip(self.target.term_names, jax.vmap(single)(noise), strict=True))

    # --- many draws (NumPy) ---------------------------------------------------------------------

    @cached_property
    def _flow_many(self):
        _ = self._flow  # JAX must not trace how it is made
        target = self.target
        return batch_jax(
            self.structured_noise, size=target.batch_size, block=target.block_size_of_layers
        )

    @cached_property
    def _pull_many(self):
        _ = self._flow

        def single(layer_values, noise, score):
            _, pull = jax.vjp(lambda e: self.structured_noise(layer_values, e), noise)
            return pull((score, jnp.ones((), noise.dtype)))[0]

        return batch_jax(
            single, size=self.target.batch_size, block=self.target.block_size_of_layers
        )

    def begin_layers(self, values: Values, with_scores: bool) -> None:
        """Compile what the layers make of many draws, and of scores, in the background."""
        layer_values, _ = self.split(values)
        draw = np.zeros((1, self.size), dtype=pytensor.config.floatX)
        self._flow_many.begin(layer_values, draw)
        if with_scores:
            self._pull_many.begin(layer_values, draw, draw)

    def score_gap(self, values: Values, noise: np.ndarray) -> np.ndarray:
        """How the posterior's score in the flow's noise differs from that of the noise itself.

        It is zero where the approximation is exact; the mean of its square is the Fisher
        divergence, element by element.

        Parameters
        ----------
        values : sequence of array
        noise : ndarray, shape (draws, size)
        """
        return self.weigh_and_score(values, noise)[-1]

    def weigh_and_score(self, values: Values, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """What :meth:`weigh` returns, and :meth:`score_gap`."""
        layer_values, target_values = self.split(values)
        inner, base_log_det = self._flow_many(layer_values, noise)
        scored = self.target.score_many(target_values, inner)
        gap = self._pull_many(layer_values, noise, scored.score.astype(noise.dtype)) + noise
        known = scored.value, scored.log_p, scored.log_det
        if self.target.minibatches:  # scores may be those of some
            known = self.target.evaluate_many(target_values, inner)
        value, log_p, log_det = known
        return value, log_p, _log_normal(noise) - base_log_det - log_det, gap

    def culprit(self, values: Values, noise: np.ndarray) -> str:
        """Name of the first log-density term that is not finite at some draws, if one is not."""
        values = jax.device_put(list(values))
        terms = self.terms(values, noise, self.target.minibatches.first)
        bad = [name for name, term in terms.items() if not np.isfinite(np.asarray(term)).all()]
        return bad[0] if bad else ""

    def structured_noise_of(self, values: Values, noise: np.ndarray) -> np.ndarray:
        """Noise of the structured layer at many draws."""
        return self._flow_many(self.split(values)[0], noise)[0]

    def weigh(self, values: Values, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value, log joint density and log density of the approximation at many draws.

        Parameters
        ----------
        values : sequence of array
        noise : ndarray, shape (draws, size)
        """
        layer_values, target_values = self.split(values)
        inner, base_log_det = self._flow_many(layer_values, noise)
        value, log_p, log_det = self.target.evaluate_many(target_values, inner)
        return value, log_p, _log_normal(noise) - base_log_det - log_det

    def transform(self, values: Values, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value and log density of the approximation at many draws, without a look at the data."""
        layer_values, target_values = self.split(values)
        inner, base_log_det = self._flow_many(layer_values, noise)
        value, log_det = self.target.constrain_many(target_values, inner)
        return value, _log_normal(noise) - base_log_det - log_det

    def prior_log_weights(self, values: Values, noise: np.ndarray) -> np.ndarray:
        """Log importance weights, in nats, of draws from the embedded prior instead.

        Parameters
        ----------
        values : sequence of array
        noise : ndarray, shape (draws, size)
            Standard normal.
        """
        own = self.structured.own_parameters
        prior = self.replace(values, own, self.structured.prior_values(self.own(values, own)))
        _, log_p, log_det = self.target.evaluate_many(self.split(prior)[1], noise)
        return log_ratio(log_p, _log_normal(noise) - log_det)


def _log_normal(noise: np.ndarray) -> np.ndarray:
    """Log density of standard normal noise in nats, shape (draws,)."""
    squares = np.einsum("ij,ij->i", noise, noise, dtype=float)
    return -(squares + noise.shape[1] * np.log(2 * np.pi)) / 2
