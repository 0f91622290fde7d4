"""Evaluate bijections the slow, sure way and the compiled ways."""

from contextlib import contextmanager

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc.pytensorf import compile as pymc_compile
from pytensor.compile.mode import Mode

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.engine.jax import jaxify

#: The graph as it was written, evaluated by Python node by node.
UNREWRITTEN = Mode(linker="py", optimizer=None)


def parametrize(names, *, slow=(), quick=None):
    """Parametrise over names; those in ``slow``, or not in ``quick``, are for the slow session."""
    slow = set(slow) if quick is None else set(names) - set(quick)
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in marks.items()])


@contextmanager
def compilations():
    """Names of the functions that JAX traces or compiles meanwhile."""
    names = []

    def note(event, duration, **about):
        if event.startswith("/jax/core/compile/"):
            names.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


class Functions:
    """Both directions of a bijection whose ``arguments`` are symbolic, through JAX.

    The graph is rewritten once; the arguments are numbers at every call, so that a test can
    vary them without compiling again.
    """

    def __init__(self, bijection: Bijection, arguments, shape):
        self.bijection = bijection
        self.arguments = list(arguments)
        self.event = pt.tensor("event", shape=shape, dtype=pytensor.config.floatX)
        single = {
            name: jaxify([*self.arguments, self.event], getattr(bijection, name)(self.event))
            for name in ("forward", "inverse")
        }
        n = len(self.arguments)

        def forward_twice(*arguments):
            value, log_det = single["forward"](*arguments)
            return value, (value, log_det)

        self._forward = jax.jit(single["forward"])
        self._forward_and_jacobian = jax.jit(jax.jacfwd(forward_twice, argnums=n, has_aux=True))
        self._has_jacobian = False
        self.inverse = jax.jit(single["inverse"])
        self.parameter_jacobian = jax.jit(
            jax.jacfwd(lambda *a: single["forward"](*a), argnums=tuple(range(n)))
        )
        self.inverse_jacobian = jax.jit(
            jax.jacfwd(lambda *a: single["inverse"](*a)[0], argnums=tuple(range(n + 1)))
        )

    def forward(self, *arguments):
        """Value and log|det|, by what is compiled already."""
        if self._has_jacobian:
            return self._forward_and_jacobian(*arguments)[1]
        return self._forward(*arguments)

    def jacobian(self, *arguments):
        """Jacobian of the value, by automatic differentiation."""
        self._has_jacobian = True
        return self._forward_and_jacobian(*arguments)[0]

    def check_laws(self, arguments, noise, rtol=1e-6):
        """Round trip, and log|det| against the Jacobian that JAX derives."""
        jacobian = np.asarray(self.jacobian(*arguments, noise)).reshape(noise.size, noise.size)
        value, log_det = (np.asarray(x) for x in self.forward(*arguments, noise))
        back, inverse_log_det = (np.asarray(x) for x in self.inverse(*arguments, value))
        np.testing.assert_allclose(back, noise, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(inverse_log_det, -log_det, rtol=rtol, atol=rtol)
        sign, expected = np.linalg.slogdet(jacobian)
        assert sign == 1
        np.testing.assert_allclose(log_det, expected, rtol=rtol, atol=rtol)
        return value, log_det

    def check_backends(self, arguments, noise, mode=UNREWRITTEN, rtol=1e-6):
        """The graph as it was written, or as numba compiles it, says what JAX says."""
        value = self.forward(*arguments, noise)[0]
        for name, event in (("forward", noise), ("inverse", np.asarray(value))):
            expected = getattr(self, name)(*arguments, event)
            function = pymc_compile(
                [*self.arguments, self.event],
                list(getattr(self.bijection, name)(self.event)),
                mode=mode,
                on_unused_input="ignore",
            )
            for actual, wanted in zip(function(*arguments, event), expected, strict=True):
                np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=rtol)
