"""Files: numbers and no code, of one format, and known again by one identity."""

import os

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pytensor

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import hyperparameters_of
from pymc_emf.model.program import Program
from pymc_emf.storage import read_arrays, write_arrays

__all__ = [
    "Identity",
    "Saved",
    "check_settings",
    "probe_noise",
    "read_file",
    "write_file",
]

FORMAT, VERSION = "pymc-emf", 2

Kind = Literal["approximation", "calibration", "density estimator"]

#: Noise points at which log p and log q of a file are compared with those found.
N_PROBES = 3


@dataclass(frozen=True)
class Identity:
    """By what a file is known to belong to a model and to layers.

    Attributes
    ----------
    variables : list
        Name, shape and transform of every free variable; empty without a model.
    layers : list
        Name and hyperparameters of every layer.
    log_p, log_q : list of float
        Log densities of the model and of the approximation, in nats, at a few fixed points of
        noise, with the values of the file. Data, priors and whatever code makes up a model or a
        layer show in them.
    """

    variables: list[Any]
    layers: list[Any]
    log_p: list[float]
    log_q: list[float]

    @classmethod
    def of(
        cls,
        layers: Sequence[Bijection],
        program: Program | None = None,
        log_p: np.ndarray | None = None,
        log_q: np.ndarray | None = None,
    ) -> "Identity":
        """Identity of layers, and of the model behind them."""
        return cls(
            [] if program is None else _signature(program),
            [[type(layer).__name__, hyperparameters_of(layer)] for layer in layers],
            [] if log_p is None else np.asarray(log_p, dtype=float).tolist(),
            [] if log_q is None else np.asarray(log_q, dtype=float).tolist(),
        )


def probe_noise(size: int) -> np.ndarray:
    """The points at which densities are compared, shape (points, size)."""
    noise = np.random.default_rng(0).normal(size=(N_PROBES, size))
    return noise.astype(pytensor.config.floatX)


