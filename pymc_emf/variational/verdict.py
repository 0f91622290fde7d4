"""The verdict on an approximation: one value, from the weights of one set of draws."""

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pytensor

from pymc_emf.variational.doubt import correction_in_doubt, moments_in_doubt, scores_in_doubt
from pymc_emf.variational.importance import (
    MAX_PARETO_K,
    MIN_DRAWS,
    Smoothed,
    estimate_elbo,
    log_ratio,
    missed_evidence,
    smooth,
)
from pymc_emf.variational.marginal import common_places, moments_by_chains
from pymc_emf.variational.moments import Moments, moments_of_common, weights_tell
from pymc_emf.variational.objective import Objective, Values

__all__ = [
    "ENOUGH",
    "MANY_ELEMENTS",
    "N_FRESH_DRAWS",
    "Drawn",
    "Verdict",
    "ask_chains",
    "draw",
    "judge",
]

#: Draws of a verdict after the fit.
N_FRESH_DRAWS = 10_000
#: Draws from the prior by which a missed mode is found.
N_PRIOR_DRAWS = 1000
#: Beyond so many elements scores are asked instead, of so many draws: the divergences of all
#: elements add up in the weights, few of which then count, however good each of them is.
MANY_ELEMENTS, N_SCORED_DRAWS = 200, 2000
#: Share of the draws that are effective below which moments may be off by a tenth; and the same
#: where the weights have a heavy tail, so that they do not tell of all that is missed. Where they
#: have a mean, but no variance, the share of so few draws is too high, and what is asked lies in
#: between. Measured by ``python -m benchmarks.verdict``.
ENOUGH, ENOUGH_OF_HEAVY, NO_VARIANCE = 0.7, 0.9, 0.5
#: Share of draws without a density above which those that are left do not stand for the others,
#: and below which it is not worth a warning, since others are drawn.
FEW_OUTSIDE, RARELY_OUTSIDE = 0.1, 0.001
#: Draws without a density that are asked which term lacks one.
N_ASKED = 8


class Drawn(NamedTuple):
    """Draws from an approximation.

    Attributes
    ----------
    noise, values : ndarray, shape (draws, size)
    log_weights : ndarray, shape (draws,)
        In nats.
    gap : ndarray, shape (some draws, size), or None
        Of the scores of the first of them, if that is known.
    """

    noise: np.ndarray
    values: np.ndarray
    log_weights: np.ndarray
    gap: np.ndarray | None = None

    @property
    def scored(self) -> tuple[np.ndarray, ...]:
        """Noise, log weights and gaps of those whose scores are known, if any are."""
        if self.gap is None:
            return ()
        n = len(self.gap)
        return self.noise[:n], self.log_weights[:n], self.gap


def draw(objective: Objective, values: Values, noise: np.ndarray, scored: bool = True) -> Drawn:
    """Draws of some noise, with their log weights, and of many elements with scores if wanted."""
    if objective.size <= MANY_ELEMENTS or not scored:
        drawn, log_p, log_q = objective.weigh(values, noise)
        return Drawn(noise, drawn, log_ratio(log_p, log_q))
    some, rest = noise[:N_SCORED_DRAWS], noise[N_SCORED_DRAWS:]
    *found, gap = objective.weigh_and_score(values, some)
    if len(rest):
        more = objective.weigh(values, rest)
        found = [np.concatenate(pair) for pair in zip(found, more, strict=True)]
    drawn, log_p, log_q = found
    return Drawn(noise, drawn, log_ratio(log_p, log_q), gap)


