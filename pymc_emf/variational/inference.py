"""The inference method: ``pm.fit(method=EMFApprox())``."""

import logging
import os
import time

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
import pymc as pm
import pytensor

from pymc.initial_point import make_initial_point_fn
from pymc.model import modelcontext
from pymc.progress_bar import CustomProgress, default_progress_theme
from pymc.pytensorf import resolve_backend_compile_kwargs
from pymc.util import RandomState
from pymc.variational.inference import Inference, State
from pymc.variational.operators import KL
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Variable
from pytensor.link.jax import JAXLinker
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.theme import Theme

from pymc_emf.engine.compile import compile_bijection
from pymc_emf.engine.devices import Devices, check_devices, shardings
from pymc_emf.engine.loop import CHUNK_SIZE, Chunk, LoopState, compile_chunk, start_state
from pymc_emf.engine.optimizers import default_optimizer, from_pymc
from pymc_emf.engine.packing import packing
from pymc_emf.engine.run import Run
from pymc_emf.engine.stopping import EXACT, Stopping
from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.layers import StructuredLayer, make_layers
from pymc_emf.layers.gates import Gate
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import LayerSpec, check_layers
from pymc_emf.model.program import Program
from pymc_emf.variational.approximation import EMFApproximation, make_rng
from pymc_emf.variational.checkpoint import Checkpoint
from pymc_emf.variational.checks import (
    explain,
    keep_the_better,
    moments_in_doubt,
    warn_if_poor,
)
from pymc_emf.variational.diagnosis import missed_evidence, smooth
from pymc_emf.variational.objective import Gradient, Objective
from pymc_emf.variational.warm_start import evaluate_prior, gate_sensitivity, start_at, warm_start

__all__ = ["OPTIONS", "EMFApprox", "check_positive", "fit"]

logger = logging.getLogger(__name__)

#: Random numbers made at once, for several steps: 32 MB.
MAX_NUMBERS_AHEAD = 2**22

#: Candidates of the warm start are tried out for this share of the steps, within bounds. Rounds
#: of trials end once a larger share is spent.
TRIAL_SHARE, MIN_TRIAL, MAX_TRIAL = 20, 50, 500
TRIALS_SHARE = 4

#: Draws from the prior by which a missed mode is found at the end.
N_PRIOR_DRAWS = 1000

LEARNING_RATE = 0.01
#: Gates are sigmoids of 100 times their parameter, and take a tenth of the rate.
GATE_LEARNING_RATE = 0.001


