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
from pymc_emf.variational.check import Checked, check
from pymc_emf.variational.doubt import (
    largest_corrections,
    moments_in_doubt,
    scores_in_doubt,
)
from pymc_emf.variational.importance import smooth
from pymc_emf.variational.marginal import MOST, PRECISIONS, common_places, correct_common
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.start import Started, rates_of
from pymc_emf.variational.verdict import ENOUGH, MANY_ELEMENTS, Drawn, draw, judge

__all__ = [
    "begin_run",
    "draws_at_the_end",
    "end_at_start",
    "is_often_enough",
    "maximise_elbo",
    "may_end_at_start",
]

#: Pareto k-hat below which weights have a variance, and draws that tell.
LIGHT_TAIL, N_TAIL_DRAWS = 0.5, 5000
#: The same where common elements have been corrected, and the share of the draws that must be
#: effective.
FAIR_TAIL, CLEARLY_ENOUGH = 0.6, 0.8
#: What weights may correct yet of the means, standard deviations and skewness of common elements.
#: The last tells of a long tail before draws from there do.
LITTLE = np.array([0.03, 0.03, 0.25])
#: Draws whose scores are asked, of many elements.
N_SCORED_DRAWS = 200
#: Variance of log weights, in nats squared, up to which common elements are corrected in the place
#: of steps: by chains, and if there are too many for these.
MAX_VARIANCE, MAX_VARIANCE_OF_MOST = 16.0, 4.0


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


def draws_at_the_end(prepared: Prepared, run: Run, ask: FitOptions) -> int:
    """Draws of the last step of a run."""
    more = prepared.n_more(ask)
    return prepared.n_draws(ask) if more is None or run.more_since is None else more


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


def is_often_enough(prepared: Prepared) -> bool:
    """Whether starts of such posteriors often leave nothing to gain."""
    objective = prepared.objective
    is_group = len(common_places(objective)) > 0 and not prepared.program.has_series
    return objective.size > SPARSE_FROM or is_group


def end_at_start(
    prepared: Prepared, started: Started, tol: float | None, rng: np.random.Generator
) -> Checked | None:
    """End a fit where it starts, if that leaves no more than ``tol`` nats to gain.

    Of many elements so much is left to each. The variance of the log weights tells, where their
    tail is so light that it exists. What the elements of many lack adds up in it, so there no
    element's scores must be in doubt besides, and the weights must suffice to correct the common
    ones. Where fewer have common ones, the weights after their correction are asked. None is
    the end whose verdict is not good.
    """
    objective, values = prepared.objective, started.values
    many, common = objective.size > MANY_ELEMENTS, common_places(objective)
    each = objective.size if many or len(common) else 1
    if tol is None or not started.divergence < tol * each:
        return None
    other = started.report.other
    if many:
        if not _scores_agree(objective, started, common, rng):
            return None
        checked = check(objective, None, values, rng, other_start=other)
    else:
        found = _corrected if len(common) else _as_it_is
        ending = found(objective, values, common, rng)
        if ending is None:
            return None
        corrected, drawn = ending
        checked = Checked(corrected, judge(objective, corrected, drawn, rng, other_start=other))
    return checked if checked.verdict.is_good else None


def _noise(objective: Objective, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    shape = (objective.target.affordable(n_draws), objective.size)
    return rng.normal(size=shape).astype(pytensor.config.floatX)


def _scores_agree(
    objective: Objective, started: Started, common: np.ndarray, rng: np.random.Generator
) -> bool:
    """Whether no element's scores are in doubt, and the common ones can be corrected."""
    most = MAX_VARIANCE if len(common) <= MOST else MAX_VARIANCE_OF_MOST
    if len(common) and not started.report.sd**2 < most:
        return False
    gap = objective.score_gap(started.values, _noise(objective, N_SCORED_DRAWS, rng))
    gap[:, common] = 0.0
    return scores_in_doubt(gap) is None


def _as_it_is(
    objective: Objective, values: Values, common: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], Drawn] | None:
    """These values, if their weights have a light tail."""
    drawn = draw(objective, values, _noise(objective, N_TAIL_DRAWS, rng))
    return (list(values), drawn) if smooth(drawn.log_weights).pareto_k < LIGHT_TAIL else None


def _corrected(
    objective: Objective, values: Values, common: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], Drawn] | None:
    """Values whose common elements are corrected, if weights would correct nothing more."""
    for precision in PRECISIONS:
        corrected = correct_common(objective, values, rng, precision)
        if corrected is None:
            return None
        drawn = draw(objective, corrected, _noise(objective, N_TAIL_DRAWS, rng))
        smoothed = smooth(drawn.log_weights)
        weights, effective = np.exp(smoothed.log_weights), smoothed.ess / len(drawn.noise)
        if not (smoothed.pareto_k < FAIR_TAIL and effective > ENOUGH):
            return None
        if (
            effective > CLEARLY_ENOUGH
            and (largest_corrections(drawn.values[:, common], weights) < LITTLE).all()
            and moments_in_doubt(drawn.values, weights) is None
        ):
            return corrected, drawn
        values = corrected
    return None


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
    n_draws, n_more = prepared.n_draws(ask), prepared.n_more(ask)
    settled = stop_when_settled(n_draws, ask.tol, exactly, window, n_more)
    return train(
        run,
        steps.chunk,
        [*before_stopping, keep_the_best, settled, *after_stopping],
        callbacks=ask.callbacks or (),
        progressbar=ask.progressbar,
        progressbar_theme=ask.progressbar_theme,
        more=steps.more,
    )
