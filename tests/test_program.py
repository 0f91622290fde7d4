"""The walk, describe, and the structured layer on whole models."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms as tr
from pytensor.tensor.random.op import RandomVariable
from scipy.stats import norm, truncnorm

import pymc_emf as emf

from pymc_emf.bijections.core.affine import LocScale
from pymc_emf.bijections.core.base import _build
from pymc_emf.exceptions import DiscreteVariableError, EmbeddingError
from pymc_emf.model.program import Program
from tests.helpers import parametrize


def kitchen_sink():
    """Dims, data, deterministics, potentials, prefixes, bounds from parents, missing data."""
    observed = np.ma.masked_array([1.0, 2.0, 0.0, 4.0], mask=[0, 0, 1, 0])
    with pm.Model(coords={"group": ["a", "b", "c"], "time": range(5)}) as model:
        x = pm.Data("x", np.arange(4.0))
        sd = pm.HalfNormal("sd", 2.0)
        with pm.Model(name="inner"):
            mu = pm.Normal("mu", 0.0, sd)
        upper = pm.Deterministic("upper", 1.0 + sd)
        level = pm.Uniform("level", mu - 1.0, mu + upper, dims="group")
        pm.GaussianRandomWalk("walk", 0.0, sd, init_dist=pm.Normal.dist(0, 1), dims="time")
        raw = pm.Exponential("raw", 1.0, default_transform=None)
        pm.Potential("pull", -0.5 * level.sum() ** 2)
        pm.Deterministic("total", level.sum() + raw)
        pm.Normal("y", mu + raw * x, sd, observed=observed)
    return model


def test_walk():
    model = kitchen_sink()
    program = Program(model)
    sites = {site.name: site for site in program.sites}
    assert set(sites) == {rv.name for rv in model.free_RVs}
    assert sites["sd"].parents == ()
    assert sites["inner::mu"].parents == ("sd",)
    assert sites["level"].parents == ("sd", "inner::mu")
    assert sites["walk"].parents == ("sd",)
    assert sites["y_unobserved"].parents == ("sd", "inner::mu", "raw")
    assert sites["level"].shape == (3,)
    assert sites["walk"].shape == (5,)
    assert sites["y_unobserved"].shape == (1,)
    assert program.size == 12
    # the flat layout is that of model.free_RVs, as in PyMC's own variational inference
    start = 0
    for rv in model.free_RVs:
        site = sites[rv.name]
        assert site.noise == slice(start, start + site.size)
        start += site.size
    # parents come before children
    seen = set()
    for site in program.sites:
        assert seen.issuperset(site.parents)
        seen.add(site.name)


def test_walk_leaves_the_model_alone():
    model = kitchen_sink()
    before = model.point_logps(round_vals=6)
    initial = dict(model.rvs_to_initial_values)
    emf.StructuredLayer(model, "element")
    assert model.point_logps(round_vals=6) == before
    assert model.rvs_to_initial_values == initial


def test_creation_order_need_not_be_topological():
    with pm.Model() as model:
        a = pm.Normal("a")
        b = pm.Normal("b", a, 0.1)
        pm.Normal("c", b, 0.1)
    model.free_RVs.reverse()
    assert [site.name for site in Program(model).sites] == ["a", "b", "c"]
    noise = np.array([1.0, 2.0, 3.0])  # of c, b, a
    value, _ = emf.compile(emf.StructuredLayer(model)).forward(noise)
    np.testing.assert_allclose(value, [3.3, 3.2, 3.0])


@pytest.mark.parametrize(
    # gates of variables differ from those of elements in how many they are, and no gates are
    # compared with the prior below
    "gate",
    ["element", *(pytest.param(gate, marks=pytest.mark.slow) for gate in (None, "variable"))],
)
def test_layer_laws(gate):
    layer = emf.StructuredLayer(kitchen_sink(), gate, gate_init=0.6)
    compiled = emf.compile(layer)
    noise = np.random.default_rng(0).normal(size=(4, 3, layer.size))
    value, log_det = compiled.forward(noise)
    assert log_det.shape == (4, 3)
    back, inverse_log_det = compiled.inverse(value)
    np.testing.assert_allclose(back, noise, atol=1e-8)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-7)


def test_ungated_layer_is_the_prior_of_the_model():
    """Log phi - log|det| is PyMC's log density of the free variables, transforms included."""
    model = kitchen_sink()
    layer = emf.StructuredLayer(model)
    noise = np.random.default_rng(1).normal(size=layer.size)
    value, log_det = emf.compile(layer).forward(noise)
    point = {
        site.value_name: value[site.noise].reshape(site.shape)
        for site in layer.program.sites_in_model_order
    }
    expected = model.compile_fn(model.logp(vars=model.free_RVs))(point)
    np.testing.assert_allclose(norm.logpdf(noise).sum() - log_det, expected, rtol=1e-7)


