"""Trainable affine layer before a normal distribution with a sparse precision matrix."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import TriangularAffine
from pymc_emf.layers.affine import ElementwiseFramed
from pymc_emf.layers.elimination import Elimination
from pymc_emf.layers.parameters import parameter

__all__ = ["ConditionalAffine"]


class ConditionalAffine(ElementwiseFramed):
    r"""Trainable elementwise affine layer before elements that are normal given a few others.

    :math:`x = \mu + \sigma \odot \varepsilon` is what is trained. Then the core c is drawn
    first, :math:`z_c = L x_c`; every other element is
    :math:`z_i = s_i x_i + b_i^\top z_c + \sum_j a_{ij} z_j`, with j over its few parents
    (:class:`Elimination`), and the result is :math:`m + z`. The scales and the coefficients
    follow those of the core that steer: :math:`\log s_i` and :math:`a_{ij}` are linear in their
    :math:`x_c`, as the increments of a random walk follow its step, or the members of a group
    their common scale.

    Groups of a hierarchy depend on its common parameters and not on each other, members of a
    series on their neighbours: cost and memory are proportional to the length of the vector.
    All but :math:`\mu` and :math:`\sigma` is the frame, which the start sets.

    Starts as the identity.

    Parameters
    ----------
    elimination : Elimination
    """

    dense = False
    rank = 0

    def __init__(self, elimination: Elimination):
        self.elimination = elimination
        super().__init__(elimination.size)
        first = self._first_frame()
        self.frame_log_scale = parameter(np.log(first[0]), "frame_log_scale")
        self.frame_coefficients = parameter(first[1], "frame_coefficients")
        self.frame_slopes = parameter(first[2], "frame_slopes")
        self.frame_core = parameter(first[3], "frame_core")
        self.frame_scale_changes = parameter(first[4], "frame_scale_changes")
        self.frame_coefficient_changes = parameter(first[5], "frame_coefficient_changes")

    def _first_frame(self) -> tuple[np.ndarray, ...]:
        """All of the frame but the location: independent elements of scale one."""
        order = self.elimination
        n_core, n_others, n_steering = len(order.core), len(order.others), order.n_steering
        return (
            np.ones(n_others),
            np.zeros(order.n_coefficients),
            np.zeros((n_others, n_core)),
            np.eye(n_core),
            np.zeros((n_steering, n_others)),
            np.zeros((n_steering, order.n_coefficients)),
        )

    def _given(self, core_noise):
        """Log scales and coefficients of the others, from the noise of the core."""
        steering = core_noise[: self.elimination.n_steering]
        return (
            self.frame_log_scale + steering @ self.frame_scale_changes,
            self.frame_coefficients + steering @ self.frame_coefficient_changes,
        )

    def _log_det(self, log_scales):
        frame = log_scales.sum() + pt.log(pt.diag(self.frame_core)).sum()
        return self.log_scale.sum() + frame

    def _among(self, coefficients, drawn, round):
        """What the parents outside of the core add to the elements of a round."""
        used = (round.parents >= 0).astype("int8")
        own = self.elimination.coefficients_of(coefficients, round)
        return (used * own * drawn[np.maximum(round.parents, 0)]).sum(axis=1)

    def forward(self, noise):
        order = self.elimination
        inner = self.loc + pt.exp(self.log_scale) * noise
        core = self.frame_core @ inner[order.core]
        log_scales, coefficients = self._given(inner[order.core])
        alone = pt.exp(log_scales) * inner[order.others] + self.frame_slopes @ core
        drawn = alone[:0]
        for round in order.rounds:
            new = alone[round.places]
            if round.parents.shape[1]:
                new = new + self._among(coefficients, drawn, round)
            drawn = pt.concatenate([drawn, new])
        value = self.frame_loc + pt.concatenate([core, drawn])[order.back]
        return value, self._log_det(log_scales)

    def inverse(self, value):
        order = self.elimination
        centred = value - self.frame_loc
        core, others = centred[order.core], centred[order.others]
        inner_core, _ = TriangularAffine(pt.zeros_like(core), self.frame_core).inverse(core)
        log_scales, coefficients = self._given(inner_core)
        alone = others - self.frame_slopes @ core
        pieces = [inner_core]
        for round in order.rounds:
            own = alone[round.places]
            if round.parents.shape[1]:
                own = own - self._among(coefficients, others, round)
            pieces.append(own * pt.exp(-log_scales[round.places]))
        inner = pt.concatenate(pieces)[order.back]
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det(log_scales)

    @property
    def buffers(self):
        return [
            self.frame_loc,
            self.frame_log_scale,
            self.frame_coefficients,
            self.frame_slopes,
            self.frame_core,
            self.frame_scale_changes,
            self.frame_coefficient_changes,
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
            Scales of the others in their order, coefficients, slopes in the core, the triangular
            factor of the core, and by how much log scales and coefficients change with the noise
            of the core that steers.
        """
        zero = np.zeros(self.size)
        scales, *others = spread or self._first_frame()
        return self._as_stored([zero, zero, loc, np.log(scales), *others])

    def spread_of(self, covariance):
        """Of variances alone, shape (size,)."""
        order, sd = self.elimination, np.sqrt(covariance)
        _, coefficients, slopes, _, *changes = self._first_frame()
        return sd[order.others], coefficients, slopes, np.diag(sd[order.core]), *changes
