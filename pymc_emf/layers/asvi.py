"""Automatic structured variational inference: the prior's conditionals, their parameters mixed."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from scipy.special import expit, logit

from pymc_emf.bijections.mixing import Mixing, Part, mixed_bijection, used_weights
from pymc_emf.layers.parameters import parameter
from pymc_emf.layers.structured import OPEN, StructuredLayer
from pymc_emf.model.program import Program
from pymc_emf.rolling import Values

__all__ = ["MixedLayer"]


class MixedLayer(StructuredLayer):
    r"""The bijection of a model whose conditional distributions have mixed parameters.

    A parameter :math:`\theta(x_{<j})` of a conditional distribution is replaced by
    :math:`\lambda\,\theta(x_{<j}) + (1 - \lambda)\,\alpha` with a trainable weight
    :math:`\lambda` in (0, 1) and a trainable :math:`\alpha` of every element (Ambrogioni et al.
    2021, Eq. 5). It starts with the values of the parameters in the middle of the prior.

    Parameters
    ----------
    model : pymc.Model
    prior_weight : float
        Initial weights, in (0, 1).

    Raises
    ------
    ValueError
        If ``prior_weight`` is not strictly between 0 and 1.
    """

    def __init__(
        self,
        model: pm.Model | Program,
        prior_weight: float = 0.5,
    ):
        self.check_weight(prior_weight)
        super().__init__(model)
        middle, _ = self.forward(pt.zeros((self.size,)))  # nothing is trained yet
        constrained = self.constrain(middle)
        self._parts: dict[str, list[Part]] = {}
        start, priors = 0, []
        for site in self.program.sites_in_model_order:
            others = {rv: x for rv, x in constrained.items() if rv is not site.rv}
            (rv,) = self.program.given([site.rv], others)
            mixing = Mixing(pt.vector())
            mixed_bijection(rv, site.transform, site.shape, mixing)
            self._parts[site.name] = mixing.parts
            size = 2 * sum(part.size for part in mixing.parts)
            self._places_trained[site.name] = np.arange(start, start + size)
            start += size
            own: dict[Variable, Variable] = {rv: constrained[site.rv]}
            priors += graph_replace([part.prior for part in mixing.parts], own, strict=False)
        parts = [part for parts in self._parts.values() for part in parts]
        raw = []
        evaluate = pytensor.function([], priors, mode=Mode(linker="py", optimizer="fast_compile"))
        for part, prior in zip(parts, evaluate(), strict=True):
            with np.errstate(all="ignore"):
                alternative = part.domain.backward(np.broadcast_to(prior, part.shape))
            raw.append(np.full(part.size, logit(prior_weight)))
            raw.append(np.nan_to_num(alternative, posinf=0.0, neginf=0.0).ravel())
        self._raw = parameter(np.concatenate(raw), "mixture")

    @staticmethod
    def check_weight(prior_weight: float) -> None:
        """Raise ValueError unless it is a weight."""
        if not 0 < prior_weight < 1:
            raise ValueError(
                f"prior_weight must lie strictly between 0 and 1, got {prior_weight!r}."
            )

    def _trained_values(self):
        if not self._places_trained:
            return None
        return Values.of(pt.as_tensor(self._raw), self._raw.type.shape[0])

    def _with_trained(self, pattern, embedding, trained):
        site = pattern.site
        return mixed_bijection(pattern.rv, pattern.transform, site.shape, Mixing(trained))

    @property
    def own_parameters(self):
        return [self._raw]

    def prior_values(self):
        raw = self._raw.get_value()
        for name, parts in self._parts.items():
            start = self._places_trained[name][0] if parts else 0
            for part in parts:
                raw[start : start + part.size] = logit(OPEN)
                start += 2 * part.size
        return [raw]

    def gates(self):
        return {
            site.name: np.full(site.shape, 0.0 if site.name in self.bypassed else 1.0)
            for site in self.program.sites
        }

    def prior_weights(self) -> dict[str, list[np.ndarray]]:
        """Weights of the prior's parameters, for each variable in the order of its parameters."""
        raw = np.asarray(self._raw.get_value(), dtype=float)
        weights: dict[str, list[np.ndarray]] = {}
        for name, parts in self._parts.items():
            start, weights[name] = self._places_trained[name][0], []
            for part in parts:
                own = expit(raw[start : start + part.size]).reshape(part.shape)
                weights[name].append(used_weights(own, part.domain))
                start += 2 * part.size
        return weights
