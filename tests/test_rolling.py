"""Isomorphic variables rolled up: the same numbers as one by one, in graphs that do not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms as tr
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan
from scipy.special import expit
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.engine.jax import jaxify
from pymc_emf.layers.gates import GATE_SCALE
from pymc_emf.layers.structured import _embedding
from pymc_emf.model.program import Program
from pymc_emf.rolling import Batch, Loop, Values
from tests.helpers import UNREWRITTEN

rng = np.random.default_rng(0)


def drift(x, y, z):
    return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z


def lorenz_vectors(steps=6):
    with pm.Model() as model:
        v = [pm.Normal("v_0", 0, 1, shape=3)]
        for t in range(1, steps):
            mu = v[-1] + 0.02 * pt.stack(drift(v[-1][0], v[-1][1], v[-1][2]))
            v.append(pm.Normal(f"v_{t}", mu, 0.1, shape=3))
        pm.Normal("data", pt.stack([x[0] for x in v]), 1.0, observed=np.arange(steps))
    return model


def lorenz_scalars(steps=6):
    with pm.Model() as model:
        state = [pm.Normal(f"{name}_0", 0, 1) for name in "xyz"]
        path = [state[0]]
        for t in range(1, steps):
            means = [u + 0.02 * d for u, d in zip(state, drift(*state), strict=True)]
            state = [pm.Normal(f"{n}_{t}", m, 0.1) for n, m in zip("xyz", means, strict=True)]
            path.append(state[0])
        pm.Normal("data", pt.stack(path), 1.0, observed=np.arange(steps))
    return model


def lorenz_observed_in_the_loop(steps=6):
    with pm.Model() as model:
        v = pm.Normal("v_0", 0, 1, shape=3)
        pm.Normal("data_0", v[0], 1.0, observed=0.3)
        for t in range(1, steps):
            v = pm.Normal(f"v_{t}", v + 0.02 * pt.stack(drift(v[0], v[1], v[2])), 0.1, shape=3)
            pm.Normal(f"data_{t}", v[0], 1.0, observed=float(t))
    return model


def tree(depth=4):
    with pm.Model() as model:
        layer = [pm.Normal(f"n_{depth - 1}_{i}", 0, 0.1) for i in range(2 ** (depth - 1))]
        for level in reversed(range(1, depth - 1)):
            pairs = zip(layer[::2], layer[1::2], strict=True)
            layer = [
                pm.Normal(f"n_{level}_{i}", pt.tanh(a) - pt.tanh(b), 0.05)
                for i, (a, b) in enumerate(pairs)
            ]
        pm.Normal("data", pt.tanh(layer[0]) - pt.tanh(layer[1]), 0.05, observed=0.3)
    return model


def plates():
    """Siblings as Python lists, with data of different values, and a positive scale each."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2)
        slopes = pm.Normal("slopes", 0, 1, shape=(4, 2))
        for i in range(3):
            scale = pm.LogNormal(f"scale_{i}", 0.0, 1.0 + i)
            theta = pm.Normal(f"theta_{i}", mu + slopes[i, 1], scale, shape=2)
            pm.Normal(f"data_{i}", theta, [1.0, 0.5 + i], observed=rng.normal(size=2))
            pm.Poisson(f"count_{i}", pt.exp(theta[0]), observed=i)
    return model


def two_lags(steps=7):
    with pm.Model() as model:
        a = pm.Normal("a", 0, 0.3)
        b = pm.Normal("b", 0, 0.3)
        x = [pm.Normal("x_0", 0, 1), pm.Normal("x_1", 1, 2)]
        for t in range(2, steps):
            x.append(pm.Normal(f"x_{t}", a * x[-1] + b * x[-2], 0.5))
        pm.Normal("data", pt.stack(x), 1.0, observed=np.ones(steps))
    return model


def positive_chain(steps=5):
    """Another scale, by a latent vector and by a constant, at each step."""
    with pm.Model() as model:
        level = pm.Normal("level", 0, 1, shape=steps)
        x = pm.Exponential("x_0", 1.0)
        for t in range(1, steps):
            x = pm.LogNormal(f"x_{t}", pt.log1p(x) + level[t], 0.1 + 0.05 * t)
            pm.Exponential(f"e_{t}", x)
            pm.Potential(f"pull_{t}", -0.1 * t * x)
    return model


