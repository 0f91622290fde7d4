"""Quantiles of known distributions, by tables."""

import os

from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from scipy import stats
from scipy.special import expit

import pymc_emf as emf

from pymc_emf.bijections.families.by_density import beta_logit, gamma_log, student_t
from pymc_emf.bijections.numerics import interpolated, table_files
from pymc_emf.bijections.numerics.interpolated import _Interpolated
from pymc_emf.engine.jax import jaxify
from tests.helpers import UNREWRITTEN

NOISE = np.linspace(-5.0, 5.0, 41)

#: A site, and from its natural coordinate to x, whose distribution is known.
KNOWN = {
    "Gamma": (lambda: gamma_log(pt.constant(0.7)), np.exp, stats.gamma(0.7)),
    "Beta": (lambda: beta_logit(pt.constant(2.0), pt.constant(3.0)), expit, stats.beta(2.0, 3.0)),
}


def both_ways(site, noise):
    """Value, log slope and noise again."""
    z = pt.vector("z", shape=noise.shape)
    value, log_slope = site.to_value(z)
    v = pt.vector("v", shape=noise.shape)
    forward = pytensor.function([z], [value, log_slope], mode=UNREWRITTEN)
    inverse = pytensor.function([v], site.to_noise(v), mode=UNREWRITTEN)
    value, log_slope = forward(noise)
    return value, log_slope, *inverse(value)


