"""Arguments that several functions of the package share: checks, seeds, progress bars."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pymc as pm

from pymc.model import modelcontext
from pymc.progress_bar import CustomProgress, default_progress_theme
from pymc.util import RandomState
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.theme import Theme

from pymc_emf._compat import seeds_per_chain

__all__ = [
    "check_callbacks",
    "check_number",
    "check_positive",
    "free_name",
    "make_rng",
    "model_of",
    "progress_bar",
]


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless the value of an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return a list of functions; raise TypeError if these are none."""
    if callbacks is None:
        return []
    if not isinstance(callbacks, Iterable) or not all(callable(c) for c in callbacks):
        raise TypeError(f"callbacks must be a list of functions, got {callbacks!r}.")
    return list(callbacks)


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless the value of an argument is a real number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}.")


def model_of(model: Any) -> pm.Model:
    """Return a model, or that of the context; raise TypeError if it is something else."""
    model = modelcontext(model)
    if not isinstance(model, pm.Model):
        raise TypeError(f"model must be a pm.Model, got {model!r}.")
    return model


def make_rng(random_seed: RandomState) -> np.random.Generator:
    """Make a generator from anything that PyMC takes as a seed of one chain."""
    try:
        if isinstance(random_seed, float):
            raise TypeError
        (seed,) = seeds_per_chain(random_seed, 1)
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise ValueError(
            "random_seed must be None, a non-negative integer, a Generator or a RandomState, got "
            f"{random_seed!r}."
        ) from None


def free_name(name: str, taken: Collection[Any]) -> str:
    """Name of an axis of ours, with underscores behind it if a model has a dim of that name."""
    while name in taken:
        name += "_"
    return name


def progress_bar(
    shown: bool, theme: Theme = default_progress_theme, *columns: ProgressColumn
) -> CustomProgress:
    """Progress bar as PyMC's, with further columns."""
    return CustomProgress(
        *Progress.get_default_columns(),
        *columns,
        console=Console(theme=theme),
        disable=not shown,
    )
