"""Layers one after the other."""

from collections.abc import Sequence
from typing import Any

import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import JaxLayer, Layer, hyperparameters_of
from pymc_emf.layers.flow import Flow

__all__ = ["Chain", "Composite"]


class Composite(Layer):
    """What is trained and set in several layers, layer by layer."""

    def __init__(self, layers: Sequence[Bijection]):
        self.layers = tuple(layers)
        values = [id(p.container) for p in self.parameters]
        if len(set(values)) < len(values):
            raise ValueError(
                f"A layer, or a trainable parameter of a model, occurs twice in a "
                f"{type(self).__name__}; make one for each place."
            )

    @property
    def parameters(self):
        return [p for layer in self.layers for p in layer.parameters]

    @property
    def buffers(self):
        return [b for layer in self.layers for b in layer.buffers]

    @property
    def variables(self):
        return [v for layer in self.layers for v in layer.variables]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {"layers": [[type(x).__name__, hyperparameters_of(x)] for x in self.layers]}


class Chain(Composite):
    """Bijections one after the other; the first acts on the noise first.

    Parameters
    ----------
    layers : sequence of Bijection

    Raises
    ------
    ValueError
        If there is no layer, if their sizes differ, or if one occurs twice.
    """

    def __init__(self, layers: Sequence[Bijection]):
        if not layers:
            raise ValueError("A Chain needs at least one layer.")
        super().__init__(layers)
        sizes = [layer.size for layer in layers if hasattr(layer, "size")]
        if len(set(sizes)) > 1:
            raise ValueError(f"The layers of a Chain must have the same size, got sizes {sizes}.")
        if sizes:
            self.size = sizes[0]

    def to_jax(self, size):
        flow = Flow(self.layers, size)
        return JaxLayer(flow.forward, flow.push)

    def forward(self, noise):
        return _through([layer.forward for layer in self.layers], noise)

    def inverse(self, value):
        return _through([layer.inverse for layer in reversed(self.layers)], value)


def _through(maps, event):
    log_dets = []
    for apply in maps:
        event, log_det = apply(event)
        log_dets.append(log_det)
    return event, pt.add(*log_dets) if len(log_dets) > 1 else log_dets[0]
