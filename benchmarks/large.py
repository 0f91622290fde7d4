"""Models of many unknowns or rows, against others: ``python -m benchmarks.large``.

The data are simulated from the models themselves, or close to them. Each method runs at its
defaults in a process of its own, from the call to a thousand draws, compilation included; its
moments are compared with those of long runs of nutpie, which ``python -m benchmarks.large
reference`` makes once and keeps in ``data/large.npz``. ``python -m benchmarks.large sizes`` takes
varying intercepts of 100 to 100,000 groups instead, and compares the methods with each other.

Errors are those of means, in standard deviations, and of the logs of standard deviations: the
worst of the common parameters, and the root mean square and the worst of the rest. What is in the
file of records is not run again, so that the campaign can be put down and taken up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import arviz as az
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import xarray as xr

from rich.console import Console
from rich.table import Table

from benchmarks.records import measure_missing

REFERENCES = Path(__file__).parent / "data" / "large.npz"
RECORDS = Path("results/large.json")
#: Of the long runs, one file for each.
RUNS = Path("results/large")

#: Draws behind the moments of an approximation.
DRAWS = 1000
#: Chains of nutpie, and draws of each, by default and for a reference.
CHAINS, DEFAULT, LONG = 4, 1000, 2500
#: Steps and rate of numpyro's guides, and unknowns up to which they have full rank.
STEPS, RATE, FULL_RANK = 10_000, 0.01, 300
#: Standard error of the means of common parameters that a reference may have, in standard
#: deviations, and the most runs for it.
PRECISION, MAX_RUNS = 0.02, 12

#: A larger variable is not among the common parameters.
COMMON_SIZE = 20


# --- the models --------------------------------------------------------------------------------


def intercepts(groups: int = 1000) -> pm.Model:
    """Varying intercepts with a group predictor, 1 to 19 rows a group, centred."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(groups), rng.integers(1, 20, groups))
    u, x = rng.normal(size=groups), rng.normal(size=len(group))
    intercept = 1 + 0.7 * u + 0.5 * rng.normal(size=groups)
    y = intercept[group] - 0.6 * x + 0.8 * rng.normal(size=len(group))
    with pm.Model() as model:
        level = pm.Normal("level", 0, 2)
        of_group = pm.Normal("of_group", 0, 2)
        slope = pm.Normal("slope", 0, 2)
        tau = pm.HalfNormal("tau", 1)
        sigma = pm.HalfNormal("sigma", 1)
        a = pm.Normal("a", level + of_group * u, tau, shape=groups)
        pm.Normal("y", a[group] + slope * x, sigma, observed=y)
    return model


def slopes(groups: int = 2000, rows: int = 25) -> pm.Model:
    """Varying intercepts and slopes, logistic, centred."""
    rng = np.random.default_rng(1)
    group, x = np.repeat(np.arange(groups), rows), rng.normal(size=groups * rows)
    a, b = -0.5 + 0.8 * rng.normal(size=groups), 0.7 + 0.4 * rng.normal(size=groups)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-a[group] - b[group] * x))
    with pm.Model() as model:
        mean = pm.Normal("mean", 0, 2, shape=2)
        sd = pm.HalfNormal("sd", 1, shape=2)
        intercept = pm.Normal("intercept", mean[0], sd[0], shape=groups)
        slope = pm.Normal("slope", mean[1], sd[1], shape=groups)
        pm.Bernoulli("y", logit_p=intercept[group] + slope[group] * x, observed=y.astype(int))
    return model


def item_response(persons: int = 2000, items: int = 50) -> pm.Model:
    """Two parameters an item; all answers of all persons."""
    rng = np.random.default_rng(2)
    ability, difficulty = rng.normal(size=persons), rng.normal(size=items)
    discrimination = np.exp(0.3 * rng.normal(size=items))
    p = 1 / (1 + np.exp(-discrimination * (ability[:, None] - difficulty)))
    y = (rng.random(p.shape) < p).astype(int)
    with pm.Model() as model:
        theta = pm.Normal("theta", 0, 1, shape=persons)
        spread = pm.HalfNormal("spread", 1)
        difficulty = pm.Normal("difficulty", 0, spread, shape=items)
        discrimination = pm.LogNormal("discrimination", 0, 0.5, shape=items)
        pm.Bernoulli("y", logit_p=discrimination * (theta[:, None] - difficulty), observed=y)
    return model


