"""Tables on disk, in the folder in which PyTensor keeps what it has compiled."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytensor

from pymc_emf.storage import read_arrays, write_arrays

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
    with suppress(OSError, ValueError):  # there is none, or it is damaged
        return tuple(read_arrays(path)[1])
    made = make()
    if made is not None:
        with suppress(OSError):  # a home that cannot be written to: they are made each time
            folder.mkdir(parents=True, exist_ok=True)
            write_arrays(path, {}, made)
            files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
            for old in files[: max(len(files) - MAX_FILES, 0)]:
                old.unlink(missing_ok=True)
    return made


@cache
def _code() -> str:
    """Of all bijections, and PyTensor's version."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{digest} {pytensor.__version__}"
