"""ArviZ's statistics, which take half a second to import: when they are first asked for."""

from functools import cache
from threading import Thread
from types import ModuleType

__all__ = ["arviz_stats", "import_meanwhile"]


@cache
def arviz_stats() -> ModuleType:
    """Import it, and with it the accessor azstats of xarray's classes."""
    import arviz_stats
    import arviz_stats.base
    import arviz_stats.ecdf_utils

    return arviz_stats


def import_meanwhile() -> None:
    """Import it while this thread waits for compiled code."""
    Thread(target=arviz_stats, name="pymc_emf_import", daemon=True).start()
