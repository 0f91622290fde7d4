"""Five fits, number by number: ``python -m benchmarks.golden record FILE``, later ``compare FILE``.

For changes of the code that must not change results. Losses, trained values, draws and k-hat of
each fit are written to a file, and compared bit by bit. They are those of one machine: another
processor or another version of JAX rounds differently, so that the file is made afresh before such
a change.
"""

from __future__ import annotations

import argparse
import sys

from pathlib import Path

import numpy as np
import pymc as pm

import pymc_emf as emf

from case_studies import problems

type Numbers = dict[str, np.ndarray]


def _numbers(approx, losses) -> Numbers:
    posterior = approx.sample(200).posterior  # continues the random stream of the fit
    draws = {f"draws of {name}": x.values for name, x in posterior.data_vars.items()}
    values = {
        f"value {i} ({v.name})": np.asarray(v.get_value())
        for i, v in enumerate(approx.objective.variables)
    }
    return {"losses": losses, **values, **draws, "k-hat": np.array(approx.pareto_k)}


def eight_schools() -> Numbers:
    """The default, candidates of whose start are tried out, and steps after the fit."""
    with problems.load("ES").model:
        method = emf.EMFApprox(random_seed=1)
        approx = pm.fit(1000, method=method, progressbar=False)
        method.refine(200, progressbar=False)
    return _numbers(approx, approx.hist)


def minibatches() -> Numbers:
    """A regression on minibatches that do not divide the rows."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1050, 3))
    y = X @ [1.0, -2.0, 0.5] + rng.normal(size=1050)
    with pm.Model():
        rows, response = pm.Minibatch(X, y, batch_size=100)
        beta = pm.Normal("beta", 0.0, 10.0, shape=3)
        sigma = pm.HalfNormal("sigma", 5.0)
        pm.Normal("y", rows @ beta, sigma, observed=response, total_size=1050)
        approx = pm.fit(300, method=emf.EMFApprox(random_seed=2), progressbar=False)
    return _numbers(approx, approx.hist)


def coupling() -> Numbers:
    """Coupling and low-rank layers, from a start that is given."""
    rng = np.random.default_rng(2)
    with pm.Model():
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 2.0)
        theta = pm.Normal("theta", mu, tau, shape=80)
        pm.Normal("y", theta, 1.0, observed=rng.normal(1.0, 2.0, size=80))
        method = emf.EMFApprox(layers="coupling", random_seed=3, start={"mu": 1.0})
        approx = pm.fit(1000, method=method, progressbar=False)
    return _numbers(approx, approx.hist)


def asvi() -> Numbers:
    """Mixed parameters, with an optimiser of PyMC's."""
    with problems.load("ES").model:
        method = emf.ASVI(random_seed=4)
        optimizer = pm.adam(learning_rate=0.02)
        approx = pm.fit(300, method=method, obj_optimizer=optimizer, progressbar=False)
    return _numbers(approx, approx.hist)


def density() -> Numbers:
    """A density estimator with a part of the data held out."""
    X = np.random.default_rng(3).gamma(2.0, size=(500, 2))
    estimator = emf.DensityEstimator("maf", random_seed=5).fit(X, n=300, progressbar=False)
    values = {
        f"value {i} ({v.name})": np.asarray(v.get_value())
        for i, v in enumerate(estimator.flow.variables)
    }
    drawn = estimator.sample(100)["x"].values
    return {
        "losses": estimator.hist,
        "held out": estimator.validation,
        **values,
        "draws of x": drawn,
        "log density": estimator.log_prob(X[:50]),
    }


FITS = (eight_schools, minibatches, coupling, asvi, density)


def compare(known: Numbers, found: Numbers) -> list[str]:
    """Names of what differs, and how."""
    said = [f"{name} is only in one" for name in known.keys() ^ found.keys()]
    for name in known.keys() & found.keys():
        old, new = known[name], found[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            said.append(f"{name}: {old.dtype}{old.shape} became {new.dtype}{new.shape}")
        elif not np.array_equal(old, new, equal_nan=True):
            n_first = int(np.argmax(np.ravel(old != new)))
            gap = np.nanmax(np.abs(old.astype(float) - new))
            said.append(f"{name}: differs by up to {gap:.3g}, first at element {n_first}")
    return sorted(said)


def main() -> None:
    """Record or compare; a difference ends in exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--fits", nargs="+", default=[fit.__name__ for fit in FITS])
    args = parser.parse_args()
    fits = [fit for fit in FITS if fit.__name__ in args.fits]
    if args.what == "record":
        found = {f"{f.__name__}: {k}": v for f in fits for k, v in f().items()}
        np.savez(args.file, **found)
        return
    with np.load(args.file) as file:
        known = dict(file.items())
    failed = False
    for fit in fits:
        prefix = f"{fit.__name__}: "
        old = {k.removeprefix(prefix): v for k, v in known.items() if k.startswith(prefix)}
        differences = compare(old, fit())
        print(fit.__name__, "; ".join(differences) or "equal", flush=True)
        failed |= bool(differences)
    sys.exit(failed)


if __name__ == "__main__":
    main()
