"""Automatic structured variational inference as a method: ``pm.fit(method=ASVI())``."""

import pymc as pm

from pymc.util import RandomState

from pymc_emf.layers import MixedParameters, mixed_layer
from pymc_emf.variational.inference import LEARNING_RATE, EMFApprox

__all__ = ["ASVI"]


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

    _gate_rate = LEARNING_RATE

    def __init__(
        self,
        model: pm.Model | None = None,
        *,
        prior_weight: float = 0.5,
        random_seed: RandomState = None,
    ):
        MixedParameters.check_options(prior_weight)
        self.prior_weight = prior_weight
        super().__init__(
            model,
            layers=None,
            gate=None,
            warm_start=False,
            gradient="reparameterised",
            random_seed=random_seed,
        )

    def _options(self):
        return {"prior_weight": self.prior_weight}

    def _structured_layer(self, program):
        return mixed_layer(program, self.prior_weight)
