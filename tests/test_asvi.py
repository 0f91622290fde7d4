"""ASVI: conditional distributions whose parameters are mixed with trainable ones."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from pymc.distributions.transforms import _default_transform, ordered

import pymc_emf as emf

from pymc_emf.bijections.mixing import COVARIANCE, POSITIVE, REAL, UNIT, parameter_domains
from pymc_emf.layers import mixed_layer
from pymc_emf.layers.parameters import store

quiet = {"progressbar": False}


def families():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 10.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=4)
        rate = pm.Exponential("rate", tau, shape=3)
        pm.Uniform("uniform", 0.0, tau)
        pm.Flat("flat")
        pm.Kumaraswamy("kumaraswamy", rate[0], 2.0, shape=2)
        pm.Gumbel("gumbel", mu=mu, beta=tau)
        pm.Normal("ordered", [-1.0, 0.0, 1.0], tau, transform=ordered, shape=3)
        pm.MvNormal("mv", mu=theta, cov=2 * np.eye(4) + 0.5)
    return model


def searched():
    """Quantiles without a closed form."""
    with pm.Model() as model:
        gamma = pm.Gamma("gamma", 2.0, 3.0, shape=3)
        pm.Dirichlet("dirichlet", gamma)
    return model


def series():
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        first = pm.Normal.dist(0.0, 1.0)
        pm.GaussianRandomWalk("walk", mu=0.1, sigma=sigma, init_dist=first, shape=6)
        pm.AR("ar", rho=[0.1, 0.5, 0.2], sigma=sigma, constant=True, init_dist=first, shape=7)
        pm.EulerMaruyama(
            "sde", 0.1, lambda x, a: (-a * x, 1.0 + 0.1 * x**2), (sigma,), init_dist=first, shape=5
        )
        pm.GARCH11("garch", omega=1.0, alpha_1=0.2, beta_1=0.3, initial_vol=1.0, shape=5)
        pm.MvGaussianRandomWalk(
            "mv",
            mu=np.zeros(2),
            cov=np.eye(2),
            init_dist=pm.MvNormal.dist(np.zeros(2), np.eye(2)),
            shape=(4, 2),
        )

        def draw(a, b, size):
            return pt.exp(pm.Normal.dist(a, b, size=size))

        pm.CustomDist("custom", sigma, 2.0, dist=draw, shape=3)
    return model


def loop():
    with pm.Model() as model:
        x = pm.Normal("x0", 0.0, 1.0)
        for i in range(1, 6):
            x = pm.Normal(f"x{i}", x + pt.sin(x), 0.1)
    return model


class Mixed:
    """A mixed layer, compiled once."""

    def __init__(self, model):
        self.model = model
        self.layer = mixed_layer(model, 0.7)
        self.initial = self.layer.parameters[0].get_value()
        self.compiled = emf.compile(self.layer)


MODELS = {"families": families, "searched": searched, "series": series, "loop": loop}
#: Each takes XLA ten seconds or more; a walk and an AR are in the tests without weights below.
SLOW = ["searched", "series"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODELS],
)
def mixed(request):
    return Mixed(MODELS[request.param]())


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_laws(mixed, seed):
    rng = np.random.default_rng(seed)
    (raw,) = mixed.layer.parameters
    raw.set_value(mixed.initial + 0.5 * rng.normal(size=mixed.initial.shape))
    noise = rng.normal(size=mixed.layer.size)
    step = 1e-6 * np.eye(noise.size)
    noise = np.concatenate([noise[None], noise + step, noise - step])
    value, log_det = mixed.compiled.forward(noise)
    back, inverse_log_det = mixed.compiled.inverse(value)
    np.testing.assert_allclose(back, noise, atol=1e-6)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-6)
    above, below = np.split(value[1:], 2)
    np.testing.assert_allclose(log_det[0], np.linalg.slogdet((above - below) / 2e-6)[1], atol=1e-5)


def values_of(layer):
    return [p.get_value() for p in layer.own_parameters]


def set_weights(layer, weight):
    """Set all weights of the prior, and leave the alternatives."""
    store(layer.own_parameters, layer.strategy.with_weights(values_of(layer), weight))


def test_full_weight_is_the_prior(mixed):
    mixed.layer.parameters[0].set_value(mixed.initial)
    set_weights(mixed.layer, 1 - 1e-15)
    noise = np.random.default_rng(0).normal(size=(1 + 2 * mixed.layer.size, mixed.layer.size))
    value, log_det = mixed.compiled.forward(noise)
    prior, prior_log_det = emf.compile(emf.StructuredLayer(mixed.model)).forward(noise)
    np.testing.assert_allclose(value, prior, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(log_det, prior_log_det, rtol=1e-8, atol=1e-8)


def test_no_weight_is_independent():
    """Without the prior's parameters the elements know nothing of each other."""
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        first = pm.Normal.dist(sigma, 1.0)
        walk = pm.GaussianRandomWalk("walk", sigma=sigma, init_dist=first, shape=4)
        pm.AR("ar", rho=[0.5, 0.2], sigma=sigma, init_dist=first, shape=5)
        pm.Normal("x", walk, sigma)
    layer = mixed_layer(model)
    set_weights(layer, 1e-15)
    noise = np.random.default_rng(1).normal(size=layer.size)
    noise = np.concatenate([noise[None], noise + 1e-3 * np.eye(layer.size)])
    value, _ = emf.compile(layer).forward(noise)
    moved = np.abs(value[1:] - value[0]) > 1e-10
    np.testing.assert_array_equal(moved, np.eye(layer.size, dtype=bool))


