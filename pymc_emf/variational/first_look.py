"""What is said of a model before its first fit."""

import logging
import time

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc.logprob.utils import ParameterValueError
from pytensor.graph.basic import Variable

from pymc_emf.engine.graph import evaluate_once
from pymc_emf.model.density import split_batches
from pymc_emf.model.program import Program
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.objective import Objective
from pymc_emf.variational.points import initial_point
from pymc_emf.variational.prepare import Prepared

__all__ = ["look_at"]

logger = logging.getLogger(__name__)

#: A step that takes so many seconds is said to be slow: a thousand take more than three minutes.
SLOW = 0.2


def look_at(prepared: Prepared) -> None:
    """Warn of a model at whose initial point PyMC finds no density, and of one that is slow."""
    instead = "nothing is said of it"
    with auxiliary("The look at PyMC's initial point", instead):
        _warn_of_initial_point(prepared.program)
    seconds = _seconds(prepared.objective)
    if seconds > SLOW:
        logger.warning(
            "The model is slow: its log density and gradient take %.2g s for the %d draws of a "
            "step, so that 1,000 steps take %.2g minutes, and the search for a start and the last "
            "check about as long each. Vectorise loops, cut the data into minibatches "
            "(pm.Minibatch), or give the fit fewer steps (n=).",
            seconds,
            prepared.objective.target.draws_of_a_step,
            1000 * seconds / 60,
        )


def _warn_of_initial_point(program: Program) -> None:
    point = initial_point(program)
    flat = np.concatenate(
        [np.ravel(point[site.value_name]) for site in program.sites_in_model_order]
    )
    if not np.isfinite(flat).all():
        return  # an initval outside of its support, of which the search for a start tells
    value = pt.vector("value", shape=(program.size,), dtype=pytensor.config.floatX)
    inputs = {value: flat.astype(value.dtype)}
    terms = split_batches(program.log_density_batches(value))
    if _fault(inputs, pt.stack(list(terms.values()))) is None:
        return
    for name, term in terms.items():
        # as it stands a graph overflows sooner than rewritten, which takes longer to make
        if _fault(inputs, term) and (fault := _fault(inputs, term, rewrites="fast_run")):
            logger.warning(
                "PyMC's initial point has no density: that of %s %s there, and pm.sample would "
                "not begin. The fit looks for a start elsewhere; check the parameters and data "
                "of %s.",
                name,
                fault,
                name,
            )
            return


def _fault(inputs: dict, term: Variable, rewrites: str | None = None) -> str | None:
    """What is wrong with a log density, if anything is."""
    try:
        (found,) = evaluate_once(inputs, [term], rewrites)
    except ParameterValueError as error:
        return f"breaks the condition {str(error).splitlines()[0]}"
    bad = found[~np.isfinite(found)]
    return f"has the logarithm {bad.flat[0]}" if bad.size else None


def _seconds(objective: Objective) -> float:
    """How long the log density and its gradient take for the draws of a step, about.

    Zero where that is not known: of minibatches, of which a step sees one, and on devices that
    take many draws at once.
    """
    target = objective.target
    if target.minibatches or target.block_size is None:
        return 0.0
    _, values = objective.split([v.get_value() for v in objective.variables])
    noise = np.zeros((target.draws_of_a_step, objective.size), pytensor.config.floatX)
    target.score_many(values, noise)  # compiles
    begin = time.perf_counter()
    target.score_many(values, noise)
    return time.perf_counter() - begin
