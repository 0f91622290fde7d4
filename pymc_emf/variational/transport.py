"""NUTS in the noise of a fitted flow, where the posterior is nearly standard normal."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.jax.dispatch import jax_funcify

from pymc_emf.arguments import check_positive
from pymc_emf.engine.callback import as_raised
from pymc_emf.variational.objective import Objective, Values

__all__ = ["Sampler", "check_options", "sample_noise"]

Sampler = Literal["pymc", "nutpie", "numpyro", "blackjax"]

#: Statistics of nutpie that PyMC and ArviZ know by other names.
NUTPIE_NAMES = {
    "depth": "tree_depth",
    "mean_tree_accept": "acceptance_rate",
    "maxdepth_reached": "reached_max_treedepth",
}
#: Statistics that say nothing: texts of divergences and the log density of the noise.
DROPPED = ("divergence_draw", "divergence_message", "divergence_energy_error", "logp", "tuning")

NOTHING_DRAWN = "NUTS was interrupted before it had drawn anything."


class LogDensity(Op):
    """A scalar JAX function of one vector, whose gradient is computed along with it.

    PyTensor's own wrapper of JAX functions would call JAX twice, for value and gradient.

    Parameters
    ----------
    function : callable
    """

    __props__ = ("function",)

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function
        self._derive = jax.jit(jax.value_and_grad(function))

    def make_node(self, *inputs):
        (vector,) = map(pt.as_tensor, inputs)
        return Apply(self, [vector], [pt.scalar(dtype=vector.dtype), vector.type()])

    def perform(self, node, inputs, outputs):
        with as_raised():
            for storage, array in zip(outputs, self._derive(*inputs), strict=True):
                storage[0] = np.asarray(array)

    def connection_pattern(self, node):
        return [[True, False]]  # there are no second derivatives

    def pullback(self, inputs, outputs, cotangents):
        return [cotangents[0] * outputs[1]]


@jax_funcify.register(LogDensity)
def _(op: LogDensity, **kwargs):
    return jax.value_and_grad(op.function)


def check_options(
    tune: Any, chains: Any, target_accept: float, nuts_sampler: str | None
) -> Sampler:
    """Refuse what no sampler takes, before anything is compiled; returns the sampler to use."""
    check_positive("tune", tune)
    check_positive("chains", chains)
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept must lie between 0 and 1, got {target_accept!r}.")
    sampler: Any = nuts_sampler
    if sampler is None:
        sampler = "nutpie" if find_spec("nutpie") else "pymc"
    if sampler not in get_args(Sampler):
        raise ValueError(
            f"nuts_sampler must be one of {', '.join(get_args(Sampler))}, got {sampler!r}."
        )
    if not find_spec(sampler):
        raise ImportError(f"Install {sampler}, or leave out nuts_sampler={sampler!r}.")
    return sampler


def noise_model(objective: Objective, values: Values) -> pm.Model:
    """Make a model of one vector, "noise", with the posterior's density in noise space.

    Its prior draws are standard normal, as the approximation takes them to be.
    """
    objective.rewrite()  # not while JAX traces the density
    # numbers rather than arguments: XLA computes once what does not depend on the noise
    held = [np.asarray(value) for value in values]
    log_density: Any = LogDensity(lambda noise: objective.log_density_in_noise(held, noise))

    def draw(mean, rng=None, size=None):
        return rng.normal(mean, size=size)

    with pm.Model(model=None) as model:  # not nested in the user's, if that is the context
        pm.CustomDist(
            "noise",
            np.zeros(objective.size, pytensor.config.floatX),
            logp=lambda noise, mean: log_density(noise)[0],
            random=draw,
            signature="(n)->(n)",
            dtype=pytensor.config.floatX,
            initval="prior",
        )
    return model


def sample_noise(
    objective: Objective,
    values: Values,
    draws: int,
    *,
    tune: int,
    chains: int,
    random_seed: int,
    target_accept: float,
    nuts_sampler: Sampler,
    nuts: Mapping[str, Any],
    **options: Any,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """Draw noise that the flow maps to the posterior, by an existing NUTS.

    Parameters
    ----------
    objective : Objective
    values : sequence of array
    draws, tune, chains, random_seed, target_accept, nuts_sampler
        As in ``pm.sample``.
    nuts : mapping
        Further options of the sampler.
    **options
        Further options of ``pm.sample``.

    Returns
    -------
    noise : ndarray, shape (chains, draws, size)
    stats : dict
        The sampler's statistics of each draw, of shape (chains, draws).
    attrs : dict
        What the sampler says of itself.

    Raises
    ------
    KeyboardInterrupt
        If the sampler was interrupted before it had drawn anything; later, what it has drawn is
        returned.
    """
    options["nuts"] = {"target_accept": target_accept, **nuts}
    model = noise_model(objective, values)
    if nuts_sampler == "pymc":
        # One process: JAX has threads, and a fork of them waits for ever. The graph is one node,
        # which no linker makes faster.
        options |= {"cores": 1, "init": "adapt_diag"}
        options["compile_kwargs"] = {"mode": Mode(linker="py", optimizer="fast_compile")}
    elif nuts_sampler == "nutpie":
        options["compile_kwargs"] = {"mode": "JAX", "jitter_rvs": set()}
    else:
        options["nuts"] = {"jitter": False, "chain_method": "vectorized", **options["nuts"]}
    try:
        idata = pm.sample(
            draws,
            tune=tune,
            chains=chains,
            random_seed=random_seed,
            nuts_sampler=nuts_sampler,
            model=model,
            compute_convergence_checks=False,  # of the noise, which nobody looks at
            **options,
        )
    except ValueError as error:
        # so PyMC and nutpie end if they were interrupted while they tuned
        if not str(error).startswith(("Not enough samples", "Sampler has no results")):
            raise
        raise KeyboardInterrupt(NOTHING_DRAWN) from None
    noise = idata["posterior"]["noise"].transpose("chain", "draw", ...).to_numpy()
    complete, n = _complete(np.isfinite(noise).all(axis=2).sum(axis=1))
    if not n:
        raise KeyboardInterrupt(NOTHING_DRAWN)
    stats = {
        NUTPIE_NAMES.get(name, name): array.transpose("chain", "draw", ...).to_numpy()[complete, :n]
        for name, array in idata["sample_stats"].data_vars.items()
        if name not in DROPPED
    }
    return noise[complete, :n], stats, dict(idata["posterior"].attrs)


def _complete(lengths: np.ndarray) -> tuple[np.ndarray, int]:
    """Chains and number of draws that leave most draws, of chains that may have been cut short.

    As PyMC does; nutpie fills them with NaN.
    """
    longest = np.argsort(-lengths, kind="stable")
    best = int((lengths[longest] * np.arange(1, len(lengths) + 1)).argmax())
    return np.sort(longest[: best + 1]), int(lengths[longest[best]])
