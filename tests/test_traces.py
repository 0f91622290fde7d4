"""A fit traces its model once, and another one neither traces nor compiles anything."""

import pymc as pm
import pytensor.tensor as pt
import pytest

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.jax.dispatch import jax_funcify

import pymc_emf as emf

from tests.helpers import compilations

quiet = {"tol": None, "progressbar": False}


class Watched(Op):
    """Returns its argument, and counts how often JAX traces that."""

    def __init__(self):
        self.n_traces = 0

    def make_node(self, x):
        x = pt.as_tensor(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        outputs[0][0] = inputs[0].copy()


@jax_funcify.register(Watched)
def _(op, **kwargs):
    def watched(x):
        op.n_traces += 1
        return x

    return watched


@pytest.fixture(scope="module")
def fitted():
    """A method after its first fit, and the operation in its likelihood."""
    watched = Watched()
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 2.0)
        theta = pm.Normal("theta", mu, tau, shape=4)
        pm.Normal("y", watched(theta), 1.0, observed=[3.0, -1.0, 0.0, 2.0])
    method = emf.EMFApprox(model, layers="affine", random_seed=1)
    method.fit(100, **quiet)
    return method, watched


def test_start_steps_and_check_share_one_trace(fitted):
    method, watched = fitted
    assert watched.n_traces == 1
    method.approx.sample(10)
    method.approx.diagnose()
    assert watched.n_traces == 1


def test_another_fit_traces_and_compiles_nothing(fitted):
    method, watched = fitted
    with compilations() as names:
        method.fit(150, **quiet)
        method.refine(20, progressbar=False)
    assert not names
    with compilations() as names:
        method.fit(10, obj_n_mc=3, **quiet)  # another loop
    assert "jit(steps)" in names
    assert watched.n_traces == 1
