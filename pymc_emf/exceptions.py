"""Exceptions of this package, subtypes of the ones PyMC raises in the same situations."""

from typing import Any

from pymc.variational.opvi import ParametrizationError, VariationalInferenceError

__all__ = [
    "BadStartError",
    "DiscreteVariableError",
    "EmbeddingError",
    "NonFiniteDrawsError",
    "NonFiniteELBOError",
    "NonFiniteLossError",
]


class DiscreteVariableError(ParametrizationError):
    """A free variable of the model is discrete, or single values of it have a probability."""


class EmbeddingError(VariationalInferenceError, NotImplementedError):
    """A free variable cannot be embedded, and ``embed="strict"`` was asked for."""


class BadStartError(VariationalInferenceError, ValueError):
    """The log density of the model is not finite where the fit has to start."""


class NonFiniteELBOError(VariationalInferenceError, FloatingPointError):
    """The ELBO or its gradient stopped being finite during the fit.

    Attributes
    ----------
    approx : EMFApproximation or None
        With what was learnt before.
    """

    def __init__(self, reason: str, approx: Any = None):
        super().__init__(reason)
        self.approx = approx


class NonFiniteLossError(FloatingPointError):
    """The log density of the data or its gradient stopped being finite during a fit."""


class NonFiniteDrawsError(VariationalInferenceError, FloatingPointError):
    """Draws from an approximation overflow."""