def crossed(first: int = 300, second: int = 300, rows: int = 10_000) -> pm.Model:
    """Crossed random effects of two factors."""
    rng = np.random.default_rng(3)
    i, j = rng.integers(first, size=rows), rng.integers(second, size=rows)
    u, v = 0.6 * rng.normal(size=first), 0.4 * rng.normal(size=second)
    y = 1 + u[i] + v[j] + rng.normal(size=rows)
    with pm.Model() as model:
        level = pm.Normal("level", 0, 5)
        sd = pm.HalfNormal("sd", 1, shape=2)
        sigma = pm.HalfNormal("sigma", 1)
        u = pm.Normal("u", 0, sd[0], shape=first)
        v = pm.Normal("v", 0, sd[1], shape=second)
        pm.Normal("y", level + u[i] + v[j], sigma, observed=y)
    return model


def volatility(days: int = 2500) -> pm.Model:
    """Stochastic volatility: the log variance is an AR(1)."""
    rng, h = np.random.default_rng(4), np.zeros(days)
    for t in range(1, days):
        h[t] = 0.97 * h[t - 1] + 0.2 * rng.normal()
    y = np.exp(h / 2) * rng.normal(size=days)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2)
        phi = pm.Beta("phi", 20, 1.5)
        sigma = pm.HalfNormal("sigma", 0.5)
        first = pm.Normal.dist(0, 1)
        h = pm.AR("h", rho=phi[None], sigma=sigma, init_dist=first, shape=days)
        pm.Normal("y", 0, pt.exp((mu + h) / 2), observed=y)
    return model


def counts(steps: int = 1000) -> pm.Model:
    """Poisson counts whose log rate is a random walk."""
    rng = np.random.default_rng(5)
    y = rng.poisson(np.exp(1.5 + np.cumsum(0.1 * rng.normal(size=steps))))
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 0.5)
        first = pm.Normal.dist(1, 2)
        x = pm.GaussianRandomWalk("x", sigma=sigma, init_dist=first, shape=steps)
        pm.Poisson("y", pt.exp(x), observed=y)
    return model


def areas(side: int = 25) -> pm.Model:
    """BYM2 on a grid of areas."""
    rng, place = np.random.default_rng(6), np.arange(side**2).reshape(side, side)
    adjacent = np.zeros((side**2, side**2))
    for a, b in ((place[1:], place[:-1]), (place[:, 1:], place[:, :-1])):
        adjacent[a, b] = adjacent[b, a] = 1
    precision = np.diag(adjacent.sum(axis=1)) - adjacent + 0.05 * np.eye(side**2)
    smooth = np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=side**2))
    y = rng.poisson(20 * np.exp(0.2 * smooth + 0.1 * rng.normal(size=side**2)))
    with pm.Model() as model:
        level = pm.Normal("level", 0, 2)
        sd = pm.HalfNormal("sd", 1)
        rho = pm.Beta("rho", 0.5, 0.5)
        theta = pm.Normal("theta", 0, 1, shape=side**2)
        phi = pm.ICAR("phi", W=adjacent)
        effect = pt.sqrt(1 - rho) * theta + pt.sqrt(2 * rho) * phi
        pm.Poisson("y", 20 * pt.exp(level + sd * effect), observed=y)
    return model


def horseshoe(rows: int = 400, predictors: int = 200) -> pm.Model:
    """Regularised horseshoe (Piironen and Vehtari, 2017), eight of the coefficients not zero."""
    rng = np.random.default_rng(7)
    x, beta = rng.normal(size=(rows, predictors)), np.zeros(predictors)
    beta[:8] = 1.5 * rng.normal(size=8)
    y = x @ beta + rng.normal(size=rows)
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 2)
        tau = pm.HalfStudentT("tau", 2, 0.05)
        slab = pm.InverseGamma("slab", 2, 4)
        local = pm.HalfStudentT("local", 2, shape=predictors)
        noise = pm.Normal("noise", 0, 1, shape=predictors)
        scale = local * pt.sqrt(slab / (slab + tau**2 * local**2))
        pm.Normal("y", x @ (noise * tau * scale), sigma, observed=y)
    return model