@dataclass(frozen=True)
class _Loop:
    """A compiled loop, and what it was compiled for."""

    obj_optimizer: Any
    norm: float | None
    n_draws: int
    devices: Devices
    optimizer: optax.GradientTransformation
    chunk: Chunk

    def serves(
        self, obj_optimizer: Any, norm: float | None, n_draws: int, devices: Devices
    ) -> bool:
        """Whether a fit with these arguments can run it; any number of steps can."""
        same = obj_optimizer is self.obj_optimizer and devices == self.devices
        return same and norm == self.norm and n_draws == self.n_draws


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

    #: Learning rate of what is trained in the structured layer.
    _gate_rate = GATE_LEARNING_RATE
    #: Whether a fit to other data shall find everything compiled.
    _data_may_change = False

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
        check_layers(layers)
        StructuredLayer.check_options(gate, gate_init, embed)
        if warm_start not in (True, False, "auto"):
            raise ValueError(f'warm_start must be "auto", True or False, got {warm_start!r}.')
        if gradient not in get_args(Gradient):
            raise ValueError(f'gradient must be "path" or "reparameterised", got {gradient!r}.')
        self.hist = np.asarray(())
        self.state = None
        self.layers = layers
        self.gate = gate
        self.gate_init = gate_init
        self.embed = embed
        self.warm_start = warm_start
        self.gradient = gradient
        self.start = start
        self._model = model
        self._prepared = False
        self._gate_rates: list[np.ndarray] | None = None
        self._loop: _Loop | None = None
        self._n_steps = 0  # of all fits so far
        self._rng = make_rng(random_seed)
        self._seed = None if random_seed is None else dict(self._rng.bit_generator.state)
        if model is not None:
            self._bind()

    # --- the model -----------------------------------------------------------------------------

    @property
    def approx(self) -> EMFApproximation:
        """The approximation; it exists once a model is known."""
        if "objective" not in self.__dict__:
            raise AttributeError("This EMFApprox has no model yet; call fit, or pass model=.")
        return self.objective.approx

    def _bind(self) -> EMFApproximation:
        """Make the approximation of the model, unless it exists already."""
        context = pm.Model.get_context(error_if_none=False)
        if "objective" in self.__dict__:
            bound = self.approx.model
            if self._model is None and context is not None and context is not bound:
                raise ValueError(
                    "This EMFApprox has already been used for another model; "
                    "make a new EMFApprox() for each model."
                )
            return self.approx
        model = self._model if self._model is not None else context
        if model is None:
            raise TypeError(
                "EMFApprox has no model: call fit inside a `with model:` block, or pass "
                "EMFApprox(model=...)."
            )
        model = modelcontext(model)
        start = time.perf_counter()
        structured = self._structured_layer(Program(model, data_may_change=self._data_may_change))
        layers = make_layers(self.layers, structured.size, self._rng, structured.program.hubs)
        objective = Objective(layers, structured, self.gradient)
        approx = EMFApproximation(objective, random_seed=self._rng)
        approx.recipe = {"method": type(self).__name__, "options": self._options()}
        self.objective = KL(approx)(None)
        approx.timing["rewrite"] = time.perf_counter() - start
        self._initial = _values(objective.variables)
        return approx

    def _expect_other_data(self, model: pm.Model) -> None:
        """Serve a model whose data will change from fit to fit."""
        if "objective" in self.__dict__:
            raise ValueError("The method has been used already; make a new one for each model.")
        self._model, self._data_may_change = model, True

    def _renew(self, data: Mapping[str, np.ndarray], random_seed: Sequence[int]) -> None:
        """Forget what was learnt, but not what was compiled, and take other data."""
        approx = self._bind()
        store(approx.objective.variables, self._initial)
        for name, variable in approx.objective.program.data.items():
            variable.set_value(np.asarray(data[name], dtype=variable.type.dtype))
        self._rng, draws_rng = np.random.default_rng(random_seed).spawn(2)
        approx.random_state = dict(draws_rng.bit_generator.state)
        self.hist = approx.hist = np.asarray(())
        self._prepared, self._gate_rates, self._n_steps = False, None, 0

    def _options(self) -> dict[str, Any]:
        """Options that a file can hold; layers are None unless they are names."""
        names = self.layers if _are_names(self.layers) else None
        return {
            "layers": names,
            "gate": self.gate,
            "gate_init": self.gate_init,
            "embed": self.embed,
            "gradient": self.gradient,
        }

    def _structured_layer(self, program: Program) -> StructuredLayer:
        return StructuredLayer(
            program,
            self.gate,
            gate_init=self.gate_init,
            embed=self.embed,
        )

    # --- fitting -------------------------------------------------------------------------------

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
        obj_n_mc: int = 50,
        obj_optimizer: Optimizer | None = None,
        total_grad_norm_constraint: float | None = None,
        tol: float | None = None,
        devices: Sequence[jax.Device] | None = None,
        checkpoint: str | os.PathLike | None = None,
        every: int = 1000,
        compile_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> EMFApproximation:
        """Maximise the ELBO.

        Parameters
        ----------
        n : int
            Number of steps, those of the warm start's trials included, which are at most half of
            them; the learning rate decays to zero over the rest.
        score : bool, optional
            Whether to record the loss of every step; by default yes.
        callbacks : sequence of callable
            Called as ``callback(approx, losses, i)`` after every chunk of 100 steps, and after
            the last; ``StopIteration`` ends the fit.
        progressbar : bool
        progressbar_theme : rich.theme.Theme
        backend : {"jax", "numba", "c"}, optional
            By default JAX, with fused steps. Others run PyMC's own loop, one step at a time.
        include_transformed : bool
            Whether ``approx.sample`` returns unconstrained values too.
        obj_n_mc : int
            Monte Carlo draws per step.
        obj_optimizer : optax.GradientTransformation or callable, optional
            An optax optimiser, or one of PyMC's own (``pm.adam(learning_rate=0.01)``). By
            default Adam with warm-up and cosine decay.
        total_grad_norm_constraint : float, optional
            Gradients are scaled down to this norm.
        tol : float, optional
            Stop once the ELBO of a thousand steps is no more than ``tol`` nats, or than its
            Monte Carlo error, above that of the thousand before; the rates then fall to zero
            over at most a thousand further steps. By default all ``n`` steps run. Not with
            other backends than JAX.
        devices : sequence of jax.Device, optional
            Devices over which the draws of a step are distributed, ``jax.devices()`` for all. The
            result is that of one device, up to rounding. By default JAX's default device. Not
            with other backends than JAX.
        checkpoint : path-like, optional
            File to which the fit is written while it runs. If it exists, the fit goes on from
            there, and the result is that of a fit which was not interrupted; after a fit's last
            step, only its last check is left to do. Not with other backends than JAX.
        every : int
            Number of steps between two writes, rounded up to hundreds.
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
        NonFiniteELBOError
            If the ELBO stays non-finite for several steps. What was learnt until then is kept.
        """
        check_positive("n", n)
        check_positive("obj_n_mc", obj_n_mc)
        if tol is not None and not tol >= 0:
            raise ValueError(f"tol must be None or a non-negative number of nats, got {tol!r}.")
        with_jax = _is_jax(backend, compile_kwargs)
        if with_jax and (kwargs or compile_kwargs):
            names = ", ".join([*kwargs, *(["compile_kwargs"] if compile_kwargs else [])])
            raise TypeError(
                f"fit() got arguments that the JAX engine does not take: {names}; "
                'pass backend="numba" to use PyMC\'s own loop.'
            )
        if tol is not None and not with_jax:
            raise TypeError("tol needs the JAX engine; leave out backend=, or tol=.")
        if devices is not None and not with_jax:
            raise TypeError("devices needs the JAX engine; leave out backend=, or devices=.")
        if checkpoint is not None and not with_jax:
            raise TypeError("checkpoint needs the JAX engine; leave out backend=, or checkpoint=.")
        check_positive("every", every)
        devices = check_devices(devices, obj_n_mc)
        callbacks = None if callbacks is None else _check_callbacks(callbacks)
        file = None
        if checkpoint is not None:
            settings = {
                "method": type(self).__name__,
                "n": n,
                "obj_n_mc": obj_n_mc,
                "obj_optimizer": "default" if obj_optimizer is None else "own",
                "total_grad_norm_constraint": total_grad_norm_constraint,
                "tol": tol,
                "number of steps before it": self._n_steps,
                "warm_start": self.warm_start,
                "random_seed": self._seed,
                **self._options(),
            }
            file = Checkpoint(checkpoint, every, settings)
        approx = self._bind()
        approx.timing["compile"] = 0.0
        approx.groups[0].include_transformed = include_transformed
        started = time.perf_counter()
        try:
            if file is not None:
                file.check(approx)
            start = None if self._prepared else self._rewrite(approx)
            if with_jax:
                self._loop = self._compile(
                    n, obj_optimizer, total_grad_norm_constraint, obj_n_mc, devices
                )
            run: Run | None = None
            if file is not None and file.exists:
                run, before = self._take_up(approx, file)
            else:
                if not self._prepared:
                    self._find_start(approx, start, n)
                    n -= approx.warm_start.n_steps
                before = _values(approx.objective.parameters)
                if with_jax:
                    run = self._begin(n)
                if file is not None:
                    file.begin(approx.objective, before)
        except BaseException:
            if not self._prepared:
                del self.objective  # as if fit had never been called
                self._loop = None
            raise
        self._prepared = True
        if not with_jax:
            kwargs["compile_kwargs"] = resolve_backend_compile_kwargs(backend, compile_kwargs)
            approx.use_backend(kwargs["compile_kwargs"])
            self._run_pytensor(
                approx,
                n,
                score=score,
                callbacks=callbacks,
                progressbar=progressbar,
                progressbar_theme=progressbar_theme,
                include_transformed=include_transformed,
                obj_n_mc=obj_n_mc,
                obj_optimizer=_for_pytensor(obj_optimizer),
                total_grad_norm_constraint=total_grad_norm_constraint,
                **kwargs,
            )
            return approx
        approx.use_backend(None)
        self._run_jax(
            approx,
            run,
            before,
            self._loop,
            file,
            tol=tol,
            score=score is not False,
            callbacks=callbacks or [],
            progress=CustomProgress(
                *Progress.get_default_columns(),
                TextColumn("{task.fields[loss]}"),
                console=Console(theme=progressbar_theme),
                disable=not progressbar,
            ),
        )
        approx.timing["fit"] = time.perf_counter() - started
        return approx

    def refine(self, n: int, progressbar: bool = True, **kwargs: Any) -> None:
        """Continue a fit by ``n`` steps, from what was learnt."""
        if self.state is None:
            raise TypeError("Need to call `.fit` first")
        self.fit(n, progressbar=progressbar, **kwargs)

    def _rewrite(self, approx: EMFApproximation) -> np.ndarray | None:
        """Turn the graphs into JAX functions; return the noise of the user's start."""
        begin = time.perf_counter()
        start = None if self.start is None else _to_noise(approx.objective, self.start)
        approx.objective.rewrite()
        approx.timing["rewrite"] += time.perf_counter() - begin
        return start

    def _find_start(self, approx: EMFApproximation, start: np.ndarray | None, n: int) -> None:
        """Check that the log density is finite somewhere, and find a good start."""
        begin = time.perf_counter()
        objective = approx.objective
        noise, log_density = evaluate_prior(objective, self._rng, start)
        if self.warm_start is not False:
            train, n_steps = None, min(n // TRIAL_SHARE, MAX_TRIAL)
            if self._loop is not None and self._loop.obj_optimizer is None and n_steps >= MIN_TRIAL:
                train = partial(self._try_out, self._loop, n_steps)
            approx.warm_start = warm_start(
                objective, self._rng, noise, log_density, start, train, n // TRIALS_SHARE
            )
            self._set_gate_rates(approx.warm_start.sd)
        elif start is not None:
            approx.warm_start = start_at(objective, start)
        approx.timing["warm_start"] = time.perf_counter() - begin

    def _set_gate_rates(self, sd: float = np.inf) -> None:
        sensitivity = gate_sensitivity(self.approx.objective, self._rng)
        self._gate_rates = _gate_rates(sensitivity, sd)

    def _try_out(self, loop: _Loop, n_steps: int) -> int:
        """Train for a few steps, to see what becomes of a start; return their number."""
        objective = self.approx.objective
        self._set_gate_rates()
        state, unpack = self._state(n_steps)
        key = jax.random.key(int(self._rng.integers(2**31)))
        for done in range(0, n_steps, loop.chunk.size):
            state, _ = loop.chunk(state, key, min(loop.chunk.size, n_steps - done))
        store(objective.parameters, unpack(state.parameters))
        return n_steps

    def _compile(self, n, obj_optimizer, norm, n_draws, devices) -> _Loop:
        """Begin to compile the loop, unless there is one of the same kind already."""
        begin = time.perf_counter()
        objective = self.approx.objective
        old = self._loop
        if old is not None and old.serves(obj_optimizer, norm, n_draws, devices):
            return old
        match obj_optimizer:
            case None:
                optimizer = self._default_optimizer(n)
            case optax.GradientTransformation():
                optimizer = obj_optimizer
            case _ if callable(obj_optimizer):
                optimizer = from_pymc(obj_optimizer, objective.parameters)
            case _:
                raise TypeError(
                    "obj_optimizer must be an optax transformation or one of PyMC's optimisers, "
                    f"got {obj_optimizer!r}."
                )
        values = _values(objective.parameters)
        pack, unpack = packing(values) if obj_optimizer is None else (list, list)
        chained = _clipped(optimizer, norm)
        dealt, everywhere = shardings(devices)
        chunk = compile_chunk(
            lambda key: objective.draw(key, n_draws, dealt),
            lambda values, buffers, drawn: objective.loss(unpack(values), buffers, drawn),
            chained,
            start_state(pack(values), chained, _values(objective.buffers)),
            CHUNK_SIZE,
            ahead=max(1, MAX_NUMBERS_AHEAD // (n_draws * objective.size)),
            placement=everywhere,
        )
        self.approx.timing["compile"] = time.perf_counter() - begin
        return _Loop(obj_optimizer, norm, n_draws, devices, optimizer, chunk)

    def _default_optimizer(self, n: int) -> optax.GradientTransformation:
        objective = self.approx.objective
        structured = objective.structured
        gates, own = structured.own_parameters, structured.program.parameters
        rates = [np.full(p.type.shape, LEARNING_RATE) for p in objective.layer_parameters]
        if self._gate_rates is None:  # before the warm start
            rates += [np.full(p.type.shape, self._gate_rate) for p in gates]
        else:
            rates += self._gate_rates[: len(gates)]
        rates += [np.full(p.type.shape, LEARNING_RATE) for p in own]
        if self.approx.warm_start.sd**2 < 2 * EXACT and not own:
            # Adam would make full steps of what is left of the gradients, which is rounding
            rates = [np.zeros_like(rate) for rate in rates]
        pack, _ = packing(_values(objective.parameters))
        return default_optimizer(n, pack(rates))

    def _begin(self, n: int) -> Run:
        """Make a run of ``n`` steps from the parameters as they are."""
        state, _ = self._state(n)
        return Run(state, int(self._rng.integers(2**31)), np.full(n, np.nan), n)

    def _take_up(self, approx: EMFApproximation, file: Checkpoint) -> tuple[Run, list[np.ndarray]]:
        """Return the run of a file, and the parameters before its first step."""
        like, _ = self._state(1)
        run, before, self._gate_rates, random_state = file.take_up(approx, like)
        self._rng.bit_generator.state = random_state
        self.hist = approx.hist
        return run, before

    def _state(self, n: int) -> tuple[LoopState, Callable]:
        """State of the loop before the first of ``n`` steps, and how to unpack its parameters."""
        objective, loop = self.approx.objective, self._loop
        assert loop is not None
        values = _values(objective.parameters)
        ours = loop.obj_optimizer is None
        pack, unpack = packing(values) if ours else (list, list)
        optimizer = self._default_optimizer(n) if ours else loop.optimizer
        buffers = _values(objective.buffers)
        return start_state(pack(values), _clipped(optimizer, loop.norm), buffers), unpack

    def _run_jax(self, approx, run, before, loop, file, *, tol, score, callbacks, progress) -> None:
        """Run the fused loop."""
        objective = approx.objective
        # the exact posterior under some parameters of the model is not that under the best
        may_be_exact = not objective.program.parameters
        ours, (_, unpack) = loop.obj_optimizer is None, self._state(run.n)
        earlier, first = self.hist, run.done
        begin = time.perf_counter()
        loop.chunk.wait()
        approx.timing["compile"] += time.perf_counter() - begin

        def keep(reason: str) -> None:
            store(objective.parameters, unpack(run.state.parameters))
            kept = run.done - run.bad_steps if run.failed else run.done
            self.hist = np.concatenate([earlier, run.losses[:kept] if score else []])
            approx.hist = self.hist
            approx.stopping = Stopping(reason, run.done)

        def write() -> None:
            random_state = dict(self._rng.bit_generator.state)
            file.write(approx, run, before, self._gate_rates, len(earlier), random_state)

        stepping, reason, stopped = 0.0, None, ""
        try:
            with progress:
                task = progress.add_task("Fitting", total=run.n, completed=run.done, loss="")
                if file is not None and file.is_due(run):
                    write()
                while not run.over:
                    begin = time.perf_counter()
                    size = run.advance(loop.chunk)
                    stepping += time.perf_counter() - begin
                    losses = run.losses[: run.done]
                    progress.update(
                        task, advance=size, loss=f"Average Loss = {_average(losses):,.5g}"
                    )
                    if callbacks:
                        store(objective.parameters, unpack(run.state.parameters))
                    for callback in callbacks:
                        callback(approx, losses if score else None, run.done)
                    run.consider(size, loop.n_draws, tol, may_be_exact=may_be_exact, cools=ours)
                    if file is not None and file.is_due(run) and not run.failed:
                        keep(run.reason if run.over else "unfinished")
                        write()
        except KeyboardInterrupt:
            reason = "interrupted"
        except StopIteration as interruption:
            run.reason, run.end, stopped = "callback", run.done, str(interruption)
        finally:
            failed = run.failed
            keep("non-finite" if failed else reason or (run.reason if run.over else "unfinished"))
            approx.timing["step"] = stepping / max(run.done - first, 1)
            self._n_steps += run.done
            self.state = State(run.done, step=loop.chunk, callbacks=callbacks, score=score)
            if file is not None and not failed:
                write()

        reason = reason or run.reason
        if failed:
            kept = run.done - run.bad_steps
            raise NonFiniteELBOError(
                explain(objective, jax.random.fold_in(run.key, kept), loop.n_draws, kept)
            )
        done, n, losses = run.done, run.n, run.losses[: run.done]
        if reason in ("callback", "interrupted"):
            if stopped:
                logger.info("%s", stopped)
            logger.info(
                "Interrupted at %d [%d%%]: Average Loss = %.5g",
                done,
                100 * done // n,
                _average(losses),
            )
            return
        drawn, log_weights = keep_the_better(objective, before, self._rng)
        smoothed = smooth(log_weights)
        missed = missed_evidence(smoothed, objective.prior_log_weights(self._prior_noise()))
        weights, approx.pareto_k = (
            np.exp(smoothed.log_weights),
            np.inf if missed else smoothed.pareto_k,
        )
        if reason in _SAID:
            logger.info("Stopped at %d of %d steps: %s", done, n, _SAID[reason])
        logger.info("Finished [100%%]: Average Loss = %.5g", _average(losses))
        doubt = moments_in_doubt(drawn, weights)
        warn_if_poor(
            approx.pareto_k,
            losses,
            None if doubt is None else (objective.program.element_name(doubt[0]), doubt[1]),
            missed,
        )

    def _prior_noise(self) -> np.ndarray:
        """Draws of noise by which a missed mode is looked for."""
        n, size = self.approx.objective.affordable(N_PRIOR_DRAWS), self.approx.objective.size
        return self._rng.normal(size=(n, size)).astype(pytensor.config.floatX)

    def _run_pytensor(self, approx, n, *args, **kwargs) -> None:
        """Run PyMC's own loop; on NaN, go back to the last finite parameters."""
        parameters = approx.objective.parameters
        finite = [p.get_value() for p in parameters]

        def remember(approx, losses, i):
            if i % CHUNK_SIZE == 0 or i == 1:
                values = [p.get_value() for p in parameters]
                if all(np.isfinite(value).all() for value in values):
                    finite[:] = values

        kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), remember]
        try:
            super().fit(n, *args, **kwargs)
        except FloatingPointError as error:
            store(parameters, finite)
            step = len(self.hist)
            key = jax.random.key(int(self._rng.integers(2**31)))
            raise NonFiniteELBOError(
                explain(approx.objective, key, kwargs["obj_n_mc"], step)
            ) from error


