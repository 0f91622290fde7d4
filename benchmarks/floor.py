"""The floor: nothing but the masked matrix products of the default flow.

Two masked networks (d inputs, two hidden layers, 2 d outputs), forward and backward, without
activations, random numbers, densities or an optimiser. No implementation of the flow can take
less time a step. ``python -m benchmarks.floor``.
"""

from __future__ import annotations

import argparse

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from rich.console import Console
from rich.table import Table

from benchmarks.common import CHUNK, run_fused


def floor(dim: int, draws: int = 50, width: int = 64, dtype: str = "float64") -> float:
    """Median seconds a step of the bare matrix products take.

    Parameters
    ----------
    dim : int
        Latent dimensions.
    draws : int
        Monte Carlo draws per step.
    width : int
        Units of each of the two hidden layers.
    dtype : str
        Floating point type.
    """
    rng = np.random.default_rng(0)
    sizes = [dim, width, width, 2 * dim]
    degrees = [np.arange(n) % max(dim - 1, 1) for n in sizes]
    masks = [(a[:, None] <= b).astype(dtype) for a, b in pairwise(degrees)]
    networks = [
        [jnp.asarray(rng.normal(size=m.shape) / np.sqrt(len(m)), dtype) for m in masks]
        for _ in range(2)
    ]
    x = jnp.asarray(rng.normal(size=(draws, dim)), dtype)

    def loss(networks):
        hidden, total = x, 0.0
        for network in networks:
            for weight, mask in zip(network, masks, strict=True):
                hidden = hidden @ (weight * mask)
            total += (hidden**2).sum()
            hidden = hidden[:, :dim]
        return total

    def step(networks, _):
        # the weights move, for the compiler would hoist a constant product out of the loop
        value, gradients = jax.value_and_grad(loss)(networks)
        return jax.tree.map(lambda w, g: w - 1e-9 * g, networks, gradients), value

    return run_fused(step, networks, 20 * CHUNK)[2]


def main() -> None:
    """Print microseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[10, 30, 90, 254])
    parser.add_argument("--draws", type=int, default=50)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    table = Table("dim", "float64, µs / step", "float32, µs / step")
    for dim in args.dims:
        times = [floor(dim, args.draws, dtype=dtype) for dtype in ("float64", "float32")]
        table.add_row(str(dim), *(f"{1e6 * time:.0f}" for time in times))
    Console().print(table)


if __name__ == "__main__":
    main()