def process(points: int = 200) -> pm.Model:
    """Poisson counts whose log rate is a Gaussian process."""
    rng = np.random.default_rng(8)
    x = np.sort(rng.uniform(0, 10, points))
    y = rng.poisson(np.exp(1 + np.sin(x) + 0.5 * np.cos(2.3 * x)))
    with pm.Model() as model:
        length = pm.InverseGamma("length", 5, 5)
        height = pm.HalfNormal("height", 1)
        level = pm.Normal("level", 0, 2)
        noise = pm.Normal("noise", 0, 1, shape=points)
        distance = (x[:, None] - x) / length
        covariance = height**2 * pt.exp(-0.5 * distance**2) + 1e-6 * np.eye(points)
        f = pt.linalg.cholesky(covariance) @ noise
        pm.Poisson("y", pt.exp(level + f), observed=y)
    return model


def media(weeks: int = 180, channels: int = 6) -> pm.Model:
    """Media mix: geometric adstock and saturation of each channel, trend and season."""
    rng = np.random.default_rng(9)
    spend = rng.gamma(2, 0.5, (weeks, channels)) * (rng.random((weeks, channels)) < 0.7)
    week, lags = np.arange(weeks), np.arange(8)
    season = np.column_stack([f(2 * np.pi * week / 52) for f in (np.sin, np.cos)])
    past = np.stack([np.pad(spend, ((lag, 0), (0, 0)))[:weeks] for lag in lags])

    def sales(m, alpha, lam, beta, level, trend, gamma):
        weight = alpha ** lags[:, None]
        stock = (past * weight[:, None]).sum(axis=0) / weight.sum(axis=0)
        response = m.tanh(lam * stock / 2)
        return level + trend * week / weeks + response @ beta + season @ gamma

    truth = (
        rng.uniform(0.2, 0.7, channels),
        rng.gamma(3, 0.5, channels),
        rng.gamma(2, 0.3, channels),
    )
    y = sales(np, *truth, 2.0, 0.5, np.array([0.3, -0.2])) + 0.1 * rng.normal(size=weeks)
    with pm.Model() as model:
        alpha = pm.Beta("alpha", 1, 3, shape=channels)
        lam = pm.Gamma("lam", 3, 1, shape=channels)
        beta = pm.HalfNormal("beta", 2, shape=channels)
        level = pm.Normal("level", 0, 5)
        trend = pm.Normal("trend", 0, 2)
        gamma = pm.Laplace("gamma", 0, 1, shape=2)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", sales(pt, alpha, lam, beta, level, trend, gamma), sigma, observed=y)
    return model


