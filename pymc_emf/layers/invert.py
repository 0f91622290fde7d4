"""Layers the other way round."""

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import Layer, hyperparameters_of

__all__ = ["Invert"]


class Invert(Layer):
    """A bijection with its two directions exchanged.

    Parameters
    ----------
    layer : Bijection
    """

    def __init__(self, layer: Bijection):
        self.layer = layer
        if hasattr(layer, "size"):
            self.size = layer.size

    def forward(self, noise):
        return self.layer.inverse(noise)

    def inverse(self, value):
        return self.layer.forward(value)

    @property
    def parameters(self):
        return self.layer.parameters

    @property
    def buffers(self):
        return self.layer.buffers

    @property
    def hyperparameters(self):
        return {"layer": [type(self.layer).__name__, hyperparameters_of(self.layer)]}
