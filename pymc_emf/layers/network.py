"""The network behind flow layers: masked, and zero to start with."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.sharedvar import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf.layers.parameters import parameter

__all__ = ["Network"]

#: Log scales and log slopes are kept within this distance of zero, smoothly: each can stretch or
#: shrink an element by at most exp(LOG_SCALE_BOUND), so that no wild step overflows the density.
LOG_SCALE_BOUND = 5.0


class Network:
    """Perceptron from a vector to a shift and one or more log scales of each of several elements.

    Returns zeros to start with: the weights of its last layer are zero.

    Parameters
    ----------
    masks : sequence of ndarray
        Binary masks of the weights, (inputs, outputs) of each layer. The last layer has all shifts
        before all log scales.
    n_outputs : int
        The shift and the logs of one element.
    dtype : str
        Precision in which it computes.
    rng : Generator
        For the initial weights.
    """

    def __init__(
        self, masks: Sequence[np.ndarray], n_outputs: int, dtype: str, rng: np.random.Generator
    ):
        self.masks = [mask.astype("int8") for mask in masks]
        self.n_outputs, self.dtype = n_outputs, dtype
        self.weights: list[SharedVariable] = []
        self.biases: list[SharedVariable] = []
        for i, mask in enumerate(masks):
            last = i == len(masks) - 1
            fan_in = np.maximum(mask.sum(axis=0), 1)  # of each unit, through the mask
            weight = rng.normal(size=mask.shape) * mask / np.sqrt(fan_in)
            self.weights.append(parameter(weight * (0.0 if last else 1.0), f"weight_{i}", dtype))
            self.biases.append(parameter(np.zeros(mask.shape[1]), f"bias_{i}", dtype))

    def __call__(self, vector: TensorVariable) -> tuple[TensorVariable, ...]:
        """Shifts, and log scales of each kind, in the type of the vector."""
        hidden = vector.astype(self.dtype)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            masked = weight if self.masks[i].all() else weight * self.masks[i]
            hidden = hidden @ masked + bias
            if i < len(self.weights) - 1:
                hidden = hidden * pt.sigmoid(hidden)  # SiLU
        hidden = hidden.astype(vector.dtype)
        n = self.masks[-1].shape[1] // self.n_outputs
        shift, *logs = (hidden[i * n : (i + 1) * n] for i in range(self.n_outputs))
        return shift, *(LOG_SCALE_BOUND * pt.tanh(log / LOG_SCALE_BOUND) for log in logs)

    @property
    def parameters(self) -> list[SharedVariable]:
        return [*self.weights, *self.biases]
