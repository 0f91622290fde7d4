"""The end of every fit: the last check, and what is said."""

import time

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from pymc_emf.engine.garbage import without_collection
from pymc_emf.engine.trainer import Trained
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.auxiliary import auxiliary
from pymc_emf.variational.check import Checked, check, report, still_gaining

__all__ = ["conclude"]


@without_collection()
def conclude(
    approx: EMFApproximation,
    before: Sequence[np.ndarray],
    trained: Trained,
    n: int,
    rng: np.random.Generator,
    begin: float,
    checked: Checked | None = None,
) -> None:
    """Check a fit, if that is not done, keep the better of it and its start, say how it ended."""
    if checked is None:
        with (
            suppress(KeyboardInterrupt),  # what was learnt is safe
            auxiliary("The last check", "what was learnt is kept"),
        ):
            started = before if trained.stopping.step else None
            gain = still_gaining(trained.losses, trained.stopping)
            other = approx.warm_start.other
            checked = check(approx.objective, started, approx.values, rng, gain, other)
    timing = approx.timing | {"fit": time.perf_counter() - begin}
    verdict = None if checked is None else checked.verdict
    values = approx.values if checked is None else checked.values
    approx.adopt(values, replace(approx.record, verdict=verdict, timing=timing))
    report(checked, trained.losses, trained.stopping, n)
