"""Work without Python's lock, as that of compiled functions and of LAPACK, on several cores."""

import os

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

__all__ = ["N_THREADS", "in_background", "side_by_side"]

#: More of it at the same time takes more memory, too.
N_THREADS = min(os.cpu_count() or 1, 4)


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results of the function, in the order of the items.

    The function must not come here itself.
    """
    if len(items) <= 1 or N_THREADS == 1:
        return [function(item) for item in items]
    futures = [_pool().submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:  # after an error, or Ctrl-C
        for future in futures:
            future.cancel()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(N_THREADS, thread_name_prefix="pymc_emf")


def in_background[T](function: Callable[[], T]) -> Future[T]:
    """Call a function, such as one that compiles, beside all else and after others of its kind."""
    return _compiler().submit(function)


@cache
def _compiler() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pymc_emf_compile")
