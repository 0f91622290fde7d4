"""Modes and curvatures of known densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pymc_emf.variational.modes import Energy, _precision_band, find_modes, low_rank_normal


def energy_of(function):
    """Of a negative log density."""
    derive = jax.jit(jax.vmap(jax.value_and_grad(lambda x: -function(x))))
    return Energy(lambda points: tuple(map(np.asarray, derive(points))))


def normal(mean, cholesky):
    mean, inverse = jnp.asarray(mean), jnp.asarray(np.linalg.inv(cholesky))
    return energy_of(lambda x: 0.5 * jnp.sum((inverse @ (x - mean)) ** 2))


def test_two_modes_best_first():
    def function(x):  # wells at 2 (deeper) and -2
        return (x[0] ** 2 - 4) ** 2 / 4 - x[0] + x[1] ** 2 / 2

    starts = [np.array([s, 1.0]) for s in (-3.0, -2.5, -1.0, 1.0, 3.0)]
    first, second = find_modes(energy_of(function), starts, 3)
    assert first.energy < second.energy
    assert abs(first.point[0] - 2) < 0.2
    assert abs(second.point[0] + 2) < 0.2
    assert len(find_modes(energy_of(function), starts, 1)) == 1


def test_many_orders_of_magnitude_away():
    """As the log of a standard deviation is, of data in other units, from where a fit starts."""
    function = energy_of(lambda x: 30 * x[0] + 3e41 * jnp.exp(-2 * x[0]) + x[1] ** 2)
    (mode,) = find_modes(function, [np.array([0.0, 1.0])], 1)
    np.testing.assert_allclose(mode.point, [np.log(2e40) / 2, 0.0], atol=0.05)


def test_where_the_density_is_not_finite():
    function = energy_of(lambda x: jnp.sum(x - 3 * jnp.log(x)))  # NaN below zero
    (mode,) = find_modes(function, [np.full(2, 0.1), np.full(2, -1.0)], 3)
    np.testing.assert_allclose(mode.point, 3.0, rtol=1e-3)
    assert find_modes(function, [np.full(2, -1.0)], 3) == []


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
