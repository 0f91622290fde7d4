"""Flow layers: each under the same property tests."""

import json

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pymc_emf as emf

from pymc_emf.layers.autoregressive import made_masks
from pymc_emf.layers.base import hyperparameters_of
from pymc_emf.layers.parameters import store
from pymc_emf.layers.presets import PRESETS, Shape, check_layers, make_layers
from tests.helpers import UNREWRITTEN, Functions, parametrize
from tests.layer_examples import (
    FRAMED,
    LAYERS,
    PARTS,
    SIZE,
    cholesky,
    low_rank_spread,
    masked,
    perturb,
)


@parametrize(LAYERS, slow=PARTS)
def test_laws(name):
    layer = LAYERS[name]()
    perturb(layer)
    compiled = Functions(layer, layer.parameters, (SIZE,))
    values = [p.get_value() for p in layer.parameters]
    for seed in range(3):
        compiled.check_laws(values, 2 * np.random.default_rng(seed).normal(size=SIZE))


def check_backends(name, mode):
    layer = LAYERS[name]()
    perturb(layer)
    noise = np.random.default_rng(0).normal(size=SIZE)
    value, log_det = emf.compile(layer).forward(noise)
    event = pt.vector("event", shape=(SIZE,))
    for direction, argument, wanted in (
        ("forward", noise, (value, log_det)),
        ("inverse", value, (noise, -log_det)),
    ):
        outputs = list(getattr(layer, direction)(event))
        function = pytensor.function([event], outputs, mode=mode)
        for actual, expected in zip(function(argument), wanted, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-9)


@parametrize(LAYERS, slow=PARTS)
def test_backends_agree(name):
    check_backends(name, UNREWRITTEN)


@parametrize(LAYERS, quick=["Affine"])  # numba takes up to a minute
def test_numba_agrees(name):
    check_backends(name, "NUMBA")


@pytest.mark.parametrize(
    "name",
    [
        "Affine",
        "LowerTriangular",
        "MaskedAutoregressive",
        "MaskedAutoregressive with splines",
        "Invert",
        "Spline",
    ],
)
def test_starts_at_the_identity(name):
    noise = np.random.default_rng(0).normal(size=SIZE)
    value, log_det = emf.compile(LAYERS[name]()).forward(noise)
    np.testing.assert_allclose(value, noise)
    assert log_det == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_masks_are_autoregressive(size, reverse):
    first, *others = made_masks(size, (16, 16), reverse=reverse)
    reach = first
    for mask in others:
        reach = reach @ mask
    connected = reach > 0  # input to output
    allowed = np.triu(np.ones((size, size), bool), 1)
    if reverse:
        allowed = allowed.T
    np.testing.assert_array_equal(connected, np.concatenate([allowed, allowed], axis=1))


def test_masks_reach_every_element():
    """Narrow networks spread their units over all of a long vector."""
    first, second, last = made_masks(254, (64, 64))
    reach = (first @ second @ last) > 0
    # all but the very last few inputs matter to some output, all but the first few outputs see
    assert reach.any(1)[:250].all()
    assert reach.any(0)[4:254].all()


def map_of(layer, values=None):
    """Both directions at some values of the variables, by default their own."""
    if values is not None:
        store(layer.variables, values)
    return emf.compile(layer)


@pytest.mark.parametrize("name", ["Affine framed", "LowerTriangular framed"])
def test_frame(name):
    compiled, factor = emf.compile(LAYERS[name]()), cholesky()
    loc, _ = compiled.forward(np.zeros(SIZE))
    np.testing.assert_allclose(loc, np.arange(SIZE) - 2.0)
    matrix = compiled.forward(np.eye(SIZE))[0].T - loc[:, None]
    if name == "LowerTriangular framed":
        np.testing.assert_allclose(matrix, factor)
    else:
        precision = np.linalg.inv(factor @ factor.T)
        np.testing.assert_allclose(matrix, np.diag(np.diag(precision) ** -0.5), atol=1e-12)


def test_low_rank_frame():
    compiled = emf.compile(LAYERS["LowRank"]())
    loc, _ = compiled.forward(np.zeros(SIZE))
    matrix = compiled.forward(np.eye(SIZE))[0].T - loc[:, None]
    np.testing.assert_allclose(loc, np.arange(SIZE) - 2.0, atol=1e-12)
    scales, coefficients, directions, stretch = low_rank_spread()
    inner = np.eye(SIZE) + directions @ np.diag(stretch - 1) @ directions.T
    recursion = np.eye(SIZE) - np.diag(coefficients[1:], k=-1)
    expected = np.linalg.solve(recursion, np.diag(scales) @ inner)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


