"""An affine layer that holds the sums of some elements fast."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt

from pymc_emf.layers.affine import ElementwiseFramed
from pymc_emf.layers.base import Framed, hyperparameters_of
from pymc_emf.layers.parameters import parameter
from pymc_emf.model.soft_sums import SoftSum

__all__ = ["HeldSums"]


class HeldSums(Framed):
    r"""An affine layer, after which what it makes of some sums is all but taken back.

    A prior that holds the sum of many elements close to zero lets all of them interact. Without
    it they may interact with few. So the elements are drawn as if it were not there,
    :math:`z = m + x`, and then :math:`m + x - \sum_k p_k t_k`, with :math:`t_k` the k-th
    sum of x and the pull :math:`p_k` along the covariance of all elements with it: conditioning
    by kriging (Rue and Held, "Gaussian Markov Random Fields", 2005, section 2.3.3). A little of
    every sum is left, so that the map has an inverse.

    Parameters
    ----------
    layer : ElementwiseFramed
    sums : sequence of SoftSum
        Of different elements.
    """

    def __init__(self, layer: ElementwiseFramed, sums: Sequence[SoftSum]):
        self.layer, self.sums, self.size = layer, list(sums), layer.size
        self.dense, self.rank = False, layer.rank
        self.elimination = layer.elimination
        first = self._first_pull()
        self.frame_pull = parameter(first[0], "frame_pull")
        self.frame_release = parameter(first[1], "frame_release")

    def _first_pull(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(self.sums), self.size)), np.eye(len(self.sums))

    def _sums_of(self, centred):
        return pt.stack([centred[held.places].sum() for held in self.sums])

    @property
    def _log_det(self):
        """Of the map that holds the sums; release is triangular."""
        return -pt.log(pt.diag(self.frame_release)).sum()

    def forward(self, noise):
        value, log_det = self.layer.forward(noise)
        sums = self._sums_of(value - self.layer.frame_loc)
        return value - sums @ self.frame_pull, log_det + self._log_det

    def inverse(self, value):
        sums = self.frame_release @ self._sums_of(value - self.layer.frame_loc)
        noise, log_det = self.layer.inverse(value + sums @ self.frame_pull)
        return noise, log_det - self._log_det

    @property
    def parameters(self):
        return self.layer.parameters

    @property
    def buffers(self):
        return [*self.layer.buffers, self.frame_pull, self.frame_release]

    @property
    def hyperparameters(self):
        return {
            "layer": type(self.layer).__name__,
            "of": hyperparameters_of(self.layer),
            "sums": [[held.places.tolist(), held.sd] for held in self.sums],
        }

    def set_frame(self, values, loc, *spread):
        """Set the frame, by default without a pull.

        Parameters
        ----------
        values : sequence of ndarray
        loc : ndarray, shape (size,)
        *spread
            That of the layer; then the pull, shape (sums, size), and the upper triangular
            matrix by which the sums that are left become those before.
        """
        *of_layer, pull, release = spread or self._first_pull()
        moved = self.layer.set_frame(values[: len(self.layer.variables)], loc, *of_layer)
        return self._as_stored([*moved, pull, release])

    def spread_of(self, covariance):
        """Of variances alone, without a pull."""
        return *self.layer.spread_of(covariance), *self._first_pull()
