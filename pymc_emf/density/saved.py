"""Density estimators in files."""

import os

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_emf.density.likelihood import Likelihood
from pymc_emf.variational.files import Identity, Saved, probe_noise, read_file, write_file

__all__ = ["SavedDensity", "read_density", "write_density"]


@dataclass(frozen=True)
class SavedDensity:
    """What a file holds of a density estimator.

    Attributes
    ----------
    saved : Saved
    values : list of ndarray
    hist, validation : ndarray
    probe : ndarray or None
        Of the first format of files, which has one point and its log density.
    """

    saved: Saved
    values: list[np.ndarray]
    hist: np.ndarray
    validation: np.ndarray
    probe: np.ndarray | None

    @property
    def size(self) -> int:
        """Length of an observation."""
        return self.saved.header["size"] if self.probe is None else len(self.probe)

    def check(self, likelihood: Likelihood) -> None:
        """Refuse a file of other layers, or of ones that do something else.

        Raises
        ------
        ValueError
        """
        saved, flow, values = self.saved, likelihood.flow, self.values
        saved.check_layers(flow.layers, flow.variables, values, "make it with the same ones")
        if self.probe is None:
            saved.check_densities(lambda: ([], _identity(likelihood, values).log_q))
            return
        log_prob = likelihood.log_prob(values, self.probe[None])[0]
        if not np.isclose(log_prob, saved.header["log_prob"], rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{saved.path} is of layers of the same shape that do something else; make the "
                "estimator with the same layers and the same model."
            )


def _identity(likelihood: Likelihood, values: Sequence[np.ndarray]) -> Identity:
    rows = likelihood.forward(values, probe_noise(likelihood.size))
    return Identity.of(likelihood.flow.layers, log_q=likelihood.log_prob(values, rows))


def write_density(
    path: str | os.PathLike,
    likelihood: Likelihood,
    values: Sequence[np.ndarray],
    hist: np.ndarray,
    validation: np.ndarray,
) -> None:
    """Write a density estimator."""
    write_file(
        path,
        "density estimator",
        _identity(likelihood, values),
        {"size": likelihood.size},
        [*values, hist, validation],
    )


def read_density(path: str | os.PathLike) -> SavedDensity:
    """Read what :func:`write_density` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, none of a density estimator, or of a newer version.
    """
    saved = read_file(path, "density estimator")
    arrays = list(saved.arrays)
    probe = arrays.pop() if saved.version == 1 else None
    *values, hist, validation = arrays
    return SavedDensity(saved, values, hist, validation, probe)
