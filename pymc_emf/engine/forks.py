"""Processes that were forked from one in which JAX has run."""

import os

__all__ = ["refuse_fork"]

#: The process in which JAX ran first, as an ancestor's it is inherited by a fork.
_first: int | None = None


def refuse_fork() -> None:
    """Raise where JAX would wait for ever: its threads are not copied by a fork.

    Raises
    ------
    RuntimeError
        In a process that was forked after JAX had run.
    """
    global _first
    if _first is None:
        _first = os.getpid()
    elif _first != os.getpid():
        raise RuntimeError(
            "This process was forked after JAX had run, and would wait for ever for threads that "
            "a fork does not copy. Start processes by multiprocessing.get_context('spawn') or "
            "'forkserver', or use threads."
        )
