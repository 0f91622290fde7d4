"""Layers side by side."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytensor.tensor as pt

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.base import JaxLayer, jax_layer
from pymc_emf.layers.chain import Composite

__all__ = ["Parallel"]


class Parallel(Composite):
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

    @property
    def hyperparameters(self):
        return super().hyperparameters | {"sizes": list(self.sizes)}

    def to_jax(self, size):
        parts = [jax_layer(part, n) for part, n in zip(self.layers, self.sizes, strict=True)]
        ends = np.cumsum([len(part.variables) for part in self.layers])
        at = np.cumsum(self.sizes)[:-1]

        def dealt(values):
            starts = [0, *ends[:-1]]
            return [values[start:end] for start, end in zip(starts, ends, strict=True)]

        def forward(values, noise):
            pieces = zip(parts, dealt(values), jnp.split(noise, at), strict=True)
            mapped = [part.forward(own, piece) for part, own, piece in pieces]
            images, log_dets = zip(*mapped, strict=True)
            return jnp.concatenate(images), sum(log_dets)

        def push(values, noise, score):
            pieces = zip(
                parts,
                dealt(values),
                jnp.split(noise, at, axis=1),
                jnp.split(score, at, axis=1),
                strict=True,
            )
            pushed = [part.push(own, piece, s) for part, own, piece, s in pieces]
            images, scores = zip(*pushed, strict=True)
            return jnp.concatenate(images, axis=1), jnp.concatenate(scores, axis=1)

        return JaxLayer(forward, push)