def panel(steps=6, chains=3):
    with pm.Model() as model:
        sd = pm.LogNormal("sd", 0, 1.0)
        ends = []
        for i in range(chains):
            x = pm.Normal(f"x_{i}_0", 0, 1)
            for t in range(1, steps):
                x = pm.Normal(f"x_{i}_{t}", 0.9 * x, sd)
            ends.append(x)
        pm.Normal("data", pt.stack(ends), 1.0, observed=np.ones(chains))
    return model


def bounds_from_the_step_before(steps=5):
    """The transform needs the parent, so that the constrained values are a scan too."""
    with pm.Model() as model:
        x = pm.Uniform("x_0", 0, 1)
        for t in range(1, steps):
            x = pm.Uniform(f"x_{t}", 0, 0.5 + x)
        pm.Normal("data", x, 1.0, observed=1.0)
    return model


def alternating(steps=6):
    """Two families in a circle, one step of the chain being two levels of the graph."""
    with pm.Model() as model:
        x = pm.Normal("x_0", 0, 1)
        for t in range(1, steps):
            h = pm.LogNormal(f"h_{t}", 0.3 * x, 0.2)
            x = pm.Normal(f"x_{t}", 0.8 * x, h)
        pm.Normal("data", x, 1.0, observed=1.0)
    return model


def gated_quantiles():
    """The inverse of each is an iteration, which a batch must run as one."""
    with pm.Model() as model:
        for i in range(3):
            # not a number that float32 can hold: PyMC's own log density would be in float32
            pm.Exponential(f"x_{i}", 1.1 + i)
    return model


def mixed():
    """Some variables alone, a bypassed batch, an irregular chain, imputed data."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        for i in range(3):
            pm.Flat(f"free_{i}")
            pm.Uniform(f"u_{i}", mu - 1, mu + 1, default_transform=None)
        x = [pm.Normal("x_0", mu, 1)]
        for parent in (0, 0, 1, 2, 2, 4):
            x.append(pm.Normal(f"x_{len(x)}", x[parent], 1.0 + parent))
        walks = [
            pm.GaussianRandomWalk(f"w_{i}", 0, 0.1 + i, init_dist=pm.Normal.dist(0, 1), steps=3)
            for i in range(3)
        ]
        missing = np.ma.masked_array([1.0, 0.0], mask=[0, 1])
        pm.Normal("y", x[-1] + walks[0][1] * walks[2][0], 1.0, observed=missing)
        pm.Potential("pull", -0.5 * (x[3] - model["u_0"]) ** 2)
    return model


#: Each model, and how many loops, batches of several and single sites it has.
MODELS = {
    lorenz_vectors: (1, 0, 1),
    lorenz_scalars: (1, 1, 0),
    lorenz_observed_in_the_loop: (1, 0, 1),
    tree: (0, 3, 0),
    plates: (0, 2, 2),
    two_lags: (1, 0, 4),
    positive_chain: (1, 1, 2),
    panel: (1, 1, 1),
    bounds_from_the_step_before: (1, 0, 1),
    alternating: (1, 0, 1),
    gated_quantiles: (0, 1, 0),
    mixed: (0, 5, 4),
}
#: The gate of each, where it is not "element"; gated quantiles take long to compile.
GATES = {
    two_lags: "variable",
    panel: "variable",
    plates: None,
    positive_chain: None,
    bounds_from_the_step_before: None,
}


def one_by_one(layer, flat, direction):
    """EMF Eq. 5 and 6 site by site, as they are written."""
    program = layer.program
    image, log_dets, constrained = pt.zeros(layer.size), [], {}
    for site in program.sites:
        (rv,) = program.given([site.rv], constrained)
        embedding = _embedding(site, rv, True)
        if site.name in layer.strategy.places:
            raw = pt.as_tensor(layer.own_parameters[0])[layer.strategy.places[site.name]]
            embedding = embedding.gated(pt.sigmoid(GATE_SCALE * raw))
        piece = site.take(flat)
        out, log_det = getattr(embedding, direction)(piece)
        constrained[site.rv] = site.constrain(rv, out if direction == "forward" else piece)
        image = image[site.noise].set(out.reshape((site.size,)))
        log_dets.append(log_det)
    return image, pt.add(*log_dets), constrained


def outputs_rolled(layer, noise, value):
    terms = layer.program.log_density_terms(value)
    constrained = layer.constrain(value)
    return [
        *layer.forward(noise),
        *layer.inverse(value),
        *(constrained[site.rv] for site in layer.program.sites),
        *terms.values(),
    ]


def outputs_one_by_one(layer, noise, value):
    program = layer.program
    noise_back, log_det, constrained = one_by_one(layer, value, "inverse")
    variables = [*program.frozen.basic_RVs, *program.frozen.potentials]
    terms = [term.sum() for term in program.frozen.logp(vars=variables, sum=False)]
    values = {site.value: site.take(value) for site in program.sites}
    return [
        *one_by_one(layer, noise, "forward")[:2],
        noise_back,
        log_det,
        *(constrained[site.rv] for site in program.sites),
        *graph_replace(terms, values, strict=False),
    ]


def compiled(function, numbers):
    """Run a JAX function once, compiled in the least time."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*numbers).compile(compiler_options=options)(*numbers)