@pytest.mark.parametrize("name", FRAMED)
def test_spread_of_a_covariance(name):
    """A frame with the moments of a normal, exactly where its layer can have them."""
    layer, factor = LAYERS[name](), cholesky()
    values = [v.get_value() for v in layer.variables]
    variances = np.arange(1.0, SIZE + 1) ** 2
    if name == "LowRank":  # three directions, and the rest alike
        direction = np.linspace(-1, 1, SIZE)[:, None]
        covariance = np.eye(SIZE) + 3 * direction @ direction.T
        covariance *= np.outer(variances, variances) ** 0.5
        covariance /= np.outer(*2 * [np.sqrt(np.diag(covariance) / variances)])
    else:
        covariance = factor @ factor.T
    wholes = [(variances, np.diag(variances))]
    if not name.startswith("ConditionalAffine"):  # whose edges are not those of any covariance
        wholes.append((covariance, covariance))
    for wanted, expected in wholes:
        framed = layer.set_frame(values, np.zeros(SIZE), *layer.spread_of(wanted))
        matrix = map_of(layer, framed).forward(np.eye(SIZE))[0].T
        if name == "LowRank" and wanted is covariance:
            np.testing.assert_allclose(np.diag(matrix @ matrix.T), np.diag(expected), rtol=0.15)
        elif name == "Affine framed":
            precision = np.diag(np.linalg.inv(expected))
            np.testing.assert_allclose(matrix @ matrix.T, np.diag(1 / precision), atol=1e-9)
        else:
            np.testing.assert_allclose(matrix @ matrix.T, expected, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_hyperparameters(name):
    """As JSON can hold them, and the same for a layer made again."""
    found = hyperparameters_of(LAYERS[name]())
    assert json.loads(json.dumps(found)) == found
    assert hyperparameters_of(perturb(LAYERS[name]())) == found


def test_hyperparameters_tell_layers_apart():
    """Those whose variables have the same shapes."""
    alike = [
        [emf.Spline(3), emf.Spline(3, bound=1.0)],
        [emf.Permutation([0, 2, 1]), emf.Permutation([2, 1, 0])],
        [masked(), masked(reverse=True)],
        [masked(knots=5), masked(knots=5, bound=1.0)],
        [emf.Coupling(3, [0]), emf.Coupling(3, [1])],
        [emf.Invert(emf.Permutation([1, 2, 0])), emf.Invert(emf.Permutation([2, 0, 1]))],
        [emf.Chain([emf.Spline(3)]), emf.Chain([emf.Spline(3, bound=2.0)])],
        [
            emf.Parallel([emf.Affine(1), emf.Affine(2)], [1, 2]),
            emf.Parallel([emf.Affine(2), emf.Affine(1)], [2, 1]),
        ],
    ]
    for one, other in alike:
        assert hyperparameters_of(one) != hyperparameters_of(other)


def test_coupling_keeps_what_steers_and_moves_the_rest():
    layer = LAYERS["Coupling"]()
    perturb(layer)
    noise = np.random.default_rng(0).normal(size=SIZE)
    value, _ = emf.compile(layer).forward(noise)
    np.testing.assert_array_equal(value[[1, 3]], noise[[1, 3]])
    assert (np.abs(value - noise)[[0, 2, 4]] > 1e-3).all()
    changed = noise + np.eye(SIZE)[3]
    again, _ = emf.compile(layer).forward(changed)
    assert (np.abs(again - value)[[0, 2, 4]] > 1e-3).all()


@pytest.mark.parametrize("steering", [[], [0, 1, 2]])
def test_bad_coupling(steering):
    with pytest.raises(ValueError, match="Some of the 3 elements must steer"):
        emf.Coupling(3, steering)


@pytest.fixture(scope="module")
def spline():
    layer = emf.Spline(1)
    return Functions(layer, layer.parameters, (1,))


@settings(deadline=None)
@given(
    log_slopes=st.lists(st.floats(-3, 3), min_size=11, max_size=11),
    noise=st.floats(-9, 9),
)
def test_spline_at_any_slopes(spline, log_slopes, noise):
    """At knots and beyond them, where curves are steep and where they are flat."""
    values = [np.array([log_slopes])]
    spline.check_laws(values, np.array([noise]))


def test_spline_interpolates_its_slopes():
    layer = emf.Spline(2)
    log_slopes = np.random.default_rng(0).normal(size=(2, 11))
    layer.log_slopes.set_value(log_slopes)
    compiled = emf.compile(layer)
    knots = np.linspace(-5, 5, 11)
    halfway = np.log(np.exp(log_slopes[:, 5:7]).mean(axis=1))
    ends = log_slopes[:, 0], log_slopes[:, -1]
    for at, expected in zip([*knots, 0.5, -6, 6], [*log_slopes.T, halfway, *ends], strict=True):
        np.testing.assert_allclose(compiled.forward(np.full(2, at))[1], expected.sum())
    np.testing.assert_array_equal(compiled.forward(np.zeros(2))[0], 0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"knots": 4}, "odd number"),
        ({"knots": 1}, "odd number"),
        ({"knots": 5.0}, "odd number"),
        ({"bound": 0}, "positive"),
    ],
)
@pytest.mark.parametrize("make", [emf.Spline, masked])
def test_bad_spline(make, options, match):
    with pytest.raises(ValueError, match=match):
        make(3, **{"knots": 11} | options)


