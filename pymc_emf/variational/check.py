"""The last check of a fit, and the warnings that it may end in."""

import logging

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytensor

from scipy.stats import norm

from pymc_emf.engine.stopping import Stopping
from pymc_emf.engine.trainer import average as average_loss
from pymc_emf.variational.importance import (
    MAX_PARETO_K,
    Smoothed,
    average,
    elbo_within,
    log_ratio,
    missed_evidence,
    smooth,
    standard_deviation,
)
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.search import WarmStart

__all__ = [
    "KEPT",
    "Checked",
    "Weighed",
    "check",
    "explain",
    "moments_in_doubt",
    "report",
    "scores_in_doubt",
    "warn_if_poor",
    "weigh",
]

logger = logging.getLogger(__name__)

#: Draws from which the fit is compared with its own start, at the end.
N_FINAL_DRAWS = 5000
#: Draws from the prior by which a missed mode is found.
N_PRIOR_DRAWS = 1000
#: Correction of a mean, in standard deviations, or of a standard deviation that is worth a
#: warning, and the number of standard errors that it must exceed.
MAX_CORRECTION, N_SE = 0.1, 4.0
#: Beyond so many elements scores are asked instead, of so many draws: the divergences of all
#: elements add up in the weights, few of which then count, however good each of them is.
MANY_ELEMENTS, N_SCORED_DRAWS = 200, 200
#: Rise of the ELBO over the last fifth of the steps that is worth a warning, in nats.
MIN_GAIN = 0.1

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
class Weighed:
    """Importance weights of draws from an approximation, and what the prior finds beside them.

    Attributes
    ----------
    log_weights : ndarray, shape (draws,)
        In nats.
    smoothed : Smoothed
    missed : float
        Nats of evidence that draws from the prior find beyond what the approximation does.
    """

    log_weights: np.ndarray
    smoothed: Smoothed
    missed: float

    @property
    def pareto_k(self) -> float:
        """Pareto k-hat, infinite if a mode has been missed."""
        return np.inf if self.missed else self.smoothed.pareto_k


def weigh(
    objective: Objective, values: Values, log_weights: np.ndarray, prior_noise: np.ndarray
) -> Weighed:
    """Smooth the log weights of an approximation, and look for what it has missed."""
    smoothed = smooth(log_weights)
    missed = missed_evidence(smoothed, objective.prior_log_weights(values, prior_noise))
    return Weighed(log_weights, smoothed, missed)


@dataclass(frozen=True)
class Checked:
    """A fit after its last check.

    Attributes
    ----------
    values : list of ndarray
        Of all variables: those after the fit, or those before it where they are better.
    weighed : Weighed
    doubt : (str, str) or None
        The element whose moments are most in doubt, and how.
    many : bool
        Whether that was asked of scores, as there are many elements.
    """

    values: list[np.ndarray]
    weighed: Weighed
    doubt: tuple[str, str] | None
    many: bool = False

    @property
    def pareto_k(self) -> float:
        return self.weighed.pareto_k


def check(
    objective: Objective, before: Values | None, after: Values, rng: np.random.Generator
) -> Checked:
    """Compare a fit with its start, and ask the importance weights of the better one.

    Parameters
    ----------
    objective : Objective
    before, after : sequence of array
        Values of all variables; None if they are the same.
    rng : Generator
    """
    values, drawn, log_weights = _better(objective, before, after, rng)
    n_prior = objective.target.affordable(N_PRIOR_DRAWS)
    prior_noise = rng.normal(size=(n_prior, objective.size)).astype(pytensor.config.floatX)
    weighed = weigh(objective, values, log_weights, prior_noise)
    many = objective.size > MANY_ELEMENTS
    if many:
        noise = rng.normal(size=(N_SCORED_DRAWS, objective.size)).astype(pytensor.config.floatX)
        doubt = scores_in_doubt(objective.score_gap(values, noise))
    else:
        doubt = moments_in_doubt(drawn, np.exp(weighed.smoothed.log_weights))
    named = None if doubt is None else (objective.program.element_name(doubt[0]), doubt[1])
    return Checked(values, weighed, named, many)


def report(
    checked: Checked | None, losses: np.ndarray, stopping: Stopping, n: int, start: WarmStart
) -> None:
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
    else:
        # where it had stopped rising, it rose once more as the rates fell
        rising = losses[:0] if stopping.reason in _SETTLED else losses
        missed = checked.weighed.missed
        warn_if_poor(checked.pareto_k, rising, checked.doubt, missed, checked.many, start)


