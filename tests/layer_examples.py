"""A layer of every kind, on which the laws of layers are tested; a new layer joins these."""

import numpy as np

import pymc_emf as emf

from pymc_emf.layers.held_sums import HeldSums
from pymc_emf.layers.parameters import store
from pymc_emf.model.soft_sums import SoftSum

SIZE = 5


def masked(size=SIZE, **kwargs):
    options = {"hidden": (8, 8), "random_seed": 0, "dtype": "float64"} | kwargs
    return emf.MaskedAutoregressive(size, **options)


def framed(layer, *spread):
    """A layer with a frame away from the identity."""
    values = [v.get_value() for v in layer.variables]
    store(layer.variables, layer.set_frame(values, np.arange(SIZE) - 2.0, *spread))
    return layer


def cholesky():
    matrix = np.tril(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    matrix[np.diag_indices(SIZE)] = np.arange(1.0, SIZE + 1)
    return matrix


def low_rank_spread():
    """Scales, coefficients, directions and stretch."""
    directions, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, 2)))
    coefficients = np.linspace(-0.5, 1.0, SIZE)
    return np.arange(1.0, SIZE + 1), coefficients, directions, np.array([0.2, 3.0])


def sparse():
    """Two elements of the core, a chain of two and one alone."""
    return emf.eliminate([set(), {4}, set(), set(), {1}], core=[2, 3])


def closely_knit():
    """A ring, whose last two elements are the core, and one alone."""
    ring = [[1, 3], [0, 2], [1, 3], [0, 2]]
    order = emf.Elimination.from_lists(
        [2, 3], 0, [0, 1, 4], [[[], []], [[]]], [*ring, []], [[[1], [0]], [[]]]
    )
    layer = emf.ConditionalAffine(order, hidden=3, dtype="float64", random_seed=0)
    rng = np.random.default_rng(5)
    slopes = np.vstack([rng.normal(size=(2, 2)), np.zeros((1, 2))])
    scales, factor = np.array([0.5, 2.0, 3.0]), np.array([[2.0, 0.0], [-1.0, 0.5]])
    changes = np.zeros((0, 3)), np.zeros((0, order.n_coefficients))
    return framed(layer, scales, np.zeros(0), slopes, factor, *changes, np.array([1.0, 2.0, 3.0]))


def sparse_spread():
    """All of a frame but the location, with scales and coefficients that follow the core."""
    rng = np.random.default_rng(4)
    order = sparse()
    coefficients = np.where(order.rounds[-1].parents.ravel() >= 0, 0.7, 0.0)
    factor = np.array([[2.0, 0.0], [-1.0, 0.5]])
    changes = (
        0.3 * rng.normal(size=(2, 3)),
        0.2 * coefficients * rng.normal(size=(2, len(coefficients))),
    )
    sd = np.array([1.0, 2.0, 3.0])
    return np.array([0.5, 2.0, 3.0]), coefficients, rng.normal(size=(3, 2)), factor, *changes, sd


LAYERS = {
    "Affine": lambda: emf.Affine(SIZE),
    "Affine framed": lambda: framed(emf.Affine(SIZE), cholesky()),
    "LowRank": lambda: framed(emf.LowRank(SIZE, rank=3), *low_rank_spread()),
    "LowerTriangular": lambda: emf.LowerTriangular(SIZE),
    "LowerTriangular framed": lambda: framed(emf.LowerTriangular(SIZE), cholesky()),
    "MaskedAutoregressive": masked,
    "MaskedAutoregressive reversed": lambda: masked(reverse=True),
    "MaskedAutoregressive with splines": lambda: masked(knots=5, bound=2.0),
    "MaskedAutoregressive one hidden": lambda: masked(hidden=(4,)),
    "ConditionalAffine": lambda: framed(emf.ConditionalAffine(sparse()), *sparse_spread()),
    "ConditionalAffine with networks": lambda: framed(
        emf.ConditionalAffine(sparse(), hidden=3, dtype="float64", random_seed=0), *sparse_spread()
    ),
    "ConditionalAffine with networks that see the core": closely_knit,
    "HeldSums": lambda: framed(
        HeldSums(emf.ConditionalAffine(sparse()), [SoftSum(np.array([0, 1, 4]), 0.1)]),
        *sparse_spread(),
        np.array([[0.2, 0.5, 0.1, -0.3, 0.25]]),
        np.array([[20.0]]),
    ),
    "Subset": lambda: emf.Subset(masked(2), [3, 1], size=SIZE),
    "Subset of an affine layer": lambda: emf.Subset(emf.LowerTriangular(3), [0, 4, 2], size=SIZE),
    "Coupling": lambda: emf.Coupling(SIZE, [3, 1], hidden=(8,), dtype="float64", random_seed=0),
    "Permutation": lambda: emf.Permutation([3, 1, 4, 0, 2]),
    "Spline": lambda: emf.Spline(SIZE, bound=2.0, knots=5),
    "Invert": lambda: emf.Invert(masked()),
    "MixtureOfGaussians": lambda: emf.MixtureOfGaussians(SIZE, 3, loc_range=2.0),
    "Chain": lambda: emf.Chain([masked(), emf.Permutation([1, 0, 2, 4, 3]), emf.Affine(SIZE)]),
    "Parallel": lambda: emf.Parallel([masked(2), emf.LowerTriangular(3)], [2, 3]),
}

#: Layers that others are with something more, for the slow session.
PARTS = (
    "Affine",
    "LowerTriangular",
    "MaskedAutoregressive one hidden",
    "Subset of an affine layer",
)

#: Those with a frame.
FRAMED = ["Affine framed", "LowRank", "LowerTriangular framed", "ConditionalAffine"]


def perturb(layer, seed=1, scale=0.5):
    """Move a layer's parameters away from where they start."""
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters:
        value = parameter.get_value()
        parameter.set_value((value + scale * rng.normal(size=value.shape)).astype(value.dtype))
    return layer
