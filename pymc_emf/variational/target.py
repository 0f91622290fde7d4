"""The posterior in the noise of the structured layer, as JAX functions."""

from collections.abc import Sequence
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.sharedvar import SharedVariable

from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.callback import Called
from pymc_emf.engine.graph import expose_minibatches
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers import StructuredLayer
from pymc_emf.model.density import split_batches
from pymc_emf.variational.minibatches import Minibatches

__all__ = ["FEWEST_DRAWS", "MOST_DRAWS", "Scored", "Target"]

#: Draws evaluated in one compiled call, and how many numbers they may hold together.
MAX_BATCH_SIZE = 512
#: Draws that are computed together, and those of the layers, which have no data: few enough for
#: the caches of a core. From so many elements and data on, the former are computed one by one.
BLOCK_SIZE, BLOCK_SIZE_OF_LAYERS, ONE_BY_ONE_FROM = 8, 16, 10_000
#: Elements and data times draws of a comparison or check, but so many draws there must be.
MAX_NUMBERS_CHECKED, MIN_CHECKED = 20_000_000, 500
#: Of so many elements and data an evaluation takes long enough to count.
MANY_NUMBERS = 20_000
MAX_NUMBERS_TOGETHER = 10_000_000
#: Draws of a step, and how many numbers they may hold together to be more than the fewest.
FEWEST_DRAWS, MOST_DRAWS, MAX_NUMBERS_OF_A_STEP = 8, 32, 2**14

type Values = Sequence[Any]


class Scored(NamedTuple):
    """The log density in noise at points, its derivatives, and its parts.

    Attributes
    ----------
    log_density : array, shape (points,)
    score : array, shape (points, size)
        Derivatives in the noise.
    slopes : list of array
        Derivatives in the parameters of the structured layer.
    value : array, shape (points, size)
    log_p, log_det : array, shape (points,)
        Log joint density at the value, and log|det F|.
    """

    log_density: Any
    score: Any
    slopes: list[Any]
    value: Any
    log_p: Any
    log_det: Any


class _Compiled(NamedTuple):
    """The model as one JAX function: value, batches of log-density terms, log|det F|.

    And the number of elements of the largest array that it computes, as far as shapes are known,
    and whether it calls Python, draw by draw.
    """

    function: Any
    names: list[list[str]]
    minibatches: Minibatches
    largest: int
    calls_python: bool


