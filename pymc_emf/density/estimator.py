"""Density estimation: a flow, perhaps with a model inside, trained by maximum likelihood."""

import os

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytensor
import pytensor.tensor as pt
import xarray as xr

from numpy.typing import ArrayLike
from pymc.progress_bar import CustomProgress, default_progress_theme
from pymc.util import RandomState, _get_seeds_per_chain
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.theme import Theme

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.density.data import ArraySpace, ModelSpace, Space
from pymc_emf.density.distribution import FittedDistribution, log_density
from pymc_emf.density.start import learning_rates, start_from_moments
from pymc_emf.engine.batch import batch_jax
from pymc_emf.engine.jax import jaxify
from pymc_emf.engine.loop import CHUNK_SIZE, MAX_BAD_STEPS, Chunk, compile_chunk, start_state
from pymc_emf.engine.optimizers import default_optimizer
from pymc_emf.engine.packing import packing
from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.storage import read_arrays, write_arrays
from pymc_emf.exceptions import NonFiniteLossError
from pymc_emf.layers import Chain, StructuredLayer, make_layers
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import LayerSpec, check_layers
from pymc_emf.model.parameter import Trainable, constrained_value

__all__ = ["DensityEstimator"]

#: How often in a fit, at most, the held-out data are looked at.
MAX_VALIDATIONS = 100

