"""From the user's model to the frozen copy that everything else reads."""

import warnings

from threading import Lock

import numpy as np
import pymc as pm
import pytensor

from pymc.distributions.censored import CensoredRV
from pymc.distributions.distribution import PartialObservedRV
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.vartypes import discrete_types
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import HurdleRV
from pymc_emf.exceptions import DiscreteVariableError

__all__ = ["freeze"]

_FREEZING = Lock()


def freeze(
    model: pm.Model, *, data_may_change: bool = False
) -> tuple[pm.Model, dict[str, SharedVariable]]:
    """Copy a model with constant dims and data.

    Parameters
    ----------
    model : pymc.Model
        Is left as it is.
    data_may_change : bool
        Whether observed data are shared variables in the copy.

    Returns
    -------
    frozen : pymc.Model
    data : dict
        Names of observed variables to those shared variables.

    Raises
    ------
    TypeError, DiscreteVariableError, NotImplementedError, ValueError
        If the model cannot be approximated.
    """
    _check(model)
    frozen = _with_constants(model)
    return frozen, _thaw_data(frozen) if data_may_change else {}


def _check(model: pm.Model) -> None:
    if not model.free_RVs:
        raise TypeError(
            "The model has no free random variables; there is no posterior to approximate."
        )
    if model.parent is not None:
        raise ValueError(
            f"The model {model.name or 'given'} is nested in another one; fit the outermost model."
        )
    for rv in model.free_RVs:
        if not isinstance(rv.type, TensorType):
            raise NotImplementedError(
                f"{rv.name} is a variable of pymc.dims, which cannot be embedded yet; make it with "
                "the distribution of the same name in pm, and dims=."
            )
        if rv.type.numpy_dtype.name in discrete_types:
            raise DiscreteVariableError(
                f"Discrete variables are not supported by VI: {rv.name}; marginalise it "
                "(pymc_extras.marginalize) or give it a continuous relaxation."
            )
        op = rv.owner.op
        if isinstance(op, PartialObservedRV):  # what is missing of an observed variable
            op = rv.owner.inputs[0].owner.op
        if isinstance(op, CensoredRV | HurdleRV):
            raise DiscreteVariableError(
                f"{rv.name} is censored or has a hurdle: single values have a probability, which "
                "no continuous approximation can give them; let the variable behind it be free, "
                "or drop the missing observations."
            )
    for rv in model.observed_RVs:
        data = _constant_data(model.rvs_to_values[rv])
        if data is not None and np.issubdtype(data.dtype, np.floating) and np.isnan(data).any():
            raise ValueError(
                f"The data of the observed variable {rv.name} contain NaN; remove the missing "
                "observations, or pass them as a masked array to have them imputed."
            )


def _constant_data(value: TensorVariable) -> np.ndarray | None:
    if isinstance(value, SharedVariable):
        return np.asarray(value.get_value(borrow=True))
    return getattr(value, "data", None)


def _with_constants(model: pm.Model) -> pm.Model:
    # Initial values play no part in a density, and symbolic ones cannot be carried over.
    with _FREEZING:  # another thread must not take the blank values for the user's
        initial_values = dict(model.rvs_to_initial_values)
        model.rvs_to_initial_values.update(dict.fromkeys(initial_values))
        try:
            with warnings.catch_warnings():
                # the copy is ours alone: nobody will use the user's GP objects on it
                warnings.filterwarnings("ignore", message="Detected variables likely created by GP")
                return freeze_dims_and_data(model)
        finally:
            model.rvs_to_initial_values.update(initial_values)


def _thaw_data(frozen: pm.Model) -> dict[str, SharedVariable]:
    """Put shared variables in the place of a model's observed data."""
    data = {}
    for rv in frozen.observed_RVs:
        value = frozen.rvs_to_values[rv]
        observed = _constant_data(value)
        if observed is None:
            raise ValueError(
                f"The data of {rv.name} are computed, as a minibatch for example; give it constant "
                "data."
            )
        shared = pytensor.shared(np.array(observed), name=value.name, shape=observed.shape)
        del frozen.values_to_rvs[value]
        frozen.rvs_to_values[rv], frozen.values_to_rvs[shared] = shared, rv
        data[str(rv.name)] = shared
    return data