def test_starts_in_the_middle_of_the_prior():
    with pm.Model() as model:
        mu = pm.Normal("mu", 3.0, 1.0)
        pm.Normal("x", 2 * mu, 0.5, shape=2)
        pm.GaussianRandomWalk("walk", mu=1.0, sigma=0.5, init_dist=pm.Normal.dist(mu, 1), shape=4)
    layer = mixed_layer(model)
    value, _ = emf.compile(layer).forward(np.zeros(layer.size))
    np.testing.assert_allclose(value, [3, 6, 6, 3, 4, 5, 6], atol=1e-9)
    weights = layer.strategy.prior_weights(values_of(layer))
    assert [w.shape for w in weights["x"]] == [(2,), (2,)]
    np.testing.assert_allclose(np.concatenate([w.ravel() for w in weights["walk"]]), 0.5)


DOMAINS = {
    "Normal": (pm.Normal.dist(0, 1), [REAL, POSITIVE]),
    "integers": (pm.Gamma.dist(2, 100), [POSITIVE, POSITIVE]),
    "HalfNormal": (pm.HalfNormal.dist(1.0), [POSITIVE]),
    "StudentT": (pm.StudentT.dist(nu=3.0, mu=0.0, sigma=1.0), [POSITIVE, REAL, POSITIVE]),
    "one for both": ((lambda a: pm.Beta.dist(a, a))(pt.scalar("a")), [POSITIVE, POSITIVE]),
    "Uniform": (pm.Uniform.dist(0.0, 1.0), []),
    "Triangular": (pm.Triangular.dist(lower=0.0, c=0.5, upper=1.0), []),
    "TruncatedNormal": (pm.TruncatedNormal.dist(0.0, 1.0, lower=0.0), [REAL, POSITIVE]),
    "Pareto": (pm.Pareto.dist(3.0, 2.0), [POSITIVE]),
    "Wald": (pm.Wald.dist(1.0, 2.0), [POSITIVE, POSITIVE]),
    "Kumaraswamy": (pm.Kumaraswamy.dist(1.0, 2.0), [POSITIVE, POSITIVE]),
    "Dirichlet": (pm.Dirichlet.dist(np.ones(3)), [POSITIVE]),
    "MvNormal": (pm.MvNormal.dist(np.zeros(2), np.eye(2)), [REAL, COVARIANCE]),
    "MvStudentT": (
        pm.MvStudentT.dist(nu=4.0, mu=np.zeros(2), scale=np.eye(2)),
        [POSITIVE, REAL, COVARIANCE],
    ),
    "LKJCorr": (pm.LKJCorr.dist(n=3, eta=2.0), [POSITIVE]),
    "ZeroSumNormal": (pm.ZeroSumNormal.dist(1.0, shape=3), [POSITIVE]),
    "NormalMixture": (pm.NormalMixture.dist(w=[0.5, 0.5], mu=[0.0, 1.0], sigma=1.0), []),
    "checked by the user": (
        pm.CustomDist.dist(
            0.5,
            logp=lambda value, p: pm.distributions.dist_math.check_parameters(
                pm.logp(pm.Normal.dist(p, 1.0), value), p > 0, p < 1
            ),
        ),
        [UNIT],
    ),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_domains(name):
    rv, expected = DOMAINS[name]
    found = parameter_domains(rv, _default_transform(rv.owner.op, rv))
    assert list(found.values()) == expected


@pytest.mark.parametrize(
    # the search of an ordered vector takes half of the time to compile
    "with_ordered",
    [False, pytest.param(True, marks=pytest.mark.slow)],
)
def test_integers_as_parameters(with_ordered):
    """They are mixed with real numbers, and stay as they are where a graph wants integers."""

    def draw(a, b, size):
        return pt.exp(pm.Normal.dist(a, b, size=size))

    with pm.Model() as model:
        if with_ordered:
            pm.Normal("ordered", 0, 1, transform=ordered, shape=3)
        pm.CustomDist("custom", 0.5, 2, dist=draw, shape=2)
        pm.MvNormal("mv", mu=[0, 0], cov=np.eye(2))
    layer = mixed_layer(model)
    weights = layer.strategy.prior_weights(values_of(layer))
    shapes = {name: [w.shape for w in ws] for name, ws in weights.items()}
    expected = {"custom": [()], "mv": [(2,), (1, 1)]}
    assert shapes == expected | ({"ordered": [(1,), (1,)]} if with_ordered else {})
    (raw,) = layer.parameters
    raw.set_value(raw.get_value() + 0.3)
    noise = np.random.default_rng(0).normal(size=layer.size)
    compiled = emf.compile(layer)
    value, _ = compiled.forward(noise)
    np.testing.assert_allclose(compiled.inverse(value)[0], noise, atol=1e-8)
    prior, _ = emf.compile(emf.StructuredLayer(model)).forward(noise)
    assert (np.abs(value - prior) > 1e-3).all()


def test_covariances_stay_positive_definite():
    raw = np.random.default_rng(0).normal(size=(5, 3, 3))
    covariance = COVARIANCE.forward(pt.constant(raw)).eval()
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    np.testing.assert_allclose(
        COVARIANCE.forward(pt.constant(COVARIANCE.backward(covariance))).eval(), covariance
    )


class TestFit:
    def test_forward_chain(self):
        """A walk seen through noise: its posterior's conditionals are those of a walk."""
        y = np.array([0.3, -0.1, 0.8, 1.5, 1.1])
        with pm.Model() as model:
            start = pm.Normal.dist(0.0, 1.0)
            x = pm.GaussianRandomWalk("x", sigma=0.5, init_dist=start, shape=5)
            pm.Normal("y", x, 0.3, observed=y)
            approx = pm.fit(6000, method=emf.ASVI(random_seed=0), **quiet)
        steps = np.tri(5) * np.array([1.0, 0.5, 0.5, 0.5, 0.5])
        covariance = steps @ steps.T + 0.3**2 * np.eye(5)
        log_evidence = pm.logp(pm.MvNormal.dist(np.zeros(5), covariance), y).eval()
        elbo = approx.elbo(20_000, random_seed=1)
        assert -0.03 < elbo.mean - log_evidence < 3 * elbo.se
        idata = approx.sample(500, random_seed=1)
        assert idata.posterior["x"].shape == (1, 500, 5)
        assert (approx.gates["x"] == 1).all()
        value = approx.log_prob({"x": idata.posterior["x"].values[0]})
        np.testing.assert_allclose(value, idata.sample_stats["lq"].values[0], rtol=1e-8)
        assert model is approx.model

    def test_children_stay_independent(self):
        """What only the data make dependent is the gap that is left."""
        with pm.Model():
            a, b = pm.Normal("a", 0.0, 1.0), pm.Normal("b", 0.0, 1.0)
            pm.Normal("y", a + b, 0.5, observed=1.0)
            approx = pm.fit(4000, method=emf.ASVI(random_seed=0), **quiet)
        posterior = approx.sample(20_000, random_seed=1).posterior
        assert abs(np.corrcoef(posterior["a"][0], posterior["b"][0])[0, 1]) < 0.03
        # the best independent normals have the variances of the conditionals
        np.testing.assert_allclose(posterior["a"].std(), 0.2**0.5, rtol=0.05)
        np.testing.assert_allclose(posterior["a"].mean(), 1 / 2.25, atol=0.03)

    @pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
    def test_bad_weight(self, weight):
        with pytest.raises(ValueError, match="prior_weight must lie strictly between 0 and 1"):
            emf.ASVI(prior_weight=weight)