def _signature(program: Program) -> list[Any]:
    """Name, shape and transform of every free variable, as JSON can hold them."""
    return [
        [s.name, list(s.shape), "none" if s.transform is None else type(s.transform).__name__]
        for s in program.sites_in_model_order
    ]


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes
    ----------
    path : path-like
    version : int
        Of the format.
    header : dict
    arrays : list of ndarray
    """

    path: str | os.PathLike
    version: int
    header: dict[str, Any]
    arrays: list[np.ndarray]

    def check_variables(self, program: Program) -> None:
        """Refuse a file of another model, as far as its variables show, and say where it differs.

        Raises
        ------
        ValueError
        """
        saved, given = self._variables, _signature(program)
        names, others = [name for name, *_ in saved], [name for name, *_ in given]
        if names != others:
            raise ValueError(
                f"{self.path} is of another model: its free variables are {', '.join(names)}, "
                f"those of the model {', '.join(others)}."
            )
        for (name, *old), (_, *new) in zip(saved, given, strict=True):
            if old != new:
                raise ValueError(
                    f"{self.path} is of another model: the variable {name} has shape and transform "
                    f"{old[0]}, {old[1]} in the file, and {new[0]}, {new[1]} in the model."
                )

    @property
    def _variables(self) -> list[Any]:
        return self.header["model"] if self.version == 1 else self.header["identity"]["variables"]

    @property
    def layer_names(self) -> list[str]:
        if self.version == 1:
            return self.header["layers"]
        return [name for name, _ in self.header["identity"]["layers"]]

    def check_layers(
        self,
        layers: Sequence[Bijection],
        variables: Sequence[Any],
        values: Sequence[np.ndarray],
        remedy: str,
    ) -> None:
        """Refuse a file of other layers, or of parameters of other shapes.

        Parameters
        ----------
        layers : sequence of Bijection
        variables : sequence of SharedVariable
            Whose values the file should hold.
        values : sequence of ndarray
            Those of the file.
        remedy : str
            What to do.

        Raises
        ------
        ValueError
        """
        given = _plain(Identity.of(layers).layers)
        names = [name for name, _ in given]
        same = names == self.layer_names
        same &= [(v.type.shape, v.type.dtype) for v in variables] == [
            (a.shape, a.dtype.name) for a in values
        ]
        if not same:
            raise ValueError(
                f"{self.path} is of other layers ({', '.join(self.layer_names)}) than these "
                f"({', '.join(names)}); {remedy}."
            )
        if self.version == 1:
            return
        for (name, old), (_, new) in zip(self.header["identity"]["layers"], given, strict=True):
            for key in {**old, **new}:
                if old.get(key) != new.get(key):
                    raise ValueError(
                        f"{self.path} is of other layers: its {name} has another {key}"
                        f"{_difference(old.get(key), new.get(key))}; {remedy}."
                    )

    def check_densities(self, weigh: Callable[[], Sequence[Any]]) -> None:
        """Refuse a file with whose values the densities differ from those it tells.

        Parameters
        ----------
        weigh : callable
            Returns log p and log q at :func:`probe_noise` with the values of the file; not
            called for files of the first format, which do not tell them.

        Raises
        ------
        ValueError
        """
        if self.version == 1:
            return
        log_p, log_q = weigh()
        identity = self.header["identity"]
        if not _agree(identity["log_q"], log_q):
            raise ValueError(
                f"{self.path} is of another model or of layers that do something else: the log "
                f"density of the approximation is {identity['log_q'][0]:.6g} at a point where it "
                f"is {float(log_q[0]):.6g} here."
            )
        if not _agree(identity["log_p"], log_p):
            raise ValueError(
                f"{self.path} is of another model or of other data: their log density is "
                f"{identity['log_p'][0]:.6g} where it is {float(log_p[0]):.6g} here."
            )


def _agree(saved: Sequence[float], found: Any) -> bool:
    tolerance = np.sqrt(np.finfo(pytensor.config.floatX).eps)
    found = np.asarray(found, dtype=float)
    return len(saved) == len(found) and np.allclose(
        found, np.array(saved, dtype=float), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def write_file(
    path: str | os.PathLike,
    kind: Kind,
    identity: Identity,
    header: Mapping[str, Any],
    arrays: Sequence[np.ndarray],
) -> None:
    """Write a file, at once or not at all.

    Parameters
    ----------
    path : path-like
    kind : str
    identity : Identity
    header : dict
        What JSON can hold.
    arrays : sequence of ndarray
    """
    entries = {"format": FORMAT, "version": VERSION, "kind": kind, "identity": asdict(identity)}
    write_arrays(path, entries | dict(header), list(arrays))


def read_file(path: str | os.PathLike, kind: Kind) -> Saved:
    """Read what :func:`write_file` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, none of this kind, or of a newer version.
    """
    header, arrays = read_arrays(path)
    # the first version had a format of its own for every kind
    first = header.get("format") == f"{FORMAT} {kind}"
    if not first and (header.get("format"), header.get("kind")) != (FORMAT, kind):
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{path} does not hold {article} {kind}.")
    version = header["version"]
    if version > VERSION:
        raise ValueError(f"{path} was written by a newer version of this package; update pymc-emf.")
    return Saved(path, version, header, arrays)


def check_settings(saved: Saved, old: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a file of something that was begun with other settings, and name the first.

    Raises
    ------
    ValueError
    """
    given = _plain(given)
    # the first version has others
    names = old.keys() & given.keys() if saved.version == 1 else {**given, **old}
    for name in names:
        if old.get(name) == given.get(name):
            continue
        # the state of a random stream says nothing to a reader
        random = name == "random_seed"
        difference = "" if random else _difference(old.get(name), given.get(name))
        raise ValueError(
            f"{saved.path} was begun with another {name}{difference}; give another checkpoint=, or "
            "delete the file."
        )


def _difference(old: Any, new: Any) -> str:
    return f" ({old}, and here {new})" if max(len(str(old)), len(str(new))) < 100 else ""


def _plain(settings: Any) -> Any:
    """Settings as JSON would give them back."""
    if isinstance(settings, Mapping):
        return {str(name): _plain(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [_plain(value) for value in settings]
    if isinstance(settings, np.ndarray):
        return settings.tolist()
    return settings.item() if isinstance(settings, np.generic) else settings
