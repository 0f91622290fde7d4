"""Isomorphic graphs found in a model, and evaluated together: as one batch or as one scan."""

from pymc_emf.rolling.batching import Body, Input, Values, replicate
from pymc_emf.rolling.evaluation import Result, evaluate
from pymc_emf.rolling.patterns import Pattern, Reader, find_patterns
from pymc_emf.rolling.plan import Batch, Loop, schedule

__all__ = [
    "Batch",
    "Body",
    "Input",
    "Loop",
    "Pattern",
    "Reader",
    "Result",
    "Values",
    "evaluate",
    "find_patterns",
    "replicate",
    "schedule",
]
