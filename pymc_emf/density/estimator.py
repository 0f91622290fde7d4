"""Density estimation: a flow, perhaps with a model inside, trained by maximum likelihood."""

import os

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Self

import numpy as np
import optax
import pytensor
import xarray as xr

from pymc.progress_bar import default_progress_theme
from pymc.util import RandomState
from rich.theme import Theme

from pymc_emf.arguments import check_callbacks, check_positive, make_rng
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.density.begin import Asked, Begun, begin
from pymc_emf.density.data import Data, Source, width
from pymc_emf.density.distribution import FittedDistribution
from pymc_emf.density.likelihood import Likelihood
from pymc_emf.density.saved import read_density, write_density
from pymc_emf.engine.interrupts import heard
from pymc_emf.engine.loop import Steps
from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import Run, Trained, train
from pymc_emf.exceptions import NonFiniteLossError
from pymc_emf.layers import Chain
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import LayerSpec, check_layers
from pymc_emf.model.parameter import Trainable, constrained_value

__all__ = ["DensityEstimator"]


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
        self._steps: Steps | None = None
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
        ask = Asked(n, batch_size, validation, patience, obj_optimizer)
        callbacks = check_callbacks(callbacks)
        rng = deepcopy(self._rng)  # a fit that fails leaves the estimator as it was
        begun = begin(X, ask, rng, self._bind, from_moments=not self._fitted, known=self._steps)
        # from here on, what is learnt is kept
        self._rng, self._fitted = rng, True
        self._likelihood, self._steps = begun.likelihood, begun.steps

        def call(run: Run) -> None:
            store(begun.likelihood.flow.parameters, run.values)
            for callback in callbacks:
                callback(self, run.losses_so_far, run.done)

        run = begun.run
        result = train(
            run,
            begun.steps.chunk,
            begun.observers(*([call] if callbacks else [])),
            callbacks=callbacks,
            progressbar=progressbar,
            progressbar_theme=progressbar_theme,
        )
        self._adopt(begun, result)
        if result.error is not None:
            raise result.error
        if result.failed:
            raise NonFiniteLossError(
                f"The loss was not finite for {run.bad_steps} steps in a row, the last of them "
                f"step {run.done}; scale the data, or pass obj_optimizer= with a lower learning "
                "rate."
            )
        return self

    def _adopt(self, begun: Begun, result: Trained) -> None:
        """Take over what was learnt, and what is known of it."""
        likelihood, held = begun.likelihood, begun.held
        best = result.values if held.best is None else held.best
        store(likelihood.flow.variables, likelihood.join(best, begun.fixed))
        found = np.reshape(held.found, (-1, 2)) + np.array([len(self.hist), 0.0])
        self.hist = np.concatenate([self.hist, result.losses])
        self.validation = np.concatenate([self.validation, found])
        self.stopping = result.stopping

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
        likelihood = self._bind(width(X), rng)
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


def _size_of(spec: LayerSpec) -> int | None:
    if isinstance(spec, Bijection):
        return getattr(spec, "size", None)
    if isinstance(spec, list | tuple):
        return next((size for size in map(_size_of, spec) if size is not None), None)
    return None