@pytest.mark.parametrize("name", KNOWN)
def test_a_table_has_the_quantiles(name):
    make, to_x, exact = KNOWN[name]
    site = make()
    assert isinstance(site, _Interpolated)
    value, log_slope, back, log_slope_back = both_ways(site, NOISE)
    # of the nearer tail, as the other has no digits
    x, upper = to_x(value), NOISE > 0
    log_tail = np.where(upper, exact.logsf(x), exact.logcdf(x))
    np.testing.assert_allclose(log_tail, stats.norm.logcdf(-np.abs(NOISE)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back, NOISE, atol=1e-12)
    np.testing.assert_allclose(log_slope_back, -log_slope, atol=1e-12)


def test_it_is_the_curve_of_the_density_itself():
    """With the log slope, which the table takes of its own polynomials."""
    known = both_ways(student_t(pt.constant(3.0)), NOISE)
    nu = pytensor.shared(3.0)
    searched = both_ways(student_t(nu), NOISE)
    for one, other in zip(known, searched, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_digits_of_single_precision():
    """In which a place among a thousand pieces has few."""
    site, noise = gamma_log(pt.constant(2.0)), np.linspace(-3, 3, 200).astype("float32")
    z = pt.vector("z", shape=noise.shape, dtype="float32")
    with pytensor.config.change_flags(floatX="float32"):
        value = jaxify([z], site.to_value(z))(noise)[0]
    assert value.dtype == np.float32
    exact = both_ways(site, noise.astype(float))[0]
    np.testing.assert_allclose(value, exact, atol=1e-6)


def test_straight_beyond_the_ends():
    noise = np.array([np.nan, -1e6, -31.0, 31.0, 1e6])
    value, log_slope, back, _ = both_ways(gamma_log(pt.constant(2.0)), noise)
    assert np.isnan(value[0]) and np.isnan(log_slope[0])
    assert (np.diff(value[1:]) > 0).all()
    np.testing.assert_allclose(back[1:], noise[1:], rtol=1e-9)


def test_a_table_for_each_distribution():
    """In any arrangement; the same parameters share one."""
    a = np.array([[1.0, 2.0], [2.0, 3.0], [2.0, 1.0]])
    with pm.Model() as model:
        pm.Gamma("x", a, 2.0)
    layer = emf.compile(emf.StructuredLayer(model, gate=None))
    noise = np.random.default_rng(0).normal(size=6)
    value, log_det = layer.forward(noise)
    exact = stats.gamma(a.ravel(), scale=0.5).ppf(stats.norm.cdf(noise))
    np.testing.assert_allclose(np.exp(value), exact, rtol=1e-6)
    back, log_det_back = layer.inverse(value)
    np.testing.assert_allclose(back, noise, atol=1e-12)
    assert log_det_back == pytest.approx(-log_det)


@pytest.mark.parametrize(
    "parameter",
    [pytensor.shared(2.0), pt.scalar("a"), pt.constant(1e-3), pt.constant(np.linspace(1, 2, 40))],
    ids=["may change", "random", "too sharp", "too many"],
)
def test_others_are_searched(parameter):
    assert not isinstance(gamma_log(parameter), _Interpolated)


def test_a_gate():
    with pm.Model() as model:
        pm.Beta("x", 2.0, 3.0, shape=4)
    layer = emf.StructuredLayer(model)
    for parameter in layer.own_parameters:
        parameter.set_value(np.full_like(parameter.get_value(), 0.3))
    compiled, noise = emf.compile(layer), np.array([-3.0, -0.5, 0.4, 5.0])
    value, log_det = compiled.forward(noise)
    back, log_det_back = compiled.inverse(value)
    np.testing.assert_allclose(back, noise, atol=1e-8)
    assert log_det_back == pytest.approx(-log_det)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where tables are kept."""
    config = SimpleNamespace(compiledir=tmp_path / "home")
    here = SimpleNamespace(config=config, __version__=pytensor.__version__)
    monkeypatch.setattr(table_files, "pytensor", here)
    return tmp_path / "home" / "pymc_emf_tables"


def arrays(number, asked):
    def make():
        asked.append(number)
        return np.full(3, float(number)), np.arange(2.0)

    return make


def test_tables_are_made_once(home, monkeypatch):
    asked = []
    for key, number in (("a", 1), ("b", 2), ("a", 3)):
        first, second = table_files.kept_on_disk(key, arrays(number, asked))
        np.testing.assert_array_equal(first, 2.0 if key == "b" else 1.0)
        np.testing.assert_array_equal(second, [0.0, 1.0])
    assert asked == [1, 2]
    monkeypatch.setattr(table_files, "_code", lambda: "other code")
    table_files.kept_on_disk("a", arrays(4, asked))
    assert asked == [1, 2, 4]
    assert table_files.kept_on_disk("none", lambda: None) is None
    assert len(list(home.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"no table", "cut", "turned"])
def test_a_damaged_file_is_made_anew(home, damage):
    asked = []
    table_files.kept_on_disk("a", arrays(1, asked))
    (file,) = home.iterdir()
    whole = file.read_bytes()
    if damage == "cut":
        damage = whole[: len(whole) // 2]
    elif damage == "turned":
        damage = whole.replace(np.float64(1.0).tobytes(), np.float64(1.5).tobytes())
        assert damage != whole
    file.write_bytes(damage)
    first, _ = table_files.kept_on_disk("a", arrays(1, asked))
    np.testing.assert_array_equal(first, 1.0)
    assert asked == [1, 1]
    table_files.kept_on_disk("a", arrays(1, asked))
    assert asked == [1, 1]


def test_a_folder_that_cannot_be_written_to_is_no_error(home):
    home.parent.write_text("a file where the folder would be")
    first, _ = table_files.kept_on_disk("a", arrays(1, []))
    np.testing.assert_array_equal(first, 1.0)


def test_the_oldest_files_give_way(home, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_FILES", 4)
    asked = []
    for i, key in enumerate("abcdef"):
        table_files.kept_on_disk(key, arrays(i, asked))
        assert len(list(home.iterdir())) == min(i + 1, 4)
        for file in home.iterdir():  # the clock of a disk may be slow
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    for i, key in enumerate("cdef", start=2):
        table_files.kept_on_disk(key, arrays(i, asked))
    assert asked == [0, 1, 2, 3, 4, 5]


def test_a_table_is_read_and_not_made(home, monkeypatch):
    exact = beta_logit(pt.constant(2.5), pt.constant(3.5)).tables
    interpolated._tables.cache_clear()

    def refuse(*args):
        raise AssertionError("made again")

    monkeypatch.setattr(interpolated, "_make_tables", refuse)
    again = beta_logit(pt.constant(2.5), pt.constant(3.5)).tables
    for one, other in zip(exact, again, strict=True):
        np.testing.assert_array_equal(one, other)
