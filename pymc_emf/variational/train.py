"""The steps of a fit: from a start to what was learnt."""

from collections.abc import Sequence

import numpy as np
import pytensor

from pymc_emf.engine.loop import Steps, start_state
from pymc_emf.engine.stopping import SHORT_WINDOW, WINDOW
from pymc_emf.engine.trainer import (
    Observer,
    Run,
    Trained,
    keep_the_best,
    stop_when_settled,
    train,
)
from pymc_emf.layers.presets import SPARSE_FROM
from pymc_emf.variational.doubt import scores_in_doubt
from pymc_emf.variational.importance import log_ratio, smooth
from pymc_emf.variational.marginal import MAX_VARIANCE, common_places
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.start import Started, rates_of
from pymc_emf.variational.verdict import MANY_ELEMENTS

__all__ = ["begin_run", "is_enough", "maximise_elbo", "may_end_at_start"]

#: Pareto k-hat below which weights have a variance, and draws that tell.
LIGHT_TAIL, N_TAIL_DRAWS = 0.5, 5000
#: Draws whose scores are asked, of many elements.
N_SCORED_DRAWS = 200


def begin_run(
    prepared: Prepared, steps: Steps, started: Started, n: int, rng: np.random.Generator
) -> Run:
    """Make a run of ``n`` steps from a start."""
    objective, values = prepared.objective, started.values
    state = start_state(
        steps.optimizer,
        objective.trained(values),
        n,
        rates_of(prepared, started),
        objective.fixed(values),
    )
    return Run.begin(steps.optimizer, state, int(rng.integers(2**31)), n, started.level)


def may_be_exact(prepared: Prepared) -> bool:
    """Whether an exact posterior is one that there is nothing to gain upon.

    That under some parameters of the model is not that under the best ones.
    """
    return not (prepared.program.parameters or prepared.objective.target.minibatches)


def may_end_at_start(prepared: Prepared, ask: FitOptions) -> bool:
    """Whether a fit may do without any step: nobody has asked to watch them, or for their kind.

    A start sees all rows of minibatches.
    """
    watched = ask.callbacks or ask.obj_optimizer is not None
    return not prepared.program.parameters and ask.tol is not None and not watched


def is_enough(
    prepared: Prepared, started: Started, tol: float | None, rng: np.random.Generator
) -> bool:
    """Whether a start leaves no more than ``tol`` nats to gain, or of many elements for each.

    The variance of its log weights tells, where their tail is so light that it exists. What the
    elements of many lack adds up in it, so there no element's scores must be in doubt besides,
    and the weights must suffice to correct the common ones.
    """
    objective = prepared.objective
    many = objective.size > MANY_ELEMENTS
    most = np.inf if tol is None else tol * (objective.size if many else 1)
    if tol is None or not started.divergence < most:
        return False
    n_draws = objective.target.affordable(N_SCORED_DRAWS if many else N_TAIL_DRAWS)
    noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)
    if many:
        common = common_places(objective)
        if len(common) and not started.report.sd**2 < MAX_VARIANCE:
            return False
        gap = objective.score_gap(started.values, noise)
        gap[:, common] = 0.0
        return scores_in_doubt(gap) is None
    _, log_p, log_q = objective.weigh(started.values, noise)
    return smooth(log_ratio(log_p, log_q)).pareto_k < LIGHT_TAIL


def maximise_elbo(
    prepared: Prepared,
    steps: Steps,
    run: Run,
    ask: FitOptions,
    before_stopping: Sequence[Observer] = (),
    after_stopping: Sequence[Observer] = (),
) -> Trained:
    """Take the steps of a run, until there is a reason to stop.

    Parameters
    ----------
    prepared : Prepared
    steps : Steps
    run : Run
        Is advanced in place.
    ask : FitOptions
    before_stopping, after_stopping : sequence of callable
        Called after every chunk, before and after it is decided whether to stop.
    """
    exactly = may_be_exact(prepared)
    # where steps are long, what they gain in their number is soon seen
    window = SHORT_WINDOW if exactly and prepared.objective.size > SPARSE_FROM else WINDOW
    settled = stop_when_settled(ask.obj_n_mc, ask.tol, exactly, window)
    return train(
        run,
        steps.chunk,
        [*before_stopping, keep_the_best, settled, *after_stopping],
        callbacks=ask.callbacks or (),
        progressbar=ask.progressbar,
        progressbar_theme=ask.progressbar_theme,
    )
