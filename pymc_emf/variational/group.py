"""All variables of a model as one group of PyMC's variational inference."""

from functools import cached_property

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc.variational.opvi import Group, node_property
from pytensor.graph.replace import vectorize_graph

from pymc_emf.variational.objective import Objective

__all__ = ["N_MOMENT_DRAWS", "EMFGroup"]

#: Draws behind ``approx.mean``, ``approx.std`` and ``approx.cov``, which have no closed form.
N_MOMENT_DRAWS = 1000


class EMFGroup(Group):
    """All free variables of a model, approximated by an embedded-model flow."""

    short_name = "emf"

    def __init__(self, group, *, objective: Objective, **kwargs):
        self.objective = objective
        super().__init__(group, **kwargs)

    def __init_group__(self, group):
        # PyMC's own would run the model to learn the shapes, which the program knows.
        self.group = group
        size = self.objective.size
        self.input = pt.vector("emf_value", shape=(size,), dtype=pytensor.config.floatX)
        self.symbolic_initial = pt.matrix(
            "emf_noise", shape=(None, size), dtype=pytensor.config.floatX
        )
        for site in self.objective.program.sites_in_model_order:
            value = self.model.rvs_to_values[self.model[site.name]]
            replacement = site.take(self.input).astype(value.dtype)
            replacement.name = f"{value.name}_vi_replacement"
            self.replacements[value] = replacement
            self.ordering[value.name] = (value.name, site.noise, site.shape, value.dtype)
        self.shared_params = {p.name: p for p in self._parameters}
        self._finalize_init()

    @property
    def _parameters(self):
        return self.objective.parameters

    @property
    def params(self):
        return self._parameters

    @node_property
    def _value_and_log_q(self):
        noise = self.objective.noise()
        outputs = self.objective.symbolic_log_q(noise)
        return vectorize_graph(list(outputs), {noise: self.symbolic_initial})

    @node_property
    def symbolic_random(self):
        return self._value_and_log_q[0]

    @node_property
    def symbolic_logq_not_scaled(self):
        return self._value_and_log_q[1]

    @cached_property
    def _moment_draws(self):
        draws = np.random.default_rng(0).normal(size=(N_MOMENT_DRAWS, self.objective.size))
        noise = pt.constant(draws.astype(pytensor.config.floatX))
        return vectorize_graph(self.symbolic_random, {self.symbolic_initial: noise})

    @node_property
    def mean(self):
        """Mean in value space, over fixed draws of the noise."""
        return self._moment_draws.mean(0)

    @node_property
    def std(self):
        """Standard deviation in value space, over fixed draws of the noise."""
        return self._moment_draws.std(0)

    @node_property
    def cov(self):
        """Covariance in value space, over fixed draws of the noise."""
        centred = self._moment_draws - self.mean
        return centred.T @ centred / (N_MOMENT_DRAWS - 1)
