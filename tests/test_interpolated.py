"""Quantiles of known distributions, by tables."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from scipy import stats
from scipy.special import expit

import pymc_emf as emf

from pymc_emf.bijections.families.by_density import beta_logit, gamma_log, student_t
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
