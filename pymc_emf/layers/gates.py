"""Gates, through which a structured layer bypasses what the data contradict (EMF Eq. 8)."""

from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import pytensor.tensor as pt

from pytensor.tensor.sharedvar import SharedVariable
from scipy.special import expit, logit

from pymc_emf.layers.parameters import parameter
from pymc_emf.layers.strategy import Strategy
from pymc_emf.model.site import Site
from pymc_emf.rolling import Values

__all__ = ["GATE_SCALE", "Gate", "Gates", "gate_parameter"]

type Gate = Literal["element", "variable"] | None

#: The gate is sigmoid(GATE_SCALE * raw), so that optimisers of unit-sized parameters can close it
#: (EMF A.3).
GATE_SCALE = 100.0

#: Raw parameter of a gate that is one in any precision, and what a gate lets through that is as
#: good as open.
OPEN, AJAR = 1.0, 1e-3
#: The logit of a gate that is zero in any precision.
SHUT = -1e4


@final
class Gates(Strategy):
    """One trainable gate per element or per variable of some sites.

    Parameters
    ----------
    sites : sequence of Site
        Those that are gated, in the order of the flat vectors; without any nothing is trained.
    gate : {"element", "variable"} or None
        None only if there are no sites.
    gate_init : float
        Initial value, in (0, 1).
    """

    def __init__(self, sites: Sequence[Site], gate: Gate, gate_init: float):
        self.places: dict[str, np.ndarray] = {}
        n_gates = 0
        for site in sites:
            shape = site.shape if gate == "element" else (1,) * len(site.shape)
            n = int(np.prod(shape))
            places = np.arange(n_gates, n_gates + n).reshape(shape)
            self.places[site.name] = np.broadcast_to(places, site.shape)
            n_gates += n
        # one vector for all, which costs far less than hundreds of parameters
        raw_init = np.full(n_gates, gate_parameter(gate_init))
        self.parameters: list[SharedVariable] = [parameter(raw_init, "gates")] if n_gates else []

    def elements(self):
        if not self.parameters:
            return Values(0)
        (raw,) = self.parameters
        return Values.of(pt.sigmoid(GATE_SCALE * pt.as_tensor(raw)), raw.type.shape[0])

    def bijection(self, pattern, embedding, own):
        return embedding.gated(own)

    def prior_values(self, values):
        return [np.full_like(raw, OPEN) for raw in values]

    def opened(self, values: Sequence[np.ndarray], scales: dict[str, np.ndarray]):
        """Parameters with gates that let through as small a share of narrow priors as of others.

        A gate of 0.999 adds a thousandth of the noise, which is more than all of a prior whose
        scale is 1e-20.

        Parameters
        ----------
        values : sequence of ndarray
        scales : dict
            By the name of a site, of its elements' priors in value space.
        """
        (raw,) = changed = [np.array(value) for value in values]
        for name, places in self.places.items():
            let_through = expit(-GATE_SCALE * raw[places])
            narrow = (scales[name] > 0) & (scales[name] < let_through) & (let_through < 2 * AJAR)
            wanted = -np.log(let_through * scales[name], where=narrow, out=np.zeros(places.shape))
            np.maximum.at(raw, places[narrow], (wanted / GATE_SCALE)[narrow].astype(raw.dtype))
        return changed

    def gates(self, values):
        if not self.parameters:
            return {}
        (raw,) = values
        opened = expit(GATE_SCALE * np.asarray(raw, dtype=float))
        return {name: opened[places] for name, places in self.places.items()}


def gate_parameter(gate: float) -> float:
    """Raw parameter of a gate, which may be zero."""
    return max(float(logit(gate)), SHUT) / GATE_SCALE
