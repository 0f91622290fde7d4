"""Python's search for garbage, put off while graphs are made."""

import gc

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collection"]


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage, unless that is so already; for seconds, in which graphs are made.

    A model's graph is millions of objects that all stay. Python looks through them again and
    again for cycles to free, which takes up to a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
