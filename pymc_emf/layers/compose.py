"""Layers made of layers."""

from collections.abc import Sequence

import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection

__all__ = ["Chain", "Invert", "Parallel"]


class _Composite(Bijection):
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


class Chain(_Composite):
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


class Parallel(_Composite):
    """Bijections side by side, on consecutive slices of the vector (EMF §3.4).

    Parameters
    ----------
    layers : sequence of Bijection
    sizes : sequence of int
        Length of each layer's slice.

    Raises
    ------
    ValueError
        If there is not one size for each layer, if a layer has another, or if one occurs twice.
    """

    def __init__(self, layers: Sequence[Bijection], sizes: Sequence[int]):
        if not layers or len(layers) != len(sizes):
            raise ValueError(
                f"Parallel needs one size for each layer, got {len(layers)} layers and "
                f"{len(sizes)} sizes."
            )
        super().__init__(layers)
        self.sizes = tuple(int(size) for size in sizes)
        for layer, size in zip(self.layers, self.sizes, strict=True):
            own = getattr(layer, "size", size)
            if own != size:
                raise ValueError(
                    f"The layer {type(layer).__name__} of a Parallel has size {own}, but its "
                    f"slice has {size} elements."
                )
        self.size = sum(self.sizes)

    def forward(self, noise):
        return self._side_by_side([layer.forward for layer in self.layers], noise)

    def inverse(self, value):
        return self._side_by_side([layer.inverse for layer in self.layers], value)

    def _side_by_side(self, maps, event):
        images, log_dets, start = [], [], 0
        for apply, size in zip(maps, self.sizes, strict=True):
            image, log_det = apply(event[start : start + size])
            images.append(image)
            log_dets.append(log_det)
            start += size
        log_det = pt.add(*log_dets) if len(log_dets) > 1 else log_dets[0]
        return pt.concatenate(images), log_det


class Invert(Bijection):
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
