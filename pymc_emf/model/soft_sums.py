"""Sums of elements that a prior holds close to zero."""

from dataclasses import dataclass

import numpy as np
import pymc as pm

from pytensor.graph.basic import Constant

from pymc_emf.model.program import Program

__all__ = ["SoftSum", "soft_sums"]


@dataclass(frozen=True)
class SoftSum:
    """A normal density of the sum of some elements, beside all others that they have.

    Attributes
    ----------
    places : ndarray
        Of the elements in the flat value vector.
    sd : float
        Standard deviation of their sum, about zero.
    """

    places: np.ndarray
    sd: float


def soft_sums(program: Program) -> list[SoftSum]:
    """Those of a model: PyMC's ICAR, which is improper otherwise, has one."""
    found = []
    for site in program.sites:
        node = site.rv.owner
        if isinstance(node.op, pm.ICAR.rv_type) and site.transform is None:
            *_, zero_sum_stdev = node.op.dist_params(node)
            if isinstance(zero_sum_stdev, Constant):
                sd = float(zero_sum_stdev.data) * site.size
                found.append(SoftSum(site.places.ravel(), sd))
    return found