def test_prior_draws_have_prior_moments():
    with pm.Model() as model:
        scale = pm.LogNormal("scale", 0.0, 0.3)
        pm.Normal("x", 1.0, scale)
    noise = np.random.default_rng(2).normal(size=(200_000, 2))
    value, _ = emf.compile(emf.StructuredLayer(model)).forward(noise)
    variance = np.exp(2 * 0.3**2)  # E scale^2
    assert abs(value[:, 1].mean() - 1.0) < 4 * np.sqrt(variance / 200_000)
    np.testing.assert_allclose(value[:, 1].var(), variance, rtol=0.02)


def test_log_density_is_pymcs():
    model = kitchen_sink()
    program = Program(model)
    value = pt.dvector("value")
    terms = program.log_density_terms(value)
    assert list(terms) == [*(v.name for v in program.frozen.basic_RVs), "pull"]
    flat = np.random.default_rng(3).normal(size=program.size)
    flat[program.size - 2 :] = np.abs(flat[program.size - 2 :])  # raw is positive
    point = {
        site.value_name: flat[site.noise].reshape(site.shape)
        for site in program.sites_in_model_order
    }
    total = pt.add(*terms.values()).eval({value: flat})
    np.testing.assert_allclose(total, model.compile_logp()(point))


def test_log_expm1_transform():
    with pm.Model() as model:
        pm.Exponential("x", 1.0, default_transform=None, transform=tr.LogExpM1(), shape=3)
    layer = emf.StructuredLayer(model)
    assert not layer.bypassed
    noise = np.array([-1.5, 0.2, 1.0])
    compiled = emf.compile(layer)
    value, log_det = compiled.forward(noise)
    np.testing.assert_allclose(compiled.inverse(value)[0], noise, atol=1e-9)
    logp = model.compile_fn(model.logp(vars=model.free_RVs))
    expected = logp({layer.program.sites[0].value_name: value})
    np.testing.assert_allclose(norm.logpdf(noise).sum() - log_det, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("transform", "bounds"),
    [
        (tr.Interval(None, 5.0), (-np.inf, 5.0)),
        (tr.Interval(0.0, 10.0), (0.0, 10.0)),
    ],
)
@pytest.mark.slow  # the quadrature takes long to compile, and its laws are tested by family
def test_transform_narrower_than_the_support_truncates(transform, bounds):
    with pm.Model() as model:
        pm.Normal("x", 4.0, 2.0, transform=transform, initval=np.ones(7), shape=7)
    layer = emf.StructuredLayer(model, "element")
    assert not layer.bypassed
    noise = np.linspace(-6, 6, 7)
    compiled = emf.compile(emf.StructuredLayer(model))
    value, log_det = compiled.forward(noise)
    np.testing.assert_allclose(compiled.inverse(value)[0], noise, atol=1e-7)
    x = transform.backward(value).eval()
    expected = truncnorm(*((b - 4.0) / 2.0 for b in bounds), 4.0, 2.0)
    falling = x[0] > x[-1]  # log(upper - x)
    tail = np.where((noise < 0) ^ falling, expected.cdf(x), expected.sf(x))
    np.testing.assert_allclose(tail, norm.sf(abs(noise)), rtol=1e-6)
    # PyMC's density is that of the normal, not of its truncation
    logp = model.compile_fn(model.logp(vars=model.free_RVs))
    mass = np.log(np.diff(norm(4.0, 2.0).cdf(bounds))).item()
    expected = logp({layer.program.sites[0].value_name: value}) - 7 * mass
    np.testing.assert_allclose(norm.logpdf(noise).sum() - log_det, expected, rtol=1e-6)


