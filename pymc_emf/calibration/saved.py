"""A calibration in a file, so that it can be taken up where it was left."""

import os

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pymc.util import RandomState

from pymc_emf.arguments import make_rng
from pymc_emf.calibration.fitter import Ranked
from pymc_emf.variational.files import (
    Identity,
    Saved,
    check_settings,
    probe_noise,
    read_file,
    write_file,
)
from pymc_emf.variational.prepare import Prepared
from pymc_emf.variational.saved_fit import identity_of

__all__ = ["File"]


class File:
    """Ranks in a file, if there shall be one.

    Parameters
    ----------
    path : path-like or None
    random_seed : int, RandomState, Generator or None
        Without one, that of the file.

    Attributes
    ----------
    seed : int

    Raises
    ------
    ValueError
        If the file is damaged, of something else or of another seed.
    FileNotFoundError
        If there is no folder for it.
    """

    def __init__(self, path: str | os.PathLike | None, random_seed: RandomState):
        self.path = None if path is None else Path(path)
        self._saved: Saved | None = None
        if self.path is not None and not self.path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {self.path.parent} for the checkpoint.")
        if self.path is not None and self.path.exists():
            self._saved = read_file(self.path, "calibration")
        saved_seed = None if self._saved is None else self._saved.header["seed"]
        if random_seed is None and saved_seed is not None:
            self.seed = int(saved_seed)
        else:
            self.seed = int(make_rng(random_seed).integers(2**31))
        if saved_seed not in (None, self.seed):
            raise ValueError(
                f"{path} was begun with another random_seed; give another checkpoint=, or delete "
                "the file."
            )

    def check(self, prepared: Prepared, settings: Mapping[str, Any]) -> None:
        """Refuse the file of another calibration, and note what this one is.

        Raises
        ------
        ValueError
        """
        if self.path is None:
            return
        objective = prepared.objective
        if self._saved is not None:
            self._saved.check_variables(prepared.program)
            check_settings(self._saved, self._saved.header["settings"], settings)
        self._settings = dict(settings)
        self._identity: Identity = identity_of(objective, prepared.initial)
        if self._saved is not None:
            try:
                self._saved.check_densities(
                    lambda: objective.weigh(prepared.initial, probe_noise(objective.size))[1:]
                )
            except ValueError as error:
                raise ValueError(f"{error} Give another checkpoint=, or delete the file.") from None

    def done(self) -> list[Ranked]:
        """Simulations that are in the file."""
        if self._saved is None:
            return []
        ranks, pareto_k, *_ = self._saved.arrays
        errors = self._saved.header["errors"]
        return [
            Ranked(ranks[i], float(pareto_k[i]), errors.get(str(i), "")) for i in range(len(ranks))
        ]

    def write(self, done: list[Ranked]) -> None:
        """Write the simulations that are done."""
        if self.path is None:
            return
        errors = {i: each.error for i, each in enumerate(done) if each.error}
        header = {"settings": self._settings, "seed": self.seed, "errors": errors}
        arrays = [np.array([d.ranks for d in done]), np.array([d.pareto_k for d in done])]
        write_file(self.path, "calibration", self._identity, header, arrays)
