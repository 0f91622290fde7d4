"""Arrays in a file: written at once or not at all, and read without running any code."""

import json
import os
import zipfile
import zlib

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_arrays", "write_arrays"]

_HEADER = "header"


def write_arrays(path: str | os.PathLike, header: dict[str, Any], arrays: Sequence[np.ndarray]):
    """Write arrays and a header, which JSON must be able to hold.

    The file appears under its name when it is complete; until then whatever stood there stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    named: dict[str, Any] = {f"array_{i}": np.asarray(a) for i, a in enumerate(arrays)}
    named[_HEADER] = np.array(json.dumps(header, default=_plain))
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **named)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(number: np.generic) -> Any:
    return number.item()


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read what :func:`write_arrays` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is none of ours.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as named:
            header = json.loads(str(named[_HEADER]))
            arrays = [named[f"array_{i}"] for i in range(len(named.files) - 1)]
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is damaged, or was not written by this package.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} was not written by this package.")
    return header, arrays