#: Each takes XLA five to ten seconds; what they roll up the others do too, in other combinations.
SLOW = (
    lorenz_vectors,
    lorenz_scalars,
    lorenz_observed_in_the_loop,
    positive_chain,
    panel,
    bounds_from_the_step_before,
    gated_quantiles,
    tree,
    alternating,
    mixed,
)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=build.__name__, marks=[pytest.mark.slow] if build in SLOW else [])
        for build in MODELS
    ],
)
def test_same_numbers(build):
    """Values, log|det|, constrained variables, log densities, and all their gradients."""
    layer = emf.StructuredLayer(build(), GATES.get(build, "element"), gate_init=0.7)
    single = [p for p in layer.plan if isinstance(p, Batch) and len(p.rows) == 1]
    loops = [p for p in layer.plan if isinstance(p, Loop)]
    assert (len(loops), len(layer.plan) - len(loops) - len(single), len(single)) == MODELS[build]

    for parameter in layer.parameters:
        value = parameter.get_value()
        parameter.set_value((0.02 * rng.normal(size=value.shape)).astype(value.dtype))
    noise, value = (pt.vector(name, shape=(layer.size,)) for name in ("noise", "value"))
    inputs = [*layer.parameters, noise, value]
    numbers = [
        *(p.get_value() for p in layer.parameters),
        0.5 * rng.normal(size=layer.size),
        0.3 + 0.1 * rng.uniform(size=layer.size),
    ]
    found = []
    for write in (outputs_rolled, outputs_one_by_one):
        function = jaxify(inputs, write(layer, noise, value))

        def weighted(*numbers, function=function):
            outputs = [jnp.asarray(o) for o in function(*numbers)]
            weights = [
                np.cos(1 + i + np.arange(o.size).reshape(o.shape)) for i, o in enumerate(outputs)
            ]
            return sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)), outputs

        derive = jax.value_and_grad(weighted, argnums=tuple(range(len(inputs))), has_aux=True)
        (_, outputs), gradients = compiled(derive, numbers)
        found.append([*outputs, *gradients])
    for actual, expected in zip(*found, strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def size_of_graph(build, steps):
    layer = emf.StructuredLayer(build(steps), "element")
    noise = pt.vector("noise", shape=(layer.size,))
    value, log_det = layer.forward(noise)
    terms = [term for _, term in layer.program.log_density_batches(value)]
    nodes = {v.owner for v in ancestors([log_det, *terms]) if v.owner is not None}
    return len(nodes), sum(isinstance(node.op, Scan) for node in nodes)


@pytest.mark.parametrize(
    "build", [lorenz_vectors, lorenz_scalars, lorenz_observed_in_the_loop, two_lags]
)
def test_graph_does_not_grow_with_the_chain(build):
    short, long = size_of_graph(build, 10), size_of_graph(build, 40)
    assert short == long
    assert short[1] == 1


def test_unrewritten():
    """The graph as it was written says what JAX says."""
    layer = emf.StructuredLayer(lorenz_scalars(), "element", gate_init=0.6)
    noise = pt.vector("noise", shape=(layer.size,))
    numbers = np.random.default_rng(1).normal(size=layer.size)
    expected = emf.compile(layer).forward(numbers)
    found = pytensor.function([noise], list(layer.forward(noise)), mode=UNREWRITTEN)(numbers)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-9)