def test_splines_of_a_network_depend_on_the_elements_before():
    layer = perturb(masked(2, knots=5))
    compiled = emf.compile(layer)
    second = np.linspace(-6.0, 6.0, 61)
    log_slopes = []
    for first in (-1.0, 1.0):
        noise = np.column_stack([np.full(61, first), second])
        value, log_det = compiled.forward(noise)
        assert np.ptp(value[:, 0]) == 0  # sees neither
        log_slopes.append(log_det - log_det[0])
    # an affine layer would have no slope but one for each value of the first
    assert np.ptp(log_slopes, axis=1).min() > 0.1
    assert np.abs(np.subtract(*log_slopes)).max() > 0.1


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_network_in_single_precision(direction):
    event = np.random.default_rng(0).normal(size=SIZE)
    results = []
    for dtype in ("float32", "float64"):
        layer = masked(dtype=dtype)
        perturb(layer)
        assert all(p.dtype == dtype for p in layer.parameters)
        result = getattr(emf.compile(layer), direction)(event)
        assert all(part.dtype == np.float64 for part in result)
        results.append(result)
    for single, double in zip(*results, strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)


def test_presets_make_layers():
    rng = np.random.default_rng(0)
    for name in PRESETS:
        chain = emf.Chain(make_layers(name, Shape(3), rng))
        perturb(chain, scale=0.1)
        compiled = emf.compile(chain)
        noise = rng.normal(size=(4, 3))
        found, _ = compiled.inverse(compiled.forward(noise)[0])
        np.testing.assert_allclose(found, noise, rtol=1e-4, atol=1e-5)  # networks are in float32
    layers = make_layers(["affine", emf.Permutation([1, 0]), emf.Affine], Shape(2), rng)
    assert [type(layer) for layer in layers] == [emf.Affine, emf.Permutation, emf.Affine]
    assert make_layers(None, Shape(2), rng) == []
    small = [type(layer) for layer in make_layers("iaf", Shape(2), rng)]
    assert small == [emf.Spline, *2 * [emf.MaskedAutoregressive], emf.LowerTriangular]
    large = make_layers("iaf", Shape(2000, [0, 1999]), rng)
    assert [type(layer) for layer in large] == [emf.Coupling, emf.LowRank]
    assert large[0].steering.tolist() == [0, 1999]
    assert [type(layer) for layer in make_layers("iaf", Shape(2000), rng)] == [emf.LowRank]


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("resnet", ValueError, "no layers named 'resnet'"),
        (["iaf", "resnet"], ValueError, "no layers named 'resnet'"),
        (3, TypeError, "layers must be"),
        (emf.Affine(3), ValueError, "has size 3, but the model has 2"),
    ],
)
def test_bad_layers(spec, error, match):
    with pytest.raises(error, match=match):
        check_layers(spec)
        make_layers(spec, Shape(2), np.random.default_rng(0))


