"""Modes and curvatures of known densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pymc_emf.variational.modes import (
    Energy,
    Mode,
    _precision_band,
    find_modes,
    low_rank_normal,
)


def energy_of(function):
    return Energy(jax.jit(jax.value_and_grad(function)), "float64")


def normal(mean, cholesky):
    mean, inverse = jnp.asarray(mean), jnp.asarray(np.linalg.inv(cholesky))
    return energy_of(lambda x: 0.5 * jnp.sum((inverse @ (x - mean)) ** 2))


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e5, 1e-3, 1.0), (1e-6, 1e2, 1e6)])
@pytest.mark.parametrize("correlation", [0.0, 0.99, 1 - 1e-9])
def test_normal_of_any_scale_and_correlation(scales, correlation):
    base = np.array([[1, correlation, 0], [correlation, 1, 0], [0, 0, 2.0]])
    cholesky = np.diag(scales) @ np.linalg.cholesky(base)
    mean = np.array(scales) * [3.0, -2.0, 1.0]
    (mode,) = find_modes(normal(mean, cholesky), [np.zeros(3)], 3, curved=True)
    loc, factor = mode.normal()
    # in units of the distribution itself
    whitened = np.linalg.solve(cholesky, factor)
    np.testing.assert_allclose(np.linalg.solve(cholesky, loc - mean), 0.0, atol=1e-3)
    np.testing.assert_allclose(whitened @ whitened.T, np.eye(3), atol=1e-3)
    assert (np.diag(factor) > 0).all()
    assert np.allclose(factor, np.tril(factor))


def test_two_modes_best_first():
    def function(x):  # wells at 2 (deeper) and -2
        return (x[0] ** 2 - 4) ** 2 / 4 - x[0] + x[1] ** 2 / 2

    starts = [np.array([s, 1.0]) for s in (-3.0, -2.5, -1.0, 1.0, 3.0)]
    first, second = find_modes(energy_of(function), starts, 3, curved=True)
    assert first.energy < second.energy
    assert abs(first.point[0] - 2) < 0.2
    assert abs(second.point[0] + 2) < 0.2
    for mode in (first, second):
        curvature = jax.hessian(function)(jnp.asarray(mode.point))
        np.testing.assert_allclose(mode.hessian, curvature, rtol=1e-5, atol=1e-5)
    assert len(find_modes(energy_of(function), starts, 1, curved=True)) == 1


def test_where_the_density_is_not_finite():
    function = energy_of(lambda x: jnp.sum(x - 3 * jnp.log(x)))  # NaN below zero
    (mode,) = find_modes(function, [np.full(2, 0.1), np.full(2, -1.0)], 3, curved=True)
    np.testing.assert_allclose(mode.point, 3.0, rtol=1e-3)
    assert find_modes(function, [np.full(2, -1.0)], 3, curved=True) == []


def test_without_curvature():
    (mode,) = find_modes(normal(np.ones(2), np.eye(2)), [np.zeros(2)], 3, curved=False)
    np.testing.assert_allclose(mode.point, 1.0, atol=1e-4)
    with pytest.raises(ValueError, match="curvature"):
        mode.normal()


def test_flat_direction_gets_unit_scale():
    loc, factor = Mode(np.zeros(2), 0.0, np.diag([0.0, 4.0])).normal()
    np.testing.assert_allclose(factor, np.diag([1.0, 0.5]))
    np.testing.assert_array_equal(loc, 0.0)


def low_rank_covariance(covariance):
    """Covariance of the approximation at the mode of a normal distribution."""
    size = len(covariance)
    energy, rng = normal(np.ones(size), np.linalg.cholesky(covariance)), np.random.default_rng(1)
    scales, coefficients, directions, stretch = low_rank_normal(energy, np.ones(size), 10, rng)
    np.testing.assert_allclose(directions.T @ directions, np.eye(len(stretch)), atol=1e-8)
    factor = np.eye(size) + directions @ np.diag(stretch - 1) @ directions.T
    recursion = np.eye(size) - np.diag(coefficients[1:], k=-1)
    factor = np.linalg.solve(recursion, scales[:, None] * factor)
    return factor @ factor.T


def divergence(q, p):
    """Kullback-Leibler divergence of centred normals, in nats."""
    ratio = np.linalg.solve(p, q)
    return 0.5 * (np.trace(ratio) - len(q) - np.linalg.slogdet(ratio)[1])


def test_low_rank_normal_is_exact_where_neighbours_hold_each_other():
    """Of different scales, as along a random walk: the precision is tridiagonal."""
    size = 60
    outer = np.exp(np.random.default_rng(0).normal(size=size))
    band = 1.6 * np.eye(size) - 0.79 * (np.eye(size, k=1) + np.eye(size, k=-1))
    covariance = outer[:, None] * np.linalg.inv(band) * outer
    assert divergence(low_rank_covariance(covariance), covariance) < 1e-4
    assert divergence(np.diag(np.diag(covariance)), covariance) > 5.0


def test_low_rank_normal_of_a_band_and_a_direction():
    size = 60
    band = 1.6 * np.eye(size) - 0.7 * (np.eye(size, k=1) + np.eye(size, k=-1))
    direction = np.random.default_rng(0).normal(size=size)
    covariance = np.linalg.inv(band + 0.05 * np.outer(direction, direction))
    assert divergence(low_rank_covariance(covariance), covariance) < 0.1
    assert divergence(np.linalg.inv(band), covariance) > 1.0


@pytest.mark.parametrize("size", [1, 2, 10])
def test_low_rank_normal_of_as_many_directions_as_elements(size):
    root = np.random.default_rng(0).normal(size=(size, size)) + 2 * np.eye(size)
    covariance = root @ root.T
    assert divergence(low_rank_covariance(covariance), covariance) < 1e-3


def test_precision_that_is_not_positive_definite():
    scales, coefficients = _precision_band(np.array([1.0, -1.0, 2.0]), np.array([5.0, 0.1]))
    assert np.isfinite(scales).all() and (scales > 0).all()
    np.testing.assert_allclose(coefficients, [0.0, 0.0, -0.05])
    scales, coefficients = _precision_band(np.zeros(3), np.zeros(2))
    np.testing.assert_array_equal(scales, 1.0)