class Target:
    """The posterior's log density, unnormalised, in the noise of the structured layer.

    All functions take ``values``, those of :attr:`variables`, first.

    Parameters
    ----------
    structured : StructuredLayer
    """

    def __init__(self, structured: StructuredLayer):
        self.structured = structured
        self.program = structured.program

    @property
    def size(self) -> int:
        return self.program.size

    @property
    def data(self) -> list[SharedVariable]:
        """Observed data, as far as they may change from fit to fit."""
        return list(self.program.data.values())

    @property
    def variables(self) -> list[SharedVariable]:
        """Parameters of the structured layer, and data that may change."""
        return [*self.structured.parameters, *self.data]

    @property
    def check_bounds(self) -> bool:
        return self.program.model.check_bounds

    @cached_property
    def _compiled(self) -> _Compiled:
        noise = pt.vector("noise", shape=(self.size,), dtype=pytensor.config.floatX)
        value, log_det = self.structured.forward(noise)
        batches = self.program.log_density_batches(value)
        names = [names for names, _ in batches]
        terms = [batch for _, batch in batches]
        outputs, minibatches = expose_minibatches([value, *terms, log_det])
        inputs = [*self.variables, noise, *(index for index, _ in minibatches)]
        largest = max(map(_n_elements, ancestors(outputs, blockers=inputs)))
        called: list[Called] = []
        try:
            function = jaxify(
                inputs, outputs, check_bounds=self.check_bounds, with_slopes=True, called=called
            )
        except NotImplementedError as error:
            for group, term in zip(names, outputs[1:-1], strict=True):
                try:
                    jaxify(inputs, [term], with_slopes=True)
                except NotImplementedError as reason:
                    raise NotImplementedError(
                        f"The log density of {group[0]} cannot be compiled. {reason}"
                    ) from error
            raise
        return _Compiled(function, names, Minibatches(minibatches), largest, bool(called))

    def rewrite(self) -> None:
        """Turn the graphs into JAX functions now, rather than at first use."""
        _ = self._compiled

    @property
    def minibatches(self) -> Minibatches:
        return self._compiled.minibatches

    def affordable(self, n_draws: int) -> int:
        """Number of draws for a comparison or check, fewer if they or the data are very long."""
        n_draws = self.minibatches.affordable(n_draws, self.size)
        return min(n_draws, max(MAX_NUMBERS_CHECKED // self._n_numbers, MIN_CHECKED))

    @property
    def term_names(self) -> list[str]:
        """Names of the log-density terms."""
        return self.program.term_names

    # --- at one point of noise (JAX) ------------------------------------------------------------

    def terms(self, values: Values, noise, minibatch):
        """Log-density terms, in order of ``term_names``."""
        function, names, *_ = self._compiled
        _, *batches, _ = function(*values, noise, *minibatch)
        terms = split_batches(list(zip(names, map(jnp.asarray, batches), strict=True)))
        return [terms[name] for name in self.term_names]

    def evaluate(self, values: Values, noise, minibatch):
        """Value, log joint density and log|det F|."""
        function, names, *_ = self._compiled
        value, *batches, log_det = function(*values, noise, *minibatch)
        totals = [
            batch.sum() if jnp.ndim(batch) else len(group) * batch
            for group, batch in zip(names, batches, strict=True)
        ]
        return value, sum(totals), log_det

    def evaluate_all(self, values: Values, noise):
        """The same, of all data."""
        value, log_p, log_det = self.evaluate(values, noise, self.minibatches.first)
        if self.minibatches:
            minibatches, weights = self.minibatches.weighted
            each = jax.lax.map(lambda m: self.evaluate(values, noise, m)[1], minibatches)
            log_p = (weights.astype(each.dtype) * each).sum()
        return value, log_p, log_det

    def log_density(self, values: Values, noise, minibatch):
        """Log density in the noise of the structured layer."""
        _, log_p, log_det = self.evaluate(values, noise, minibatch)
        return log_p + log_det

    # --- at many points -------------------------------------------------------------------------
    # The start, the last check and the draws share these, which compile once: a batch has one
    # size, whatever the number of events.

    @cached_property
    def score_many(self):
        """What a search looks at: the log density at many points of noise, and its derivatives.

        ``score_many(values, noise)`` returns :class:`Scored`. Of a model with minibatches of
        very many rows, that of some of them.
        """
        self.rewrite()  # JAX must not trace that
        n_parameters = len(self.structured.parameters)

        def derive(values, noise, minibatch):
            def log_density(noise, parameters):
                value, log_p, log_det = self.evaluate(
                    [*parameters, *values[n_parameters:]], noise, minibatch
                )
                return log_p + log_det, (value, log_p, log_det)

            found = jax.value_and_grad(log_density, argnums=(0, 1), has_aux=True)
            (total, parts), (score, slopes) = found(noise, list(values[:n_parameters]))
            return Scored(total, score, slopes, *parts)

        def single(values, noise):
            if not self.minibatches:
                return derive(values, noise, [])
            minibatches, weights = self.minibatches.for_search
            each = jax.lax.map(lambda minibatch: derive(values, noise, minibatch), minibatches)
            return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), each)

        return batch_jax(single, size=self.batch_size, block=self.block_size)

    def score_at(self, values: Values):
        """A function of points alone that returns log densities and scores."""
        held = jax.device_put(list(values))  # once, for thousands of calls

        def score(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scored = self.score_many(held, points.astype(pytensor.config.floatX))
            return scored.log_density.astype(float), scored.score.astype(float)

        return score

    @cached_property
    def evaluate_many(self):
        """Value, log joint density of all data and log|det F| at many points of noise."""
        if not self.minibatches and self._n_numbers < MANY_NUMBERS:
            # the derivatives cost less than to compile another function without them
            return lambda values, noise: self.score_many(values, noise)[-3:]
        self.rewrite()
        return batch_jax(self.evaluate_all, size=self.batch_size, block=self.block_size)

    @cached_property
    def constrain_many(self):
        """Value and log|det F| at many points of noise, without a look at the data."""
        self.rewrite()

        def single(values, noise):
            value, _, log_det = self.evaluate(values, noise, self.minibatches.first)
            return value, log_det

        return batch_jax(single, size=self.batch_size)

    @cached_property
    def _n_numbers(self) -> int:
        """Elements and data."""
        frozen = self.program.frozen
        data = [np.size(v.data) for v in frozen.rvs_to_values.values() if isinstance(v, Constant)]
        data += [np.size(v.get_value(borrow=True)) for v in self.data]
        return self.size + sum(data)

    @property
    def is_heavy(self) -> bool:
        """Whether one evaluation takes long enough to count."""
        return max(self._n_numbers, self.minibatches.n_rows) >= MANY_NUMBERS

    @property
    def calls_python(self) -> bool:
        """Whether every draw costs as much as the first."""
        return self._compiled.calls_python

    @property
    def draws_of_a_step(self) -> int:
        """As many as cost little more than the fewest, whose number they are a multiple of."""
        if self.calls_python:
            return FEWEST_DRAWS
        n_numbers = max(self._n_numbers, self.minibatches.n_rows, self._compiled.largest)
        times = MAX_NUMBERS_OF_A_STEP // (FEWEST_DRAWS * n_numbers)
        return FEWEST_DRAWS * min(max(times, 1), MOST_DRAWS // FEWEST_DRAWS)

    @property
    def block_size(self) -> int | None:
        """Number of draws that are computed together; on a GPU all of a batch."""
        if jax.default_backend() != "cpu":
            return None
        return BLOCK_SIZE if self._n_numbers < ONE_BY_ONE_FROM else 1

    @property
    def block_size_of_layers(self) -> int | None:
        """The same without a look at the data."""
        on_cpu = jax.default_backend() == "cpu"
        return gcd(self.batch_size, BLOCK_SIZE_OF_LAYERS) if on_cpu else None

    @property
    def batch_size(self) -> int:
        """Number of draws in one compiled call, fewer the more data the model has."""
        n_together = MAX_NUMBERS_TOGETHER // self._n_numbers
        whole_blocks = n_together - n_together % BLOCK_SIZE
        return min(max(whole_blocks, min(n_together, BLOCK_SIZE), 1), MAX_BATCH_SIZE)


def _n_elements(variable: Variable) -> int:
    """Elements of an array that is computed; none if that is not known, or it is a constant."""
    shape = getattr(variable.type, "shape", (None,))
    known = [n for n in shape if n is not None]
    return 0 if variable.owner is None or len(known) < len(shape) else int(np.prod(known))
