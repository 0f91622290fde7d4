"""Training speed of a density estimator beside flowjax's, on the same data in one run.

``python -m benchmarks.density`` trains a masked autoregressive flow of two layers with two hidden
layers of 64 units, batches of 100, by this package and by ``flowjax.train.fit_to_data``, on the
eight Gaussians and on Lorenz series of 90 elements. flowjax runs in double precision, as everything
does once PyTensor's JAX backend is imported, and in single precision.
"""

from __future__ import annotations

import argparse
import json

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from flowjax.train import fit_to_data
from rich.console import Console
from rich.table import Table

import pymc_emf as emf

from case_studies.densities import DATA

WIDTH, BATCH, N_ROWS, N_TEST = 64, 100, 20_000, 10_000


def timed(fit: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Seconds until the first step and seconds a step, from a short and a long fit.

    The first fit compiles, the second repeats it with what is then compiled.
    """
    times = []
    for n in (BATCH * 2, BATCH * 2, steps):
        begin = perf_counter()
        fit(n)
        times.append(perf_counter() - begin)
    first, short, long = times
    step = (long - short) / (steps - 2 * BATCH)
    return first - 2 * BATCH * step, step


def ours(X: np.ndarray, test: np.ndarray, steps: int) -> dict[str, float]:
    size = X.shape[1]
    layers = [
        emf.Invert(
            emf.MaskedAutoregressive(size, hidden=(WIDTH,) * 2, reverse=r, random_seed=int(r))
        )
        for r in (False, True)
    ]
    estimator = emf.DensityEstimator(layers, random_seed=1)

    def fit(n):
        estimator.fit(X, n, batch_size=BATCH, validation=None, progressbar=False)

    compile_time, step = timed(fit, steps)
    return {
        "compile": compile_time,
        "step": step,
        "neg_log_density": -float(estimator.log_prob(test).mean()),
    }


def flowjax_maf(X: np.ndarray, test: np.ndarray, steps: int) -> dict[str, float]:
    size = X.shape[1]
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(size)),
        flow_layers=2,
        nn_width=WIDTH,
        nn_depth=2,
    )
    fitted = [flow]

    def fit(n):
        # an epoch is a pass over the rows; as many rows as make n steps of one epoch each
        rows = np.resize(X, (n * BATCH, size))
        fitted[0], _ = fit_to_data(
            jax.random.key(1),
            fitted[0],
            jnp.asarray(rows),
            max_epochs=1,
            batch_size=BATCH,
            val_prop=BATCH / len(rows),
            learning_rate=1e-3,
            show_progress=False,
        )

    compile_time, step = timed(fit, steps)
    log_prob = fitted[0].log_prob(jnp.asarray(test))
    return {"compile": compile_time, "step": step, "neg_log_density": -float(log_prob.mean())}


def flowjax_single(X: np.ndarray, test: np.ndarray, steps: int) -> dict[str, float]:
    with jax.enable_x64(False):
        return flowjax_maf(X.astype("float32"), test.astype("float32"), steps)


METHODS = {
    "pymc_emf": ours,
    "flowjax, double precision": flowjax_maf,
    "flowjax, single precision": flowjax_single,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.density", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args(argv)
    table = Table("data", "method", "compile, s", "µs / step", "-log density", "ratio of steps")
    records = []
    for name in ("8 gaussians", "Lorenz"):
        data = DATA[name]
        X = data.draw(np.random.default_rng(0), N_ROWS)
        test = data.draw(np.random.default_rng(1), N_TEST)
        for method, measure in METHODS.items():
            found = measure(X, test, args.steps)
            records.append({"data": name, "method": method} | found)
            own = next(r["step"] for r in records if r["data"] == name)
            table.add_row(
                name,
                method,
                f"{found['compile']:.1f}",
                f"{found['step'] * 1e6:,.0f}",
                f"{found['neg_log_density']:.3f}",
                f"{found['step'] / own:.2f}",
            )
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
