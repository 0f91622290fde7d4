"""Private names of PyMC and PyTensor that are used here: a release that moves them breaks this."""

from pymc.distributions.mixture import _HurdleRV as HurdleRV
from pymc.distributions.multivariate import _LKJCholeskyCovRV as LKJCholeskyCovRV
from pymc.distributions.multivariate import _squeeze_to_ndim as squeeze_to_ndim
from pymc.distributions.transforms import _default_transform as default_transform
from pymc.logprob.abstract import _logprob as logprob_of
from pymc.util import _get_seeds_per_chain as seeds_per_chain
from pytensor.graph.replace import _vectorize_node as vectorize_node

__all__ = [
    "HurdleRV",
    "LKJCholeskyCovRV",
    "default_transform",
    "logprob_of",
    "seeds_per_chain",
    "squeeze_to_ndim",
    "vectorize_node",
]
