"""Free random variables as stretches of flat vectors."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc.logprob.transforms import Transform
from pytensor.tensor.variable import TensorVariable

from pymc_emf.rolling import Input, Pattern, Values

__all__ = ["Site", "SitePattern", "leaves"]


@dataclass(frozen=True)
class Site:
    """One free random variable of a model.

    Attributes
    ----------
    name, value_name : str
        Names of the variable and of its value variable.
    rv, value : TensorVariable
        The variable and its value in the program's model.
    transform : Transform or None
        From the variable to its value.
    parents : tuple of str
        Names of the free variables that its distribution depends on directly.
    shape, rv_shape : tuple of int
        Shape of the value and of the variable; they differ where a transform drops a dimension.
    noise : slice
        Where its elements stand in the flat noise and value vectors.
    """

    name: str
    value_name: str
    rv: TensorVariable
    value: TensorVariable
    transform: Transform | None
    parents: tuple[str, ...]
    shape: tuple[int, ...]
    rv_shape: tuple[int, ...]
    noise: slice

    @property
    def size(self) -> int:
        return self.noise.stop - self.noise.start

    @property
    def places(self) -> np.ndarray:
        """Places of its elements in the flat noise and value vectors, in the value's shape."""
        return np.arange(self.noise.start, self.noise.stop).reshape(self.shape)

    def take(self, flat: TensorVariable) -> TensorVariable:
        """Take the site's elements from a flat vector, in the shape of the value."""
        return flat[self.noise].reshape(self.shape)

    def constrain(self, rv: TensorVariable, value: TensorVariable) -> TensorVariable:
        """Map the value back to the constrained variable, given ``rv`` with its own parents."""
        if self.transform is None:
            return value
        return self.transform.backward(value, *rv.owner.inputs)


@dataclass(frozen=True, eq=False)
class SitePattern:
    """Sites whose conditional distributions are isomorphic, and the graph of one of them.

    Attributes
    ----------
    sites : list of Site
        Its members, in the order of the flat vectors.
    rv : TensorVariable
        The variable of one member, in terms of the placeholders of its parents.
    transform : Transform or None
    pattern : Pattern
    """

    sites: list[Site]
    rv: TensorVariable
    transform: Transform | None
    pattern: Pattern

    @property
    def site(self) -> Site:
        """The first member."""
        return self.sites[0]

    @cached_property
    def places(self) -> np.ndarray:
        """Places of each member's elements in the flat vectors, (members, *shape)."""
        return np.stack([site.places for site in self.sites])


def leaves(pattern: Pattern, known: Values) -> list[Input]:
    """What a body over the members of a pattern reads: known elements, and constants."""
    return [
        Input(slot.placeholder, slot.table, None if slot.constant else known)
        for slot in pattern.slots
    ]
