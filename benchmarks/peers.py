"""The alternatives a PyMC user has: PyMC's ADVI, mean field and full rank, and numpyro's guides.

Every peer runs Adam with cosine decay to zero and clipped gradients, at the best of the rates
0.003, 0.01, 0.02 and 0.03 over Eight Schools, BRB-c and Lin-8: 0.02 for the Gaussians and 0.01 for
the flow, which diverges on Lin-8 at 0.02. None is better without clipping: where prior and data
disagree the first gradients are huge, and Adam's second moments remember them.

numpyro's steps are fused into scans; PyMC's are called one by one from Python, as `pm.fit` does.
PyTensor keeps compiled code on disk and JAX does not: the compile time of PyMC's methods is that of
a model fitted before, or some ten times as long if it was not. To see the latter, point
``PYTENSOR_FLAGS=base_compiledir=...`` to an empty directory.
"""

from __future__ import annotations

import math

from collections.abc import Callable
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pymc as pm
import pytensor

from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous, AutoIAFNormal, AutoMultivariateNormal
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.sampling.jax import get_jaxified_graph

from benchmarks.common import ELBO_DRAWS, Fit, mean_and_se, run_fused
from case_studies.problems import SCHOOL_SIGMA, Problem

GAUSSIAN_RATE, FLOW_RATE = 0.02, 0.01
MAX_GRADIENT_NORM = 100.0
BATCH = 2_000  # rows evaluated at once


# PyMC


def batched_logp(model: pm.Model, ordering: dict) -> Callable:
    """JAX function from rows of flat unconstrained values to their log densities.

    Parameters
    ----------
    model : pm.Model
    ordering : dict
        Value variable name to an entry that holds its slice and its shape, as PyMC's groups
        have it.
    """
    model = freeze_dims_and_data(model)
    graph = get_jaxified_graph(model.value_vars, [model.logp()])
    layout = [(ordering[v.name][1], ordering[v.name][2]) for v in model.value_vars]

    def logp(row):
        return graph(*(row[part].reshape(shape) for part, shape in layout))[0]

    return jax.jit(lambda rows: jax.lax.map(logp, rows, batch_size=BATCH))


def fit_pymc(
    inference: type[pm.ADVI] | type[pm.FullRankADVI],
    problem: Problem,
    steps: int,
    draws: int,
    seed: int,
) -> Fit:
    """Fit by `pm.ADVI` or `pm.FullRankADVI` and evaluate the Gaussian in NumPy and JAX."""
    schedule = GAUSSIAN_RATE * 0.5 * (1 + np.cos(np.pi * np.arange(steps + 1) / steps))
    rate = pytensor.shared(GAUSSIAN_RATE, "rate")
    ticks = []

    def tick(approx, losses, i):
        rate.set_value(schedule[i])
        ticks.append(perf_counter())

    start = perf_counter()
    approx = inference(model=problem.model, random_seed=seed).fit(
        steps,
        obj_n_mc=draws,
        obj_optimizer=pm.adam(learning_rate=rate),
        total_grad_norm_constraint=MAX_GRADIENT_NORM,
        callbacks=[tick],
        progressbar=False,
    )
    wall = perf_counter() - start
    step_time = float(np.median(np.diff(ticks)))

    group = approx.groups[0]
    scale = group.L.eval() if inference is pm.FullRankADVI else np.diag(group.std.eval())
    noise = np.random.default_rng(seed).standard_normal((ELBO_DRAWS, group.ddim))
    values = group.mean.eval() + noise @ scale.T
    log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1) - np.log(np.diag(scale)).sum()
    log_p = batched_logp(problem.model, group.ordering)(values)
    return Fit(ticks[0] - start - step_time, step_time, wall, *mean_and_se(log_p - log_q))


# numpyro


