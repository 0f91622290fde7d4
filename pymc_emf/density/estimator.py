"""Density estimation: a flow, perhaps with a model inside, trained by maximum likelihood."""

import os

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

import jax
import numpy as np
import optax
import pytensor
import xarray as xr

from numpy.typing import ArrayLike
from pymc.progress_bar import default_progress_theme
from pymc.util import RandomState
from rich.theme import Theme

from pymc_emf.arguments import check_callbacks, check_positive, make_rng
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.density.data import ArraySpace
from pymc_emf.density.distribution import FittedDistribution
from pymc_emf.density.likelihood import Likelihood
from pymc_emf.density.observers import Refill, Validation
from pymc_emf.density.saved import read_density, write_density
from pymc_emf.density.start import learning_rates, start_from_moments
from pymc_emf.engine.interrupts import heard
from pymc_emf.engine.loop import CHUNK_SIZE, Chunk, make_chunk, start_state
from pymc_emf.engine.optimizers import Optimizer, make_optimizer
from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import Observer, Run, Trained, train
from pymc_emf.exceptions import NonFiniteLossError
from pymc_emf.layers import Chain
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import LayerSpec, check_layers
from pymc_emf.model.parameter import Trainable, constrained_value

__all__ = ["DensityEstimator"]

type Data = ArrayLike | Mapping[str, ArrayLike] | xr.Dataset
type Source = Data | Callable[[np.random.Generator, int], Data]


