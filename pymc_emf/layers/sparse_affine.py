"""Trainable affine layer before a normal distribution with a sparse precision matrix."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import TriangularAffine
from pymc_emf.layers.affine import ElementwiseFramed
from pymc_emf.layers.elimination import Elimination
from pymc_emf.layers.parameters import parameter

__all__ = ["SparseAffine"]


class SparseAffine(ElementwiseFramed):
    r"""Trainable elementwise affine layer before a fixed normal distribution with few edges.

    :math:`x = \mu + \sigma \odot \varepsilon` is what is trained. Of the normal distribution the
    core c is drawn first, :math:`z_c = L x_c`; every other element is
    :math:`z_i = s_i x_i + b_i^\top z_c + \sum_j a_{ij} z_j`, with j over its few parents
    (:class:`Elimination`), and the result is :math:`m + z`. Groups of a hierarchy depend on its
    common parameters and not on each other, members of a series on their neighbours: cost and
    memory are proportional to the length of the vector. Location, scales, coefficients and the
    triangular matrix L are the frame, which the start sets.

    Starts as the identity.

    Parameters
    ----------
    elimination : Elimination
    """

    dense = False
    rank = 0

    def __init__(self, elimination: Elimination):
        self.elimination = elimination
        n_core, n_others = len(elimination.core), len(elimination.others)
        super().__init__(elimination.size)
        self.frame_log_scale = parameter(np.zeros(n_others), "frame_log_scale")
        self.frame_coefficients = parameter(
            np.zeros(elimination.n_coefficients), "frame_coefficients"
        )
        self.frame_slopes = parameter(np.zeros((n_others, n_core)), "frame_slopes")
        self.frame_core = parameter(np.eye(n_core), "frame_core")

    @property
    def _log_det(self):
        frame = self.frame_log_scale.sum() + pt.log(pt.diag(self.frame_core)).sum()
        return self.log_scale.sum() + frame

    def _among(self, drawn, round):
        """What the parents outside of the core add to the elements of a round."""
        coefficients = self.elimination.coefficients_of(self.frame_coefficients, round)
        used = (round.parents >= 0).astype("int8")
        return (used * coefficients * drawn[np.maximum(round.parents, 0)]).sum(axis=1)

    def forward(self, noise):
        order = self.elimination
        inner = self.loc + pt.exp(self.log_scale) * noise
        core = self.frame_core @ inner[order.core]
        alone = pt.exp(self.frame_log_scale) * inner[order.others] + self.frame_slopes @ core
        drawn = alone[:0]
        for round in order.rounds:
            new = alone[round.places]
            if round.parents.shape[1]:
                new = new + self._among(drawn, round)
            drawn = pt.concatenate([drawn, new])
        return self.frame_loc + pt.concatenate([core, drawn])[order.back], self._log_det

    def inverse(self, value):
        order = self.elimination
        centred = value - self.frame_loc
        core, others = centred[order.core], centred[order.others]
        inner_core, _ = TriangularAffine(pt.zeros_like(core), self.frame_core).inverse(core)
        alone = others - self.frame_slopes @ core
        pieces = [inner_core]
        for round in order.rounds:
            own = alone[round.places]
            if round.parents.shape[1]:
                own = own - self._among(others, round)
            pieces.append(own * pt.exp(-self.frame_log_scale[round.places]))
        inner = pt.concatenate(pieces)[order.back]
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det

    @property
    def buffers(self):
        return [
            self.frame_loc,
            self.frame_log_scale,
            self.frame_coefficients,
            self.frame_slopes,
            self.frame_core,
        ]

    @property
    def hyperparameters(self):
        return {"elimination": self.elimination.to_lists()}

    def set_frame(self, values, loc, *spread):
        """Set the frame, by default with unit scales and without coefficients.

        Parameters
        ----------
        values : sequence of ndarray
        loc : ndarray, shape (size,)
        *spread
            Scales of the others in their order, coefficients, slopes in the core, and the
            triangular factor of the core.
        """
        zero, order = np.zeros(self.size), self.elimination
        n_core, n_others = len(order.core), len(order.others)
        scales, coefficients, slopes, factor = spread or (
            np.ones(n_others),
            np.zeros(order.n_coefficients),
            np.zeros((n_others, n_core)),
            np.eye(n_core),
        )
        return self._as_stored([zero, zero, loc, np.log(scales), coefficients, slopes, factor])

    def spread_of(self, covariance):
        """Of variances alone, shape (size,)."""
        order, sd = self.elimination, np.sqrt(covariance)
        _, _, _, _, coefficients, slopes, _ = self.set_frame([], np.zeros(self.size))
        return sd[order.others], coefficients, slopes, np.diag(sd[order.core])
