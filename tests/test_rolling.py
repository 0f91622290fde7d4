"""Isomorphic variables rolled up: the same numbers as one by one, in graphs that do not grow."""

import jax
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc.distributions import transforms as tr
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan

import pymc_emf as emf

from pymc_emf.engine.graph import upcast_constants
from pymc_emf.engine.jax import jaxify
from pymc_emf.layers.structured import GATE_SCALE
from pymc_emf.program import Program
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
        for i in range(4):
            scale = pm.HalfNormal(f"scale_{i}", 1.0 + i)
            theta = pm.Normal(f"theta_{i}", mu + slopes[i, 1], scale, shape=2)
            pm.Normal(f"data_{i}", theta, [1.0, 0.5 + i], observed=rng.normal(size=2))
            pm.Poisson(f"count_{i}", pt.exp(theta[0]), observed=i)
    return model


def two_lags(steps=9):
    with pm.Model() as model:
        a = pm.Uniform("a", -1, 1)
        b = pm.Normal("b", 0, 0.3)
        x = [pm.Normal("x_0", 0, 1), pm.Normal("x_1", 1, 2)]
        for t in range(2, steps):
            x.append(pm.Normal(f"x_{t}", a * x[-1] + b * x[-2], 0.5))
        pm.Normal("data", pt.stack(x), 1.0, observed=np.ones(steps))
    return model


def positive_chain(steps=7):
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
        sd = pm.HalfNormal("sd", 1.0)
        ends = []
        for i in range(chains):
            x = pm.Normal(f"x_{i}_0", 0, 1)
            for t in range(1, steps):
                x = pm.Gumbel(f"x_{i}_{t}", 0.9 * x, sd)
            ends.append(x)
        pm.Normal("data", pt.stack(ends), 1.0, observed=np.ones(chains))
    return model


def bounds_from_the_step_before(steps=6):
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
        walks = [pm.GaussianRandomWalk(f"w_{i}", 0, 0.1 + i, init_dist=pm.Normal.dist(0, 1), steps=3) for i in range(3)]
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
    mixed: (0, 5, 4),
}
GATES = {two_lags: "variable", panel: None, plates: "variable"}


def one_by_one(layer, flat, direction):
    """EMF Eq. 5 and 6 site by site, as they are written."""
    program = layer.program
    image, log_dets, constrained = pt.zeros(layer.size), [], {}
    for site in program.sites:
        (rv,) = program.given([site.rv], constrained)
        embedding = layer._embedding(site, rv)
        if site.name in layer._gate_places:
            raw = pt.as_tensor(layer._raw_gates)[layer._gate_places[site.name]]
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


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_same_numbers(build):
    """Values, log|det|, constrained variables, log densities, and all their gradients."""
    layer = emf.StructuredLayer(build(), GATES.get(build, "element"), gate_init=0.7)
    single = [p for p in layer.plan if isinstance(p, Batch) and len(p.rows) == 1]
    loops = [p for p in layer.plan if isinstance(p, Loop)]
    assert (len(loops), len(layer.plan) - len(loops) - len(single), len(single)) == MODELS[build]

    for parameter in layer.parameters:
        parameter.set_value(0.02 * rng.normal(size=parameter.get_value().shape))
    noise, value = (pt.vector(name, shape=(layer.size,)) for name in ("noise", "value"))
    inputs = [*layer.parameters, noise, value]
    numbers = [
        *(p.get_value() for p in layer.parameters),
        0.5 * rng.normal(size=layer.size),
        0.3 + 0.1 * rng.uniform(size=layer.size),
    ]
    found, gradients = [], []
    for write in (outputs_rolled, outputs_one_by_one):
        function = jaxify(inputs, write(layer, noise, value))
        outputs = jax.jit(function)(*numbers)
        weights = [np.cos(1.0 + i + np.arange(o.size)).reshape(o.shape) for i, o in enumerate(outputs)]
        # terms that are minus infinity have no gradient
        weights = [np.where(np.isfinite(o), w, 0.0) for o, w in zip(outputs, weights, strict=True)]

        def total(*numbers, function=function, weights=weights):
            return sum((w * o).sum() for w, o in zip(weights, function(*numbers), strict=True) if w.any())

        found.append(outputs)
        gradients.append(jax.jit(jax.grad(total, argnums=tuple(range(len(inputs)))))(*numbers))
    for rolled, unrolled in ((found[0], found[1]), (gradients[0], gradients[1])):
        for actual, expected in zip(rolled, unrolled, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
