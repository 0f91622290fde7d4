"""What a user asks for: of the approximation, and of one fit of it."""

import os

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np

from pymc.progress_bar import default_progress_theme
from rich.theme import Theme

from pymc_emf.arguments import check_callbacks, check_number, check_positive
from pymc_emf.engine.devices import check_devices
from pymc_emf.engine.optimizers import check_optimizer
from pymc_emf.layers import StructuredLayer
from pymc_emf.layers.gates import Gate
from pymc_emf.layers.presets import LayerSpec, are_names, check_layers
from pymc_emf.model.program import Program
from pymc_emf.variational.objective import Gradient
from pymc_emf.variational.target import FEWEST_DRAWS

__all__ = ["GATE_LEARNING_RATE", "LEARNING_RATE", "TOL", "FitOptions", "Options"]

LEARNING_RATE = 0.01
#: Gates are sigmoids of 100 times their parameter, and take a tenth of the rate.
GATE_LEARNING_RATE = 0.001
#: Nats for which it is not worth to go on.
TOL = 0.01

Callback = Callable[[Any, np.ndarray | None, int], None]


@dataclass(frozen=True)
class Options:
    """What chooses an approximation; :class:`pymc_emf.EMFApprox` explains the fields.

    Raises
    ------
    ValueError, TypeError
        If a field has an unknown value.
    """

    #: Name of the method in files.
    method: ClassVar[str] = "EMFApprox"
    #: Learning rate of what is trained in the structured layer.
    gate_rate: ClassVar[float] = GATE_LEARNING_RATE

    layers: LayerSpec = "iaf"
    gate: Gate = "element"
    gate_init: float = 0.999
    embed: bool | Literal["strict"] = True
    warm_start: bool | Literal["auto"] = "auto"
    gradient: Gradient = "path"
    start: Mapping[str, Any] | None = None

    def __post_init__(self):
        check_layers(self.layers)
        StructuredLayer.check_options(self.gate, self.gate_init, self.embed)
        if self.warm_start not in (True, False, "auto"):
            raise ValueError(f'warm_start must be "auto", True or False, got {self.warm_start!r}.')
        if self.gradient not in get_args(Gradient):
            raise ValueError(
                f'gradient must be "path" or "reparameterised", got {self.gradient!r}.'
            )
        if not (self.start is None or isinstance(self.start, Mapping)):
            raise TypeError(f"start must be a dict of values, got {self.start!r}.")

    def structured(self, program: Program) -> StructuredLayer:
        """The embedded model, with its gates."""
        return StructuredLayer(program, self.gate, gate_init=self.gate_init, embed=self.embed)

    def settings(self) -> dict[str, Any]:
        """What decides how a fit goes, as a file can hold it."""
        start = None
        if self.start is not None:
            start = {name: str(np.asarray(value).tolist()) for name, value in self.start.items()}
        return {**self.to_file(), "warm_start": self.warm_start, "start": start}

    def to_file(self) -> dict[str, Any]:
        """Options that a file can hold; layers are None unless they are names."""
        return {
            "layers": self.layers if are_names(self.layers) else None,
            "gate": self.gate,
            "gate_init": self.gate_init,
            "embed": self.embed,
            "gradient": self.gradient,
        }


@dataclass(frozen=True)
class FitOptions:
    """Arguments of one fit; :meth:`pymc_emf.EMFApprox.fit` explains the fields.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If a field has a value that no fit can have.
    """

    n: int = 10_000
    score: bool | None = None
    callbacks: Sequence[Callback] | None = None
    progressbar: bool = True
    progressbar_theme: Theme = default_progress_theme
    obj_n_mc: int | None = None
    obj_optimizer: Any = None
    total_grad_norm_constraint: float | None = None
    tol: float | None = TOL
    devices: Sequence[jax.Device] | None = None
    checkpoint: str | os.PathLike | None = None
    checkpoint_every: int = 1000

    def __post_init__(self):
        for name in ("n", "checkpoint_every"):
            check_positive(name, getattr(self, name))
        if self.obj_n_mc is not None:
            check_positive("obj_n_mc", self.obj_n_mc)
        for name in ("tol", "total_grad_norm_constraint"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.tol is not None and not self.tol >= 0:
            raise ValueError(
                f"tol must be None or a non-negative number of nats, got {self.tol!r}."
            )
        norm = self.total_grad_norm_constraint
        if norm is not None and not norm > 0:
            raise ValueError(f"total_grad_norm_constraint must be positive, got {norm!r}.")
        check_optimizer(self.obj_optimizer)
        n_draws = FEWEST_DRAWS if self.obj_n_mc is None else self.obj_n_mc
        # a dataclass that is frozen can still complete itself
        object.__setattr__(self, "devices", check_devices(self.devices, n_draws))
        object.__setattr__(self, "callbacks", check_callbacks(self.callbacks))
        if self.checkpoint is not None and not Path(self.checkpoint).parent.is_dir():
            raise FileNotFoundError(
                f"There is no folder {Path(self.checkpoint).parent} for the checkpoint."
            )

    @property
    def scores(self) -> bool:
        """Whether the losses are recorded."""
        return self.score is not False

    def slower(self, optimizer: str) -> str:
        """Advice to learn more slowly, by this optimiser unless there is one of the user's own."""
        if self.obj_optimizer is None:
            return f"lower the learning rate (obj_optimizer={optimizer})"
        return "lower the learning rate of obj_optimizer"

    def settings(self) -> dict[str, Any]:
        """What decides how a fit goes on, as a file can hold it."""
        return {
            "n": int(self.n),
            "score": self.scores,
            "obj_n_mc": None if self.obj_n_mc is None else int(self.obj_n_mc),
            "obj_optimizer": "default" if self.obj_optimizer is None else "own",
            "total_grad_norm_constraint": self.total_grad_norm_constraint,
            "tol": self.tol,
            "devices": None if self.devices is None else len(self.devices),
        }
