"""Where a fit starts: the best of several candidates, and how fast it learns from there."""

import time

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytensor

from threadpoolctl import threadpool_limits

from pymc_emf.engine.stopping import EXACT, Level
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.options import GATE_LEARNING_RATE, LEARNING_RATE
from pymc_emf.variational.points import (
    evaluate_prior,
    point_in_noise,
    prior_scales,
    user_point,
)
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.search import (
    N_RANKING_DRAWS,
    Search,
    WarmStart,
    framed_layer,
)

__all__ = ["Started", "find_start", "rates_of"]

#: Draws from which the sensitivity to the gates is taken.
N_SENSITIVITY_DRAWS = 50


@dataclass(frozen=True)
class Started:
    """Where a fit starts, and how.

    Attributes
    ----------
    values : list of ndarray
        Of all variables.
    report : WarmStart
    gate_rates : list of ndarray or None
        Learning rates of the structured layer's parameters, if they were chosen.
    seconds : float
    """

    values: list[np.ndarray]
    report: WarmStart
    gate_rates: list[np.ndarray] | None = None
    seconds: float = 0.0

    @property
    def divergence(self) -> float:
        """Estimated divergence from the posterior in nats, where it is small."""
        return self.report.sd**2 / 2

    @property
    def level(self) -> Level | None:
        """Of the losses there, if candidates were compared."""
        elbo = self.report.elbos.get(self.report.chosen, -np.inf)
        se = self.report.sd / np.sqrt(N_RANKING_DRAWS)
        return Level(-elbo, se if np.isfinite(se) else 0.0) if np.isfinite(elbo) else None

    @property
    def reason(self) -> str:
        """Why a fit ends here, if it does, see :class:`Stopping`."""
        return "exact" if self.divergence < EXACT else "converged"


def find_start(
    prepared: Prepared,
    rng: np.random.Generator,
    initial: Values | None = None,
) -> Started:
    """Check that the log density is finite somewhere, and find a good start.

    Parameters
    ----------
    prepared : Prepared
    rng : Generator
    initial : sequence of ndarray, optional
        Values before the fit, by default the first ones.

    Raises
    ------
    BadStartError
        If the log density is finite nowhere, or the user's point lies outside of the support.
    ValueError
        If the user's point does not fit the model, or there is no affine layer that it could move.
    """
    begin = time.perf_counter()
    objective, options = prepared.objective, prepared.options
    initial = prepared.initial if initial is None else initial
    layer = framed_layer(objective)
    if options.start is not None and layer is None:
        raise ValueError("A start needs an affine layer as the last of the layers; add one.")
    point = user_point(prepared.program, options.start)
    objective.rewrite()
    scales = prior_scales(objective, initial)
    gates = objective.own(initial, objective.structured.own_parameters)
    values = objective.replace(
        initial,
        objective.structured.own_parameters,
        objective.structured.with_open_gates(gates, scales),
    )
    start = None if point is None else point_in_noise(objective, values, point)
    noise, log_density = evaluate_prior(objective, values, rng, start)
    if options.warm_start is False:
        report = WarmStart("none")
        if start is not None and layer is not None:
            values, report = Search(objective, values, rng).at(layer, start)
        return Started(values, report, None, time.perf_counter() - begin)

    # JAX's threads and those of the linear algebra would wait for each other
    with threadpool_limits(1, user_api="blas"):
        search = Search(objective, values, rng, prepared.closed, scales)
        values, report = search.run(noise, log_density, start)
    gate_rates = None
    with auxiliary("The choice of the gates' learning rates", "they are those of warm_start=False"):
        gate_rates = _gate_rates(_gate_sensitivity(objective, values, rng), report.sd)
    return Started(values, report, gate_rates, time.perf_counter() - begin)


def rates_of(prepared: Prepared, started: Started) -> list[np.ndarray]:
    """Peak learning rate of every element that is trained."""
    objective = prepared.objective
    own, model = objective.structured.own_parameters, objective.program.parameters
    rates = [np.full(p.type.shape, LEARNING_RATE) for p in objective.layer_parameters]
    if started.gate_rates is None:
        rates += [np.full(p.type.shape, prepared.options.gate_rate) for p in own]
    else:
        rates += started.gate_rates[: len(own)]
    rates += [np.full(p.type.shape, LEARNING_RATE) for p in model]
    if started.report.sd**2 < 2 * EXACT and not model:
        # Adam would make full steps of what is left of the gradients, which is rounding
        rates = [np.zeros_like(rate) for rate in rates]
    return rates


def _gate_sensitivity(
    objective: Objective, values: Values, rng: np.random.Generator
) -> list[np.ndarray]:
    """How much the log density changes with each gate's parameter, at typical draws.

    The median size of the derivative in nats, with that of the log density in whitened noise
    about one. Where a prior is much wider than the posterior, the least movement of its gate
    moves the draws by many posterior standard deviations.
    """
    noise = rng.normal(size=(N_SENSITIVITY_DRAWS, objective.size))
    inner = objective.structured_noise_of(values, noise.astype(pytensor.config.floatX))
    _, target_values = objective.split(values)
    slopes = objective.target.score_many(target_values, inner).slopes
    sizes = [np.where(np.isfinite(of_one), np.abs(of_one), np.inf) for of_one in slopes]
    return [np.median(size, axis=0) for size in sizes]


def _gate_rates(sensitivity: Sequence[np.ndarray], sd: float) -> list[np.ndarray]:
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