def million_rows(rows: int = 1_000_000, predictors: int = 10, batch: int | None = 2000) -> pm.Model:
    """Logistic regression by minibatches, or on all rows."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=(rows, predictors))
    p = 1 / (1 + np.exp(-x @ rng.normal(size=predictors)))
    y = (rng.random(rows) < p).astype(float)
    with pm.Model() as model:
        some_x, some_y = pm.Minibatch(x, y, batch_size=batch) if batch else (x, y)
        beta = pm.Normal("beta", 0, 1, shape=predictors)
        total = rows if batch else None
        pm.Bernoulli("y", logit_p=some_x @ beta, observed=some_y, total_size=total)
    return model


def many_groups(
    groups: int = 10_000, rows: int = 1_000_000, batch: int | None = 20_000
) -> pm.Model:
    """Varying intercepts of many groups by minibatches, or on all rows."""
    rng = np.random.default_rng(11)
    group, x = rng.integers(groups, size=rows), rng.normal(size=rows)
    y = (0.5 + 0.7 * rng.normal(size=groups))[group] + 0.3 * x + rng.normal(size=rows)
    with pm.Model() as model:
        some_group, some_x, some_y = (
            pm.Minibatch(group, x, y, batch_size=batch) if batch else (group, x, y)
        )
        level = pm.Normal("level", 0, 2)
        slope = pm.Normal("slope", 0, 2)
        tau = pm.HalfNormal("tau", 1)
        sigma = pm.HalfNormal("sigma", 1)
        a = pm.Normal("a", level, tau, shape=groups)
        mu = a[some_group] + slope * some_x
        pm.Normal("y", mu, sigma, observed=some_y, total_size=rows if batch else None)
    return model


MODELS: dict[str, Callable[[], pm.Model]] = {
    model.__name__: model
    for model in (
        intercepts,
        slopes,
        item_response,
        crossed,
        volatility,
        counts,
        areas,
        horseshoe,
        process,
        media,
        million_rows,
        many_groups,
    )
}
#: Numbers of groups of the varying intercepts, as in the name ``intercepts:100``.
SIZES = (100, 1000, 10_000, 100_000)
#: Those whose data come by minibatches, which NUTS cannot take.
MINIBATCHES = ("million_rows", "many_groups")


# --- the methods -------------------------------------------------------------------------------


def _emf(model: pm.Model, seed: int) -> tuple[xr.Dataset, dict]:
    import pymc_emf as emf

    approx = emf.fit(model=model, random_seed=seed, progressbar=False)
    posterior = approx.sample(DRAWS, random_seed=seed).posterior.to_dataset()
    said = {"timing": approx.timing, "pareto_k": approx.pareto_k, "stopping": approx.stopping}
    return posterior, said | {"start": approx.warm_start.chosen}


def _nutpie(model: pm.Model, seed: int, draws: int = DEFAULT) -> tuple[xr.Dataset, dict]:
    idata = pm.sample(
        draws,
        nuts_sampler="nutpie",
        chains=CHAINS,
        cores=2,
        random_seed=seed,
        model=model,
        progressbar=False,
        compute_convergence_checks=False,
    )
    return idata.posterior.to_dataset(), {"divergences": int(idata.sample_stats["diverging"].sum())}


def _of_pymc(name: str) -> Callable:
    def run(model: pm.Model, seed: int) -> tuple[xr.Dataset, dict]:
        approx = pm.fit(method=name, random_seed=seed, model=model, progressbar=False)
        return approx.sample(DRAWS, random_seed=seed).posterior.to_dataset(), {}

    return run


def _of_extras(name: str) -> Callable:
    def run(model: pm.Model, seed: int) -> tuple[xr.Dataset, dict]:
        import pymc_extras as pmx  # not among the dependencies of the benchmarks

        idata = pmx.fit(method=name, model=model, random_seed=seed)
        return idata.posterior.to_dataset(), {}

    return run


def _numpyro(model: pm.Model, seed: int) -> tuple[xr.Dataset, dict]:
    """SVI with a normal guide of full rank, or of low rank where there are many unknowns.

    The model is PyMC's log density in its unconstrained space.
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal
    from numpyro.optim import ClippedAdam
    from pymc.sampling.jax import get_jaxified_graph

    begin = model.initial_point(seed)
    log_density = get_jaxified_graph(model.value_vars, [model.logp()])
    by_name = {v.name: v for v in model.unobserved_value_vars}
    constrain = get_jaxified_graph(model.value_vars, [by_name[rv.name] for rv in model.free_RVs])

    def density():
        values = [
            numpyro.sample(v.name, dist.ImproperUniform(dist.constraints.real, x.shape, ()))
            for v, x in zip(model.value_vars, begin.values(), strict=True)
        ]
        numpyro.factor("log_density", log_density(*values)[0])

    n_unknowns = sum(x.size for x in begin.values())
    make = AutoMultivariateNormal if n_unknowns <= FULL_RANK else AutoLowRankMultivariateNormal
    guide = make(density)
    svi = SVI(density, guide, ClippedAdam(RATE), Trace_ELBO(num_particles=8))
    found = svi.run(jax.random.key(seed), STEPS, progress_bar=False)
    drawn = guide.sample_posterior(jax.random.key(seed + 1), found.params, sample_shape=(DRAWS,))
    arrays = jax.vmap(constrain)(*(jnp.asarray(drawn[v.name]) for v in model.value_vars))
    named = {
        rv.name: (("chain", "draw", *(f"{rv.name}_{i}" for i in range(rv.ndim))), values[None])
        for rv, values in zip(model.free_RVs, map(np.asarray, arrays), strict=True)
    }
    return xr.Dataset(named), {"guide": make.__name__}