#: How the log says why a fit ended before its last step.
_SAID = {
    "converged": "the ELBO no longer rises",
    "exact": "the approximation is exact",
}


def _clipped(
    optimizer: optax.GradientTransformation, norm: float | None
) -> optax.GradientTransformation:
    """Add the user's bound on the norm of the gradient."""
    return optimizer if norm is None else optax.chain(optax.clip_by_global_norm(norm), optimizer)


def _values(variables) -> list[np.ndarray]:
    return [v.get_value() for v in variables]


def _gate_rates(sensitivity: list[np.ndarray], sd: float) -> list[np.ndarray]:
    """Learning rates of the gates.

    No step may change the log density by more than the steps of other parameters do. And the
    closer the start is to the posterior, as the standard deviation of its log weights tells, the
    less there is for the gates to do: their gradients are by reparameterisation, whose noise
    does not vanish.
    """
    share = GATE_LEARNING_RATE / LEARNING_RATE
    return [
        GATE_LEARNING_RATE * min(1.0, sd) / np.maximum(1.0, share * size) for size in sensitivity
    ]


def _average(losses: np.ndarray) -> float:
    recent = losses[-1000:]
    recent = recent[np.isfinite(recent)]
    return float(recent.mean()) if recent.size else np.nan


def check_positive(name: str, value: Any) -> None:
    """Raise unless the value of an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def _are_names(layers: LayerSpec) -> bool:
    if isinstance(layers, list | tuple):
        return all(map(_are_names, layers))
    return isinstance(layers, str)


def _check_callbacks(callbacks: Any) -> list[Callback]:
    if not isinstance(callbacks, Iterable) or not all(callable(c) for c in callbacks):
        raise TypeError(f"callbacks must be a list of functions, got {callbacks!r}.")
    return list(callbacks)


def _is_jax(backend: str | None, compile_kwargs: Mapping[str, Any] | None) -> bool:
    mode = (compile_kwargs or {}).get("mode")
    if backend is None and mode is None:
        return True
    if backend is not None and mode is not None:
        raise ValueError("Can only define one of `backend` or `compile_kwargs['mode']`")
    chosen = get_mode({"c": "cvm"}.get(backend, backend) if backend is not None else mode)
    return isinstance(chosen, Mode) and isinstance(chosen.linker, JAXLinker)


def _for_pytensor(optimizer: Optimizer | None) -> Callable[..., dict]:
    if optimizer is None:
        return pm.adam(learning_rate=LEARNING_RATE)
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "An optax optimiser needs the JAX engine; pass one of PyMC's own, such as "
            "pm.adam(learning_rate=0.01), or leave out backend=."
        )
    return optimizer


def _to_noise(objective: Objective, start: Mapping[str, Any]) -> np.ndarray:
    """Structured noise of a start point given in the model's own space."""
    program = objective.program
    shapes = {site.value_name: site.shape for site in program.sites_in_model_order}
    shapes |= {site.name: site.rv_shape for site in program.sites_in_model_order}
    for name, value in start.items():
        if name not in shapes:
            raise ValueError(
                f"start has a value of {name!r}, which is none of the model's free variables: "
                f"{', '.join(site.name for site in program.sites_in_model_order)}."
            )
        if not isinstance(value, str | Variable) and np.shape(value) != shapes[name]:
            raise ValueError(
                f"The start of {name} must have shape {shapes[name]}, got {np.shape(value)}."
            )
    initial_point = make_initial_point_fn(
        model=program.model, overrides=dict(start), jitter_rvs=set(), return_transformed=True
    )(0)
    value = np.concatenate(
        [np.ravel(initial_point[site.value_name]) for site in program.sites_in_model_order]
    )
    noise, _ = compile_bijection(objective.structured).inverse(value)
    for site in program.sites:
        if not np.isfinite(noise[site.noise]).all():
            raise ValueError(f"The start of {site.name} lies outside of its support.")
    return noise


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
