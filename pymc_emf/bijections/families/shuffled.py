"""Variables whose axes stand in another order than their distribution has them."""

from collections.abc import Sequence

import pytensor.tensor as pt

from pymc.logprob.transforms import Transform
from pytensor.tensor.elemwise import DimShuffle

from pymc_emf.bijections.core.base import Bijection, bijection_from_rv, register_bijection
from pymc_emf.bijections.core.compose import Rearranged

__all__ = ["ShuffledTransform", "shuffle"]


class ShuffledTransform(Transform):
    """A transform of the variable before its axes were put in another order.

    Parameters
    ----------
    inner : Transform
        Uses no inputs of the variable.
    order : sequence of int
        Axes before, in the order after.
    """

    def __init__(self, inner: Transform, order: Sequence[int]):
        self.inner = inner
        self.order = tuple(order)
        self.undo = tuple(self.order.index(axis) for axis in range(len(self.order)))
        self.name = inner.name
        self.ndim_supp = inner.ndim_supp

    def _before(self, value):
        return pt.as_tensor(value).dimshuffle(self.undo)

    def forward(self, value, *inputs):
        return self.inner.forward(self._before(value)).dimshuffle(self.order)

    def backward(self, value, *inputs):
        return self.inner.backward(self._before(value)).dimshuffle(self.order)

    def log_jac_det(self, value, *inputs):
        log_det = self.inner.log_jac_det(self._before(value))
        # the last axes before, those of one event, are summed over
        return log_det.dimshuffle([axis for axis in self.order if axis < log_det.ndim])


@register_bijection(DimShuffle)
def shuffled(op, rv, transform):
    inner = transform.inner if isinstance(transform, ShuffledTransform) else transform
    site = bijection_from_rv(rv.owner.inputs[0], inner)
    return None if site is None else shuffle(site, op)


def shuffle(site: Bijection, op: DimShuffle) -> Bijection:
    """Put the axes of a bijection's event in another order, drop those of length one, ..."""
    position = {axis: i for i, axis in enumerate(op.new_order) if axis != "x"}
    n_axes = len(position) + len(op.drop)
    undo = [position.get(axis, "x") for axis in range(n_axes)]
    return Rearranged(site, lambda x: x.dimshuffle(undo), lambda x: x.dimshuffle(op.new_order))
