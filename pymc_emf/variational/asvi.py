"""Automatic structured variational inference as a method: ``pm.fit(method=ASVI())``."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pymc as pm

from pymc.util import RandomState

from pymc_emf.layers import StructuredLayer
from pymc_emf.layers.mixing import MixedParameters, mixed_layer
from pymc_emf.model.program import Program
from pymc_emf.variational.method import EMFApprox
from pymc_emf.variational.objective import Gradient
from pymc_emf.variational.options import LEARNING_RATE

__all__ = ["ASVI", "ASVIOptions"]


@dataclass(frozen=True)
class ASVIOptions:
    """What chooses an approximation by ASVI; :class:`ASVI` explains the field.

    Raises
    ------
    ValueError
        If the weight is none.
    """

    method: ClassVar[str] = "ASVI"
    gate_rate: ClassVar[float] = LEARNING_RATE
    warm_start: ClassVar[bool] = False
    gradient: ClassVar[Gradient] = "reparameterised"
    start: ClassVar[None] = None
    layers: ClassVar[None] = None

    prior_weight: float = 0.5

    def __post_init__(self):
        MixedParameters.check_options(self.prior_weight)

    def structured(self, program: Program) -> StructuredLayer:
        """The model with mixed parameters."""
        return mixed_layer(program, self.prior_weight)

    def to_file(self) -> dict[str, Any]:
        """Options that a file can hold."""
        return {"prior_weight": self.prior_weight}

    def settings(self) -> dict[str, Any]:
        """What decides how a fit goes."""
        return self.to_file()


class ASVI(EMFApprox):
    r"""Automatic structured variational inference (Ambrogioni et al. 2021).

    The approximation has the conditional distributions of the prior, with each of their
    parameters mixed with a trainable one, :math:`\lambda\,\theta(x_{<j}) +
    (1 - \lambda)\,\alpha`. It keeps the model's structure, forwards only: what the data make
    dependent that is independent in the prior stays independent.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the model in whose context ``fit`` is called.
    prior_weight : float
        Initial weights :math:`\lambda` of the prior's parameters, in (0, 1).
    random_seed : int, RandomState or Generator, optional

    Raises
    ------
    ValueError
        If an option has an unknown value.

    See Also
    --------
    pymc_emf.EMFApprox : what ``fit`` takes and returns; usually the better approximation.

    Notes
    -----
    Every parameter of every element is mixed, and of random walks, autoregressions, GARCH and
    Euler-Maruyama series the location and the scale of every step. A ``CustomDist`` made of a
    graph has its own parameters mixed. A variable without such parameters, a uniform one for
    example, gets a location and a scale of its noise instead.

    References
    ----------
    Ambrogioni et al., "Automatic structured variational inference", AISTATS 2021,
    arXiv:2002.00643.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0.0, 10.0)
    ...     y = pm.Normal("y", mu, 1.0, observed=[1.0, 2.0, 3.0])
    ...     approx = pm.fit(2000, method=emf.ASVI(random_seed=1), progressbar=False)
    >>> idata = approx.sample(1000)
    >>> abs(float(idata.posterior["mu"].mean()) - 2.0) < 0.1
    True
    """

    def __init__(
        self,
        model: pm.Model | None = None,
        *,
        prior_weight: float = 0.5,
        random_seed: RandomState = None,
    ):
        self._initialise(model, ASVIOptions(prior_weight), random_seed)
