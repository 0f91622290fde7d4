"""``python -m benchmarks.quantiles``: the cost of quantiles without a closed form.

Time of the forward map of 1,000 elements with its log|det|, and of both with the gradient in the
noise and the parameters, against SciPy's quantile function (no derivatives) and, where
``tfp-nightly`` is installed, against TensorFlow Probability's JAX quantiles with their gradients.
All in one process, in float64; the ratio is to ours. Also how fast the two root finders converge.
"""

from __future__ import annotations

import json

from functools import partial
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import scipy.stats as st

from rich.console import Console
from rich.table import Table
from scipy.special import ndtr

import pymc_emf as emf

from pymc_emf.bijections.numerics.root_finding import bracketed_root
from pymc_emf.engine.jax import jaxify

try:
    from tensorflow_probability.substrates import jax as tfp
except ImportError:
    tfp = None

SIZE = 1_000
CASES = {
    "Gamma": (lambda a, b, **kw: pm.Gamma.dist(a, b, **kw), (2.5, 1.5)),
    "Beta": (lambda a, b, **kw: pm.Beta.dist(a, b, **kw), (2.5, 1.5)),
    "StudentT": (lambda nu, mu, **kw: pm.StudentT.dist(nu, mu, sigma=1.0, **kw), (4.0, 0.5)),
}
SCIPY = {
    "Gamma": lambda a, b: st.gamma(a, scale=1 / b),
    "Beta": st.beta,
    "StudentT": lambda nu, mu: st.t(nu, mu),
}


def seconds(function, *arguments, repeats: int = 30) -> float:
    """Median time of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(perf_counter() - start)
    return float(np.median(times))


def ours(name):
    build, _ = CASES[name]
    a, b = pt.dscalar("a"), pt.dscalar("b")
    noise = pt.tensor("noise", shape=(SIZE,))
    site = emf.bijection(build(a, b, shape=SIZE))
    return jaxify([a, b, noise], site.forward(noise))


def tfp_quantile(name, a, b, noise):
    """Value-space quantile by TFP, with log|det| from its density."""
    d, p = tfp.distributions, jax.scipy.stats.norm.cdf(noise)
    dist = {
        "Gamma": lambda: d.Gamma(a, b),
        "Beta": lambda: d.Beta(a, b),
        "StudentT": lambda: d.StudentT(a, b, jnp.ones_like(b)),
    }[name]()
    x = dist.quantile(p)
    log_slope = jax.scipy.stats.norm.logpdf(noise) - dist.log_prob(x)
    return x, log_slope.sum()


def total(function, a, b, noise):
    value, log_det = function(a, b, noise)
    return value.sum() + log_det


def time_families() -> list[dict]:
    rows = []
    noise = np.random.default_rng(0).normal(size=SIZE)
    for name, (_, parameters) in CASES.items():
        function = ours(name)
        gradient = jax.jit(jax.value_and_grad(partial(total, function), argnums=(0, 1, 2)))
        frozen = SCIPY[name](*parameters)
        row = {
            "family": name,
            "forward": seconds(jax.jit(function), *parameters, noise),
            "forward and gradient": seconds(gradient, *parameters, noise),
            "SciPy ppf": seconds(lambda e, frozen=frozen: frozen.ppf(ndtr(e)), noise),
        }
        if tfp is not None:
            peer = partial(tfp_quantile, name)
            row["TFP forward"] = seconds(jax.jit(peer), *parameters, noise)
            peer_gradient = jax.value_and_grad(partial(total, peer), argnums=(0, 1, 2))
            try:
                row["TFP forward and gradient"] = seconds(
                    jax.jit(peer_gradient), *parameters, noise
                )
            except (NotImplementedError, TypeError, ValueError):
                row["TFP forward and gradient"] = float("nan")
        rows.append(row)
    return rows


def root_finding() -> list[dict]:
    """Largest error of the noise of 200 quantiles after a number of steps."""
    weights, means = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.0, 5.0])
    target = pt.dvector("target")
    problems = {
        "Gamma(0.3)": (emf.bijection(pm.Gamma.dist(0.3, 1.0, shape=200)).site, -80.0, 5.0),
        "normal mixture": (
            emf.bijection(pm.NormalMixture.dist(weights, means, sigma=0.7, shape=200)),
            -8.0,
            9.0,
        ),
    }
    noise = np.linspace(-4, 4, 200)
    rows = []
    for name, (site, low, high) in problems.items():
        row = {"problem": name}
        for n_steps in (5, 10, 15, 20, 30, 40):
            root = bracketed_root(
                lambda x, site=site: site.noise(x) - target,
                pt.full_like(target, low, dtype=target.dtype),
                pt.full_like(target, high, dtype=target.dtype),
                n_steps,
            )
            (error,) = jaxify([target], [pt.abs(site.noise(root) - target).max()])(noise)
            row[f"{n_steps} steps"] = float(error)
        rows.append(row)
    return rows


def show(title: str, rows: list[dict], unit: float, digits: str) -> None:
    table = Table(title=title, box=None)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        cells = [x if isinstance(x, str) else format(x * unit, digits) for x in row.values()]
        table.add_row(*cells)
    Console(width=160).print(table)


def main() -> None:
    """Print both tables and write them as JSON."""
    families, finders = time_families(), root_finding()
    show(f"{SIZE} elements, milliseconds", families, 1e3, ".2f")
    for row in families:
        peers = {k: v for k, v in row.items() if k.startswith(("SciPy", "TFP"))}
        base = {"SciPy ppf": "forward", "TFP forward": "forward"}
        ratios = [
            f"{k} / ours {v / row[base.get(k, 'forward and gradient')]:.2f}"
            for k, v in peers.items()
        ]
        print(row["family"], "; ".join(ratios))
    show("Largest error in noise after n steps", finders, 1.0, ".1e")
    path = Path("results", "quantiles.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"families": families, "root finders": finders}, indent=1))


if __name__ == "__main__":
    main()
