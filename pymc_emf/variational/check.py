"""The last check of a fit, and the warning that it may end in."""

import logging

from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytensor

from threadpoolctl import threadpool_limits

from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import average as average_loss
from pymc_emf.variational.doubt import gain_at_the_end
from pymc_emf.variational.importance import average, elbo_within, log_ratio, standard_deviation
from pymc_emf.variational.marginal import PRECISIONS, correct_by_chains, correct_common
from pymc_emf.variational.moments import Moments, weights_tell
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.verdict import MANY_ELEMENTS, Drawn, Verdict, draw, judge

__all__ = ["KEPT", "Checked", "check", "explain", "report", "still_gaining"]

logger = logging.getLogger(__name__)

#: Draws from which the fit is compared with its own start, at the end.
N_FINAL_DRAWS = 5000
#: Those of many elements, whose weights tell less.
N_FINAL_DRAWS_OF_MANY = 2000

#: Said of a fit that has failed.
KEPT = "what was learnt before is in the error's attribute `approx`"

#: How the log says why a fit ended before its last step.
_SAID = {
    "converged": "the ELBO no longer rises",
    "exact": "the approximation is exact",
    "callback": "a callback ended it",
    "interrupted": "it was interrupted",
    "returned": "the loss had climbed, or was not finite, and the best state seen was taken again",
}

#: Ends of which the last losses say nothing: the rates had fallen, or the state is another one.
_SETTLED = ("converged", "exact", "returned")


@dataclass(frozen=True)
class Checked:
    """A fit after its last check.

    Attributes
    ----------
    values : list of ndarray
        Of all variables: those after the fit, or those before it where they are better.
    verdict : Verdict
    """

    values: list[np.ndarray]
    verdict: Verdict

    @property
    def pareto_k(self) -> float:
        return self.verdict.pareto_k


def check(
    objective: Objective,
    before: Values | None,
    after: Values,
    rng: np.random.Generator,
    gain: float = 0.0,
    other_start: str = "pass a start=",
) -> Checked:
    """Compare a fit with its start, correct the better one, and ask its importance weights.

    Parameters
    ----------
    objective : Objective
    before, after : sequence of array
        Values of all variables; None if they are the same.
    rng : Generator
    gain, other_start
        As for :func:`pymc_emf.variational.verdict.judge`.
    """
    values, drawn = list(after), None
    if before is not None:
        values, drawn = _better(objective, before, after, rng)
    few = objective.size <= MANY_ELEMENTS
    if drawn is None and not few:
        drawn = draw(objective, values, _noise(objective, rng))
    # JAX's threads and those of the linear algebra would wait for each other
    with threadpool_limits(1, user_api="blas"):
        for precision in PRECISIONS:
            # where weights will not be enough, they tell at least where chains should begin
            enough = drawn is None or few or weights_tell(drawn.log_weights, after=False)
            known = () if drawn is None else drawn.scored
            precise = precision if enough else np.inf
            corrected, left = correct_common(objective, values, rng, precise, known), None
            now = values if corrected is None else corrected
            new = drawn
            if corrected is not None or new is None:
                new = draw(objective, now, _noise(objective, rng), scored=enough)
            ask = not (few or (enough and weights_tell(new.log_weights)))
            if ask:
                now, new, left = _corrected_by_chains(objective, now, new, rng)
            # what neither tells of stays as it was
            if drawn is None or few or left is not None or weights_tell(drawn.log_weights):
                values, drawn = now, new
            verdict = judge(objective, values, drawn, rng, gain, other_start, left)
            if corrected is None or ask or verdict.doubt is None:
                break
    return Checked(values, verdict)


def _corrected_by_chains(
    objective: Objective, values: list[np.ndarray], drawn: Drawn, rng: np.random.Generator
) -> tuple[list[np.ndarray], Drawn, Moments | None]:
    """Values and draws from them, and what is left to correct if chains tell."""
    found = correct_by_chains(objective, values, drawn.noise, drawn.log_weights, rng)
    if found is None:
        return values, drawn, None
    corrected, left = found
    return corrected, draw(objective, corrected, _noise(objective, rng)), left


