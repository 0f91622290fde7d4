"""Trainable affine layers: mean field, low rank and full rank."""

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import TriangularAffine
from pymc_emf.bijections.core.base import Bijection
from pymc_emf.bijections.families.time_series import linear_recurrence
from pymc_emf.layers.parameters import LOW_PRECISION, parameter

__all__ = ["Affine", "LowRank", "LowerTriangular"]

# Each layer is a trainable affine map followed by a fixed one, its frame, which the warm start
# sets: what is trained then has unit scale, whatever the scales and correlations of the model.


class _Elementwise(Bijection):
    """What the layers have in common that train a location and a scale of every element."""

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_scale = parameter(np.zeros(size), "log_scale")
        self.frame_loc = parameter(np.zeros(size), "frame_loc")
        self.frame_log_scale = parameter(np.zeros(size), "frame_log_scale")

    @property
    def parameters(self):
        return [self.loc, self.log_scale]


class Affine(_Elementwise):
    r"""Trainable elementwise affine layer :math:`\mu + \sigma \odot \varepsilon`: mean field.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    @property
    def _log_det(self):
        return self.log_scale.sum() + self.frame_log_scale.sum()

    def forward(self, noise):
        inner = self.loc + pt.exp(self.log_scale) * noise
        return self.frame_loc + pt.exp(self.frame_log_scale) * inner, self._log_det

    def inverse(self, value):
        inner = (value - self.frame_loc) * pt.exp(-self.frame_log_scale)
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det

    @property
    def buffers(self):
        return [self.frame_loc, self.frame_log_scale]

    def set(self, loc: np.ndarray, cholesky: np.ndarray | None = None) -> None:
        """Set to the product of normals closest to the normal with this mean and Cholesky factor.

        Closest in Kullback-Leibler divergence from the product: the precisions agree. Without a
        factor the scales are one.
        """
        log_scale = np.zeros(self.size)
        if cholesky is not None:
            inverse_factor = np.linalg.inv(cholesky)
            log_scale = -0.5 * np.log(np.sum(inverse_factor**2, axis=0))
        _set(self.frame_loc, loc)
        _set(self.frame_log_scale, log_scale)
        _reset(self.parameters)

    def reframe(self) -> None:
        """Move what has been learnt into the frame; the map stays the same."""
        scale = np.exp(self.frame_log_scale.get_value())
        _set(self.frame_loc, self.frame_loc.get_value() + scale * self.loc.get_value())
        _set(self.frame_log_scale, self.frame_log_scale.get_value() + self.log_scale.get_value())
        _reset(self.parameters)


class LowerTriangular(Bijection):
    r"""Trainable affine layer :math:`\mu + L\varepsilon` with triangular L: full rank.

    Starts as the identity. The diagonal is kept as its log, what is below it in single precision,
    in which the optimiser is much faster; the arithmetic is in ``floatX``.

    Parameters
    ----------
    size : int
        Length of the vector.
    """

    def __init__(self, size: int):
        self.size = size
        self.loc = parameter(np.zeros(size), "loc")
        self.log_diagonal = parameter(np.zeros(size), "log_diagonal")
        # a full matrix, of which half is masked: to put a vector in its place takes longer
        self.below = parameter(np.zeros((size, size)), "below", LOW_PRECISION)
        self.frame_loc = parameter(np.zeros(size), "frame_loc")
        self.frame_matrix = parameter(np.eye(size), "frame_matrix")

    @property
    def matrix(self):
        """The trainable triangular matrix, symbolic."""
        below = np.tri(self.size, k=-1, dtype="int8") * self.below
        return pt.diag(pt.exp(self.log_diagonal)) + below.astype(self.log_diagonal.dtype)

    @property
    def _log_det(self):
        return self.log_diagonal.sum() + pt.log(pt.diag(self.frame_matrix)).sum()

    def forward(self, noise):
        inner = self.loc + self.matrix @ noise
        return self.frame_loc + self.frame_matrix @ inner, self._log_det

    def inverse(self, value):
        inner, _ = TriangularAffine(self.frame_loc, self.frame_matrix).inverse(value)
        noise, _ = TriangularAffine(self.loc, self.matrix).inverse(inner)
        return noise, -self._log_det

    @property
    def parameters(self):
        return [self.loc, self.log_diagonal, self.below]

    @property
    def buffers(self):
        return [self.frame_loc, self.frame_matrix]

    def set(self, loc: np.ndarray, cholesky: np.ndarray | None = None) -> None:
        """Set to the normal with this mean and lower Cholesky factor, by default the identity."""
        _set(self.frame_loc, loc)
        _set(self.frame_matrix, np.eye(self.size) if cholesky is None else cholesky)
        _reset(self.parameters)

    def reframe(self) -> None:
        """Move what has been learnt into the frame; the map stays the same."""
        matrix = np.diag(np.exp(self.log_diagonal.get_value())) + np.tril(
            self.below.get_value(), -1
        )
        frame = self.frame_matrix.get_value()
        _set(self.frame_loc, self.frame_loc.get_value() + frame @ self.loc.get_value())
        _set(self.frame_matrix, frame @ matrix)
        _reset(self.parameters)


class LowRank(_Elementwise):
    r"""Trainable elementwise affine layer before a fixed normal distribution of many elements.

    :math:`x = \mu + \sigma \odot \varepsilon` is stretched along a few directions,
    :math:`y = s \odot (x + V ((w - 1) \odot V^\top x))` with orthonormal columns V, and every
    element may depend on the one before it, :math:`z_t = c_t z_{t-1} + y_t`; the result is
    :math:`m + z`. So the precision matrix is tridiagonal, as of a random walk, but for a few
    directions, at a cost proportional to the length of the vector. Location m, scales s,
    directions V, their stretch w and coefficients c are the frame, which the warm start sets.

    Starts as the identity.

    Parameters
    ----------
    size : int
        Length of the vector.
    rank : int
        Number of directions, at most ``size``.
    """

    def __init__(self, size: int, rank: int = 32):
        super().__init__(size)
        self.rank = min(rank, size)
        self.frame_coefficients = parameter(np.zeros(size), "frame_coefficients")
        self.frame_directions = parameter(np.eye(size, self.rank), "frame_directions")
        self.frame_log_stretch = parameter(np.zeros(self.rank), "frame_log_stretch")

    @property
    def _log_det(self):
        frame = self.frame_log_scale.sum() + self.frame_log_stretch.sum()
        return self.log_scale.sum() + frame

    def _stretch(self, vector, log_stretch):
        along = self.frame_directions.T @ vector
        return vector + self.frame_directions @ (pt.expm1(log_stretch) * along)

    def _through_frame(self, inner):
        inner = pt.exp(self.frame_log_scale) * self._stretch(inner, self.frame_log_stretch)
        coefficients = self.frame_coefficients[1:]
        return self.frame_loc + linear_recurrence([coefficients], inner[:1], inner[1:])

    def forward(self, noise):
        inner = self.loc + pt.exp(self.log_scale) * noise
        return self._through_frame(inner), self._log_det

    def inverse(self, value):
        centred = value - self.frame_loc
        before = pt.concatenate([pt.zeros_like(centred[:1]), centred[:-1]])
        inner = (centred - self.frame_coefficients * before) * pt.exp(-self.frame_log_scale)
        inner = self._stretch(inner, -self.frame_log_stretch)
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det

    @property
    def buffers(self):
        return [
            self.frame_loc,
            self.frame_log_scale,
            self.frame_coefficients,
            self.frame_directions,
            self.frame_log_stretch,
        ]

    def set(
        self,
        loc: np.ndarray,
        scales: np.ndarray | None = None,
        coefficients: np.ndarray | None = None,
        directions: np.ndarray | None = None,
        stretch: np.ndarray | None = None,
    ) -> None:
        """Set the frame, by default without scales, coefficients and directions.

        Parameters
        ----------
        loc, scales, coefficients : ndarray, shape (size,)
            The first coefficient has no effect.
        directions : ndarray, shape (size, k)
            Orthonormal columns, at most ``rank``.
        stretch : ndarray, shape (k,)
            Positive.
        """
        scales = np.ones(self.size) if scales is None else scales
        coefficients = np.zeros(self.size) if coefficients is None else coefficients
        full, log_stretch = np.zeros((self.size, self.rank)), np.zeros(self.rank)
        if directions is not None and stretch is not None:
            full[:, : len(stretch)] = directions
            log_stretch[: len(stretch)] = np.log(stretch)
        _set(self.frame_loc, loc)
        _set(self.frame_log_scale, np.log(scales))
        _set(self.frame_coefficients, coefficients)
        _set(self.frame_directions, full)
        _set(self.frame_log_stretch, log_stretch)
        _reset(self.parameters)

    def reframe(self) -> None:
        """Move the location that has been learnt into the frame; the map stays the same."""
        loc, directions = self.loc.get_value(), self.frame_directions.get_value()
        stretch = np.expm1(self.frame_log_stretch.get_value())
        moved = loc + directions @ (stretch * (directions.T @ loc))
        moved *= np.exp(self.frame_log_scale.get_value())
        for t, coefficient in enumerate(self.frame_coefficients.get_value()[1:], start=1):
            moved[t] += coefficient * moved[t - 1]
        _set(self.frame_loc, self.frame_loc.get_value() + moved)
        _reset([self.loc])


def _reset(parameters) -> None:
    for shared in parameters:
        shared.set_value(np.zeros_like(shared.get_value()))


def _set(shared, values: np.ndarray) -> None:
    shared.set_value(np.asarray(values, dtype=shared.dtype))
