"""Remedies for a fit from the prior that ends in a wrong mode, without a search for modes.

The Lorenz bridges of the paper, of which a fit from the prior takes the wrong turn in half the data
sets, are fitted in several ways::

    python -m case_studies.cold_start --quick
    python -m case_studies.cold_start

The first takes the data sets in the repository, the second two simulated ones more of each kind, in
a quarter of an hour on one slow core. A finished fit is a file of its own under
``results/cold_start``: an interrupted campaign continues where it was.

Two of the ways are not offered by the package, and reach into it: they are here to be measured.
"""

from __future__ import annotations

import argparse
import logging

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pymc as pm

from pymc.model.fgraph import clone_model
from rich import box
from rich.table import Table

import pymc_emf as emf

from case_studies.campaign import Task, make_console, read, report, run, write
from case_studies.variational import data
from pymc_emf.variational import search
from pymc_emf.variational.objective import Objective

#: Steps of every fit, and draws behind its ELBO.
STEPS, DRAWS = 2_000, 20_000
#: Nats that a tempered model is given for its power, so that the best loss is that of power one.
OFFSET = 1e5
#: Gaps beyond this many nats are another mode.
WRONG_MODE = 10.0

Fitted = tuple[emf.EMFApproximation, float]


def _cold(model: pm.Model, seed: int, **options) -> emf.EMFApprox:
    return emf.EMFApprox(model=model, warm_start=False, random_seed=seed, **options)


def _steps(method: emf.EMFApprox, n: int, **options) -> emf.EMFApproximation:
    return method.fit(n, tol=None, progressbar=False, **options)


