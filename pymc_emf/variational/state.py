"""What a method keeps between its fits."""

import time

from dataclasses import dataclass, replace

import numpy as np

from pymc_emf.engine.loop import Steps
from pymc_emf.variational.approximation import EMFApproximation
from pymc_emf.variational.first_look import look_at
from pymc_emf.variational.start import Started, find_start

__all__ = ["MethodState"]


@dataclass
class MethodState:
    """What a method keeps between its fits.

    Attributes
    ----------
    rng : Generator
        The random stream, which each fit takes on from where the last one has left it.
    approx : EMFApproximation or None
        Of the model, once that is known.
    started : Started or None
        How the first fit started.
    steps : Steps or None
        The loop that was compiled last.
    n_steps : int
        Of all fits so far.
    """

    rng: np.random.Generator
    approx: EMFApproximation | None = None
    started: Started | None = None
    steps: Steps | None = None
    n_steps: int = 0

    def start(self, approx: EMFApproximation, rng: np.random.Generator) -> Started:
        """Where the next steps begin: where the last fit ended, or at a start found now."""
        if self.started is None:
            begin = time.perf_counter()
            look_at(approx.prepared)
            started = find_start(approx.prepared, rng)
            return replace(started, seconds=time.perf_counter() - begin)
        return replace(self.started, values=approx.values)

    def keep(
        self,
        approx: EMFApproximation,
        rng: np.random.Generator,
        started: Started,
        steps: Steps | None = None,
    ) -> None:
        """Note that a fit has started: from here on, what is learnt is kept."""
        self.rng, self.approx, self.started = rng, approx, started
        self.steps = self.steps if steps is None else steps
