"""The inference method: ``pm.fit(method=EMFApprox())``."""

import os
import time

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from inspect import signature
from typing import Any, Literal

import jax
import numpy as np
import pymc as pm

from pymc.progress_bar import default_progress_theme
from pymc.pytensorf import resolve_backend_compile_kwargs
from pymc.util import RandomState
from pymc.variational.inference import Inference
from pymc.variational.operators import KL
from pytensor.compile.mode import Mode, get_mode
from pytensor.link.jax import JAXLinker
from rich.theme import Theme

from pymc_emf.arguments import make_rng, model_of
from pymc_emf.engine.interrupts import heard
from pymc_emf.layers.gates import Gate
from pymc_emf.layers.presets import LayerSpec
from pymc_emf.model.program import Program
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.checkpoint import Checkpoint
from pymc_emf.variational.jax_fit import fit_by_jax
from pymc_emf.variational.objective import Gradient
from pymc_emf.variational.options import TOL, FitOptions, Options
from pymc_emf.variational.prepare import prepare
from pymc_emf.variational.pymc_fit import fit_by_pymc, pymc_optimizer
from pymc_emf.variational.state import MethodState

__all__ = ["EMFApprox", "fit"]

Callback = Callable[[EMFApproximation, np.ndarray | None, int], None]
type Optimizer = Any  # an optax transformation, or one of PyMC's own optimisers


