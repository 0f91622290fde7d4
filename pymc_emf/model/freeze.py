"""From the user's model to the frozen copy that everything else reads."""

import warnings

from threading import Lock

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc.distributions.censored import CensoredRV
from pymc.distributions.distribution import PartialObservedRV
from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.pytensorf import constant_fold
from pymc.vartypes import discrete_types
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.scalar.basic import Clip
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import HurdleRV
from pymc_emf.bijections.core.base import distribution
from pymc_emf.exceptions import DiscreteVariableError
from pymc_emf.model.lowering import has_dims, lower_dims

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
    _check_model(model)
    frozen = _with_constants(model)
    _check_free(frozen)
    _check_data(frozen)
    return frozen, _thaw_data(frozen) if data_may_change else {}


def _check_model(model: pm.Model) -> None:
    if not model.free_RVs:
        raise TypeError(
            "The model has no free random variables; there is no posterior to approximate."
        )
    if model.parent is not None:
        raise ValueError(
            f"The model {model.name or 'given'} is nested in another one; fit the outermost model."
        )


def _check_free(frozen: pm.Model) -> None:
    for rv in frozen.free_RVs:
        if rv.type.numpy_dtype.name in discrete_types:
            raise DiscreteVariableError(
                f"Discrete variables are not supported by VI: {rv.name}; marginalise it "
                "(pymc_extras.marginalize) or give it a continuous relaxation."
            )
        op = distribution(rv)
        if isinstance(op, PartialObservedRV):  # what is missing of an observed variable
            op = rv.owner.inputs[0].owner.op
        # pymc.dims writes censoring as a function of a variable
        is_clip = isinstance(op, Elemwise) and isinstance(op.scalar_op, Clip)
        if is_clip or isinstance(op, CensoredRV | HurdleRV):
            raise DiscreteVariableError(
                f"{rv.name} is censored or has a hurdle: single values have a probability, which "
                "no continuous approximation can give them; let the variable behind it be free, "
                "or drop the missing observations."
            )


def _check_data(frozen: pm.Model) -> None:
    for rv in frozen.observed_RVs:
        data = _constant_data(frozen.rvs_to_values[rv])
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
                frozen = freeze_dims_and_data(lower_dims(model) if has_dims(model) else model)
        finally:
            model.rvs_to_initial_values.update(initial_values)
    for rv in frozen.observed_RVs:
        _evaluate_data(frozen, rv)
    return frozen


def _evaluate_data(frozen: pm.Model, rv: TensorVariable) -> None:
    """Make a constant of data that were cast or transposed, as far as they are known."""
    value = frozen.rvs_to_values[rv]
    if isinstance(value, Constant | SharedVariable):
        return
    (data,) = constant_fold([value], raise_not_constant=False)
    if not isinstance(data, Variable):
        _replace_data(frozen, rv, pt.constant(data, name=value.name))


def _replace_data(frozen: pm.Model, rv: TensorVariable, value: TensorVariable) -> None:
    del frozen.values_to_rvs[frozen.rvs_to_values[rv]]
    frozen.rvs_to_values[rv], frozen.values_to_rvs[value] = value, rv


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
        _replace_data(frozen, rv, shared)
        data[str(rv.name)] = shared
    return data
