"""Layers: bijections of the whole vector."""

from pymc_emf.layers.affine import Affine, LowerTriangular, LowRank
from pymc_emf.layers.autoregressive import MaskedAutoregressive
from pymc_emf.layers.compose import Chain, Invert, Parallel
from pymc_emf.layers.coupling import Coupling
from pymc_emf.layers.mixing import MixedParameters, mixed_layer
from pymc_emf.layers.mixture import MixtureOfGaussians
from pymc_emf.layers.permutation import Permutation
from pymc_emf.layers.presets import make_layers
from pymc_emf.layers.spline import Spline
from pymc_emf.layers.structured import StructuredLayer, describe

__all__ = [
    "Affine",
    "Chain",
    "Coupling",
    "Invert",
    "LowRank",
    "LowerTriangular",
    "MaskedAutoregressive",
    "MixedParameters",
    "MixtureOfGaussians",
    "Parallel",
    "Permutation",
    "Spline",
    "StructuredLayer",
    "describe",
    "make_layers",
    "mixed_layer",
]
