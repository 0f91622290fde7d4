"""One fit by PyMC's own loop, between the same start and the same check as by JAX."""

import time

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pymc as pm

from pymc.variational.inference import Inference, State

from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import Trained
from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.check import explain
from pymc_emf.variational.conclude import conclude
from pymc_emf.variational.options import LEARNING_RATE, FitOptions
from pymc_emf.variational.state import MethodState
from pymc_emf.variational.target import FEWEST_DRAWS

__all__ = ["fit_by_pymc", "pymc_optimizer"]

#: Steps between two looks at whether the values are finite.
EVERY = 100


def fit_by_pymc(
    inference: Inference,
    kept: MethodState,
    approx: EMFApproximation,
    ask: FitOptions,
    rng: np.random.Generator,
    options: dict[str, Any],
) -> State:
    """Let PyMC's loop maximise the ELBO.

    Parameters
    ----------
    inference : Inference
        Of PyMC, whose ``fit`` is called.
    kept, approx, ask, rng
        As for :func:`pymc_emf.variational.jax_fit.fit_by_jax`.
    options : dict
        Further arguments of PyMC's ``fit``.
    """
    begin = time.perf_counter()
    started = kept.start(approx, rng)
    approx.adopt(started.values, replace(approx.record, warm_start=started.report))
    approx.use_backend(options["compile_kwargs"])
    kept.keep(approx, rng, started)
    inference.hist = earlier = approx.hist
    watch = _Watch(approx, ask.callbacks)
    n_draws = ask.obj_n_mc or FEWEST_DRAWS
    try:
        Inference.fit(
            inference,
            ask.n,
            ask.score,
            watch.callbacks,
            ask.progressbar,
            ask.progressbar_theme,
            obj_n_mc=n_draws,
            obj_optimizer=pymc_optimizer(ask.obj_optimizer),
            total_grad_norm_constraint=ask.total_grad_norm_constraint,
            **options,
        )
    except FloatingPointError as error:
        values, hist = watch.finite, inference.hist
        step = len(hist)
        stopping = Stopping("non-finite", step)
        approx.adopt(values, replace(approx.record, hist=hist, stopping=stopping, verdict=None))
        key = jax.random.key(int(rng.integers(2**31)))
        slower = ask.slower("pm.adam(learning_rate=1e-3)")
        reason = explain(approx.objective, values, key, n_draws, step, slower)
        raise NonFiniteELBOError(reason, approx) from error
    kept.n_steps += watch.done
    stopping = Stopping(watch.reason(ask.n), watch.done)
    record = replace(approx.record, hist=inference.hist, stopping=stopping, verdict=None)
    approx.adopt(approx.values, record)
    values = approx.objective.trained(approx.values)
    trained = Trained(values, inference.hist[len(earlier) :], stopping)
    conclude(approx, started.values, trained, ask.n, rng, begin)
    return inference.state


def pymc_optimizer(optimizer: Any) -> Callable[..., dict]:
    """Optimiser that PyMC's loop takes.

    Raises
    ------
    TypeError
        If it is one of optax's.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "An optax optimiser needs the JAX engine; pass one of PyMC's own, such as "
            "pm.adam(learning_rate=0.01), or leave out backend=."
        )
    asked = pm.adam(learning_rate=LEARNING_RATE) if optimizer is None else optimizer

    def in_their_types(*args, **kwargs):
        # PyMC's updates of networks in single precision would have double
        updates = asked(*args, **kwargs)
        return {v: update.astype(v.type.dtype) for v, update in updates.items()}

    return in_their_types


class _Watch:
    """What PyMC's own loop does, seen by its callbacks."""

    def __init__(self, approx: EMFApproximation, callbacks: Sequence[Callable] | None):
        self.approx, self.done, self.stopped = approx, 0, False
        self.finite = approx.values
        self.callbacks = [self._count, *map(self._watched, callbacks or ()), self._remember]

    def _count(self, approx, losses, i) -> None:
        self.done += 1

    def _watched(self, callback: Callable) -> Callable:
        def call(approx, losses, i):
            try:
                callback(approx, losses, i)
            except StopIteration:
                self.stopped = True
                raise

        return call

    def _remember(self, approx, losses, i) -> None:
        """Note values from time to time, to go back to if later ones are not finite."""
        if self.done % EVERY == 0 or self.done == 1:
            values = self.approx.values
            if all(np.isfinite(value).all() for value in values):
                self.finite = values

    def reason(self, n: int) -> str:
        """Why the loop ended before ``n`` steps, if it did."""
        if self.stopped:
            return "callback"
        return "steps" if self.done == n else "interrupted"