def numpyro_model(name: str, y: np.ndarray) -> Callable[[], None]:
    """Build the model of `case_studies.problems` that `name` denotes, in numpyro."""
    family, _, variant = name.partition("-")
    seen = np.flatnonzero(~np.isnan(y))

    def observe(latent, sigma, slope):
        if variant == "r":
            numpyro.sample("y", dist.Normal(latent[seen], sigma), obs=y[seen])
        else:
            numpyro.sample("y", dist.Bernoulli(logits=slope * latent[seen]), obs=y[seen])

    def brownian():
        observe(numpyro.sample("x", dist.GaussianRandomWalk(0.1, len(y))), 0.15, 5.0)

    def lorenz():
        # all steps at once: numpyro's scan fails under AutoIAFNormal
        v = numpyro.sample("v", dist.ImproperUniform(dist.constraints.real, (), (len(y), 3)))
        a, b, c = v[:-1].T
        drift = jnp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], axis=1)
        steps = dist.Normal(v[:-1] + 0.02 * drift, math.sqrt(0.02) * 0.1).log_prob(v[1:])
        numpyro.factor("prior", dist.Normal(0, 1).log_prob(v[0]).sum() + steps.sum())
        observe(v[:, 0], 1.0, 2.0)

    def eight_schools():
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        log_tau = numpyro.sample("log_tau", dist.Normal(5, 1))
        with numpyro.plate("school", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau)))
            numpyro.sample("y", dist.Normal(theta, np.array(SCHOOL_SIGMA)), obs=y)

    def tree():
        depth = int(variant)
        link, leaf, sigma = (lambda a: a, 0.2, 0.15) if family == "Lin" else (jnp.tanh, 0.1, 0.05)
        prior = dist.Normal(jnp.zeros(2 ** (depth - 1)), leaf)
        for level in reversed(range(depth)):
            name, obs = (f"layer_{level}", None) if level else ("y", y)
            child = link(numpyro.sample(name, prior.to_event(1), obs=obs))
            prior = dist.Normal(child[0::2] - child[1::2], sigma) if level else None

    families = {"ES": eight_schools, "Lin": tree, "Tanh": tree, "BR": brownian, "LZ": lorenz}
    return families.get(family) or families[family[:2]]


def fit_numpyro(
    guide: type[AutoContinuous],
    rate: float,
    name: str,
    problem: Problem,
    steps: int,
    draws: int,
    seed: int,
) -> Fit:
    """Fit by an automatic guide of numpyro, steps fused."""
    start = perf_counter()
    model = numpyro_model(name, problem.observed)
    guide = guide(model)
    optimizer = optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    svi = SVI(
        model,
        guide,
        numpyro.optim.optax_to_numpyro(optimizer),
        Trace_ELBO(num_particles=draws, vectorize_particles=True),
    )
    state = jax.jit(svi.init)(jax.random.key(seed))
    setup = perf_counter() - start
    state, compile_time, step_time = run_fused(lambda state, _: svi.update(state), state, steps)
    wall = perf_counter() - start

    parameters, single = svi.get_params(state), Trace_ELBO()
    keys = jax.random.split(jax.random.key(seed + 1), ELBO_DRAWS)
    terms = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: -single.loss(key, parameters, model, guide), keys, batch_size=BATCH
        )
    )(keys)
    return Fit(setup + compile_time, step_time, wall, *mean_and_se(terms))


PEERS: dict[str, Callable[[str, Problem, int, int, int], Fit]] = {
    "PyMC ADVI": lambda name, *args: fit_pymc(pm.ADVI, *args),
    "PyMC FullRankADVI": lambda name, *args: fit_pymc(pm.FullRankADVI, *args),
    "numpyro AutoIAFNormal": lambda *args: fit_numpyro(AutoIAFNormal, FLOW_RATE, *args),
    "numpyro AutoMultivariateNormal": lambda *args: fit_numpyro(
        AutoMultivariateNormal, GAUSSIAN_RATE, *args
    ),
}
