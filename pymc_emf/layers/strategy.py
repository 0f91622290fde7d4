"""What a structured layer asks of whatever is trained in it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from pytensor.tensor.sharedvar import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections import Bijection
from pymc_emf.model.site import SitePattern
from pymc_emf.rolling import Values

__all__ = ["Strategy"]


class Strategy(ABC):
    """What is trained in a structured layer, and how it changes the sites' bijections.

    Attributes
    ----------
    parameters : list of SharedVariable
    places : dict
        Name of each site in which something is trained to the positions of its own elements among
        :meth:`elements`. The arrays of isomorphic sites have one shape.
    """

    parameters: list[SharedVariable]
    places: dict[str, np.ndarray]

    @abstractmethod
    def elements(self) -> Values:
        """Elements of what is trained (PyTensor)."""

    @abstractmethod
    def bijection(
        self, pattern: SitePattern, embedding: Bijection, own: TensorVariable
    ) -> Bijection:
        """Bijection of a pattern, given that of the prior and a site's own elements."""

    @abstractmethod
    def prior_values(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Values of the parameters with which the layer is the prior, but for rounding.

        What then plays no part is left as it is in ``values``.
        """

    @abstractmethod
    def gates(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Gate of every element of the sites that are gated, in the shape of their values."""
