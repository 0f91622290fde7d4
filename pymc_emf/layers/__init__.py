"""Layers: bijections of the whole vector."""

from pymc_emf.layers.affine import Affine
from pymc_emf.layers.autoregressive import MaskedAutoregressive
from pymc_emf.layers.chain import Chain
from pymc_emf.layers.conditional_affine import ConditionalAffine
from pymc_emf.layers.coupling import Coupling
from pymc_emf.layers.describe import describe
from pymc_emf.layers.elimination import Elimination, eliminate
from pymc_emf.layers.invert import Invert
from pymc_emf.layers.low_rank import LowRank
from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.mixing import MixedParameters, mixed_layer
from pymc_emf.layers.mixture import MixtureOfGaussians
from pymc_emf.layers.parallel import Parallel
from pymc_emf.layers.permutation import Permutation
from pymc_emf.layers.presets import Shape, make_layers
from pymc_emf.layers.spline import Spline
from pymc_emf.layers.structured import StructuredLayer
from pymc_emf.layers.subset import Subset

__all__ = [
    "Affine",
    "Chain",
    "Coupling",
    "Elimination",
    "Invert",
    "LowRank",
    "LowerTriangular",
    "MaskedAutoregressive",
    "MixedParameters",
    "MixtureOfGaussians",
    "Parallel",
    "Permutation",
    "Shape",
    "ConditionalAffine",
    "Spline",
    "StructuredLayer",
    "Subset",
    "describe",
    "eliminate",
    "make_layers",
    "mixed_layer",
]
