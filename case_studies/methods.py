"""The variational methods of the EMF paper, and the settings they are fitted with.

"T" stands for a structured layer on top of the flow (EMF §5.4), "GEMF" for a gated one, with one
gate per variable as in the authors' code. "MF" and "MVN" are normal distributions, independent and
with full covariance, in place of the two autoregressive layers ("IAF"). All start from the prior
and take reparameterised gradients, as in the paper; ``"default"`` is this package's `EMFApprox()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optax
import pymc as pm

import pymc_emf as emf

__all__ = ["METHODS", "PAPER", "QUICK", "STANDARD", "Settings", "fit"]


@dataclass(frozen=True)
class Settings:
    """How the methods of the paper are fitted.

    Attributes
    ----------
    name : str
        Results are kept apart by it.
    steps, draws : int
        Number of steps, and of Monte Carlo draws in each.
    hidden : sequence of int
        Widths of the autoregressive networks.
    rate, rate_of_networks : float or None
        Adam's constant rate, without and with autoregressive networks. None is the package's own
        optimiser: 0.01, gates a tenth of it, with warm-up and cosine decay.
    steps_of_default : int
        Number of steps of the package's default fit.
    """

    name: str
    steps: int
    draws: int
    hidden: Sequence[int]
    rate: float | None
    rate_of_networks: float | None
    steps_of_default: int = 10_000

    def n_steps(self, method: str) -> int:
        """Number of steps of a method."""
        return self.steps_of_default if method == "default" else self.steps


#: EMF A.3 and A.4, and the authors' code.
PAPER = Settings("paper", 100_000, 50, (512, 512), 1e-3, 5e-5)
#: The package's optimiser, until a fit ends by itself: a night on two cores for ten data sets.
STANDARD = Settings("standard", 10_000, 20, (64, 64), None, None)
#: Minutes rather than days, on two cores.
QUICK = Settings("quick", 2_000, 50, (64, 64), None, None, steps_of_default=2_000)


def _networks(hidden: Sequence[int]) -> list[Callable[[int], emf.Bijection]]:
    """Two autoregressive layers of opposite order."""
    return [
        lambda size: emf.MaskedAutoregressive(size, hidden=hidden, random_seed=1),
        lambda size: emf.MaskedAutoregressive(size, hidden=hidden, reverse=True, random_seed=2),
    ]


def _paper(layers: str, gate: Any = None, embed: bool = True) -> Callable[..., emf.EMFApprox]:
    def make(settings: Settings, seed: int) -> emf.EMFApprox:
        return emf.EMFApprox(
            layers=_networks(settings.hidden) if layers == "iaf" else layers,
            gate=gate,
            embed=embed,
            warm_start=False,
            gradient="reparameterised",
            random_seed=seed,
        )

    return make


#: From the settings and a seed to what ``pm.fit`` takes.
METHODS: dict[str, Callable[[Settings, int], emf.EMFApprox]] = {
    "GEMF-T": _paper("iaf", gate="variable"),
    "EMF-T": _paper("iaf"),
    "MF-GEMF-T": _paper("mean_field", gate="variable"),
    "MF-EMF-T": _paper("mean_field"),
    "MVN-GEMF-T": _paper("full_rank", gate="variable"),
    "MVN-EMF-T": _paper("full_rank"),
    "IAF": _paper("iaf", embed=False),
    "MF": _paper("mean_field", embed=False),
    "MVN": _paper("full_rank", embed=False),
    "ASVI": lambda settings, seed: emf.ASVI(random_seed=seed),
    "default": lambda settings, seed: emf.EMFApprox(random_seed=seed),
}

#: Those with autoregressive networks.
NETWORKS = ("GEMF-T", "EMF-T", "IAF")


def fit(
    model: pm.Model,
    name: str,
    settings: Settings,
    seed: int = 0,
    callbacks: Sequence[Callable] = (),
) -> emf.EMFApproximation:
    """Fit a model by one of the methods.

    Parameters
    ----------
    model : pymc.Model
    name : str
        One of ``METHODS``.
    settings : Settings
    seed : int
    callbacks : sequence of callable
        As for ``pm.fit``.
    """
    rate = settings.rate_of_networks if name in NETWORKS else settings.rate
    ours = name == "default" or rate is None
    with model:
        return pm.fit(
            settings.n_steps(name),
            method=METHODS[name](settings, seed),
            obj_n_mc=settings.draws,
            obj_optimizer=None if ours else optax.adam(rate),
            callbacks=list(callbacks),
            progressbar=False,
            # the methods of the paper take all steps
            **({} if name == "default" else {"tol": None}),
        )