METHODS: dict[str, Callable] = {
    "emf": _emf,
    "nutpie": _nutpie,
    "numpyro": _numpyro,
    "advi": _of_pymc("advi"),
    "fullrank_advi": _of_pymc("fullrank_advi"),
    "pathfinder": _of_extras("pathfinder"),
    "dadvi": _of_extras("dadvi"),
}


# --- moments -----------------------------------------------------------------------------------


def moments(posterior: xr.Dataset, names: list[str]) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every element, in C order."""
    found = {}
    for name in names:
        values = posterior[name].transpose("chain", "draw", ...).to_numpy()
        values = values.reshape(values.shape[0] * values.shape[1], -1)
        found[name] = np.array([values.mean(axis=0), values.std(axis=0)])
    return found


def load_references() -> dict[str, dict[str, np.ndarray]]:
    """Read the moments of the models that have them."""
    known: dict[str, dict[str, np.ndarray]] = {}
    if REFERENCES.exists():
        with np.load(REFERENCES) as file:
            for key in file.files:
                model, name = key.split("/")
                known.setdefault(model, {})[name] = file[key].astype(float)
    return known


def write_reference(name: str, folder: Path = RUNS) -> None:
    """Run nutpie again and again until the common parameters are known, and keep the moments.

    Runs that are in the folder are not made again.
    """
    model = MODELS[name]()
    names, runs, effective = [rv.name for rv in model.free_RVs], [], 0.0
    while effective < 1 / PRECISION**2 and len(runs) < MAX_RUNS:
        run, ess = _long_run(model, names, 100 + len(runs), folder / name)
        runs.append(run)
        effective += ess
    known = load_references()
    known[name] = {n: _pooled([run[n] for run in runs]) for n in names}
    arrays = {
        f"{model}/{variable}": values.astype(np.float32)
        for model, variables in known.items()
        for variable, values in variables.items()
    }
    REFERENCES.parent.mkdir(exist_ok=True)
    np.savez_compressed(REFERENCES, **arrays)
    print(f"{name}: {len(runs)} runs, {effective:.0f} effective draws of the common parameters")


def _long_run(
    model: pm.Model, names: list[str], seed: int, folder: Path
) -> tuple[dict[str, np.ndarray], float]:
    """Moments of a long run, and how many draws are effective for the common parameters."""
    path = folder / f"{seed}.npz"
    if not path.exists():
        posterior, _ = _nutpie(model, seed, LONG)
        few = [n for n in names if posterior[n].size <= COMMON_SIZE * CHAINS * LONG]
        ess = float(az.ess(posterior[few or names]).to_array().min())
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, effective=ess, **moments(posterior, names))
    with np.load(path) as file:
        return {name: file[name] for name in names}, float(file["effective"])


def _pooled(runs: list[np.ndarray]) -> np.ndarray:
    """Mean and standard deviation of several runs taken together."""
    means, sds = np.stack(runs, axis=1)
    mean = means.mean(axis=0)
    return np.array([mean, np.sqrt((sds**2 + (means - mean) ** 2).mean(axis=0))])


def errors(found: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> dict[str, float]:
    """Worst and root mean square errors of common parameters and of the rest."""
    result = {}
    for part, chosen in (
        ("common", [name for name in known if known[name].shape[1] <= COMMON_SIZE]),
        ("rest", [name for name in known if known[name].shape[1] > COMMON_SIZE]),
    ):
        if not chosen:
            continue
        mean, sd = np.concatenate([found[name] for name in chosen], axis=1)
        true_mean, true_sd = np.concatenate([known[name] for name in chosen], axis=1)
        for what, error in (("mean", (mean - true_mean) / true_sd), ("sd", np.log(sd / true_sd))):
            result[f"{part}_{what}_worst"] = float(np.abs(error).max())
            result[f"{part}_{what}_rms"] = float(np.sqrt(np.mean(error**2)))
    return result


# --- the campaign ------------------------------------------------------------------------------


def measure(name: str, method: str, seed: int) -> dict:
    """One run, in this process, of a model of a given size if a number follows its name."""
    kind, *size = name.split(":")
    model = MODELS[kind](*map(int, size))
    begin = perf_counter()
    posterior, said = METHODS[method](model, seed)
    record = {"model": name, "method": method, "seed": seed, "seconds": perf_counter() - begin}
    record["unknowns"] = sum(int(np.prod(x.shape)) for x in model.initial_point().values())
    known = load_references().get(name)
    if size:
        common = [v.name for v in model.free_RVs if posterior[v.name][0, 0].size <= COMMON_SIZE]
        record["common"] = {n: x.tolist() for n, x in moments(posterior, common).items()}
    if known is not None:
        record |= errors(moments(posterior, list(known)), known)
    return record | said


def measure_apart(model: str, method: str, seed: int, limit: float) -> dict:
    """One run, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large", "one", model, method, str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    lines = done.stderr.splitlines()
    said = "Verdict on the fit. "
    warned = [line for line in lines if said in line and f"{said}Use it: " not in line]
    return json.loads(done.stdout.splitlines()[-1]) | {"warned": warned[:1]}