class DensityEstimator:
    r"""Density of data, by a flow that is trained by maximum likelihood.

    The flow maps standard normal noise to data, and the density of an observation x is
    :math:`\log \varphi(f^{-1}(x)) + \log|\det \partial f^{-1} / \partial x|`. A layer may be a
    whole model (:class:`StructuredLayer`, EMF §5.1-5.3), whose own numbers may be trained as well
    (:func:`parameter`).

    Parameters
    ----------
    layers : str, Bijection, callable or sequence of these
        Flow layers from the noise to the data, as for :class:`EMFApprox`. The default are two
        masked autoregressive layers, whose densities are fast, and a triangular affine one.
    random_seed : int, RandomState or Generator, optional
        For initial weights, minibatches and draws.

    Raises
    ------
    ValueError, TypeError
        If the layers are wrong.

    Attributes
    ----------
    hist : ndarray
        Negative mean log density of the minibatch of every step, in nats.
    validation : ndarray, shape (n, 2)
        Numbers of steps, and negative mean log density of the held-out data after them.
    stopping : Stopping
        Why the last fit ended.

    References
    ----------
    Silvestri, Fertig, Moore, Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv:2110.06021.
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", 2017, arXiv:1705.07057.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc_emf as emf
    >>> X = np.random.default_rng(1).normal([0.0, 5.0], [1.0, 2.0], size=(1000, 2))
    >>> estimator = emf.DensityEstimator("full_rank", random_seed=1)
    >>> estimator = estimator.fit(X, n=200, progressbar=False)
    >>> estimator.log_prob([[0.0, 5.0]]).round(1)
    array([-2.5])
    >>> estimator.sample(100).sizes["sample"]
    100
    """

    def __init__(self, layers: LayerSpec = "maf", *, random_seed: RandomState = None):
        check_layers(layers)
        self._rng = make_rng(random_seed)
        self._spec = layers
        self._likelihood: Likelihood | None = None
        self._loop: tuple[tuple[Any, int, int], Optimizer, Chunk] | None = None
        self._fitted = False
        self.hist = np.zeros(0)
        self.validation = np.zeros((0, 2))
        self.stopping: Stopping | None = None

    # --- the flow ------------------------------------------------------------------------------

    def _bind(self, size: int | None, rng: np.random.Generator) -> Likelihood:
        """The flow; its size is that of the data, unless a layer has one."""
        if self._likelihood is not None:
            return self._likelihood
        own = _size_of(self._spec)
        size = size if own is None else own
        if size is None:
            raise AttributeError("The estimator does not know the data's size yet; call fit.")
        return Likelihood(self._spec, size, rng)

    def _bound(self) -> Likelihood:
        """The flow, which is there after a fit, or if a layer has a size."""
        if self._likelihood is None:
            self._likelihood = self._bind(None, self._rng)
        return self._likelihood

    @property
    def flow(self) -> Chain:
        """All layers, from the noise to the data.

        Raises
        ------
        AttributeError
            Before the first fit, if the layers are of no size of their own.
        """
        return self._bound().flow

    # --- fitting -------------------------------------------------------------------------------

    @heard()
    def fit(
        self,
        X: Source,
        n: int = 10_000,
        *,
        batch_size: int = 100,
        validation: float | Data | None = 0.1,
        patience: int | None = None,
        callbacks: Sequence[Callable[[Any, np.ndarray, int], None]] | None = None,
        progressbar: bool = True,
        progressbar_theme: Theme = default_progress_theme,
        obj_optimizer: optax.GradientTransformation | None = None,
    ) -> Self:
        """Maximise the mean log density of the data.

        A second call continues from what was learnt.

        Parameters
        ----------
        X : array_like, dict, Dataset or callable
            Observations of shape (n, size). If the last layer is a model, either the unconstrained
            values of its free variables in that form, or a dict or dataset of the variables
            themselves, whose first axis, or ``sample``, runs over the observations. Or a function
            ``X(rng, n)`` that returns n fresh observations, of one shape at every call.
        n : int
            Number of steps; the learning rate decays to zero over them.
        batch_size : int
            Observations in each step, drawn at random with replacement; all, if there are no
            more than that.
        validation : float, data or None
            Held-out data: a share of X, or data of their own. The parameters that served them best
            are kept. Of a function X no share can be taken: none are held out.
        patience : int, optional
            Stop once that many steps have not improved the density of the held-out data.
        callbacks : sequence of callable
            Called as ``callback(estimator, losses, i)`` after every chunk of at most 100 steps, and
            of at most a tenth of the fit, and after the last; ``StopIteration`` ends the fit.
        progressbar : bool
        progressbar_theme : rich.theme.Theme
        obj_optimizer : optax.GradientTransformation, optional
            By default Adam with warm-up and cosine decay.

        Returns
        -------
        DensityEstimator
            Itself.

        Raises
        ------
        ValueError
            If the data have another size than the layers, or hold NaN, or if a number is not
            positive.
        NonFiniteLossError
            If the loss stays non-finite for several steps. What was learnt until then is kept.
        """
        _check_numbers(n, batch_size, patience, validation)
        if not isinstance(obj_optimizer, optax.GradientTransformation | None):
            raise TypeError(
                f"obj_optimizer must be an optax transformation, got {obj_optimizer!r}."
            )
        callbacks = check_callbacks(callbacks)
        rng = deepcopy(self._rng)  # a fit that fails leaves the estimator as it was
        likelihood, rows, held_out, refill = self._read(X, batch_size, validation, rng)
        if patience is not None and held_out is None:
            raise ValueError("patience needs held-out data; pass validation=.")
        likelihood.rewrite()
        values = likelihood.initial
        if not self._fitted:
            values = start_from_moments(likelihood.flow, values, rows)
        optimizer, chunk = self._compile(likelihood, values, rows, batch_size, obj_optimizer)
        trained, fixed = likelihood.trained(values), likelihood.fixed(values)
        rates = learning_rates(likelihood.flow)
        state = start_state(optimizer, trained, n, rates, (fixed, jax.device_put(rows)))
        run = Run.begin(optimizer, state, int(rng.integers(2**31)), n)

        # from here on, what is learnt is kept
        self._rng, self._likelihood, self._fitted = rng, likelihood, True
        self._loop = (obj_optimizer, batch_size, len(rows)), optimizer, chunk
        held = Validation(likelihood, fixed, held_out, n, patience)

        def call(run: Run) -> None:
            store(likelihood.flow.parameters, run.values)
            for callback in callbacks:
                callback(self, run.losses_so_far, run.done)

        observers: list[Observer] = [
            held,
            *([call] if callbacks else []),
            held.stop_when_out_of_patience,
        ]
        result = train(
            run,
            chunk,
            [*observers, *([] if refill is None else [refill])],
            callbacks=callbacks,
            progressbar=progressbar,
            progressbar_theme=progressbar_theme,
        )
        self._adopt(likelihood, fixed, result, held)
        if result.error is not None:
            raise result.error
        if result.failed:
            raise NonFiniteLossError(
                f"The loss was not finite for {run.bad_steps} steps in a row, the last of them "
                f"step {run.done}; scale the data, or pass obj_optimizer= with a lower learning "
                "rate."
            )
        return self

    def _adopt(
        self, likelihood: Likelihood, fixed: list[np.ndarray], result: Trained, held: Validation
    ) -> None:
        """Take over what was learnt, and what is known of it."""
        best = result.values if held.best is None else held.best
        store(likelihood.flow.variables, likelihood.join(best, fixed))
        found = np.reshape(held.found, (-1, 2)) + np.array([len(self.hist), 0.0])
        self.hist = np.concatenate([self.hist, result.losses])
        self.validation = np.concatenate([self.validation, found])
        self.stopping = result.stopping

    def _read(self, X, batch_size, validation, rng):
        """The flow, rows to train on, held-out rows, and how to get fresh ones."""
        refill = None
        if callable(X):
            refill = Refill(X, batch_size * CHUNK_SIZE, rng)
            X = refill.drawn
        likelihood = self._bind(_width(X), rng)
        rows, _ = likelihood.space.read(X)
        if not len(rows):
            raise ValueError("X has no observations.")
        if refill is not None:
            refill.read, refill.n_rows = likelihood.space.read, len(rows)
        if validation is None or (refill is not None and isinstance(validation, float)):
            return likelihood, rows, None, refill
        if not isinstance(validation, float):
            held_out, _ = likelihood.space.read(validation)
            return likelihood, rows, held_out, refill
        n_held_out = max(1, round(validation * len(rows)))
        if n_held_out >= len(rows):
            return likelihood, rows, None, refill
        order = rng.permutation(len(rows))
        return likelihood, rows[order[n_held_out:]], rows[order[:n_held_out]], refill

    def _compile(self, likelihood, values, rows, batch_size, given) -> tuple[Optimizer, Chunk]:
        """Compile the loop, unless there is one that serves."""
        n_rows = len(rows)
        if self._loop is not None:
            (known, *sizes), optimizer, chunk = self._loop
            if known is given and sizes == [batch_size, n_rows]:
                return optimizer, chunk
        trained, fixed = likelihood.trained(values), likelihood.fixed(values)
        optimizer = make_optimizer(given, None, trained, likelihood.flow.parameters)
        rates = learning_rates(likelihood.flow)
        state = start_state(optimizer, trained, 1, rates, (fixed, jax.device_put(rows)))
        draw = likelihood.draw(n_rows, batch_size)
        chunk = make_chunk(draw, likelihood.loss, optimizer, state, CHUNK_SIZE)
        chunk.begin()
        return optimizer, chunk

    # --- what was learnt -----------------------------------------------------------------------

    def log_prob(self, X: Data) -> np.ndarray:
        """Log density at observations.

        Parameters
        ----------
        X : array_like, dict or Dataset
            As for :meth:`fit`. The density is that of what is given: of unconstrained values if X
            is an array, of the model's variables if it is a dict or dataset.

        Returns
        -------
        ndarray, shape (n,)
            In nats.

        Raises
        ------
        ValueError
            If X has the wrong shape, or holds NaN.
        """
        rng = deepcopy(self._rng)
        likelihood = self._bind(_width(X), rng)
        rows, log_det = likelihood.space.read(X)
        self._rng, self._likelihood = rng, likelihood  # now that X is known to fit
        return likelihood.log_prob(likelihood.initial, rows) + log_det

    def sample(self, n: int, *, random_seed: RandomState = None) -> xr.Dataset:
        """Draw observations.

        Parameters
        ----------
        n : int
        random_seed : int, RandomState or Generator, optional
            By default the estimator's own stream of random numbers continues.

        Returns
        -------
        Dataset
            With axis ``sample``. If the last layer is a model, it has the model's free variables
            with their dims and coords; otherwise the one variable ``x``.
        """
        check_positive("n", n)
        likelihood = self._bound()
        rng = self._rng if random_seed is None else make_rng(random_seed)
        noise = rng.normal(size=(n, likelihood.size)).astype(pytensor.config.floatX)
        return likelihood.space.label(likelihood.forward(likelihood.initial, noise))

    @property
    def parameters(self) -> xr.Dataset:
        """Trained values of the models' own parameters, made by :func:`parameter`."""
        return xr.merge(
            constrained_value(v) for v in self.flow.parameters if isinstance(v, Trainable)
        )

    def as_dist(self) -> FittedDistribution:
        """The density as a distribution for other PyMC models.

        Its event is a vector: observations as rows of an array X. The parameters are those of the
        moment; training on does not change it.

        Returns
        -------
        FittedDistribution
            ``dist("theta")`` inside of a model, or ``dist.dist()``, with gradients, so that NUTS
            runs on it.

        Examples
        --------
        >>> import numpy as np
        >>> import pymc as pm
        >>> import pymc_emf as emf
        >>> X = np.random.default_rng(1).normal(3.0, 0.5, size=(1000, 2))
        >>> estimator = emf.DensityEstimator("full_rank", random_seed=1)
        >>> earlier = estimator.fit(X, n=200, progressbar=False).as_dist()
        >>> with pm.Model() as model:
        ...     theta = earlier("theta")
        ...     y = pm.Normal("y", theta.sum(), 1.0, observed=5.0)
        """
        return FittedDistribution(self.flow)

    # --- files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write what was learnt to a file.

        The file holds numbers alone, and no code: :meth:`load` needs the same layers again.

        Parameters
        ----------
        path : path-like
        """
        likelihood = self._bound()
        write_density(path, likelihood, likelihood.initial, self.hist, self.validation)

    def load(self, path: str | os.PathLike) -> Self:
        """Read what another estimator with the same layers has learnt.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        DensityEstimator
            Itself.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, of a newer version, or of other layers. The estimator is as it
            was before.
        """
        saved = read_density(path)
        likelihood = self._bind(saved.size, deepcopy(self._rng))
        saved.check(likelihood)
        store(likelihood.flow.variables, saved.values)
        self._likelihood, self._fitted = likelihood, True
        self.hist, self.validation = saved.hist, saved.validation
        return self


def _check_numbers(n: Any, batch_size: Any, patience: Any, validation: Any) -> None:
    """Refuse numbers that no fit can have."""
    check_positive("n", n)
    check_positive("batch_size", batch_size)
    if patience is not None:
        check_positive("patience", patience)
    number = isinstance(validation, int | float | np.number) and not isinstance(validation, bool)
    if number and not (isinstance(validation, float) and 0 < validation < 1):
        raise ValueError(f"validation must be a share between 0 and 1, got {validation!r}.")


def _size_of(spec: LayerSpec) -> int | None:
    if isinstance(spec, Bijection):
        return getattr(spec, "size", None)
    if isinstance(spec, list | tuple):
        return next((size for size in map(_size_of, spec) if size is not None), None)
    return None


def _width(X: Data) -> int | None:
    """Length of an observation, if it shows."""
    if isinstance(X, Mapping | xr.Dataset):
        return np.shape(X[ArraySpace.name])[-1] if set(X) == {ArraySpace.name} else None
    return np.shape(X)[-1] if np.ndim(X) else None
