"""Trainable affine layer before elements each of which is normal given a few others."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.affine import TriangularAffine
from pymc_emf.layers.affine import ElementwiseFramed
from pymc_emf.layers.elimination import Elimination, Round
from pymc_emf.layers.parameters import LOW_PRECISION, parameter

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

    With ``hidden`` a small network for each element adds to this: from the standardised
    :math:`z_j` of its parents, those in the core included that are not common to all, a shift and
    a log scale, bounded, of its :math:`x_i`. Both directions are as cheap, and the networks start
    at zero.

    Groups of a hierarchy depend on its common parameters and not on each other, members of a
    series on their neighbours: cost and memory are proportional to the length of the vector.
    All but :math:`\mu`, :math:`\sigma` and the networks is the frame, which the start sets.

    Starts as the identity.

    Parameters
    ----------
    elimination : Elimination
    hidden : int
        Width of the hidden layer of the networks; zero for none.
    dtype : str
        Precision of the networks. What they shift and scale, and with it the density, has
        ``floatX``.
    random_seed : int, RandomState or Generator, optional
        For their initial weights.
    """

    dense = False
    rank = 0

    def __init__(
        self,
        elimination: Elimination,
        hidden: int = 0,
        dtype: str = LOW_PRECISION,
        random_seed: int | np.random.Generator | None = None,
    ):
        self.elimination: Elimination = elimination
        self.hidden, self.dtype = hidden, dtype
        super().__init__(elimination.size)
        rng, n_others = np.random.default_rng(random_seed), len(elimination.others)
        weights = rng.normal(size=(elimination.n_inputs, hidden))
        self.weights = parameter(weights, "weights", dtype)
        self.biases = parameter(rng.normal(size=(n_others, hidden)), "biases", dtype)
        self.out = parameter(np.zeros((n_others, hidden, 2)), "out", dtype)
        first = self._first_frame()
        self.frame_log_scale = parameter(np.log(first[0]), "frame_log_scale")
        self.frame_coefficients = parameter(first[1], "frame_coefficients")
        self.frame_slopes = parameter(first[2], "frame_slopes")
        self.frame_core = parameter(first[3], "frame_core")
        self.frame_scale_changes = parameter(first[4], "frame_scale_changes")
        self.frame_coefficient_changes = parameter(first[5], "frame_coefficient_changes")
        self.frame_sd = parameter(first[6], "frame_sd")

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
            np.ones(n_others),
        )

    @property
    def parameters(self):
        networks = [self.weights, self.biases, self.out] if self.hidden else []
        return [*super().parameters, *networks]

    def _given(self, core_noise):
        """Log scales and coefficients of the others, from the noise of the core."""
        steering = core_noise[: self.elimination.n_steering]
        return (
            self.frame_log_scale + steering @ self.frame_scale_changes,
            self.frame_coefficients + steering @ self.frame_coefficient_changes,
        )

    def _log_det(self, base, bent):
        """From the log scales of all others, and what networks add to those of some."""
        of_others = sum((x.sum() for x in bent), start=base.sum())
        return self.log_scale.sum() + pt.log(pt.diag(self.frame_core)).sum() + of_others

    def _by_rounds(self, coefficients, *of_others):
        """Rounds, the coefficients of each, and its elements of vectors of the others.

        Split and not sliced: the derivative of many slices is a sum of as many whole vectors.
        """
        rounds = self.elimination.rounds
        sizes = [round.parents.size for round in rounds]
        there = [(round.parents.ravel() >= 0).astype("int8") for round in rounds]
        flat = _split(np.hstack([*there, np.zeros(0, "int8")]) * coefficients, sizes)
        tables = [x.reshape(round.parents.shape) for x, round in zip(flat, rounds, strict=True)]
        vectors = [_split(vector, [len(r.parents) for r in rounds]) for vector in of_others]
        return zip(rounds, tables, *vectors, strict=True)

    def _bends(self, round):
        """Whether its elements have networks."""
        return self.hidden and self.elimination.inputs_of(round).shape[1]

    def _bent(self, known, round):
        """Shift and log scale of the elements of a round, from those before them."""
        order, places = self.elimination, round.places
        table = order.inputs_of(round).T
        there, at = table >= 0, np.maximum(table, 0)
        sd = pt.concatenate([pt.sqrt((self.frame_core**2).sum(axis=1)), self.frame_sd])
        inputs = (there * known[at] / sd[at]).astype(self.dtype)
        # networks of one layer, each with weights of its own; the elements are the last axis, and
        # the few inputs are added one by one, as sums over a short last axis are slow
        weights, out = order.weights_of(self.weights.T, round), self.out[places].transpose(2, 1, 0)
        added = sum(weights[:, :, j] * inputs[j] for j in range(len(table)))
        hidden = pt.tanh(added + self.biases[places].T)
        bent = [(out[i] * hidden).sum(axis=0, acc_dtype=self.dtype) for i in range(2)]
        shift, log_scale = (x.astype(known.dtype) for x in bent)
        return shift, pt.tanh(log_scale)

    def forward(self, noise):
        order = self.elimination
        inner = self.loc + pt.exp(self.log_scale) * noise
        core = self.frame_core @ inner[order.core]
        base, coefficients = self._given(inner[order.core])
        scales, along = pt.exp(base), self.frame_slopes @ core
        # what needs no parents, for all rounds at once
        own = scales * inner[order.others]
        alone = [own, scales, along] if self.hidden else [own + along]
        drawn, log_scales = own[:0], []
        for round, table, new, *apart in self._by_rounds(coefficients, *alone):
            if self._bends(round):
                shift, bent = self._bent(pt.concatenate([core, drawn]), round)
                new = pt.exp(bent) * (new + apart[0] * shift)
                log_scales.append(bent)
            new = sum([new, *apart[1:], *_among(table, drawn, round)])
            drawn = pt.concatenate([drawn, new])
        value = self.frame_loc + pt.concatenate([core, drawn])[order.back]
        return value, self._log_det(base, log_scales)

    def inverse(self, value):
        order = self.elimination
        centred = value - self.frame_loc
        core, others = centred[order.core], centred[order.others]
        inner_core, _ = TriangularAffine(pt.zeros_like(core), self.frame_core).inverse(core)
        base, coefficients = self._given(inner_core)
        noise, log_scales = [inner_core], []
        own = others - self.frame_slopes @ core
        for round, table, scales, here in self._by_rounds(coefficients, pt.exp(-base), own):
            new = scales * (here - sum(_among(table, others, round)))
            if self._bends(round):
                shift, bent = self._bent(pt.concatenate([core, others]), round)
                new = pt.exp(-bent) * new - shift
                log_scales.append(bent)
            noise.append(new)
        inner = pt.concatenate(noise)[order.back]
        return (inner - self.loc) * pt.exp(-self.log_scale), -self._log_det(base, log_scales)

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
            self.frame_sd,
        ]

    @property
    def hyperparameters(self):
        return {
            "elimination": self.elimination.to_lists(),
            "hidden": self.hidden,
            "dtype": self.dtype,
        }

    def set_frame(self, values, loc, *spread):
        """Set the frame, by default with unit scales and without coefficients.

        Parameters
        ----------
        values : sequence of ndarray
        loc : ndarray, shape (size,)
        *spread
            Scales of the others in their order, coefficients, slopes in the core, the triangular
            factor of the core, by how much log scales and coefficients change with the noise of
            the core that steers, and the standard deviations of the others.
        """
        zero, networks = np.zeros(self.size), values[2 : len(self.parameters)]
        scales, *others = spread or self._first_frame()
        return self._as_stored([zero, zero, *networks, loc, np.log(scales), *others])

    def spread_of(self, covariance):
        """Of variances alone, shape (size,), or of a matrix where all elements are common."""
        order = self.elimination
        _, coefficients, slopes, _, *changes, _ = self._first_frame()
        if covariance.ndim == 1:
            sd = np.sqrt(covariance)
            factor, of_others = np.diag(sd[order.core]), sd[order.others]
        else:
            factor = np.linalg.cholesky(covariance[np.ix_(order.core, order.core)])
            of_others = np.zeros(0)
        return of_others, coefficients, slopes, factor, *changes, of_others


def _among(table, others, round: Round):
    """What the parents outside of the core add to the elements of a round, if there are any."""
    if not round.parents.shape[1]:
        return []
    return [(table * others[np.maximum(round.parents, 0)]).sum(axis=1)]


def _split(vector, sizes: Sequence[int]):
    """Pieces of a vector, of these sizes."""
    if len(sizes) < 2:
        return [vector] * len(sizes)
    return pt.split(vector, sizes, n_splits=len(sizes))