def test_bad_construction():
    with pytest.raises(ValueError, match="permutation"):
        emf.Permutation([0, 0, 1])
    with pytest.raises(ValueError, match="at least one"):
        emf.Chain([])
    with pytest.raises(ValueError, match="one size for each"):
        emf.Parallel([emf.Affine(2)], [1, 2])
    with pytest.raises(ValueError, match=r"sizes \[2, 3\]"):
        emf.Chain([emf.Affine(2), emf.Invert(emf.Affine(3))])
    with pytest.raises(ValueError, match="Affine of a Parallel has size 2, but its slice has 1"):
        emf.Parallel([emf.Affine(2)], [1])
    twice = emf.Affine(2)
    with pytest.raises(ValueError, match="occurs twice in a Chain"):
        emf.Chain([twice, emf.Chain([twice])])
    with pytest.raises(ValueError, match="occurs twice in a Parallel"):
        emf.Parallel([twice, twice], [2, 2])
    with pytest.raises(ValueError, match="events of 1 axes"):
        emf.compile(emf.Affine(2)).forward(1.0)


def test_reproducible_weights():
    first, second = (emf.MaskedAutoregressive(4, random_seed=3) for _ in range(2))
    for a, b in zip(first.parameters, second.parameters, strict=True):
        np.testing.assert_array_equal(a.get_value(), b.get_value())


def test_mixture_of_gaussians_far_in_the_tails():
    """Its own distribution function; far out, that of the component that reaches there."""
    layer = emf.MixtureOfGaussians(1, 2, loc_range=1.0)
    layer.log_scale.set_value(np.log([[0.5, 2.0]]))
    layer.logits.set_value(np.log([[0.3, 0.7]]))
    compiled = emf.compile(layer)

    x = np.array([[-3.0], [0.0], [2.5], [7.0]])
    noise, log_det = compiled.inverse(x)
    cdf = 0.3 * stats.norm.cdf(x, -1, 0.5) + 0.7 * stats.norm.cdf(x, 1, 2)
    pdf = 0.3 * stats.norm.pdf(x, -1, 0.5) + 0.7 * stats.norm.pdf(x, 1, 2)
    np.testing.assert_allclose(noise, stats.norm.ppf(cdf), rtol=1e-9)
    np.testing.assert_allclose(
        stats.norm.logpdf(noise[:, 0]) + log_det, np.log(pdf[:, 0]), rtol=1e-9
    )

    far = np.array([[-60.0], [-40.0], [50.0], [200.0]])
    noise, log_det = compiled.inverse(far)
    exact = np.log(0.7) + stats.norm.logpdf(far[:, 0], 1, 2)
    np.testing.assert_allclose(stats.norm.logpdf(noise[:, 0]) + log_det, exact, rtol=1e-7)
    log_tail = np.log(0.7) + stats.norm.logcdf(-abs(far - 1), scale=2)
    np.testing.assert_allclose(stats.norm.logcdf(-abs(noise)), log_tail, rtol=1e-7)
    np.testing.assert_allclose(compiled.forward(noise)[0], far, rtol=1e-7)


def test_mixture_of_gaussians_options():
    one = emf.compile(emf.MixtureOfGaussians(2, 1, scale=3.0))
    np.testing.assert_allclose(one.forward([1.0, -2.0])[0], [3.0, -6.0])
    with pytest.raises(ValueError, match="n_components must be positive, got 0"):
        emf.MixtureOfGaussians(2, 0)


@pytest.mark.parametrize("reverse", [False, True])
def test_steep_network_is_inverted(reverse):
    """Elements not solved yet would be off by 1e5 more in every pass, until they overflow."""
    size = 12
    net = emf.MaskedAutoregressive(size, hidden=(2 * size,), reverse=reverse)
    first, last = net.network.weights
    # so large that SiLU is the identity or zero, and all sums are exact in whichever order
    signs = np.resize([1.0, -1.0], 2 * size)
    first.set_value(np.broadcast_to(128 * signs, (size, 2 * size)).astype(first.dtype))
    shifts = np.arange(2 * size) < size
    last.set_value((8 * signs[:, None] * shifts).astype(last.dtype))
    bias = net.network.biases[-1]
    bias.set_value(np.repeat([0.0, -50.0], size).astype(bias.dtype))
    compiled = emf.compile(net)
    noise = np.ones((1, size))
    value, log_det = compiled.forward(noise)
    back, log_det_back = compiled.inverse(value)
    np.testing.assert_allclose(back, noise, rtol=1e-6)
    np.testing.assert_allclose(log_det_back, -log_det)