def test_bypassed_variables():
    with pm.Model() as model:
        pm.Flat("slope")
        pm.HalfFlat("scale", shape=2)
        pm.Normal("x", 0.0, 1.0)
    layer = emf.StructuredLayer(model, "element")
    assert layer.bypassed == {"slope", "scale"}
    assert layer.size == 1 + 2 + 1
    values = [p.get_value() for p in layer.own_parameters]
    gates = layer.gates(values)
    assert gates["slope"] == 0
    np.testing.assert_allclose(gates["x"], 0.999)
    table = str(emf.describe(model))
    assert table.count("bypassed: improper") == 2
    with pytest.raises(EmbeddingError, match="slope"):
        emf.StructuredLayer(model, embed="strict")
    assert emf.StructuredLayer(model, embed=False).bypassed >= {"x", "slope"}


def test_bounded_without_transform_is_not_gated():
    with pm.Model() as model:
        pm.Exponential("x", 1.0, default_transform=None)
    layer = emf.StructuredLayer(model, "element", gate_init=0.5)
    assert layer.parameters == []
    value, _ = emf.compile(layer).forward(np.linspace(-6, 6, 5)[:, None])
    assert (value > 0).all()
    assert "not gated" in str(emf.describe(model))


def test_describe_html():
    html = emf.describe(kitchen_sink())._repr_html_()
    assert html.startswith("<table>")
    assert "inner::mu" in html


class UnheardOfRV(RandomVariable):
    """A distribution without a density in PyMC."""

    name = "unheard_of"
    signature = "()->()"
    dtype = "floatX"


@pytest.mark.parametrize("gate", ["element", "variable"])
def test_gates_are_those_of_the_values(gate):
    with pm.Model() as model:
        pm.Flat("slope")
        pm.Normal("x", shape=(2, 3))
        pm.Normal("y")
    layer = emf.StructuredLayer(model, gate, gate_init=0.6)
    (raw,) = layer.own_parameters
    given = np.linspace(-0.05, 0.05, raw.get_value().size)
    gates = layer.gates([given])
    opened = 1 / (1 + np.exp(-100 * given))
    of_x = opened[:-1].reshape((2, 3)) if gate == "element" else np.full((2, 3), opened[0])
    np.testing.assert_allclose(gates["x"], of_x)
    np.testing.assert_allclose(gates["y"], opened[-1])
    assert gates["slope"] == 0
    opened = layer.gates(layer.prior_values([given]))
    np.testing.assert_allclose(np.append(opened["x"], opened["y"]), 1.0)
    np.testing.assert_allclose(layer.gates([raw.get_value()])["x"], 0.6)  # which has not changed


TINY = 1e-20
NARROW = {
    "normal": lambda: pm.Normal("x", 0.0, TINY),
    "student": lambda: pm.StudentT("x", nu=3, mu=0.0, sigma=TINY),
    "laplace": lambda: pm.Laplace("x", 0.0, TINY),
    "mixture": lambda: pm.NormalMixture("x", [0.5, 0.5], [-TINY, TINY], [TINY, TINY]),
    "multivariate": lambda: pm.MvNormal("x", np.zeros(2), chol=TINY * np.eye(2)),
    "multivariate student": lambda: pm.MvStudentT("x", nu=4, mu=np.zeros(2), chol=TINY * np.eye(2)),
    "walk": lambda: pm.GaussianRandomWalk(
        "x", sigma=TINY, init_dist=pm.Normal.dist(0.0, TINY), shape=3
    ),
    "autoregressive": lambda: pm.AR(
        "x", rho=[0.5], sigma=TINY, init_dist=pm.Normal.dist(0.0, TINY), shape=3
    ),
}


@parametrize(NARROW, quick=["normal", "laplace"])  # up to seven seconds each to compile
def test_open_gates_on_a_narrow_prior(name):
    """With a gate that is one but for the last digit, nothing is added and nothing is lost."""
    with pm.Model() as model:
        NARROW[name]()
    layer, prior = emf.StructuredLayer(model, "element"), emf.StructuredLayer(model)
    own = [p.get_value() for p in layer.own_parameters]
    np.testing.assert_allclose(layer.gates(own)["x"], 0.999)
    (raw,) = layer.with_open_gates(own, np.full(layer.size, TINY))
    layer.own_parameters[0].set_value(raw)
    noise = np.linspace(-1.0, 1.2, layer.size)
    value, log_det = emf.compile(layer).forward(noise)
    expected, expected_log_det = emf.compile(prior).forward(noise)
    np.testing.assert_allclose(value, expected, rtol=0.002)
    np.testing.assert_allclose(log_det, expected_log_det, atol=0.01)
    again, back = emf.compile(layer).inverse(value)
    np.testing.assert_allclose(again, noise, atol=1e-5)
    np.testing.assert_allclose(back, -log_det, rtol=1e-6)


