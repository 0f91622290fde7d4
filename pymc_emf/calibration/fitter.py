"""Fits to one simulation after the other, with everything compiled once."""

from dataclasses import dataclass

import numpy as np

from pymc.variational.opvi import VariationalInferenceError

from pymc_emf.engine.loop import Steps
from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.variational.check import check, explain
from pymc_emf.variational.draws import Draws
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.prepare import Prepared, make_steps
from pymc_emf.variational.start import find_start
from pymc_emf.variational.train import begin_run, draws_at_the_end, maximise_elbo

__all__ = ["Fitter", "Ranked", "Simulated"]

type Simulated = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """One simulation: a rank for every element of the free variables, or why there is none."""

    ranks: np.ndarray
    pareto_k: float
    error: str = ""


class Fitter:
    """Fits one simulation after the other with the same compiled functions.

    Parameters
    ----------
    prepared : Prepared
        Of a program whose data may change.
    ask : FitOptions
    draws : int
        Of each fit, among which true values are ranked.
    seed : int
    """

    def __init__(self, prepared: Prepared, ask: FitOptions, draws: int, seed: int):
        self.prepared, self.ask, self.n_draws, self.seed = prepared, ask, draws, seed
        self._draws = Draws(prepared.objective)
        self._steps: Steps | None = None

    def rank(self, i: int, simulated: Simulated) -> Ranked:
        """Fit to the data of simulation ``i``, and rank its true values."""
        names = [rv.name for rv in self.prepared.model.free_RVs]
        truths = [simulated[name][i] for name in names]
        nothing = np.full(sum(map(np.size, truths)), -1)
        rng, draws_rng = np.random.default_rng([self.seed, i]).spawn(2)
        try:
            values, pareto_k = self.fit({name: x[i] for name, x in simulated.items()}, rng)
        except VariationalInferenceError as error:
            return Ranked(nothing, np.nan, str(error))
        posterior = self._draws.posterior(values, self.n_draws, draws_rng)
        ranks = [
            (posterior[name] < truth).sum(axis=0).ravel()
            for name, truth in zip(names, truths, strict=True)
        ]
        return Ranked(np.concatenate(ranks), pareto_k)

    def fit(self, data: Simulated, rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
        """Values after a fit to some data, and their k-hat."""
        objective, variables = self.prepared.objective, self.prepared.program.data
        arrays = [
            np.asarray(data[name], dtype=variable.type.dtype)
            for name, variable in variables.items()
        ]
        initial = objective.replace(self.prepared.initial, list(variables.values()), arrays)
        self._steps = steps = make_steps(self.prepared, initial, self.ask, self._steps)
        steps.chunk.begin()
        started = find_start(self.prepared, rng, initial)
        run = begin_run(self.prepared, steps, started, self.ask.n, rng)
        trained = maximise_elbo(self.prepared, steps, run, self.ask)
        if trained.error is not None:
            raise trained.error
        if trained.stopping.reason == "interrupted":  # half a fit says nothing
            raise KeyboardInterrupt
        after = objective.join(trained.values, objective.fixed(started.values))
        if trained.failed:
            step = len(trained.losses)
            slower = self.ask.slower("optax.adam(1e-3)")
            n_draws = draws_at_the_end(self.prepared, run, self.ask)
            reason = explain(objective, after, run.key, n_draws, step, slower)
            raise NonFiniteELBOError(reason)
        checked = check(objective, started.values, after, rng)
        return checked.values, checked.pareto_k