def _better(
    objective: Objective, before: Values | None, after: Values, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Values before a fit or after it, draws from the better ones, and their log weights.

    Where the start is exact, the noise of the gradients can only lead away from it. If the two
    ELBOs cannot be told apart, the smaller variance of the log weights decides: it is zero where
    the approximation is exact.
    """
    n_draws = objective.target.affordable(N_FINAL_DRAWS)
    noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)

    def draw(values):
        drawn, log_p, log_q = objective.weigh(values, noise)
        return drawn, log_ratio(log_p, log_q)

    fitted_draws, fitted = draw(after)
    if before is None:
        return list(after), fitted_draws, fitted
    started_draws, started = draw(before)
    gain = log_ratio(fitted, started)
    se = standard_deviation(gain) / np.sqrt(n_draws)
    calmer = standard_deviation(fitted) <= standard_deviation(started)
    mean = average(gain)
    improved = mean > 2 * se or (mean > -2 * se and calmer)
    if not np.isfinite(gain).all():
        improved = elbo_within(fitted) >= elbo_within(started)
    if not improved:
        logger.info("The fit kept its start, on which it did not improve.")
        return list(before), started_draws, started
    return list(after), fitted_draws, fitted


def moments_in_doubt(values: np.ndarray, weights: np.ndarray) -> tuple[int, str] | None:
    """Tell which element's mean or standard deviation the weights correct most, and how.

    Parameters
    ----------
    values : ndarray, shape (draws, size)
    weights : ndarray, shape (draws,)
        Normalised.

    Returns
    -------
    (int, str) or None
        The element and what the weights say of it; None if no correction is larger than a tenth,
        and than what the finite number of draws explains.
    """
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        return None  # which the log weights have told
    values = values / np.maximum(np.abs(values).max(axis=0), 1.0)  # or squares may overflow
    sd = values.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    z = (values - values.mean(axis=0)) / sd
    shift = weights @ z
    ratio = np.sqrt(weights @ (z - shift) ** 2)
    # errors of both corrections, each draw with its own share
    excess = weights - 1 / len(weights)
    shift_se = np.sqrt(excess**2 @ z**2)
    ratio_se = np.sqrt(excess**2 @ (z**2 - 1) ** 2) / 2
    sizes = np.array([np.abs(shift), np.abs(ratio - 1)])
    sizes[sizes < N_SE * np.array([shift_se, ratio_se])] = 0.0
    which, element = np.unravel_index(sizes.argmax(), sizes.shape)
    if sizes[which, element] < MAX_CORRECTION:
        return None
    if which == 0:
        move = f"shift its mean by {shift[element]:+.2f} standard deviations"
    else:
        move = f"multiply its standard deviation by {ratio[element]:.2f}"
    return int(element), f"importance weights would {move} in value space"


def scores_in_doubt(gap: np.ndarray) -> tuple[int, str] | None:
    """Tell which element the scores say is most off, and how.

    Parameters
    ----------
    gap : ndarray, shape (draws, size)
        As of :meth:`pymc_emf.variational.objective.Objective.score_gap`: of a normal posterior
        whose precision matrix in the noise is M and whose mean is m, it is M m + (1 - M) z. Its
        mean is how far the location is off, in standard deviations. Of the variance, which is the
        sum of squares of a row of 1 - M, half is about the relative error of the standard
        deviation, be it the element's own or by correlations that the approximation lacks.

    Returns
    -------
    (int, str) or None
        None if none is off by more than a tenth.
    """
    if not np.isfinite(gap).all():
        return None  # which the log weights have told
    shift, variance = gap.mean(axis=0), gap.var(axis=0)
    sizes = np.array([np.abs(shift), variance / 2])
    # the largest of many is large by chance
    n_se = norm.isf(0.01 / gap.size)
    sizes[0, sizes[0] < n_se * np.sqrt(variance / len(gap))] = 0.0
    which, element = np.unravel_index(sizes.argmax(), sizes.shape)
    if sizes[which, element] < MAX_CORRECTION:
        return None
    if which == 0:
        move = f"shift its mean by {shift[element]:+.2f} standard deviations"
        return int(element), f"the scores of its draws would {move}"
    error = 100 * min(sizes[1, element], 1.0)
    return int(element), (
        f"the scores of its draws differ as if its standard deviation were off by {error:.0f} %"
    )


def gain_at_the_end(losses: np.ndarray) -> tuple[float, float]:
    """What the last fifth of the losses gains on the fifth before, and its standard error."""
    n = len(losses) // 5
    earlier, latest = losses[-2 * n : -n], losses[-n:]
    earlier, latest = earlier[np.isfinite(earlier)], latest[np.isfinite(latest)]
    if min(len(earlier), len(latest)) < 2:
        return 0.0, np.inf
    with np.errstate(over="ignore"):
        se = np.sqrt(earlier.var(ddof=1) / len(earlier) + latest.var(ddof=1) / len(latest))
    return float(earlier.mean() - latest.mean()), float(se)


def warn_if_poor(
    k: float,
    losses: np.ndarray,
    doubt: tuple[str, str] | None = None,
    missed: float = 0.0,
    many: bool = False,
    start: WarmStart = WarmStart("none"),  # noqa: B008 (it is frozen)
) -> None:
    """Say in plain words that a fit is poor, as far as it shows.

    Parameters
    ----------
    k : float
        Pareto k-hat of the log weights.
    losses : ndarray
        Of every step, in nats.
    doubt : (str, str), optional
        A variable whose moments are in doubt, and how.
    missed : float
        Nats of evidence that draws from the prior find beyond what the approximation does.
    many : bool
        Whether there are so many elements that k-hat tells of their number.
    start : WarmStart
        How the fit started.
    """
    gain, se = gain_at_the_end(losses)
    if missed:
        logger.warning(
            "The approximation has missed a mode: draws from the prior find more evidence, by %.3g "
            "nats. To mend it, %s, or use approx.nuts().",
            missed,
            start.other,
        )
    elif gain > max(MIN_GAIN, 3 * se):
        logger.warning(
            "The fit has not converged: the ELBO rose by %.2g nats in its last fifth. Give it "
            "more steps (n=), or continue with refine.",
            gain,
        )
    elif np.isnan(k):
        logger.warning(
            "The log weights of draws from the approximation are not all finite: it reaches "
            "where the model's log density is not. Check the model's parameters there."
        )
    elif k > MAX_PARETO_K and many and doubt is None:
        logger.info(
            "Pareto k-hat is %.2f, for the small errors of many elements add up: no element is off "
            "by more than a tenth, as far as the scores tell, but do not resample by weights.",
            k,
        )
    elif k > MAX_PARETO_K and not many:
        logger.warning(
            "Pareto k-hat is %.2f, above %.1f: the approximation may miss part of the posterior, "
            "and its means and intervals may be off. Give the fit more steps (n=), check the "
            "model, or use approx.nuts().",
            k,
            MAX_PARETO_K,
        )
    elif doubt is not None:
        logger.warning(
            "The approximation of %s is off: %s. Give the fit more steps (n=), check the model, or "
            "use approx.nuts().",
            *doubt,
        )


def explain(
    objective: Objective, values: Values, key: jax.Array, n_draws: int, step: int, slower: str
) -> str:
    """Name the term of the log density that is not finite at the draws of one step.

    ``slower`` says how to learn more slowly.
    """
    noise, minibatch = objective.draw(key, n_draws)
    values = [jnp.asarray(value) for value in values]
    names = objective.target.term_names

    def terms(values):
        layer_values, target_values = objective.split(values)

        def single(noise):
            inner, _ = objective.structured_noise(layer_values, noise)
            return objective.target.terms(target_values, inner, minibatch)

        return jax.vmap(single)(noise)

    advice = f"{KEPT}. Check the parameters and data of that variable, or {slower}."
    for name, term in zip(names, terms(values), strict=True):
        bad = int((~np.isfinite(np.asarray(term))).sum())
        if bad:
            return (
                f"The ELBO is not finite at step {step}: the log density of {name} is not, in "
                f"{bad} of {n_draws} draws; {advice}"
            )
    gradients = jax.jacrev(lambda values: [term.mean() for term in terms(values)])(values)
    for name, gradient in zip(names, gradients, strict=True):
        if not np.isfinite(optax.tree.norm(gradient)):
            return (
                f"The gradient of the ELBO is not finite at step {step}, because of the log "
                f"density of {name}; {advice}"
            )
    return f"The ELBO is not finite at step {step}; {advice}".replace(" of that variable", "")
