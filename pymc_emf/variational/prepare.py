"""From a model and options to what all of its fits share: nothing here changes in a fit."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pymc as pm
import pytensor

from pymc_emf.engine.devices import shardings
from pymc_emf.engine.garbage import without_collection
from pymc_emf.engine.loop import CHUNK_SIZE, Chunk, Steps, make_chunk, start_state
from pymc_emf.engine.optimizers import make_optimizer
from pymc_emf.layers.presets import (
    SPARSE_FROM,
    STEERED_FROM,
    Shape,
    asks_for_structure,
    make_layers,
)
from pymc_emf.model.program import Program
from pymc_emf.model.soft_sums import SoftSum, soft_sums
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.conditional_normal import ConditionalNormal
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.held_normal import without_sums
from pymc_emf.variational.objective import Objective, Values
from pymc_emf.variational.options import LEARNING_RATE, FitOptions, Options
from pymc_emf.variational.probing import Structure, find_structure
from pymc_emf.variational.regression import ScoreFn, regress_scores
from pymc_emf.variational.target import MOST_DRAWS, Target

__all__ = ["Prepared", "make_steps", "prepare"]

#: Standard deviation of log weights, in nats, up to which a normal is close, and up to which none
#: needs to be closer.
CLOSE_SD, GOOD_SD = 0.7, 0.4
#: Random numbers made at once, for several steps: 32 MB.
MAX_NUMBERS_AHEAD = 2**22


@dataclass(frozen=True)
class Prepared:
    """A model as a flow, compiled or about to be.

    Attributes
    ----------
    options : Options
    objective : Objective
        With the program, the layers and the target.
    initial : list of ndarray
        First values of the objective's variables.
    closed : frozenset of int
        Elements whose gates a start closes, see :class:`Structure`.
    """

    options: Options
    objective: Objective
    initial: list[np.ndarray]
    closed: frozenset[int] = frozenset()

    @property
    def program(self) -> Program:
        return self.objective.program

    @property
    def model(self) -> pm.Model:
        return self.program.model

    def n_draws(self, ask: FitOptions) -> int:
        """Draws of a step."""
        return ask.obj_n_mc or self.objective.target.draws_of_a_step

    def n_more(self, ask: FitOptions) -> int | None:
        """Those of a step whose noise is all that there is; None if they stay as many.

        What many elements lack adds up, and it is not the noise of the steps.
        """
        fixed = ask.obj_n_mc is not None or self.n_draws(ask) == MOST_DRAWS
        dear = self.objective.target.calls_python
        return None if fixed or dear or self.objective.size > SPARSE_FROM else MOST_DRAWS


@without_collection()
def prepare(
    program: Program,
    options: Options,
    rng: np.random.Generator,
    steered: bool | None = None,
) -> Prepared:
    """Make the flow of a model.

    Parameters
    ----------
    program : Program
    options : Options
    rng : Generator
        For initial weights.
    steered : bool, optional
        Whether few elements, not of a series, have layers of the structure that is found; by
        default this is tried.
    """
    structured = options.structured(program)
    target = Target(structured)
    structure, sums = None, soft_sums(program)
    if asks_for_structure(options.layers) and structured.size > STEERED_FROM:
        structure = _structure(target, sums, steered)
    order, closed = (None, set()) if structure is None else structure
    free = closed if order is None else closed.difference(order.core[: order.n_common].tolist())
    shape = Shape(structured.size, program.hubs, order, _within(free, sums), program.has_series)
    layers = make_layers(options.layers, shape, rng)
    objective = Objective(layers, structured, options.gradient, target)
    return Prepared(
        options, objective, [v.get_value() for v in objective.variables], frozenset(closed)
    )


def _within(elements: set[int], sums: Sequence[SoftSum]) -> list[SoftSum]:
    """Sums of elements that are in units of value space."""
    return [held for held in sums if elements.issuperset(held.places.tolist())]


def _structure(target: Target, sums: Sequence[SoftSum], steered: bool | None) -> Structure | None:
    """Which elements of the posterior interact beside these sums, if that is of use."""
    structured = target.structured
    program, size = structured.program, structured.size
    variables = [site.places.ravel() for site in program.sites]
    initial = [np.asarray(v.get_value()) for v in target.variables]
    n_own = len(structured.own_parameters)

    def score_with(closed: set[int]) -> ScoreFn:
        own = structured.with_gates(initial[:n_own], closed, 0.0)
        score = target.score_at([*own, *initial[n_own:]])
        return without_sums(score, _within(closed, sums))

    with (
        auxiliary("The search for elements that interact", "all are taken to do so"),
        suppress(NotImplementedError),  # not a model for JAX, which its fit will say
    ):
        found = find_structure(score_with, size, variables, structured.gated_elements)
        if found is None or size > SPARSE_FROM:
            return found
        # of fewer, any normal is as cheap
        if not found.order.n_steering:
            return None
        if program.has_series or steered:
            return found
        if steered is None and not found.closed:
            return _if_near(found, target, score_with, sums)
    return None


def _if_near(
    structure: Structure,
    target: Target,
    score_with: Callable[[set[int]], ScoreFn],
    sums: Sequence[SoftSum],
) -> Structure | None:
    """The structure, if a normal of it comes close to the posterior, and with which gates closed.

    Where the data tell much of every group, its values are closer to a normal than their noise.
    """
    order = structure.order
    family = partial(ConditionalNormal.isotropic, factorisation=Factorisation(order))

    def sd_with(closed: set[int]) -> float:
        first = np.zeros(order.size)
        if closed:
            point = first[None].astype(pytensor.config.floatX)
            value, *_ = target.evaluate_many([v.get_value() for v in target.variables], point)
            places = list(closed)
            first[places] = value[0, places]
        return regress_scores(score_with(closed), first, 1.0, np.random.default_rng(0), family).sd

    groups = target.structured.gated_elements.difference(order.core.tolist())
    sds = {frozenset[int](): sd_with(set())}
    # a sum of values would be held, by another layer
    if sds[frozenset()] > GOOD_SD and groups and not _within(groups, sums):
        sds[frozenset(groups)] = sd_with(groups)
    closed, sd = min(sds.items(), key=lambda item: item[1])
    return Structure(order, set(closed)) if sd < CLOSE_SD else None


def make_steps(
    prepared: Prepared, values: Values, ask: FitOptions, known: Steps | None = None
) -> Steps:
    """Make the loop, unless the one that is known serves; any ``n`` does.

    It is not compiled before it is begun.

    Parameters
    ----------
    prepared : Prepared
    values : sequence of array
        Of all variables, for their shapes and types.
    ask : FitOptions
    known : Steps, optional
    """
    n_draws, n_more = prepared.n_draws(ask), prepared.n_more(ask)
    settings = (ask.total_grad_norm_constraint, n_draws, n_more, ask.devices)
    if known is not None and known.serves(ask.obj_optimizer, settings):
        return known
    objective = prepared.objective
    objective.rewrite()  # JAX must not trace that
    trained, fixed = objective.trained(values), objective.fixed(values)
    optimizer = make_optimizer(
        ask.obj_optimizer, ask.total_grad_norm_constraint, trained, objective.parameters
    )
    dealt, everywhere = shardings(ask.devices)
    rates = [np.full(np.shape(value), LEARNING_RATE) for value in trained]
    state = start_state(optimizer, trained, 1, rates, fixed)  # as long as any other

    def chunk(n: int) -> Chunk:
        return make_chunk(
            lambda key: objective.draw(key, n, dealt),
            objective.loss,
            optimizer,
            state,
            CHUNK_SIZE,
            ahead=max(1, MAX_NUMBERS_AHEAD // (n * objective.size)),
            placement=everywhere,
        )

    more = None if n_more is None else chunk(n_more)
    return Steps(optimizer, chunk(n_draws), ask.obj_optimizer, settings, more)