def tabulate(records: list[dict]) -> Table:
    """Lay the records out, one row each."""
    table = Table("model", "d", "method", "seconds", title="errors of means (sd), of log sds")
    for part in ("common, worst", "rest, rms", "rest, worst", "warned"):
        table.add_column(part)

    def pair(record, key, how):
        keys = [f"{key}_mean_{how}", f"{key}_sd_{how}"]
        return ", ".join(f"{record[k]:.3f}" for k in keys if k in record)

    for record in records:
        row = [record["model"], str(record.get("unknowns", "")), record["method"]]
        if "error" in record:
            table.add_row(*row, record["error"])
            continue
        table.add_row(
            *row,
            f"{record['seconds']:.1f}",
            pair(record, "common", "worst"),
            pair(record, "rest", "rms"),
            pair(record, "rest", "worst"),
            "yes" if record.get("warned") else "",
        )
    return table


def tabulate_sizes(records: list[dict]) -> Table:
    """Lay the seconds of each size out, and how far the first method is from the others."""
    table = Table("groups", "method", "seconds", "common: worst mean, log sd apart", "warned")
    first: dict[str, dict] = {}
    for record in records:
        name, method = record["model"], record["method"]
        if "error" in record:
            table.add_row(name.partition(":")[2], method, record["error"])
            continue
        common = {n: np.array(x) for n, x in record["common"].items()}
        apart = ""
        if first.setdefault(name, common) is not common:
            off = errors(first[name], common)
            apart = f"{off['common_mean_worst']:.2f}, {off['common_sd_worst']:.2f}"
        table.add_row(
            name.partition(":")[2],
            method,
            f"{record['seconds']:.1f}",
            apart,
            "yes" if record.get("warned") else "",
        )
    return table


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help='"reference", "sizes", or nothing for the campaign')
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["emf", "nutpie"], choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of one run")
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    console = Console(width=140)
    match arguments.what:
        case ["one", name, method, seed]:
            print(json.dumps(measure(name, method, int(seed))))
        case ["reference"]:
            for name in arguments.models:
                if name not in MINIBATCHES and name not in load_references():
                    write_reference(name)
        case ["sizes"]:
            arguments.models = [f"{intercepts.__name__}:{size}" for size in SIZES]
            console.print(tabulate_sizes(_campaign(arguments, console)))
        case _:
            console.print(tabulate(_campaign(arguments, console)))


def _campaign(arguments: argparse.Namespace, console: Console) -> list[dict]:
    """Run what no record is of, and return the records of the chosen models."""
    cases = [
        {"model": name, "method": method, "seed": arguments.seed}
        for name in arguments.models
        for method in arguments.methods
        if name not in MINIBATCHES or method in ("emf", "advi", "fullrank_advi")
    ]
    apart = partial(measure_apart, limit=arguments.limit)
    records = measure_missing(cases, apart, arguments.records, console)
    chosen = [r for r in records if r["model"] in arguments.models]
    chosen.sort(key=lambda r: arguments.models.index(r["model"]))
    return chosen


if __name__ == "__main__":
    main()