FORMAT = "pymc-emf density estimator"
VERSION = 1

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
        (seed,) = _get_seeds_per_chain(random_seed, 1)
        self._rng = np.random.default_rng(seed)
        self._spec = layers
        self._loop: tuple[tuple[Any, int, int], Chunk] | None = None
        self._fitted = False
        self.hist = np.zeros(0)
        self.validation = np.zeros((0, 2))
        self.stopping: Stopping | None = None

    # --- the flow ------------------------------------------------------------------------------

    def _bind(self, size: int | None = None) -> Chain:
        """The flow; its size is that of the data, unless a layer has one."""
        if "_flow" not in self.__dict__:
            own = _size_of(self._spec)
            size = size if own is None else own
            if size is None:
                raise AttributeError("The estimator does not know the data's size yet; call fit.")
            layers = make_layers(self._spec, size, self._rng)
            if not layers:
                raise ValueError("A DensityEstimator needs at least one layer.")
            self._flow = Chain(layers)
            self._space = _space_of(self._flow, size)
        return self._flow

    def _unbind(self) -> None:
        """Forget the flow of a file that was refused: the data may be of another size."""
        for made in ("_flow", "_space", "_single", "_many", "_forward"):
            self.__dict__.pop(made, None)

    @property
    def flow(self) -> Chain:
        """All layers, from the noise to the data.

        Raises
        ------
        AttributeError
            Before the first fit, if the layers are of no size of their own.
        """
        return self._bind()

    @cached_property
    def _single(self) -> Callable[..., tuple[Any, ...]]:
        """Log density at one vector (JAX), a function of all variables and the vector."""
        flow = self.flow
        value = pt.vector("value", shape=(self._space.size,), dtype=pytensor.config.floatX)
        return jaxify([*flow.variables, value], [log_density(flow, value)])

    @cached_property
    def _many(self):
        single = self._single  # made now: JAX must not trace its making
        return batch_jax(lambda values, x: single(*values, x), self.flow.variables)

    @cached_property
    def _forward(self):
        flow = self.flow
        noise = pt.vector("noise", shape=(self._space.size,), dtype=pytensor.config.floatX)
        function = jaxify([*flow.variables, noise], [flow.forward(noise)[0]])
        return batch_jax(lambda values, e: function(*values, e), flow.variables)

    # --- fitting -------------------------------------------------------------------------------

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
            Called as ``callback(estimator, losses, i)`` after every chunk of 100 steps, and after
            the last; ``StopIteration`` ends the fit.
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
        _check_count("n", n)
        _check_count("batch_size", batch_size)
        if patience is not None:
            _check_count("patience", patience)
        if not isinstance(obj_optimizer, optax.GradientTransformation | None):
            raise TypeError(
                f"obj_optimizer must be an optax transformation, got {obj_optimizer!r}."
            )
        rows, held_out, refill = self._read(X, batch_size, validation)
        if patience is not None and held_out is None:
            raise ValueError("patience needs held-out data; pass validation=.")
        if not self._fitted:
            start_from_moments(self._flow, rows)
        flow = self._flow
        values = [v.get_value() for v in flow.parameters]
        pack, unpack = packing(values)
        optimizer = obj_optimizer
        if optimizer is None:
            optimizer = default_optimizer(n, pack(learning_rates(flow)))
        constants = ([v.get_value() for v in flow.buffers], rows)
        state = start_state(pack(values), optimizer, constants)
        chunk = self._compile(obj_optimizer, optimizer, state, batch_size, unpack)
        key = jax.random.key(int(self._rng.integers(2**31)))

        best, best_loss = None, np.inf
        every = CHUNK_SIZE * max(1, n // (CHUNK_SIZE * MAX_VALIDATIONS))
        losses, validations = np.full(n, np.nan), []
        done, bad_steps, improved, reason = 0, 0, 0, "steps"
        try:
            with _progress(progressbar, progressbar_theme) as progress:
                bar = progress.add_task("Fitting", total=n, loss="")
                while done < n and bad_steps < MAX_BAD_STEPS:
                    size = min(CHUNK_SIZE, n - done)
                    state, losses[done : done + size] = chunk(state, key, size)
                    done += size
                    bad_steps = int(state.bad_steps)
                    store(flow.parameters, unpack(state.parameters))
                    recent = losses[max(0, done - 1000) : done]
                    recent = recent[np.isfinite(recent)]
                    said = f"Loss = {recent.mean() if recent.size else np.nan:,.5g}"
                    if held_out is not None and (done % every == 0 or done == n):
                        loss = -float(np.mean(self._many(held_out)[0]))
                        validations.append((len(self.hist) + done, loss))
                        said += f", held out {loss:,.5g}"
                        if loss < best_loss:
                            best, best_loss = unpack(state.parameters), loss
                            improved = done
                    progress.update(bar, advance=size, loss=said)
                    for callback in callbacks or ():
                        callback(self, losses[:done], done)
                    if patience is not None and done - improved >= patience:
                        reason = "converged"
                        break
                    if refill is not None:
                        constants = (state.constants[0], jnp.asarray(refill()))
                        state = state._replace(constants=constants)
        except KeyboardInterrupt:
            reason = "interrupted"
        except StopIteration:
            reason = "callback"
        finally:
            failed = bad_steps >= min(MAX_BAD_STEPS, n)
            store(flow.parameters, unpack(state.parameters) if best is None else best)
            self._fitted = True
            self.hist = np.concatenate([self.hist, losses[: done - bad_steps * failed]])
            self.validation = np.concatenate([self.validation, np.reshape(validations, (-1, 2))])
            self.stopping = Stopping("non-finite" if failed else reason, done)
        if failed:
            raise NonFiniteLossError(
                f"The loss was not finite for {bad_steps} steps in a row, the last of them step "
                f"{done}; scale the data, or pass obj_optimizer= with a lower learning rate."
            )
        return self

    def _read(self, X, batch_size, validation):
        """Rows to train on, held-out rows, and how to get fresh ones."""
        refill = None
        if callable(X):
            rng, n_rows = self._rng, batch_size * CHUNK_SIZE

            def refill():
                fresh, _ = self._space.read(X(rng, n_rows))
                if len(fresh) != len(rows):
                    raise ValueError(
                        f"X(rng, {n_rows}) returned {len(fresh)} observations after {len(rows)}; "
                        "return the same number at every call."
                    )
                return fresh

            drawn = X(rng, n_rows)
            self._bind(_width(drawn))
            rows, _ = self._space.read(drawn)
        else:
            self._bind(_width(X))
            rows, _ = self._space.read(X)
        if not len(rows):
            raise ValueError("X has no observations.")
        if validation is None or (refill is not None and isinstance(validation, float)):
            return rows, None, refill
        if not isinstance(validation, float):
            held_out, _ = self._space.read(validation)
            return rows, held_out, refill
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a share between 0 and 1, got {validation!r}.")
        n_held_out = max(1, round(validation * len(rows)))
        if n_held_out >= len(rows):
            return rows, None, refill
        order = self._rng.permutation(len(rows))
        return rows[order[n_held_out:]], rows[order[:n_held_out]], refill

    def _compile(self, given, optimizer, state, batch_size, unpack) -> Chunk:
        """Compile the loop, unless there is one that serves."""
        n_rows = state.constants[1].shape[0]
        if self._loop is not None:
            (known, *sizes), chunk = self._loop
            if known is given and sizes == [batch_size, n_rows]:
                return chunk
        flow = self._flow
        parameters, buffers = flow.parameters, flow.buffers
        single = self._single

        def draw(key):
            if n_rows <= batch_size:
                return jnp.arange(n_rows)
            return jax.random.randint(key, (batch_size,), 0, n_rows)

        def loss(packed, constants, rows):
            known = dict(zip(parameters, unpack(packed), strict=True))
            known |= zip(buffers, constants[0], strict=True)
            values = [known[v] for v in flow.variables]
            return -jax.vmap(lambda x: single(*values, x)[0])(constants[1][rows]).mean()

        chunk = compile_chunk(draw, loss, optimizer, state, CHUNK_SIZE)
        self._loop = (given, batch_size, n_rows), chunk
        return chunk

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
        self._bind(_width(X))
        rows, log_det = self._space.read(X)
        return self._many(rows)[0] + log_det

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
        _check_count("n", n)
        flow, rng = self.flow, self._rng
        if random_seed is not None:
            (seed,) = _get_seeds_per_chain(random_seed, 1)
            rng = np.random.default_rng(seed)
        noise = rng.normal(size=(n, flow.size)).astype(pytensor.config.floatX)
        return self._space.label(self._forward(noise)[0])

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
        probe = self._space_probe()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "layers": _describe(self.flow),
            "log_prob": float(self._many(probe[None])[0][0]),
        }
        arrays = [v.get_value() for v in self.flow.variables]
        write_arrays(path, header, [*arrays, self.hist, self.validation, probe])

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
        header, arrays = read_arrays(path)
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} does not hold a density estimator.")
        if header["version"] > VERSION:
            raise ValueError(
                f"{path} was written by a newer version of this package; update pymc-emf."
            )
        *values, hist, validation, probe = arrays
        was_bound = "_flow" in self.__dict__
        try:
            self._take(path, header, values, probe)
        except ValueError:
            if not was_bound:
                self._unbind()
            raise
        self.hist, self.validation, self._fitted = hist, validation, True
        return self

    def _take(self, path, header, values, probe) -> None:
        """Take over values from a file, or refuse it."""
        variables = self._bind(len(probe)).variables
        same = [(v.type.shape, v.type.dtype) for v in variables] == [
            (a.shape, a.dtype.name) for a in values
        ]
        if not same or header["layers"] != _describe(self.flow):
            raise ValueError(
                f"{path} is of other layers ({', '.join(header['layers'])}) than this estimator "
                f"({', '.join(_describe(self.flow))}); make it with the same ones."
            )
        before = [v.get_value() for v in variables]
        store(variables, values)
        # weights do not tell a permutation, or the numbers inside of a model
        if not np.isclose(self._many(probe[None])[0][0], header["log_prob"], rtol=1e-3, atol=1e-3):
            store(variables, before)
            raise ValueError(
                f"{path} is of layers of the same shape that do something else; make the "
                "estimator with the same layers and the same model."
            )

    def _space_probe(self) -> np.ndarray:
        """A point at which a loaded flow is compared with the saved one."""
        noise = np.full((1, self.flow.size), 0.5, dtype=pytensor.config.floatX)
        return self._forward(noise)[0][0]


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


def _space_of(flow: Chain, size: int) -> Space:
    last = flow.layers[-1]
    return ModelSpace(last.program) if isinstance(last, StructuredLayer) else ArraySpace(size)


def _describe(flow: Chain) -> list[str]:
    return [type(layer).__name__ for layer in flow.layers]


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def _progress(shown: bool, theme: Theme) -> CustomProgress:
    return CustomProgress(
        *Progress.get_default_columns(),
        TextColumn("{task.fields[loss]}"),
        console=Console(theme=theme),
        disable=not shown,
    )
