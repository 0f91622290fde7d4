"""Flow layers: each under the same property tests."""

import numpy as np
import pytensor
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pymc_emf as emf

from pymc_emf.layers.autoregressive import made_masks
from pymc_emf.layers.presets import PRESETS, make_layers
from tests.helpers import UNREWRITTEN, Functions

SIZE = 5


def masked(**kwargs):
    options = {"hidden": (8, 8), "random_seed": 0, "dtype": "float64"} | kwargs
    return emf.MaskedAutoregressive(SIZE, **options)


def low_rank():
    layer = emf.LowRank(SIZE, rank=3)
    directions, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, 2)))
    coefficients = np.linspace(-0.5, 1.0, SIZE)
    scales = np.arange(1.0, SIZE + 1)
    layer.set(np.arange(SIZE), scales, coefficients, directions, np.array([0.2, 3.0]))
    return layer


LAYERS = {
    "Affine": lambda: emf.Affine(SIZE),
    "LowRank": low_rank,
    "LowerTriangular": lambda: emf.LowerTriangular(SIZE),
    "MaskedAutoregressive": masked,
    "MaskedAutoregressive reversed": lambda: masked(reverse=True),
    "MaskedAutoregressive one hidden": lambda: masked(hidden=(4,)),
    "Coupling": lambda: emf.Coupling(SIZE, [3, 1], hidden=(8,), dtype="float64", random_seed=0),
    "Permutation": lambda: emf.Permutation([3, 1, 4, 0, 2]),
    "Spline": lambda: emf.Spline(SIZE, bound=2.0, knots=5),
    "Invert": lambda: emf.Invert(masked()),
    "MixtureOfGaussians": lambda: emf.MixtureOfGaussians(SIZE, 3, loc_range=2.0),
    "Chain": lambda: emf.Chain([masked(), emf.Permutation([1, 0, 2, 4, 3]), emf.Affine(SIZE)]),
    "Parallel": lambda: emf.Parallel([emf.LowerTriangular(2), emf.Affine(3)], [2, 3]),
}


def perturb(layer, seed=1, scale=0.5):
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters:
        value = parameter.get_value()
        parameter.set_value((value + scale * rng.normal(size=value.shape)).astype(value.dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_laws(name):
    layer = LAYERS[name]()
    perturb(layer)
    compiled = Functions(layer, layer.parameters, (SIZE,))
    values = [p.get_value() for p in layer.parameters]
    for seed in range(3):
        compiled.check_laws(values, 2 * np.random.default_rng(seed).normal(size=SIZE))


# of a mixture the tests of families compare the backends; numba takes a minute for it
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "MixtureOfGaussians"])
def test_backends_agree(name):
    layer = LAYERS[name]()
    perturb(layer)
    noise = np.random.default_rng(0).normal(size=SIZE)
    value, log_det = emf.compile(layer).forward(noise)
    event = Functions(layer, layer.parameters, (SIZE,)).event
    for direction, argument, wanted in (
        ("forward", noise, (value, log_det)),
        ("inverse", value, (noise, -log_det)),
    ):
        for mode in (UNREWRITTEN, "NUMBA"):
            outputs = list(getattr(layer, direction)(event))
            function = pytensor.function([event], outputs, mode=mode)
            for actual, expected in zip(function(argument), wanted, strict=True):
                np.testing.assert_allclose(actual, expected, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["Affine", "LowerTriangular", "MaskedAutoregressive", "Invert", "Spline"]
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


@pytest.mark.parametrize("kind", [emf.Affine, emf.LowerTriangular])
def test_set(kind):
    cholesky = np.tril(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    cholesky[np.diag_indices(SIZE)] = np.arange(1.0, SIZE + 1)
    loc = np.arange(SIZE) - 2.0
    layer = kind(SIZE)
    layer.set(loc, cholesky)
    compiled = emf.compile(layer)
    np.testing.assert_allclose(compiled.forward(np.zeros(SIZE))[0], loc)
    matrix = compiled.forward(np.eye(SIZE))[0].T - loc[:, None]
    if kind is emf.LowerTriangular:
        np.testing.assert_allclose(matrix, cholesky)
    else:
        precision = np.linalg.inv(cholesky @ cholesky.T)
        np.testing.assert_allclose(matrix, np.diag(np.diag(precision) ** -0.5), atol=1e-12)


def test_low_rank_covariance():
    compiled = emf.compile(low_rank())
    loc, _ = compiled.forward(np.zeros(SIZE))
    matrix = compiled.forward(np.eye(SIZE))[0].T - loc[:, None]
    np.testing.assert_allclose(loc, np.arange(SIZE), atol=1e-12)
    directions, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, 2)))
    inner = np.eye(SIZE) + directions @ np.diag([0.2 - 1, 3.0 - 1]) @ directions.T
    recursion = np.eye(SIZE) - np.diag(np.linspace(-0.5, 1.0, SIZE)[1:], k=-1)
    expected = np.linalg.solve(recursion, np.diag(np.arange(1.0, SIZE + 1)) @ inner)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_reframing_low_rank_keeps_the_map():
    layer = low_rank()
    perturb(layer)
    compiled = emf.compile(layer)
    noise = np.random.default_rng(1).normal(size=(5, SIZE))
    before = compiled.forward(noise)
    layer.reframe()
    assert not layer.loc.get_value().any()
    for old, new in zip(before, compiled.forward(noise), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-12)


@pytest.mark.parametrize("kind", [emf.Affine, emf.LowerTriangular])
def test_reframe_keeps_the_map(kind):
    cholesky = np.tril(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    cholesky[np.diag_indices(SIZE)] = np.arange(1.0, SIZE + 1)
    layer = kind(SIZE)
    layer.set(np.arange(SIZE) - 2.0, cholesky)
    perturb(layer)
    compiled = emf.compile(layer)
    noise = np.random.default_rng(1).normal(size=(5, SIZE))
    before = compiled.forward(noise)
    layer.reframe()
    assert not any(p.get_value().any() for p in layer.parameters)
    for old, new in zip(before, compiled.forward(noise), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-12)


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
    [({"knots": 4}, "odd number"), ({"knots": 1}, "odd number"), ({"bound": 0}, "positive")],
)
def test_bad_spline(options, match):
    with pytest.raises(ValueError, match=match):
        emf.Spline(3, **options)


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
        chain = emf.Chain(make_layers(name, 3, rng))
        perturb(chain, scale=0.1)
        compiled = emf.compile(chain)
        noise = rng.normal(size=(4, 3))
        found, _ = compiled.inverse(compiled.forward(noise)[0])
        np.testing.assert_allclose(found, noise, rtol=1e-4, atol=1e-5)  # networks are in float32
    layers = make_layers(["affine", emf.Permutation([1, 0]), emf.Affine], 2, rng)
    assert [type(layer) for layer in layers] == [emf.Affine, emf.Permutation, emf.Affine]
    assert make_layers(None, 2, rng) == []
    small = [type(layer) for layer in make_layers("iaf", 2, rng)]
    assert small == [emf.Spline, *2 * [emf.MaskedAutoregressive], emf.LowerTriangular]
    large = make_layers("iaf", 2000, rng, hubs=[0, 1999])
    assert [type(layer) for layer in large] == [emf.Coupling, emf.LowRank]
    assert large[0].steering.tolist() == [0, 1999]
    assert [type(layer) for layer in make_layers("iaf", 2000, rng)] == [emf.LowRank]


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
        make_layers(spec, 2, np.random.default_rng(0))


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
