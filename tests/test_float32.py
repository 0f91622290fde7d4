"""Single precision, in a process of its own: JAX takes its precision from PyTensor at import."""

import os
import subprocess
import sys

import pytest

IMPORTS = """
import numpy as np
import pymc as pm

import pymc_emf as emf
"""

#: An affine quantile, one of a tail and one that is inverted in both.
FEW = "[pm.Normal.dist(1.0, 2.0), pm.Exponential.dist(0.5), pm.Kumaraswamy.dist(2.0, 3.0)]"

CLOSED = """[
    pm.HalfNormal.dist(2.0), pm.Uniform.dist(-1.0, 2.0), pm.Gumbel.dist(0.0, 1.0),
    pm.Weibull.dist(1.5, 2.0), pm.Cauchy.dist(0.0, 1.0), pm.HalfCauchy.dist(1.0),
    pm.Pareto.dist(3.0, 1.0), pm.Laplace.dist(0.0, 1.0), pm.Logistic.dist(0.0, 1.0),
]"""

#: Quantiles that are searched, which take long to compile.
SEARCHED = """[
    pm.Gamma.dist(0.05, 1.0), pm.Gamma.dist(1e4, 2.0), pm.Beta.dist(0.05, 2.0),
    pm.StudentT.dist(3.0, 1.0, sigma=2.0), pm.TruncatedNormal.dist(0.0, 1.0, lower=-1.0),
]"""

FAMILIES = """
import pytensor

assert pytensor.config.floatX == "float32"
noise = np.linspace(-5, 5, 11)
for dist in FAMILIES:
    site = emf.compile(emf.bijection(dist))
    value, log_det = site.forward(noise)
    assert value.dtype == np.float32, dist
    assert np.isfinite(value).all() and np.isfinite(log_det).all(), dist
    np.testing.assert_allclose(site.inverse(value)[0], noise, atol=2e-3, err_msg=str(dist))
"""

FIT = """
backend = BACKEND
with pm.Model() as model:
    sigma = pm.HalfNormal("sigma", 1.0)
    mu = pm.Normal("mu", 0.0, 2.0)
    pm.Normal("y", mu, sigma, observed=np.array([1.0, 2.0, 3.0], dtype="float32"))
with model:
    method = emf.EMFApprox(layers=LAYERS, random_seed=1)
    approx = pm.fit(500, method=method, progressbar=False, **backend)
idata = approx.sample(2000, random_seed=1)
assert idata.posterior["mu"].dtype == np.float32
assert abs(float(idata.posterior["mu"].mean()) - 1.802) < 0.1  # by quadrature
assert (idata.posterior["sigma"] > 0).all()
assert np.isfinite(approx.hist).all()
"""
# PyMC's own loop has no schedule that averages over the noise of few draws
BACKENDS = {"JAX": "{}", "numba": '{"backend": "numba", "obj_n_mc": 20}'}

#: An operation that JAX lacks, and that is in double precision whatever floatX is.
CALLED = """
import jax
import pytensor.tensor as pt

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from pymc_emf.engine.jax import jaxify

class Twice(Op):
    def make_node(self, x):
        return Apply(self, [pt.as_tensor(x).astype("float64")], [pt.dscalar()])

    def perform(self, node, inputs, outputs):
        assert inputs[0].dtype == np.float64
        outputs[0][0] = 2.0 * inputs[0]

    def pullback(self, inputs, outputs, cotangents):
        return [2.0 * cotangents[0]]

x = pt.scalar("x")
twice = jaxify([x], [Twice()(x)], with_slopes=True)
value, slope = jax.value_and_grad(lambda x: twice(x)[0])(np.float32(3.0))
assert (float(value), float(slope), slope.dtype) == (6.0, 2.0, np.float32)
"""

CALLED_IN_A_FIT = """
from pymc_emf.variational import check

check.N_FINAL_DRAWS = 500  # each is a call of Python

with pm.Model() as model:
    pm.Normal("y", Twice()(pm.Normal("x")), 1.0, observed=2.0)
approx = emf.fit(100, model=model, layers="affine", random_seed=1, progressbar=False)
assert abs(float(approx.sample(1000, random_seed=1).posterior["x"].mean()) - 0.8) < 0.05
"""


def fit_of(backend, layers):
    return FIT.replace("BACKEND", BACKENDS[backend]).replace("LAYERS", repr(layers))


def run(script):
    flags = os.environ.get("PYTENSOR_FLAGS", "")
    environment = os.environ | {"PYTENSOR_FLAGS": f"{flags},floatX=float32".lstrip(",")}
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS + script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_single_precision():
    run(FAMILIES.replace("FAMILIES", FEW) + fit_of("JAX", "full_rank") + CALLED)


@pytest.mark.slow  # hundreds of calls of Python
def test_a_fit_with_calls_of_python():
    run(CALLED + CALLED_IN_A_FIT)


# each family is compiled twice, in seconds if its quantile is closed and in a minute if not
@pytest.mark.slow
@pytest.mark.parametrize("families", [CLOSED, SEARCHED], ids=["closed", "searched"])
def test_quantiles(families):
    run(FAMILIES.replace("FAMILIES", families))


# networks, which are in single precision anyway, and numba take half a minute to compile
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_layers(backend):
    run(fit_of(backend, "iaf"))
