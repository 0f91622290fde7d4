"""Tables on disk, in the folder in which PyTensor keeps what it has compiled."""

import os
import zlib

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from zipfile import BadZipFile

import numpy as np
import pytensor

__all__ = ["kept_on_disk"]

#: More tables, of 50 kB each, are not kept: the oldest give way.
MAX_FILES = 2000

type Arrays = tuple[np.ndarray, ...]


def kept_on_disk(key: str, make: Callable[[], Arrays | None]) -> Arrays | None:
    """Arrays that were made by the same code under this key before, or are made now.

    Parameters
    ----------
    key : str
        Of all that they depend on beside the code of the bijections.
    make : callable
        What it returns is kept, unless that is None.
    """
    folder = Path(pytensor.config.compiledir) / "pymc_emf_tables"
    path = folder / f"{sha256(f'{_code()} {key}'.encode()).hexdigest()}.npz"
    with (
        suppress(OSError, ValueError, EOFError, BadZipFile, zlib.error),
        path.open("rb") as file,
        np.load(file) as kept,
    ):
        return tuple(kept[name] for name in kept.files)
    made = make()
    if made is not None:
        with suppress(OSError):  # a home that cannot be written to: they are made each time
            _write(path, made)
    return made


def _write(path: Path, arrays: Arrays) -> None:
    """All at once, as others may read or write it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        np.savez(file, *arrays)
    os.replace(file.name, path)
    files = sorted(path.parent.iterdir(), key=lambda known: known.stat().st_mtime)
    for old in files[: len(files) - MAX_FILES]:
        old.unlink(missing_ok=True)


@cache
def _code() -> str:
    """Of all bijections, and PyTensor's version."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{digest} {pytensor.__version__}"
