"""The exactness law of ``pm.CustomDist(dist=...)`` with a scan inside."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms
from pymc.pytensorf import collect_default_updates

import pymc_emf as emf

from pymc_emf.bijections import bijection_from_rv
from tests.helpers import parametrize
from tests.laws import Family, custom, parametric

# PyTensor would rather have the generator passed on than its updates returned, PyMC's docs not yet
pytestmark = pytest.mark.filterwarnings("ignore:Scan return signature:DeprecationWarning")

START = pt.constant(0.3, dtype="float64")
INPUTS = np.array([0.1, -0.2, 0.3, 0.4])


def recursion(step, start, length, *parameters, **kwargs):
    """Scan a step that draws one variable."""

    def draw(*arguments):
        drawn = step(*arguments)
        return drawn, collect_default_updates([drawn])

    drawn, _ = pytensor.scan(
        draw, outputs_info=[start], n_steps=length, non_sequences=parameters, **kwargs
    )
    return drawn


def autoregression(rho, size):
    return recursion(lambda x, rho: pm.Normal.dist(rho * x, 0.5), START, 5, rho)


def second_order(rho, size):
    taps = {"initial": pt.constant([0.1, 0.2], dtype="float64"), "taps": [-2, -1]}
    return recursion(lambda x2, x1, rho: pm.Normal.dist(rho * x1 - 0.2 * x2, 0.5), taps, 5, rho)


def with_inputs(rho, inputs, size):
    def step(w, x, rho):
        return pm.Logistic.dist(rho * x + w, 0.5)

    return recursion(step, START, None, rho, sequences=[inputs])


def volatility(alpha, size):
    # the newer idiom, which passes the generator on
    def step(x, scale, rng, alpha):
        scale = pt.sqrt(0.1 + alpha * x**2 + 0.3 * scale**2)
        rng, x = pm.Normal.dist(0, scale, rng=rng, return_next_rng=True)
        return x, scale, rng

    x, _, _ = pytensor.scan(
        step,
        outputs_info=[START, START, pt.random.shared_rng(seed=None)],
        non_sequences=[alpha],
        n_steps=5,
        return_updates=False,
    )
    return x


def vectors(rho, size):
    cov = np.eye(3) + 0.3
    return recursion(lambda x, rho: pm.MvNormal.dist(rho * x, cov), pt.zeros(3), 4, rho)


def batch(rho, size):
    start = pt.zeros(2)
    return recursion(lambda x, rho: pm.Laplace.dist(rho * x, 0.5), start, 4, rho)


def independent(rho, size):
    drawn, _ = pytensor.scan(
        lambda w, rho: (lambda x: (x, collect_default_updates([x])))(pm.Gumbel.dist(rho * w, 1.0)),
        sequences=[pt.constant(INPUTS)],
        non_sequences=[rho],
    )
    return drawn


def positive(rho, size):
    start = pt.constant(1.3, dtype="float64")
    return recursion(lambda x, rho: pm.LogNormal.dist(rho * pt.log(x), 0.5), start, 5, rho)


def exponentiated(rho, size):
    start = pt.constant(1.3, dtype="float64")
    step = lambda x, rho: pt.exp(rho * pt.log(x) + pm.Laplace.dist(0, 0.5))  # noqa: E731
    return recursion(step, start, 4, rho)


DISTS = {
    "scan": lambda: custom(autoregression, 0.5, ndim_supp=1),
    "scan of second order": lambda: custom(second_order, 0.5, ndim_supp=1),
    "scan with inputs": lambda: custom(with_inputs, 0.5, INPUTS, signature="(),(t)->(t)"),
    "scan with a state": lambda: custom(volatility, 0.5, ndim_supp=1),
    "scan of vectors": lambda: custom(vectors, 0.5, ndim_supp=2),
    "scan batch": lambda: custom(batch, 0.5, ndim_supp=2),
    "scan without memory": lambda: custom(independent, 0.5, ndim_supp=1),
    "positive scan": lambda: custom(positive, 0.5, ndim_supp=1, transform=transforms.log),
    "scan of a function": lambda: custom(exponentiated, 0.5, ndim_supp=1, transform=transforms.log),
}

#: Root finding takes Python half a minute.
ROOT_FINDING = ("scan with inputs", "scan batch", "scan without memory", "scan of a function")


@cache
def family(name):
    dist, transform = DISTS[name]()
    return Family(dist, transform)


@parametrize(DISTS, slow=["scan of a function"])  # inverted by a search
def test_ungated_bijection_is_the_prior(name):
    family(name).check_prior()


# of these the gate acts in the same scan as in those that are left
@parametrize(
    DISTS,
    slow=["scan of second order", "scan batch", "scan without memory", "scan of a function"],
)
def test_gated_bijection(name):
    assert family(name).site.gateable
    family(name).check_gated()


@pytest.mark.parametrize("name", [name for name in DISTS if name not in ROOT_FINDING])
def test_backends_agree(name):
    family(name).check_backends()


@parametrize(DISTS, quick=[])  # numba takes up to half a minute
def test_numba_agrees(name):
    family(name).check_backends("NUMBA")


@pytest.mark.parametrize("dist", [second_order, volatility])
def test_parameter_gradients(dist):
    site = parametric((0.5,), lambda p: custom(dist, p, ndim_supp=1)[0], transform=None)
    site.check_parameter_gradients()


def unmeasured_start(mu, size):
    return recursion(lambda x: pm.Normal.dist(x, 0.5), pm.Normal.dist(mu, 1.0), 5)


def test_a_start_that_is_not_observed_is_not_embedded():
    dist, _ = custom(unmeasured_start, 0.5, ndim_supp=1)
    assert bijection_from_rv(dist, None) is None


def test_scan_joined_to_its_start_is_an_autoregression():
    # PyMC derives no log density of this one, and needs it given
    def joined(rho, size):
        start = pm.Normal.dist(0.0, 2.0)
        later = recursion(lambda x, rho: pm.Normal.dist(rho * x, 0.5), start, 5, rho)
        return pt.concatenate([start[None], later])

    dist, _ = custom(joined, 0.8, ndim_supp=1)
    expected = pm.AR.dist([0.8], sigma=0.5, init_dist=pm.Normal.dist(0, 2), steps=5)
    noise = np.random.default_rng(1).normal(size=6)
    actual = emf.compile(emf.bijection(dist)).forward(noise)
    for a, e in zip(actual, emf.compile(emf.bijection(expected)).forward(noise), strict=True):
        np.testing.assert_allclose(a, e)


def test_parameters_may_be_random():
    with pm.Model() as model:
        rho = pm.Normal("rho", 0.5, 0.1)
        pm.CustomDist("x", rho, dist=autoregression, ndim_supp=1)
        pm.CustomDist("y", rho, dist=lambda r, size: r + pm.Laplace.dist(0, 1, size=size), shape=2)
    layer = emf.StructuredLayer(model, gate="element")
    assert not layer.bypassed
    compiled = emf.compile(layer)
    noise = np.random.default_rng(1).normal(size=(4, layer.size))
    value, log_det = compiled.forward(noise)
    np.testing.assert_allclose(compiled.inverse(value)[0], noise, atol=1e-8)
    np.testing.assert_allclose(compiled.inverse(value)[1], -log_det, atol=1e-8)