def still_gaining(losses: np.ndarray, stopping: Stopping) -> float:
    """Nats by which the ELBO rose at the end of a fit, whose last losses may not tell."""
    return 0.0 if stopping.reason in _SETTLED else gain_at_the_end(losses)


def report(checked: Checked | None, losses: np.ndarray, stopping: Stopping, n: int) -> None:
    """Log how a fit ended, and warn if it is poor."""
    done, loss = stopping.step, average_loss(losses)
    if not done and stopping.reason in ("converged", "exact"):
        logger.info("No steps were taken: the start leaves nothing to gain.")
    elif stopping.reason in _SAID:
        logger.info("Stopped at %d of %d steps: %s.", done, n, _SAID[stopping.reason])
    if done < n and stopping.reason not in _SETTLED:
        logger.info("Interrupted at %d [%d%%]: Average Loss = %.5g", done, 100 * done // n, loss)
    else:
        logger.info("Finished [100%%]: Average Loss = %.5g", loss)
    if checked is None:
        logger.warning("There was no last check: nothing is known of how good the fit is.")
        return
    # where many small errors make a large k-hat, that is not passed over in silence
    verdict = checked.verdict
    level = logging.INFO if verdict.is_good else logging.WARNING
    if not verdict.is_good or (verdict.many and verdict.is_heavy):
        logger.log(level, "Verdict on the fit. %s", verdict.sentence)


def _noise(objective: Objective, rng: np.random.Generator) -> np.ndarray:
    n_draws = N_FINAL_DRAWS if objective.size <= MANY_ELEMENTS else N_FINAL_DRAWS_OF_MANY
    shape = (objective.target.affordable(n_draws), objective.size)
    return rng.normal(size=shape).astype(pytensor.config.floatX)


def _better(
    objective: Objective, before: Values, after: Values, rng: np.random.Generator
) -> tuple[list[np.ndarray], Drawn]:
    """Values before a fit or after it, and draws from the better ones.

    Where the start is exact, the noise of the gradients can only lead away from it. If the two
    ELBOs cannot be told apart, the smaller variance of the log weights decides: it is zero where
    the approximation is exact.
    """
    noise = _noise(objective, rng)
    fitted, started = (draw(objective, values, noise) for values in (after, before))
    gain = log_ratio(fitted.log_weights, started.log_weights)
    se = standard_deviation(gain) / np.sqrt(len(noise))
    calmer = standard_deviation(fitted.log_weights) <= standard_deviation(started.log_weights)
    mean = average(gain)
    improved = mean > 2 * se or (mean > -2 * se and calmer)
    if not np.isfinite(gain).all():
        improved = elbo_within(fitted.log_weights) >= elbo_within(started.log_weights)
    if not improved:
        logger.info("The fit kept its start, on which it did not improve.")
        return list(before), started
    return list(after), fitted


def explain(
    objective: Objective, values: Values, key: jax.Array, n_draws: int, step: int, slower: str
) -> str:
    """Name the term of the log density that is not finite at the draws of one step.

    ``slower`` says how to learn more slowly.
    """
    noise, minibatch = objective.draw(key, n_draws)
    values = jax.device_put(list(values))
    advice = f"{KEPT}. Check the parameters and data of that variable, or {slower}."
    for name, term in objective.terms(values, noise, minibatch).items():
        bad = int((~np.isfinite(np.asarray(term))).sum())
        if bad:
            return (
                f"The ELBO is not finite at step {step}: the log density of {name} is not, in "
                f"{bad} of {n_draws} draws; {advice}"
            )

    def means(values):
        terms = objective.terms(values, noise, minibatch)
        return {name: term.mean() for name, term in terms.items()}

    for name, gradient in jax.jacrev(means)(values).items():
        if not np.isfinite(optax.tree.norm(gradient)):
            return (
                f"The gradient of the ELBO is not finite at step {step}, because of the log "
                f"density of {name}; {advice}"
            )
    return f"The ELBO is not finite at step {step}; {advice}".replace(" of that variable", "")