def cold(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Fit from the prior."""
    return _steps(_cold(model, seed), steps), 0.0


def default(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Fit as the package does, from the best of several candidates, modes among them."""
    return _steps(emf.EMFApprox(model=model, random_seed=seed), steps), 0.0


def more_draws_early(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Take fifty times the draws in the first steps."""
    method = _cold(model, seed)
    first = 3 * steps // 20
    _steps(method, first, obj_n_mc=400)
    return _steps(method, steps - first), 0.0


# --- tempering ---------------------------------------------------------------------------------


def tempered(model: pm.Model, power: float) -> pm.Model:
    """Make a model whose likelihood has a power, which is its last parameter."""
    clone = clone_model(model)
    (observed,) = clone.observed_RVs
    with clone:
        raised = emf.parameter("power", np.array(power))
        log_likelihood = pm.logp(observed, clone.rvs_to_values[observed]).sum()
        pm.Potential("tempering", (raised - 1) * log_likelihood + OFFSET * raised)
    return clone


def raising_the_power(steps: int, first: float, share: float) -> optax.GradientTransformation:
    """Adam, but for the last value, which goes from the first power to one on its own."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.01, min(100, steps // 4), steps)
    adam = optax.chain(optax.clip_by_global_norm(1e3), optax.adam(rate))

    def init(values):
        return adam.init(values), jnp.zeros((), int)

    def update(gradient, state, values):
        inner, i = state
        still = [*gradient[:-1], jnp.zeros_like(gradient[-1])]
        updates, inner = adam.update(still, inner, values)
        power = first ** (1 - jnp.minimum(1.0, (i + 1) / (share * steps)))
        gates = 0.1 * updates[-2]  # they are sigmoids of a hundred times their parameters
        return [*updates[:-2], gates, (power - values[-1]).astype(values[-1].dtype)], (inner, i + 1)

    return optax.GradientTransformation(init, update)


def tempering(
    model: pm.Model, seed: int, steps: int, first: float = 0.01, share: float = 0.5
) -> Fitted:
    """Raise the power of the likelihood from nearly zero to one over a share of the steps."""
    optimizer = raising_the_power(steps, first, share)
    return _steps(_cold(tempered(model, first), seed), steps, obj_optimizer=optimizer), OFFSET


def slow_tempering(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Temper from a smaller power, over more of twice the steps."""
    return tempering(model, seed, 2 * steps, first=0.001, share=0.8)


# --- what reaches into the package -------------------------------------------------------------


def importance_weighted_loss(self: Objective, trained, fixed, drawn):
    """Negative log of the mean importance weight of a step's draws (Burda et al. 2016).

    It is at least as high where draws of the posterior are missed as where there are too many.
    """
    noise, minibatch = drawn
    layer_values, target_values = self.split(self.join(trained, fixed))
    inner, log_det = jax.vmap(lambda e: self.structured_noise(layer_values, e))(noise)
    log_p, usable = self._guarded(target_values, inner, minibatch)
    log_q = jax.scipy.stats.norm.logpdf(noise).sum(axis=1) - log_det
    log_weights = jnp.where(usable, log_p - log_q, -jnp.inf)
    return jnp.log(len(noise)) - jax.nn.logsumexp(log_weights)


def mass_covering_early(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Maximise the importance-weighted bound of 64 draws first, then the ELBO."""
    method = _cold(model, seed, gradient="reparameterised")
    with mock.patch.object(Objective, "loss", importance_weighted_loss):
        _steps(method, steps // 2, obj_n_mc=64)
    return _steps(method, steps - steps // 2), 0.0


def regression(model: pm.Model, seed: int, steps: int) -> Fitted:
    """Start as the package does, from the regression of scores at the prior, but from no mode."""

    def none(*args):
        return []

    with (
        mock.patch.object(search.Search, "_modes", none),
        mock.patch.object(search, "find_modes", none),
    ):
        return default(model, seed, steps)


METHODS: dict[str, Callable[[pm.Model, int, int], Fitted]] = {
    "cold": cold,
    "tempering": tempering,
    "slow tempering": slow_tempering,
    "more draws early": more_draws_early,
    "mass-covering early": mass_covering_early,
    "regression, no modes": regression,
    "default": default,
}
#: Fit both, keep the one of the higher ELBO.
BETTER_OF = ("cold", "regression, no modes")
PROBLEMS = ("LZB-r", "LZB-c")


# --- the campaign ------------------------------------------------------------------------------


def measure(task: Task, folder: Path) -> Task:
    """Fit, and write what came of it to a file."""
    for package in ("pymc", "pymc_emf"):  # the gaps say which fits are poor
        logging.getLogger(package).setLevel(logging.ERROR)
    problem = data(task.problem, task.run)
    begin = perf_counter()
    approx, offset = METHODS[task.method](problem.model, task.run, task.n_steps)
    seconds = perf_counter() - begin
    elbo = approx.elbo(DRAWS, random_seed=1)
    gap = -problem.neg_log_evidence - (elbo.mean - offset)
    record = {"gap": gap, "gap_se": float(np.hypot(elbo.se, problem.se)), "seconds": seconds}
    write(task.labels | record | {"start": approx.warm_start.chosen}, task.path(folder))
    return task


def with_better_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the better of two fits, at the time of both."""
    parts = frame[frame["method"].isin(BETTER_OF)]
    both = parts.groupby(["problem", "run"]).agg(
        gap=("gap", "min"), seconds=("seconds", "sum"), n=("gap", "size")
    )
    both = both[both["n"] == len(BETTER_OF)].reset_index().drop(columns="n")
    name = "better of " + " and ".join(f'"{method}"' for method in BETTER_OF)
    return pd.concat([frame, both.assign(method=name)], ignore_index=True)


def tabulate(frame: pd.DataFrame) -> Table:
    """Gaps by data set, the number of wrong modes, and the mean time."""
    sets = list(dict.fromkeys(zip(frame["problem"], frame["run"], strict=True)))
    table = Table("method", box=box.SIMPLE, pad_edge=False)
    for problem, i in sets:
        table.add_column(f"{problem} {i}", justify="right", no_wrap=True)
    table.add_column("wrong", justify="right")
    table.add_column("seconds", justify="right")
    for method, rows in frame.groupby("method", sort=False):
        known = {(r.problem, r.run): r.gap for r in rows.itertuples()}
        cells = [f"{known[key]:.2f}" if key in known else "" for key in sets]
        wrong = f"{int((rows['gap'] > WRONG_MODE).sum())} of {len(rows)}"
        table.add_row(method, *cells, wrong, f"{rows['seconds'].mean():.0f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, print the table, say where the files are."""
    parser = argparse.ArgumentParser(
        prog="python -m case_studies.cold_start", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="data sets 0 and 1 only")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--runs", type=int, help="data sets of each kind (4, or 2 with --quick)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("results", "cold_start"))
    args = parser.parse_args(argv)
    folder = args.out / str(args.steps)
    tasks = [
        Task(problem, method, i, args.steps)
        for i in range(args.runs or (2 if args.quick else 4))
        for problem in args.problems
        for method in args.methods
    ]
    console = make_console()
    run(tasks, partial(measure, folder=folder), folder, args.jobs, console)
    frame = with_better_of(pd.DataFrame(read(tasks, folder)))
    title = "Gap to the exact log evidence, nats"
    report(frame, {title: tabulate(frame)}, folder, console)


if __name__ == "__main__":
    main()