class EMFApprox(Inference):
    """Variational inference by an embedded-model flow.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the model in whose context ``fit`` is called, so that the method can be made
        before there is a model.
    layers : str, Bijection, callable, None or sequence of these
        Flow layers between the noise and the embedded model: "iaf" (a spline of every element,
        two masked autoregressive layers and a triangular affine one; beyond 1,000 elements
        "coupling"), "maf", "coupling"
        (a network from the model's few smallest variables to all others, and a low-rank affine
        layer: cost proportional to the number of elements), "affine" (mean field), "low_rank",
        "lower_triangular" (full rank), a layer, a function from the vector's size to a layer,
        or several of these from the noise onwards. None leaves the embedded model alone.
    gate : {"element", "variable"} or None
        One trainable gate per element or per variable, through which the fit can bypass what
        the data contradict; or none.
    gate_init : float
        Initial gates, in (0, 1).
    embed : bool or "strict"
        Whether to embed the model. With True, a variable for which no bijection is known is
        bypassed; with "strict" it is an error; with False all are, and what is left is
        ordinary variational inference with the flow layers.
    warm_start : "auto" or bool
        Whether to look for a good start before the fit. "auto" does so whenever the last of the
        layers is affine.
    gradient : {"path", "reparameterised"}
        Estimator of the gradient in the layers' parameters: the path derivative ("sticking the
        landing"), whose noise vanishes as the approximation nears the posterior, or plain
        reparameterisation, see :doc:`/engine`.
    random_seed : int, RandomState or Generator, optional
        ``pm.fit`` does not pass its own seed on to a method given as an instance.
    start : dict, optional
        Values of some variables to start from, as in PyMC; likewise not passed on by ``pm.fit``.

    Raises
    ------
    ValueError
        If an option has an unknown value.

    Notes
    -----
    ``fit`` again, or ``refine``, continues from what was learnt. An instance serves one model.

    References
    ----------
    Silvestri, Fertig, Moore, Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv:2110.06021.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    ...     approx = pm.fit(500, method=emf.EMFApprox(random_seed=1), progressbar=False)
    >>> idata = approx.sample(1000)
    >>> abs(float(idata.posterior["mu"].mean()) - 2.0) < 0.1
    True
    """

    def __init__(
        self,
        model: pm.Model | None = None,
        *,
        layers: LayerSpec = "iaf",
        gate: Gate = "element",
        gate_init: float = 0.999,
        embed: bool | Literal["strict"] = True,
        warm_start: bool | Literal["auto"] = "auto",
        gradient: Gradient = "path",
        random_seed: RandomState = None,
        start: Mapping[str, Any] | None = None,
    ):
        options = Options(layers, gate, gate_init, embed, warm_start, gradient, start)
        self._initialise(model, options, random_seed)

    def _initialise(self, model: pm.Model | None, options: Any, random_seed: RandomState) -> None:
        self.options = options
        self.hist = np.asarray(())
        self.state = None
        self._model = model
        self._kept = MethodState(make_rng(random_seed))
        self._seed = None if random_seed is None else dict(self._kept.rng.bit_generator.state)
        if model is not None:
            self._kept.approx = self._bind(self._kept.rng)

    # --- the model -----------------------------------------------------------------------------

    @property
    def approx(self) -> EMFApproximation:
        """The approximation; it exists once a model is known."""
        if self._kept.approx is None:
            raise AttributeError("This EMFApprox has no model yet; call fit, or pass model=.")
        return self._kept.approx

    @property
    def objective(self) -> Any:
        """PyMC's objective function, for its own loop."""
        return KL(self.approx)(None)

    def _bind(self, rng: np.random.Generator) -> EMFApproximation:
        """The approximation of the model, made unless it exists already."""
        context = pm.Model.get_context(error_if_none=False)
        if self._kept.approx is not None:
            bound = self._kept.approx.model
            if self._model is None and context is not None and context is not bound:
                raise ValueError(
                    "This EMFApprox has already been used for another model; "
                    "make a new EMFApprox() for each model."
                )
            return self._kept.approx
        model = self._model if self._model is not None else context
        if model is None:
            raise TypeError(
                "EMFApprox has no model: call fit inside a `with model:` block, or pass "
                "EMFApprox(model=...)."
            )
        begin = time.perf_counter()
        prepared = prepare(Program(model_of(model)), self.options, rng)
        approx = EMFApproximation(prepared, random_seed=rng)
        timing = {"rewrite": time.perf_counter() - begin}
        approx.record = replace(approx.record, timing=timing)
        return approx

    # --- fitting -------------------------------------------------------------------------------

    @heard()
    def fit(
        self,
        n: int = 10_000,
        score: bool | None = None,
        callbacks: Sequence[Callback] | None = None,
        progressbar: bool = True,
        progressbar_theme: Theme = default_progress_theme,
        *,
        backend: str | None = None,
        include_transformed: bool = False,
        obj_n_mc: int | None = None,
        obj_optimizer: Optimizer | None = None,
        total_grad_norm_constraint: float | None = None,
        tol: float | None = TOL,
        devices: Sequence[jax.Device] | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 1000,
        compile_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> EMFApproximation:
        """Maximise the ELBO.

        Parameters
        ----------
        n : int
            Most steps; the fit ends earlier once there is no more to gain, see ``tol``. Over
            the last of them the learning rate falls to zero.
        score : bool, optional
            Whether to record the loss of every step; by default yes.
        callbacks : sequence of callable
            Called as ``callback(approx, losses, i)`` after every chunk of at most 100 steps, and of
            at most a tenth of the fit, and after the last; also at every multiple of a
            callback's attribute ``every``. ``StopIteration`` ends the fit.
        progressbar : bool
        progressbar_theme : rich.theme.Theme
        backend : {"jax", "numba", "c"}, optional
            By default JAX, with fused steps. Others run PyMC's own loop, one step at a time.
        include_transformed : bool
            Whether ``approx.sample`` returns unconstrained values too.
        obj_n_mc : int, optional
            Monte Carlo draws per step. By default 32, as steps with fewer hardly take less time;
            down to 8 where the model has many elements or data, or computes large arrays, until
            their noise is what limits the fit. With other backends than JAX 8.
        obj_optimizer : optax.GradientTransformation or callable, optional
            An optax optimiser, or one of PyMC's own (``pm.adam(learning_rate=0.01)``). By
            default Adam with warm-up and cosine decay.
        total_grad_norm_constraint : float, optional
            Gradients are scaled down to this norm.
        tol : float, optional
            End the fit once there is no more than ``tol`` nats to gain: the noise of the losses
            shows that the divergence from the posterior is smaller, or the ELBO rose by less,
            or by less than its Monte Carlo error, over the last quarter of the steps. The rates
            then fall to zero over half as many further steps. With None all ``n`` steps
            run, as they do with other backends than JAX.
        devices : sequence of jax.Device, optional
            Devices over which the draws of a step are distributed, ``jax.devices()`` for all. The
            result is that of one device, up to rounding. By default JAX's default device. Not
            with other backends than JAX.
        checkpoint : path-like, optional
            File to which the fit is written while it runs. If it exists, the fit goes on from
            there, and the result is that of a fit which was not interrupted; after a fit's last
            step, only its last check is left to do. Not with other backends than JAX.
        checkpoint_every : int
            Number of steps between two writes, rounded up to chunks.
        compile_kwargs : dict, optional
            For ``pytensor.function``; not with JAX.
        **kwargs
            Further arguments of PyMC's loop; not with JAX.

        Returns
        -------
        EMFApproximation

        Raises
        ------
        TypeError
            If there is no model, it has no free variables, or ``callbacks`` is not a list of
            functions.
        ValueError
            If ``n`` or ``obj_n_mc`` is not positive, if ``obj_n_mc`` draws cannot be dealt evenly
            to the devices, if the model cannot be fitted, or if the file of ``checkpoint`` is
            damaged, or of another fit.
        BadStartError
            If the log density is finite at no draw of the prior, or a start lies outside of the
            support.
        NonFiniteELBOError
            If the ELBO stays non-finite for several steps. What was learnt until then is kept.
        """
        ask = FitOptions(
            n,
            score,
            callbacks,
            progressbar,
            progressbar_theme,
            obj_n_mc,
            obj_optimizer,
            total_grad_norm_constraint,
            tol,
            devices,
            checkpoint,
            checkpoint_every,
        )
        with_jax = _is_jax(backend, compile_kwargs)
        _check_engine(ask, with_jax, compile_kwargs, kwargs)
        file = None if ask.checkpoint is None else self._checkpoint(ask)
        if file is not None:
            ask = replace(ask, obj_n_mc=file.settings["obj_n_mc"])
        rng = deepcopy(self._kept.rng)  # a fit that fails leaves the method as it was
        approx = self._bind(rng)
        try:
            if with_jax:
                self.state = fit_by_jax(self._kept, approx, ask, rng, file)
            else:
                options = {
                    "compile_kwargs": resolve_backend_compile_kwargs(backend, compile_kwargs)
                }
                self.state = fit_by_pymc(self, self._kept, approx, ask, rng, options | kwargs)
        finally:
            if self._kept.approx is approx:  # the fit has started
                self.hist = approx.hist
                approx.groups[0].include_transformed = include_transformed
        return approx

    def refine(self, n: int, progressbar: bool = True, **kwargs: Any) -> None:
        """Continue a fit by ``n`` steps, from what was learnt.

        Takes the arguments of :meth:`fit`; without ``tol`` all steps run.
        """
        if self._kept.started is None:
            raise TypeError("Need to call `.fit` first")
        self.fit(n, progressbar=progressbar, **{"tol": None} | kwargs)

    def _checkpoint(self, ask: FitOptions) -> Checkpoint:
        assert ask.checkpoint is not None
        settings = {
            "method": self.options.method,
            **ask.settings(),
            "number of steps before it": self._kept.n_steps,
            "random_seed": self._seed,
            **self.options.settings(),
        }
        return Checkpoint(ask.checkpoint, ask.checkpoint_every, settings)


def _is_jax(backend: str | None, compile_kwargs: Mapping[str, Any] | None) -> bool:
    mode = (compile_kwargs or {}).get("mode")
    if backend is None and mode is None:
        return True
    if backend is not None and mode is not None:
        raise ValueError("Can only define one of `backend` or `compile_kwargs['mode']`")
    chosen = get_mode({"c": "cvm"}.get(backend, backend) if backend is not None else mode)
    return isinstance(chosen, Mode) and isinstance(chosen.linker, JAXLinker)


#: Arguments that PyMC's own loop takes beyond those of :class:`FitOptions`.
_OF_PYMC = ("more_obj_params", "more_tf_params", "more_updates", "more_replacements")


def _check_engine(
    ask: FitOptions,
    with_jax: bool,
    compile_kwargs: Mapping[str, Any] | None,
    others: Mapping[str, Any],
) -> None:
    """Refuse arguments that the engine asked for does not take."""
    of_pymc = [name for name in others if name in _OF_PYMC or name.startswith(("tf_", "test_"))]
    if unknown := [name for name in others if name not in of_pymc]:
        known = sorted(FIT_ARGUMENTS | OPTIONS)
        raise TypeError(
            f"fit() got unexpected arguments: {', '.join(unknown)}; those of a fit and of "
            f"EMFApprox are {', '.join(known)}."
        )
    if with_jax and (of_pymc or compile_kwargs):
        names = ", ".join([*of_pymc, *(["compile_kwargs"] if compile_kwargs else [])])
        raise TypeError(
            f"fit() got arguments that the JAX engine does not take: {names}; "
            'pass backend="numba" to use PyMC\'s own loop.'
        )
    for name, default in (("tol", TOL), ("devices", None), ("checkpoint", None)):
        if getattr(ask, name) not in (None, default) and not with_jax:
            raise TypeError(f"{name} needs the JAX engine; leave out backend=, or {name}=.")
    if not with_jax:
        pymc_optimizer(ask.obj_optimizer)


def fit(
    n: int = 10_000,
    model: pm.Model | None = None,
    random_seed: RandomState = None,
    start: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> EMFApproximation:
    """Fit an embedded-model flow: ``EMFApprox(...).fit(...)`` in one call.

    Unlike ``pm.fit``, which drops ``random_seed`` and ``start`` when it is given a method as an
    instance, this passes everything on.

    Parameters
    ----------
    n : int
        Number of steps.
    model : pymc.Model, optional
        By default the model in context.
    random_seed : int, RandomState or Generator, optional
    start : dict, optional
        Values of some variables to start from.
    **kwargs
        Options of :class:`EMFApprox` (``layers``, ``gate``, ``gate_init``, ``embed``,
        ``warm_start``, ``gradient``) and arguments of :meth:`EMFApprox.fit`.

    Returns
    -------
    EMFApproximation

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    >>> approx = emf.fit(500, model=model, random_seed=1, progressbar=False)
    >>> round(float(approx.gates["mu"]), 1)
    1.0
    """
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    return EMFApprox(model, random_seed=random_seed, start=start, **options).fit(n, **kwargs)


#: Names of the options of :class:`EMFApprox` that :func:`fit` passes on.
OPTIONS = set(signature(EMFApprox).parameters) - {"model", "random_seed", "start"}
#: Names of the arguments of a fit.
FIT_ARGUMENTS = {f.name for f in fields(FitOptions)}
FIT_ARGUMENTS |= {"backend", "compile_kwargs", "include_transformed"}
