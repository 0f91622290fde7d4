"""What is checked at the end of a fit, and what is said when it fails."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytensor

from pymc_emf.layers.parameters import store
from pymc_emf.variational.diagnosis import MAX_PARETO_K, average, log_ratio, standard_deviation
from pymc_emf.variational.objective import Objective

__all__ = [
    "explain",
    "keep_the_better",
    "moments_in_doubt",
    "warn_if_poor",
]

logger = logging.getLogger(__name__)

#: Draws from which the fit is compared with its own start, at the end.
N_FINAL_DRAWS = 5000
#: Correction of a mean, in standard deviations, or of a standard deviation that is worth a
#: warning, and the number of standard errors that it must exceed.
MAX_CORRECTION, N_SE = 0.1, 4.0
#: Rise of the ELBO over the last fifth of the steps that is worth a warning, in nats.
MIN_GAIN = 0.1


def keep_the_better(
    objective: Objective, before: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Go back to the parameters before the fit unless it has improved on them.

    Where the start is exact, the noise of the gradients can only lead away from it. If the two
    ELBOs cannot be told apart, the smaller variance of the log weights decides: it is zero where
    the approximation is exact.

    Returns
    -------
    values : ndarray, shape (draws, size)
        Fresh draws from what was kept, in value space.
    log_weights : ndarray, shape (draws,)
        Their log weights, in nats.
    """
    n_draws = objective.affordable(N_FINAL_DRAWS)
    noise = rng.normal(size=(n_draws, objective.size)).astype(pytensor.config.floatX)
    after = [p.get_value() for p in objective.parameters]

    def draw():
        values, log_p, log_q = objective.weigh(noise)
        return values, log_ratio(log_p, log_q)

    fitted_values, fitted = draw()
    try:
        store(objective.parameters, before)
        started_values, started = draw()
    finally:  # an interrupt here must not cost the fit
        store(objective.parameters, after)
    gain = log_ratio(fitted, started)
    se = standard_deviation(gain) / np.sqrt(n_draws)
    # comparisons with NaN are false: a start that is not finite gives way
    calmer = standard_deviation(fitted) <= standard_deviation(started)
    mean = average(gain)
    improved = mean > 2 * se or (mean > -2 * se and calmer)
    if not improved and np.isfinite(started).all():
        store(objective.parameters, before)
        logger.info("The fit kept its start, whose ELBO is %.3g nats higher.", -mean)
        return started_values, started
    return fitted_values, fitted


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
        return int(element), f"shift its mean by {shift[element]:+.2f} standard deviations"
    return int(element), f"multiply its standard deviation by {ratio[element]:.2f}"


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
    k: float, losses: np.ndarray, doubt: tuple[str, str] | None = None, missed: float = 0.0
) -> None:
    """Say in plain words that a fit is poor, as far as it shows.

    Parameters
    ----------
    k : float
        Pareto k-hat of the log weights.
    losses : ndarray
        Of every step, in nats.
    doubt : (str, str), optional
        A variable whose moments the weights correct, and how.
    missed : float
        Nats of evidence that draws from the prior find beyond what the approximation does.
    """
    gain, se = gain_at_the_end(losses)
    if missed:
        logger.warning(
            "The approximation has missed a mode: draws from the prior find more evidence, by %.3g "
            'nats. Fit again with warm_start="auto", pass a start=, or use approx.nuts().',
            missed,
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
    elif k > MAX_PARETO_K:
        logger.warning(
            "Pareto k-hat is %.2f, above %.1f: the approximation may miss part of the posterior, "
            "and its means and intervals may be off. Give the fit more steps (n=), check the "
            "model, or use approx.nuts().",
            k,
            MAX_PARETO_K,
        )
    elif doubt is not None:
        logger.warning(
            "The approximation of %s is off: importance weights would %s in value space. Give "
            "the fit more steps (n=), check the model, or use approx.nuts().",
            *doubt,
        )


def explain(objective: Objective, key: jax.Array, n_draws: int, step: int) -> str:
    """Name the term of the log density that is not finite at the draws of one step."""
    noise, minibatches = objective.draw(key, n_draws)
    values = [jnp.asarray(v.get_value()) for v in objective.variables]

    def terms(values):
        layer_values, target = objective.split(values)

        def single(noise):
            inner, _ = objective.structured_noise(layer_values, noise)
            return objective.terms(target, inner, minibatches)

        return jax.vmap(single)(noise)

    advice = (
        f"what was learnt before step {step} is kept. Check the parameters and data of that "
        "variable, or lower the learning rate (obj_optimizer=optax.adam(1e-3))."
    )
    for name, term in zip(objective.term_names, terms(values), strict=True):
        bad = int((~np.isfinite(np.asarray(term))).sum())
        if bad:
            return (
                f"The ELBO is not finite at step {step}: the log density of {name} is not, in "
                f"{bad} of {n_draws} draws; {advice}"
            )
    gradients = jax.jacrev(lambda values: [term.mean() for term in terms(values)])(values)
    for name, gradient in zip(objective.term_names, gradients, strict=True):
        if not np.isfinite(optax.tree.norm(gradient)):
            return (
                f"The gradient of the ELBO is not finite at step {step}, because of the log "
                f"density of {name}; {advice}"
            )
    return f"The ELBO is not finite at step {step}; {advice}".replace(" of that variable", "")