def test_switch():
    """Without rolling every site is evaluated alone."""
    layer = emf.StructuredLayer(Program(tree(), _roll=False))
    assert all(len(part.rows) == 1 for part in layer.plan)
    noise = np.random.default_rng(1).normal(size=layer.size)
    for actual, wanted in zip(
        emf.compile(layer).forward(noise),
        emf.compile(emf.StructuredLayer(tree())).forward(noise),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted)


def test_small_models_are_left_alone():
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 1), pm.Normal("b", 1, 2)
        pm.Normal("c", a + b, 1)
    layer = emf.StructuredLayer(model)
    assert [len(pattern.sites) for pattern in layer.program.patterns] == [1, 1, 1]
    assert "of a" not in str(emf.describe(model))


@pytest.mark.slow  # three tables at once, which take half a minute to compile
def test_tables_of_scalars():
    """Densities by quadrature, whose tables are looked up by an index without axes."""
    with pm.Model() as model:
        for i in range(3):
            pm.Normal(f"x_{i}", i, 1.0, transform=tr.Interval(-1.0, 5.0), initval=1.0)
    layer = emf.StructuredLayer(model)
    assert [len(part.rows) for part in layer.plan] == [3]
    noise = np.random.default_rng(1).normal(size=3)
    value, _ = emf.compile(layer).forward(noise)
    x = -1.0 + 6.0 * expit(value)
    below, above = (norm.cdf(end, loc=np.arange(3)) for end in (-1.0, 5.0))
    expected = norm.ppf(below + norm.cdf(noise) * (above - below), loc=np.arange(3))
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_bounds_that_are_coordinates_for_some_only():
    """A family that looks at its constants embeds each member as it would alone."""
    with pm.Model() as model:
        for lower in (0.0, 1.0, 2.0, 3.0):
            pm.Uniform(
                f"x_{lower:.0f}",
                lower,
                5.0,
                default_transform=None,
                transform=tr.Interval(1.0, 5.0),
                initval=4.0,
            )
    layer = emf.StructuredLayer(model)
    kinds = {
        site.name: type(embedding).__name__
        for p, embedding in zip(layer.program.patterns, layer._embeddings, strict=True)
        for site in p.sites
    }
    assert kinds == {"x_0": "Tabulated", "x_1": "Quantile", "x_2": "Tabulated", "x_3": "Tabulated"}


def test_describe():
    table = str(emf.describe(lorenz_scalars()))
    assert table.count("embedded, one of a batch of 3") == 3
    assert table.count("embedded, step 2 of a scan over 5") == 3
    assert "embedded, step 5 of a scan over 5, one of a batch of 3" in str(emf.describe(panel()))


def test_values():
    flat, more = pt.dvector("flat"), pt.dvector("more")
    values = Values(8)
    values.add(pt.specify_shape(flat, (6,)), np.arange(6))
    values.add(pt.specify_shape(more, (2,)), np.array([7, 6]))
    numbers = {flat: np.arange(6.0), more: np.array([7.0, 6.0])}
    for positions in ([[0, 1], [2, 3]], [1, 3, 5], [5, 3, 1], [2, 2, 2], 4, [7], [6, 0, 7, 7]):
        positions = np.asarray(positions)
        taken = values.take(positions).eval(numbers, on_unused_input="ignore")
        np.testing.assert_array_equal(taken, positions)
    with pytest.raises(KeyError, match="before it is known"):
        Values(2).take(np.array([0]))
