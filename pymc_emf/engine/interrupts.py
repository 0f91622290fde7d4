"""Ctrl-C that no one hears."""

import sys
import threading

from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["heard"]

#: Seconds until it is tried again.
PAUSE = 0.01


@contextmanager
def heard() -> Iterator[None]:
    """Let Ctrl-C strike again if it was lost.

    Python drops what is raised while it collects garbage, in a function of JAX for example that
    it calls then, and a ``KeyboardInterrupt`` with it. Graphs are rewritten with much garbage.
    """
    if threading.current_thread() is not threading.main_thread():  # where none is raised
        yield
        return
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(PAUSE, interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
