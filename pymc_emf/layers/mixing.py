"""Automatic structured variational inference: the prior's conditionals, their parameters mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.sharedvar import SharedVariable
from scipy.special import expit, logit

from pymc_emf.bijections.mixing import Domain, Mixing, mixed_bijection, used_weights
from pymc_emf.layers.parameters import parameter
from pymc_emf.layers.strategy import Strategy
from pymc_emf.layers.structured import StructuredLayer
from pymc_emf.model.program import Program
from pymc_emf.rolling import Values

__all__ = ["MixedParameters", "mixed_layer"]

#: Weight of the prior's parameter that is as good as one.
PRIOR_WEIGHT = 0.999


@dataclass(frozen=True)
class _Weights:
    """Where the weights of one parameter of a distribution stand among what is trained."""

    places: slice
    shape: tuple[int, ...]
    domain: Domain


@final
class MixedParameters(Strategy):
    r"""Parameters of conditional distributions, mixed with trainable ones.

    A parameter :math:`\theta(x_{<j})` of a conditional distribution is replaced by
    :math:`\lambda\,\theta(x_{<j}) + (1 - \lambda)\,\alpha` with a trainable weight
    :math:`\lambda` in (0, 1) and a trainable :math:`\alpha` of every element (Ambrogioni et al.
    2021, Eq. 5). It starts with the values of the parameters in the middle of the prior.

    Parameters
    ----------
    layer : StructuredLayer
        The prior's, in which nothing is trained.
    prior_weight : float
        Initial weights, in (0, 1).

    Raises
    ------
    ValueError
        If ``prior_weight`` is not strictly between 0 and 1.
    """

    def __init__(self, layer: StructuredLayer, prior_weight: float = 0.5):
        self.check_options(prior_weight)
        program = layer.program
        middle, _ = layer.forward(pt.zeros((layer.size,)))
        constrained = layer.constrain(middle)
        self.places: dict[str, np.ndarray] = {}
        self._weights: dict[str, list[_Weights]] = {}
        start, parts, priors = 0, [], []
        for site in program.sites_in_model_order:
            others = {rv: x for rv, x in constrained.items() if rv is not site.rv}
            (rv,) = program.given([site.rv], others)
            mixing = Mixing(pt.vector())
            mixed_bijection(rv, site.transform, site.shape, mixing)
            first, self._weights[site.name] = start, []
            for part in mixing.parts:  # weights, then alternatives
                places = slice(start, start + part.size)
                self._weights[site.name].append(_Weights(places, part.shape, part.domain))
                start += 2 * part.size
            self.places[site.name] = np.arange(first, start)
            own: dict[Variable, Variable] = {rv: constrained[site.rv]}
            priors += graph_replace([part.prior for part in mixing.parts], own, strict=False)
            parts += mixing.parts
        raw = []
        evaluate = pytensor.function([], priors, mode=Mode(linker="py", optimizer="fast_compile"))
        for part, prior in zip(parts, evaluate(), strict=True):
            with np.errstate(all="ignore"):
                alternative = part.domain.backward(np.broadcast_to(prior, part.shape))
            raw.append(np.full(part.size, logit(prior_weight)))
            raw.append(np.nan_to_num(alternative, posinf=0.0, neginf=0.0).ravel())
        self.parameters: list[SharedVariable] = [parameter(np.concatenate(raw), "mixture")]

    @staticmethod
    def check_options(prior_weight: float) -> None:
        """Raise ValueError unless it is a weight."""
        if not 0 < prior_weight < 1:
            raise ValueError(
                f"prior_weight must lie strictly between 0 and 1, got {prior_weight!r}."
            )

    def elements(self):
        (raw,) = self.parameters
        return Values.of(pt.as_tensor(raw), raw.type.shape[0])

    def bijection(self, pattern, embedding, own):
        return mixed_bijection(pattern.rv, pattern.transform, pattern.site.shape, Mixing(own))

    def prior_values(self, values):
        return self.with_weights(values, PRIOR_WEIGHT)

    def with_weights(self, values: Sequence[np.ndarray], weight: float) -> list[np.ndarray]:
        """Values of the parameters with all weights alike."""
        raw = np.array(values[0])
        for weights in self._weights.values():
            for w in weights:
                raw[w.places] = logit(weight)
        return [raw]

    def gates(self, values):
        return {}

    def prior_weights(self, values: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Weights of the prior's parameters, for each variable in the order of its parameters."""
        raw = np.asarray(values[0], dtype=float)
        return {
            name: [used_weights(expit(raw[w.places]).reshape(w.shape), w.domain) for w in weights]
            for name, weights in self._weights.items()
        }


def mixed_layer(model: pm.Model | Program, prior_weight: float = 0.5) -> StructuredLayer:
    """Structured layer of a model in which the parameters of all distributions are mixed."""
    layer = StructuredLayer(model)
    return layer.trained_by(MixedParameters(layer, prior_weight))
