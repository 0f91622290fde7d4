"""What rolling up costs and saves, in one run: ``python -m benchmarks.rolling``.

The same models in several spellings: a stochastic Lorenz system as one scan, as a Python loop over
vectors, as one over scalars, and with its observations made in the loop; a binary tree layer by
layer, and node by node. One row a spelling: seconds to write and rewrite the graphs (PyTensor) and
to compile them (XLA), both as a multiple of the first spelling's sum, and microseconds a step of
the fit (median of chunks), also as a multiple. Spellings take turns, so that what else the machine
does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import logging

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import jax
import numpy as np
import pymc as pm
import pytensor.tensor as pt

from rich.console import Console
from rich.table import Table

import pymc_emf as emf

from benchmarks.common import run_fused
from case_studies.problems import load
from pymc_emf.layers import Shape, make_layers
from pymc_emf.model.program import Program
from pymc_emf.variational.objective import Objective


def lorenz_scalars(y, dt: float = 0.02, diffusion: float = 0.1) -> pm.Model:
    """Write the Lorenz system with three scalar variables a step."""
    scale = np.sqrt(dt) * diffusion
    with pm.Model() as model:
        x, y_, z = (pm.Normal(f"{name}_0", 0, 1) for name in "xyz")
        path = [x]
        for t in range(1, len(y)):
            means = (
                x + dt * 10 * (y_ - x),
                y_ + dt * (x * (28 - z) - y_),
                z + dt * (x * y_ - 8 / 3 * z),
            )
            x, y_, z = (
                pm.Normal(f"{name}_{t}", mean, scale)
                for name, mean in zip("xyz", means, strict=True)
            )
            path.append(x)
        pm.Normal("y", pt.stack(path), 1.0, observed=y)
    return model


def lorenz_observed_in_loop(y, dt: float = 0.02, diffusion: float = 0.1) -> pm.Model:
    """Write the Lorenz system with one observed variable a step."""
    with pm.Model() as model:
        for t in range(len(y)):
            if t == 0:
                v = pm.Normal("v_0", 0, 1, shape=3)
            else:
                x, y_, z = v[0], v[1], v[2]
                drift = pt.stack([10 * (y_ - x), x * (28 - z) - y_, x * y_ - 8 / 3 * z])
                v = pm.Normal(f"v_{t}", v + dt * drift, np.sqrt(dt) * diffusion, shape=3)
            pm.Normal(f"y_{t}", v[0], 1.0, observed=y[t])
    return model


def tree_nodes(y, depth: int = 8) -> pm.Model:
    """Write the tree of tanh links node by node, root observed."""
    with pm.Model() as model:
        layer = [pm.Normal(f"n_{depth - 1}_{i}", 0, 0.1) for i in range(2 ** (depth - 1))]
        for level in reversed(range(1, depth - 1)):
            layer = [
                pm.Normal(f"n_{level}_{i}", pt.tanh(a) - pt.tanh(b), 0.05)
                for i, (a, b) in enumerate(zip(layer[0::2], layer[1::2], strict=True))
            ]
        pm.Normal("y", pt.tanh(layer[0]) - pt.tanh(layer[1]), 0.05, observed=y)
    return model


def _lorenz_data() -> np.ndarray:
    return load("LZS-r").observed


GROUPS: dict[str, dict[str, Callable[[], pm.Model]]] = {
    "Lorenz, T = 30": {
        "one scan": lambda: load("LZS-r", form="sde").model,
        "loop": lambda: load("LZS-r", form="steps").model,
        "loop of scalars": lambda: lorenz_scalars(_lorenz_data()),
        "loop with data": lambda: lorenz_observed_in_loop(_lorenz_data()),
    },
    "tree, depth 8": {
        "by layer": lambda: load("Tanh-8").model,
        "by node": lambda: tree_nodes(load("Tanh-8").observed.item()),
    },
}


def measure(model: pm.Model, steps: int, draws: int, *, roll: bool = True) -> dict[str, float]:
    """Compile and run steps of plain gradient descent on the loss of the default flow."""
    start = perf_counter()
    structured = emf.StructuredLayer(Program(model, _roll=roll), "element")
    layers = make_layers("iaf", Shape(structured.size), np.random.default_rng(0))
    objective = Objective(layers, structured)
    objective.rewrite()
    rewrite = perf_counter() - start

    def step(state, _):
        parameters, key = state
        key, drawn = jax.random.split(key)
        loss, gradient = jax.value_and_grad(objective.loss)(
            parameters, fixed, objective.draw(drawn, draws)
        )
        update = jax.tree.map(lambda p, g: p - 1e-6 * g, parameters, gradient)
        return (update, key), loss

    values = [jax.numpy.asarray(v.get_value()) for v in objective.variables]
    parameters, fixed = objective.trained(values), objective.fixed(values)
    _, compiled, per_step = run_fused(step, (parameters, jax.random.key(0)), steps)
    return {"rewrite": rewrite, "xla": compiled, "step": per_step}


def main() -> None:
    """Run the benchmark, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3, help="of everything; the least counts")
    parser.add_argument("--unrolled", action="store_true", help="also without rolling (minutes)")
    parser.add_argument("--json", type=Path, default=Path("results/rolling.json"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    logging.getLogger("pymc").setLevel(logging.WARNING)

    records = []
    columns = ("model", "spelling", "PyTensor, s", "XLA, s", "ratio", "step, µs", "ratio")
    table = Table(*columns, box=None)
    for group, spellings in GROUPS.items():
        rows = {name: (build, True) for name, build in spellings.items()}
        if args.unrolled:
            *_, (name, build) = [
                item for item in spellings.items() if item[0] in ("loop", "by node")
            ]
            rows[f"{name}, not rolled"] = build, False
        runs: dict[str, list[dict]] = {name: [] for name in rows}
        for i in range(args.repeats):
            for name, (build, roll) in rows.items():
                if roll or not i:
                    runs[name].append(measure(build(), args.steps, args.draws, roll=roll))
        base = None
        for name, found in runs.items():
            best = {key: min(run[key] for run in found) for key in found[0]}
            compiled = best["rewrite"] + best["xla"]
            base = base or (compiled, best["step"])
            ratios = compiled / base[0], best["step"] / base[1]
            records.append(
                {"model": group, "spelling": name, **best}
                | {"compile_ratio": ratios[0], "step_ratio": ratios[1]}
            )
            table.add_row(
                group,
                name,
                f"{best['rewrite']:.2f}",
                f"{best['xla']:.2f}",
                f"{ratios[0]:.2f}",
                f"{1e6 * best['step']:.0f}",
                f"{ratios[1]:.2f}",
            )
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"steps": args.steps, "draws": args.draws, "repeats": args.repeats, "records": records}
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
