"""Arrays in a file: written at once or not at all, and read without running any code."""

import hashlib
import io
import json
import os

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_arrays", "write_arrays"]

_HEADER, _DIGEST = "header", "digest"


def write_arrays(path: str | os.PathLike, header: dict[str, Any], arrays: Sequence[np.ndarray]):
    """Write arrays and a header, which JSON must be able to hold.

    The file appears under its name when it is complete; until then whatever stood there stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    named: dict[str, Any] = {f"array_{i}": np.asarray(a) for i, a in enumerate(arrays)}
    named[_HEADER] = np.array(json.dumps(header, default=_plain))
    named[_DIGEST] = np.array(_digest(named))
    try:
        with partial.open("wb") as file:
            np.savez(file, **named)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(number: np.generic) -> Any:
    return number.item()


def _digest(named: dict[str, np.ndarray]) -> str:
    """Tell contents from others that differ in a single bit, or in type or shape."""
    total = hashlib.sha256()
    for name, array in sorted(named.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read what :func:`write_arrays` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is none of ours.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as named:
            contents = dict(named.items())
        if str(contents.pop(_DIGEST)) != _digest(contents):
            raise ValueError("The contents have been altered.")
        header = json.loads(str(contents.pop(_HEADER)))
        arrays = [contents[f"array_{i}"] for i in range(len(contents))]
    except Exception as error:  # what a single wrong bit makes zipfile and NumPy raise is anything
        raise ValueError(f"{path} is damaged, or was not written by this package.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} was not written by this package.")
    return header, arrays