def bounded_by_parts():
    with pm.Model() as model:
        for i, lower in enumerate((0.0, 1.0, 1.0)):  # a bound of one is that of the transform
            pm.Uniform(
                f"x_{i}",
                lower,
                5.0,
                default_transform=None,
                transform=tr.Interval(1.0, 5.0),
                initval=4.0,
            )
    return model


def test_layers_share_a_program():
    """What a layer keeps out of the patterns is its own affair."""
    program = Program(bounded_by_parts())
    layer = emf.StructuredLayer(program, embed=False)
    n_patterns = len(program.patterns)
    other = emf.StructuredLayer(program)
    assert len(other.program.patterns) > n_patterns == len(layer.program.patterns)
    assert other.program.frozen is program.frozen
    noise = np.random.default_rng(4).normal(size=(2, layer.size))
    compiled = emf.compile(layer)
    for direction in (compiled.forward, compiled.inverse):  # nothing is embedded
        image, log_det = direction(noise)
        np.testing.assert_array_equal(image, noise)
        np.testing.assert_array_equal(log_det, 0)


@pytest.mark.slow  # a quadrature, which takes long to compile, twice
def test_layers_that_share_a_program_are_those_of_the_model():
    model = bounded_by_parts()
    program = Program(model)
    emf.StructuredLayer(program, embed=False)
    other = emf.StructuredLayer(program)
    noise = np.random.default_rng(4).normal(size=(2, other.size))
    value, _ = emf.compile(other).forward(noise)
    np.testing.assert_array_equal(value, emf.compile(emf.StructuredLayer(model)).forward(noise)[0])


def test_registry():
    with pm.Model() as model:
        _, rv = UnheardOfRV()(1.0, rng=pt.random.shared_rng(seed=1), return_next_rng=True)
        model.register_rv(rv, "x", initval=0.0)
    assert emf.StructuredLayer(model).bypassed == {"x"}

    @emf.register_bijection(UnheardOfRV)
    def unheard_of(op, rv, transform):
        (mu,) = op.dist_params(rv.owner)
        return LocScale(mu, pt.ones_like(mu))

    try:
        assert not emf.StructuredLayer(model).bypassed
    finally:
        _build.register(UnheardOfRV)(lambda op, rv, transform: None)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: None, TypeError, "no free random variables"),
        (lambda: pm.Poisson("n", 3.0), DiscreteVariableError, "n; marginalise"),
        (
            lambda: pm.Censored("x", pm.Normal.dist(), lower=0.0, upper=None),
            DiscreteVariableError,
            "x is censored",
        ),
        (
            lambda: pm.HurdleGamma(
                "y", 0.5, 2.0, 1.0, observed=np.ma.masked_array([1.0, 2.0], [True, False])
            ),
            DiscreteVariableError,
            "y_unobserved is censored or has a hurdle",
        ),
        (lambda: pm.Normal("x", shape=0), ValueError, "x has no elements"),
        (
            lambda: pm.Normal(
                "y", pm.Normal("x"), observed=pytensor.shared(np.array([1.0, np.nan]))
            ),
            ValueError,
            "observed variable y contain NaN",
        ),
    ],
)
def test_bad_models(build, error, match):
    with pm.Model() as model:
        build()
    with pytest.raises(error, match=match):
        Program(model)


def test_data_that_were_cast_may_change():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("x"), observed=pm.Data("integers", [1, 2, 3]))
    (data,) = Program(model, data_may_change=True).data.values()
    assert data.get_value().tolist() == [1.0, 2.0, 3.0]


def test_nested_model_is_refused():
    with pm.Model():
        with pm.Model(name="inner") as inner:
            pm.Normal("x")
        with pytest.raises(ValueError, match="fit the outermost model"):
            Program(inner)


@pytest.mark.parametrize(
    "options", [{"gate": "both"}, {"gate_init": 1.0}, {"gate_init": -1}, {"embed": "maybe"}]
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        emf.StructuredLayer(kitchen_sink(), **options)
