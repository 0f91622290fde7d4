"""Computations that help a fit, and without which it goes on."""

import logging

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["auxiliary"]

logger = logging.getLogger(__name__)


@contextmanager
def auxiliary(what: str, instead: str) -> Iterator[None]:
    """Log the failure of a computation, and go on after it.

    Parameters
    ----------
    what : str
        The computation, as the subject of a sentence.
    instead : str
        What is done without it.
    """
    try:
        yield
    except Exception as error:
        # messages of compilers go on for pages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("%s failed (%s); %s.", what, reason, instead)
        logger.debug("The failure in full.", exc_info=True)
