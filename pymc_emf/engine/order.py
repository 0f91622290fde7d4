"""The order of values: which of a flow's variables are trained, and which are fixed."""

from collections.abc import Sequence
from typing import Any

from pytensor.tensor.sharedvar import SharedVariable

__all__ = ["Order"]


class Order:
    """Where trained and fixed values stand among all.

    Parameters
    ----------
    variables, parameters, buffers : sequence of SharedVariable
        All of them, those that are trained, and the others.
    """

    def __init__(
        self,
        variables: Sequence[SharedVariable],
        parameters: Sequence[SharedVariable],
        buffers: Sequence[SharedVariable],
    ):
        at = {id(v): i for i, v in enumerate(variables)}
        self._trained = [at[id(p)] for p in parameters]
        self._fixed = [at[id(b)] for b in buffers]

    def trained(self, values: Sequence[Any]) -> list[Any]:
        """Of all values those that are trained."""
        return [values[i] for i in self._trained]

    def fixed(self, values: Sequence[Any]) -> list[Any]:
        """Of all values the others."""
        return [values[i] for i in self._fixed]

    def join(self, trained: Sequence[Any], fixed: Sequence[Any]) -> list[Any]:
        """All values."""
        places = [*self._trained, *self._fixed]
        known = dict(zip(places, [*trained, *fixed], strict=True))
        return [known[i] for i in range(len(places))]