@dataclass(frozen=True)
class Verdict:
    """How far an approximation can be trusted.

    Attributes
    ----------
    pareto_k : float
        Pareto k-hat of the importance weights; minus infinity where the largest are all equal,
        infinity where a few are beyond comparison or a mode has been missed, NaN where one is not
        finite.
    missed : float
        Nats of evidence that draws from the prior find beyond what the approximation does; zero
        if chance may explain it.
    elbo, elbo_se : float
        Evidence lower bound and its standard error, in nats.
    log_evidence, log_evidence_se : float
        Log evidence by importance sampling and its standard error, in nats; the heavier the tail
        of the weights, the larger.
    ess : float
        Number of draws from the posterior that would be worth as much as `draws` weighted ones.
    draws : int
    outside : int
        Draws at which the model has no density; all else is of the others.
    culprit : str
        The term of the log density that is not finite at the first of them.
    doubt : (str, str) or None
        The element whose moments are most in doubt, and how.
    many : bool
        Whether that was asked of scores, as there are many elements.
    gain : float
        Nats by which the ELBO still rose at the end of the fit; zero if it did not.
    other_start : str
        How to start elsewhere.
    """

    pareto_k: float
    missed: float = 0.0
    elbo: float = np.nan
    elbo_se: float = np.nan
    log_evidence: float = np.nan
    log_evidence_se: float = np.nan
    ess: float = np.nan
    draws: int = 0
    outside: int = 0
    culprit: str = ""
    doubt: tuple[str, str] | None = None
    many: bool = False
    gain: float = 0.0
    other_start: str = "pass a start="

    @property
    def gap(self) -> float:
        """Nats by which the ELBO falls short of the evidence that the weights find."""
        return self.log_evidence - self.elbo

    @property
    def effective(self) -> float:
        """Share of the draws that are effective, NaN if it is not known."""
        inside = self.draws - self.outside
        return self.ess / inside if inside else np.nan

    @property
    def is_good(self) -> bool:
        """Whether nothing speaks against the approximation as it is."""
        return self._judged[0] == "Use it"

    @property
    def sentence(self) -> str:
        """What to do with the approximation, and why."""
        said = "{}: {}".format(*self._judged)
        if self.outside and self._told_outside not in said:
            said += f" Besides, {self._told_outside}."
        return said

    @property
    def _judged(self) -> tuple[str, str]:
        longer = "give the fit more steps (n=), check the model, or use approx.nuts()."
        resample = (
            "approx.sample(importance=True) corrects that, as may more steps (n=), or use "
            "approx.nuts()."
        )
        if self.missed:
            return "Do not trust it", (
                f"draws from the prior find more evidence, by {self.missed:,.3g} nats, in a mode "
                f"that it has missed; {self.other_start}, or use approx.nuts()."
            )
        if self.outside > FEW_OUTSIDE * self.draws or (
            np.isnan(self.pareto_k) and not self.outside
        ):
            return "Do not trust it", f"{self._told_outside}; check the model's parameters there."
        if self.gain:
            return "Fit longer", (
                f"it has not converged, the ELBO rose by {self.gain:.2g} nats in its last fifth; "
                "give it more steps (n=), or continue with refine."
            )
        if self.doubt is not None:
            said = "the approximation of {} is off: {}".format(*self.doubt)
            if self.many or self.is_heavy:
                return "Do not trust it", f"{said}; {longer}"
            return "Resample it", f"{said}; {resample}"
        if self.is_short:
            worth = f"its draws are worth {self.ess:,.0f} of {self.draws:,} from the posterior"
            if not self.is_heavy:
                if np.isfinite(self.gap):
                    worth += f", and the ELBO is {self.gap:.2g} nats short of the evidence"
                return "Resample it", f"{worth}, so that moments may be off; {resample}"
            return "Do not trust it", (
                f"Pareto k-hat is {self.pareto_k:.2f}, above {MAX_PARETO_K}, so that {worth} at "
                f"most; its means and intervals may be off; {longer}"
            )
        if self.outside > RARELY_OUTSIDE * self.draws:
            return "Use it with care", f"{self._told_outside}; approx.sample() draws others."
        return "Use it", self._praise

    @property
    def is_heavy(self) -> bool:
        """Whether the weights have so heavy a tail that they do not tell all."""
        return self.pareto_k > MAX_PARETO_K

    @property
    def is_short(self) -> bool:
        """Whether so few of the draws are effective that moments may be off."""
        if self.many:
            return False
        if np.isnan(self.effective):  # of an older file
            return self.is_heavy
        # not known where draws lack a density
        k = NO_VARIANCE if np.isnan(self.pareto_k) else self.pareto_k
        asked = np.interp(k, (NO_VARIANCE, MAX_PARETO_K), (ENOUGH, ENOUGH_OF_HEAVY))
        return bool(self.effective < asked)

    @property
    def _told_outside(self) -> str:
        of = self.culprit or "the model"
        return (
            f"the log weights of its draws are not all finite, as the log density of {of} is not "
            f"finite at {self.outside:,} of {self.draws:,}"
        )

    @property
    def _praise(self) -> str:
        if self.many:
            said = "no element is off by more than a tenth, as far as the scores of its draws tell"
            if self.is_heavy:
                said += f", but do not resample, for Pareto k-hat is {self.pareto_k:.2f}"
        elif np.isnan(self.effective):
            said = "the importance weights are well-behaved"
        else:
            said = f"its draws are worth {self.ess:,.0f} of {self.draws:,} from the posterior"
        return f"{said}, though {self._told_outside}." if self.outside else f"{said}."

    def to_file(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_file(cls, saved: dict[str, Any]) -> "Verdict":
        """Undo :meth:`to_file`, whatever a newer one may add."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in saved.items() if name in known}
        doubt = given.get("doubt")
        return cls(**given | {"doubt": None if doubt is None else tuple(doubt)})


def judge(
    objective: Objective,
    values: Values,
    drawn: Drawn,
    rng: np.random.Generator,
    gain: float = 0.0,
    other_start: str = "pass a start=",
    of_common: Moments | None = None,
) -> Verdict:
    """Ask the importance weights of some draws, and draws from the prior, of an approximation.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
    drawn : Drawn
    rng : Generator
    gain : float
        Nats by which the ELBO still rose at the end of the fit.
    other_start : str
    of_common : Moments, optional
        That the noise of the common elements should have, as chains tell (:func:`ask_chains`); by
        default what weights tell is asked where there are many elements.
    """
    n = len(drawn.log_weights)
    n_prior = objective.target.affordable(min(n, N_PRIOR_DRAWS))
    prior_noise = _normal(rng, n_prior, objective.size)
    inside = np.isfinite(drawn.log_weights)
    n_inside = int(inside.sum())
    if n_inside < MIN_DRAWS:
        smoothed = Smoothed(np.full(n_inside, -np.log(max(n_inside, 1))), np.nan, np.nan, np.nan)
    else:
        smoothed = smooth(drawn.log_weights[inside])
    missed = missed_evidence(smoothed, objective.prior_log_weights(values, prior_noise))
    many = objective.size > MANY_ELEMENTS
    if many:
        doubt = element_in_doubt(objective, values, drawn, of_common)
    else:
        doubt = moments_in_doubt(drawn.values[inside], np.exp(smoothed.log_weights))
    elbo, outside = estimate_elbo(drawn.log_weights), n - n_inside
    k = np.nan if outside else smoothed.pareto_k
    return Verdict(
        pareto_k=np.inf if missed else float(k),
        missed=missed,
        elbo=elbo.mean,
        elbo_se=elbo.se,
        log_evidence=smoothed.log_evidence + float(np.log(max(n_inside, 1) / n)),
        log_evidence_se=smoothed.se,
        ess=smoothed.ess if n_inside else 0.0,
        draws=n,
        outside=outside,
        culprit=objective.culprit(values, drawn.noise[~inside][:N_ASKED]) if outside else "",
        doubt=None if doubt is None else (objective.program.element_name(doubt[0]), doubt[1]),
        many=many,
        gain=gain,
        other_start=other_start,
    )


def ask_chains(
    objective: Objective, values: Values, drawn: Drawn, rng: np.random.Generator
) -> Moments | None:
    """Moments of the noise of common elements by short chains, where weights of many do not tell.

    None also where chains do not.
    """
    if objective.size <= MANY_ELEMENTS or weights_tell(drawn.log_weights):
        return None
    return moments_by_chains(objective, values, drawn.noise, drawn.log_weights, rng)


def element_in_doubt(
    objective: Objective, values: Values, drawn: Drawn, of_common: Moments | None
) -> tuple[int, str] | None:
    """Tell which of many elements is most off, and how.

    By scores, and of the common ones by chains or, if those do not tell, by weights.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
    drawn : Drawn
    of_common : Moments or None
        As for :func:`judge`.
    """
    gap, places = drawn.gap, common_places(objective)
    if gap is None:
        gap = objective.score_gap(values, drawn.noise[:N_SCORED_DRAWS])
    who, moments = "short chains", of_common
    if moments is None and len(places):
        who = "scores and weights"
        noise, log_weights = drawn.noise[: len(gap), places], drawn.log_weights[: len(gap)]
        moments = moments_of_common(noise, log_weights, gap[:, places])
    if moments is None:
        return scores_in_doubt(gap)
    others = gap.copy()
    others[:, places] = 0.0
    found = scores_in_doubt(others)
    if found is None:
        found = correction_in_doubt(moments, who)
        found = None if found is None else (int(places[found[0]]), found[1])
    return found


def _normal(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    return rng.normal(size=(n, size)).astype(pytensor.config.floatX)
