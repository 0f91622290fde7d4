"""Normal approximations by regression of scores, and the structure of sparse ones."""

from functools import partial

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import pymc_emf as emf

from pymc_emf.layers.elimination import dense
from pymc_emf.variational import least_squares
from pymc_emf.variational.conditional_normal import ConditionalNormal
from pymc_emf.variational.factorisation import Factorisation
from pymc_emf.variational.probing import find_structure
from pymc_emf.variational.regression import regress_scores


def normal_score(mean, precision):
    """Log density, unnormalised, and score of a normal."""

    def score(points):
        scores = np.stack([-(precision * (x - mean)).sum(axis=1) for x in points])
        return ((points - mean) * scores).sum(axis=1) / 2, scores

    return score


def evidence(precision):
    return (len(precision) * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1]) / 2


# --- any covariance ----------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e5, 1e-3, 1.0), (1e-6, 1e2, 1e6)])
@pytest.mark.parametrize("correlation", [0.0, 0.99])
def test_normal_of_any_scale_and_correlation(scales, correlation):
    base = np.array([[1, correlation, 0], [correlation, 1, 0], [0, 0, 2.0]])
    cholesky = np.diag(scales) @ np.linalg.cholesky(base)
    inverse, mean = np.linalg.inv(cholesky), np.array(scales) * [3.0, -2.0, 1.0]
    score = normal_score(mean, inverse.T @ inverse)
    found = regress_scores(score, np.zeros(3), 1.0, np.random.default_rng(0))
    loc, factor = found.normal
    # in units of the distribution itself
    whitened = inverse @ factor
    np.testing.assert_allclose(inverse @ (loc - mean), 0.0, atol=1e-3)
    np.testing.assert_allclose(whitened @ whitened.T, np.eye(3), atol=1e-3)
    assert (np.diag(factor) > 0).all()
    assert np.allclose(factor, np.tril(factor))
    assert found.sd < 1e-3
    assert found.elbo == pytest.approx(-np.linalg.slogdet(inverse)[1] + 1.5 * np.log(2 * np.pi))


@pytest.mark.parametrize("lucky", [3, 5])
def test_one_lucky_batch_is_not_held_against_those_that_follow(lucky):
    """Its ELBO is estimated anew where no step from it leads on."""
    mean, calls = np.array([300.0, -200.0, 100.0]), 0
    score = normal_score(mean, np.eye(3))

    def with_luck(points):
        nonlocal calls
        calls += 1
        log_density, scores = score(points)
        return log_density + 1e5 * (calls == lucky), scores

    found = regress_scores(with_luck, np.zeros(3), 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(found.normal.loc, mean, atol=1e-3)
    assert found.elbo == pytest.approx(evidence(np.eye(3)))


def test_the_best_normal_of_another_density():
    """A Gumbel density of noise, whose best normal has a known mean and scale."""

    def score(points):
        return (points - np.exp(points)).sum(axis=1), 1 - np.exp(points)

    found = regress_scores(score, np.full(2, 4.0), 1.0, np.random.default_rng(0))
    # E exp(x) = 1 at the optimum of the mean, and the precision is E exp(x)
    loc, factor = found.normal
    np.testing.assert_allclose(loc, -0.5, atol=0.2)
    np.testing.assert_allclose(factor, np.eye(2), atol=0.2)
    assert found.elbo == pytest.approx(2 * (-0.5 - 1 + 0.5 * np.log(2 * np.pi) + 0.5), abs=0.1)


def test_a_density_that_is_finite_on_one_side_only():
    def score(points):
        with np.errstate(invalid="ignore", divide="ignore"):
            return (3 * np.log(points) - points).sum(axis=1), 3 / points - 1

    rng = np.random.default_rng(0)
    found = regress_scores(score, np.full(2, 3.0), 1.0, rng)
    assert np.isfinite(found.elbo)
    np.testing.assert_allclose(found.normal.loc, 4.0, atol=1.5)
    nowhere = regress_scores(score, np.full(2, -3.0), 1.0, rng)
    assert (nowhere.elbo, nowhere.sd) == (-np.inf, np.inf)


@pytest.mark.parametrize("power", [1.0, 10.0, 300.0])
def test_scores_whose_squares_overflow(power):
    """It ends, without an error, and is no worse than where it began."""

    def score(points):
        with np.errstate(over="ignore"):
            growth = np.exp(power * points)
            return -growth.sum(axis=1) - (points**2).sum(axis=1) / 2, -power * growth - points

    found = regress_scores(score, np.full(3, 1.0), 1.0, np.random.default_rng(0))
    assert np.isfinite(found.elbo) or power == 300.0
    assert np.isfinite(found.normal.loc).all() and np.isfinite(found.normal.factor).all()


def test_holds():
    score = normal_score(np.zeros(2), np.diag([1.0, 100.0]))
    normal = regress_scores(score, np.ones(2), 1.0, np.random.default_rng(0)).normal
    assert normal.holds(np.array([2.0, 0.1]))
    assert not normal.holds(np.array([2.0, 2.0]))


def test_a_posterior_that_is_narrow_and_far_off():
    """A hundred times as many standard deviations as a first step may take."""
    scales = np.array([1e-4, 1.0, 1e-5])
    score = normal_score(np.array([0.5, 3.0, -0.3]), np.diag(scales**-2))
    n_batches = 0

    def counted(points):
        nonlocal n_batches
        n_batches += 1
        return score(points)

    found = regress_scores(counted, np.zeros(3), 1.0, np.random.default_rng(0))
    np.testing.assert_allclose((found.normal.loc - [0.5, 3.0, -0.3]) / scales, 0.0, atol=0.01)
    assert found.sd < 1e-3
    assert n_batches < 60


# --- few interactions --------------------------------------------------------------------------


def band(size=120):
    precision = 2.2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    return 50 * precision, [np.arange(size)]


def groups(n=60, n_common=3):
    """Pairs of elements, and elements common to all of them."""
    rng = np.random.default_rng(0)
    size = n_common + 2 * n
    precision = np.eye(size)
    precision[:n_common, n_common:] = rng.normal(size=(n_common, 2 * n))
    precision[n_common:, :n_common] = precision[:n_common, n_common:].T
    precision[:n_common, :n_common] = 200 * np.eye(n_common)
    first = n_common + np.arange(n)
    second = first + n
    precision[first, first], precision[second, second] = 5.0, 9.0
    precision[first, second] = precision[second, first] = 2.0
    return precision, [np.arange(n_common), first, second]


def grid(side=12):
    size = side * side
    place = np.arange(size).reshape(side, side)
    precision = 0.1 * np.eye(size)
    for a, b in ((place[1:], place[:-1]), (place[:, 1:], place[:, :-1])):
        for i, j in zip(a.ravel(), b.ravel(), strict=True):
            precision[i, j] = precision[j, i] = -1.0
            precision[i, i] += 1
            precision[j, j] += 1
    return precision, [np.arange(size)]


def structure_of(precision, variables, gated=frozenset()):
    score = normal_score(np.zeros(len(precision)), precision)
    return find_structure(lambda closed: score, len(precision), variables, set(gated))


def test_rounding_is_no_interaction():
    """On a GPU the last digits of a sum differ from call to call."""
    precision, variables = groups()
    rng = np.random.default_rng(0)

    def score(points):
        log_density, scores = normal_score(np.zeros(len(precision)), precision)(points)
        return log_density, scores * (1 + 1e-14 * rng.normal(size=scores.shape))

    order, _ = find_structure(lambda closed: score, len(precision), variables, set())
    exact, _ = structure_of(precision, variables)
    assert order.to_lists() == exact.to_lists()


@pytest.mark.parametrize("make", [band, groups, grid])
def test_structure_and_normal(make):
    """What interacts is found, and one regression on it is exact."""
    precision, variables = make()
    order, closed = structure_of(precision, variables)
    assert not closed
    assert order.n_numbers < 0.6 * len(precision) ** 2 / 2
    places = np.concatenate([order.others, order.core[order.n_common :]])
    found = {
        (places[i], places[j]) for i, row in enumerate(order.neighbours) for j in row[row >= 0]
    }
    rows, columns = np.nonzero(np.triu(precision, 1))
    common = set(order.core[: order.n_common])
    expected = {
        pair
        for i, j in zip(rows, columns, strict=True)
        for pair in ((i, j), (j, i))
        if not common & set(pair)
    }
    assert expected <= found
    assert len(found) < len(expected) + 10
    mean = np.random.default_rng(1).normal(size=len(precision))
    family = family_of(order)
    result = regress_scores(
        normal_score(mean, precision), np.zeros(len(mean)), 1.0, np.random.default_rng(2), family
    )
    assert result.sd < 1e-4
    assert result.elbo == pytest.approx(evidence(precision), abs=1e-4)
    # the layer is the same map as the normal
    normal = result.normal
    layer = emf.ConditionalAffine(order)
    values = layer.set_frame([], normal.loc, *normal.spread)
    for variable, value in zip(layer.variables, values, strict=True):
        variable.set_value(value)
    noise = np.random.default_rng(3).normal(size=(4, len(mean)))
    drawn, log_det = emf.compile(layer).forward(noise)
    np.testing.assert_allclose(drawn, normal.place(noise), rtol=1e-10)
    np.testing.assert_allclose(log_det, normal.log_det(noise), rtol=1e-10)


def family_of(order):
    return partial(ConditionalNormal.isotropic, factorisation=Factorisation(order))


def random_walk(n_steps, step=0.5):
    """Score of a random walk whose log step is unknown, observed with noise; exact log step."""
    rng = np.random.default_rng(0)
    x = np.cumsum(step * rng.normal(size=n_steps))
    y = x + rng.normal(size=n_steps)
    increments = np.eye(n_steps) - np.eye(n_steps, k=-1)

    def score(points):
        log_step, x = points[:, 0], points[:, 1:]
        scaled = np.exp(-log_step)[:, None] * (x @ increments.T)
        log_density = -((scaled**2).sum(axis=1) + ((y - x) ** 2).sum(axis=1) + log_step**2) / 2
        log_density -= n_steps * log_step
        own = (scaled**2).sum(axis=1) - n_steps - log_step
        of_x = y - x - np.exp(-log_step)[:, None] * (scaled @ increments)
        return log_density, np.column_stack([own, of_x])

    grid = np.linspace(-4.0, 2.0, 400)
    sums = np.linalg.inv(increments)
    variances, axes = np.linalg.eigh(sums @ sums.T)
    variances = np.exp(2 * grid[:, None]) * variances + 1
    log_p = -(((axes.T @ y) ** 2 / variances + np.log(variances)).sum(axis=1) + grid**2) / 2
    weights = np.exp(log_p - log_p.max())
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    mean = weights @ grid
    return score, mean, np.sqrt(weights @ (grid - mean) ** 2)


@pytest.fixture(scope="module")
def walked():
    score, mean, sd = random_walk(400)
    found = find_structure(lambda closed: score, 401, [np.array([0]), np.arange(1, 401)], set())
    family = family_of(found.order)
    with threadpool_limits(1, user_api="blas"):  # for so little, threads wait for each other
        result = regress_scores(score, np.zeros(401), 1.0, np.random.default_rng(1), family)
    return score, result, mean, sd


def test_scales_follow_a_common_step(walked):
    """Which no normal distribution does: its log step would have less than half the sd."""
    _, result, mean, sd = walked
    normal = result.normal
    assert normal.order.core[0] == 0 and normal.order.n_steering == 1
    assert normal.loc[0] == pytest.approx(mean, abs=0.25 * sd)
    assert normal.factor[0, 0] == pytest.approx(sd, rel=0.12)
    assert result.sd < 1.0


def test_pull(walked):
    """It is the gradient, in noise, of the log density and the log determinant."""
    score, result, _, _ = walked
    normal = result.normal
    rng = np.random.default_rng(2)
    noise, direction = rng.normal(size=(2, 1, 401))
    points = normal.place(noise)
    core, others, core_scores, others_scores = normal.pull(points, score(points)[1])
    order = normal.order
    np.testing.assert_allclose(core, noise[:, order.core])
    np.testing.assert_allclose(others, noise[:, order.others])

    def log_density(step):
        moved = noise + step * direction
        return (score(normal.place(moved))[0] + normal.log_det(moved))[0]

    numeric = (log_density(1e-4) - log_density(-1e-4)) / 2e-4
    along = core_scores @ direction[0, order.core] + others_scores @ direction[0, order.others]
    assert along[0] == pytest.approx(numeric, rel=1e-5)


def crossed(levels):
    """Two crossed factors, each level with twelve of the other; the scale of one is not known.

    Exact mean and standard deviation of its log, by a grid.
    """
    rng = np.random.default_rng(0)
    n, rows = 12 * levels, np.repeat(np.arange(levels), 12)
    columns = (rows + np.tile(np.arange(12), levels)) % levels
    y = 0.6 * rng.normal(size=levels)[rows] + rng.normal(size=levels)[columns]
    y += 2 * rng.normal(size=n)
    design = np.zeros((n, 2 * levels))
    design[np.arange(n), rows] = design[np.arange(n), levels + columns] = 1

    def score(points):
        log_scale, u = points[:, 0], points[:, 1:]
        prior = np.ones_like(u)
        prior[:, :levels] = np.exp(-2 * log_scale)[:, None]
        rest, scaled = y - u @ design.T, (prior * u**2)[:, :levels].sum(axis=1)
        log_density = -((rest**2).sum(axis=1) / 4 + (prior * u**2).sum(axis=1) + log_scale**2) / 2
        own = scaled - levels - log_scale
        of_u = rest @ design / 4 - prior * u
        return log_density - levels * log_scale, np.column_stack([own, of_u])

    # by the precision of the levels, which are far fewer than the rows
    grid, of_levels, products = np.linspace(-4.0, 3.0, 100), design.T @ y, design.T @ design
    log_p = np.empty(len(grid))
    for i, log_scale in enumerate(grid):
        prior = np.repeat([np.exp(-2 * log_scale), 1.0], levels)
        precision = products / 4 + np.diag(prior)
        log_det = np.linalg.slogdet(precision)[1] - np.log(prior).sum()
        quadratic = of_levels @ np.linalg.solve(precision, of_levels) / 16
        log_p[i] = (quadratic - log_det - log_scale**2) / 2
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    mean = weights @ grid
    return score, mean, np.sqrt(weights @ (grid - mean) ** 2)


def test_scales_of_many_neighbours_follow():
    """As those of few do, though their coefficients do not."""
    score, mean, sd = crossed(levels=80)
    variables = [np.array([0]), np.arange(1, 81), np.arange(81, 161)]
    order, _ = find_structure(lambda closed: score, 161, variables, set())
    assert order.core[0] == 0 and order.n_steering == 1 and not order.has_few_neighbours
    rng = np.random.default_rng(1)
    result = regress_scores(score, np.zeros(161), 1.0, rng, family_of(order))
    normal = result.normal
    assert normal.loc[0] == pytest.approx(mean, abs=0.2 * sd)
    assert normal.factor[0, 0] == pytest.approx(sd, rel=0.12)


@pytest.mark.parametrize("n_steering", [0, 3])
def test_slopes_in_many(monkeypatch, n_steering):
    """Products that members have in common are those that each would have alone."""
    monkeypatch.setattr(least_squares, "RIDGE_OF_PRODUCTS", 0.0)
    rng = np.random.default_rng(0)
    (x, y), steering = rng.normal(size=(2, 70, 200)), rng.normal(size=(n_steering, 200))
    common = np.column_stack([np.ones(200), *steering])
    members = np.array([[i, *rng.permutation(np.delete(np.arange(70), i))[:9]] for i in range(70)])
    members[::2, 5:] = -1
    found = least_squares.slopes_in_many(x, y, members, steering, common)
    for i, row in enumerate(members):
        row = row[row >= 0]
        columns = np.column_stack([*x[row], *(x[i] * steering), common])
        expected, *_ = np.linalg.lstsq(columns, y[i], rcond=None)
        np.testing.assert_allclose(found[i, : len(row), 0], expected[: len(row)], atol=1e-7)
        of_products = expected[len(row) : len(row) + n_steering]
        np.testing.assert_allclose(found[i, 0, 1:], of_products, atol=1e-7)
        assert not found[i, len(row) :].any() and not found[i, 1:, 1:].any()


def test_where_most_interact():
    size = 40
    precision = np.eye(size) + 0.01
    order, closed = structure_of(precision, [np.arange(size)], gated=range(size))
    assert order.core.tolist() == list(range(size)) and not closed
    result = regress_scores(
        normal_score(np.ones(size), precision),
        np.zeros(size),
        1.0,
        np.random.default_rng(0),
        family_of(order),
    )
    assert result.elbo == pytest.approx(evidence(precision), abs=1e-4)


def test_a_series_is_taken_in_value_space():
    precision, (series,) = band(600)
    size = len(precision) + 1
    near = np.eye(size)
    near[1:, 1:] = precision
    steps = np.tri(size - 1)
    far = np.eye(size)
    far[1:, 1:] = steps.T @ precision @ steps  # of sums

    def score_with(closed):
        assert closed in (set(), set(range(1, size)))
        return normal_score(np.zeros(size), near if closed else far)

    found = find_structure(score_with, size, [np.array([0]), series + 1], set(range(1, size)))
    assert found.closed == set(range(1, size))
    assert found.order.neighbours.shape[1] == 2
    ungated = find_structure(score_with, size, [np.array([0]), series + 1], set())
    assert ungated is None  # too long for any covariance


def test_no_structure_where_scores_are_not_finite():
    def score(points):
        return np.full(len(points), -np.inf), np.full(points.shape, np.nan)

    assert find_structure(lambda closed: score, 5, [np.arange(5)], set()) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 60), st.integers(0, 2**31))
def test_any_graph_can_be_eliminated(size, n_edges, seed):
    """The factor of any sparse precision matrix has the entries that are provided for."""
    rng = np.random.default_rng(seed)
    precision = np.eye(size) * (size + 1.0)
    neighbours = [set() for _ in range(size)]
    for i, j in rng.integers(size, size=(n_edges, 2)):
        if i != j:
            precision[i, j] = precision[j, i] = rng.uniform(-1, 1)
            neighbours[i].add(int(j))
            neighbours[j].add(int(i))
    order = emf.eliminate(neighbours)
    assert sorted([*order.core, *order.others]) == list(range(size))
    assert emf.Elimination.from_lists(*order.to_lists()).to_lists() == order.to_lists()
    older = emf.Elimination.from_lists(*order.to_lists()[:-1])  # as files of earlier versions
    assert older.n_inputs == order.n_coefficients
    # drawn in this order, each given those before: the factor of the reversed precision
    position = [*order.core, *order.others]
    reversed_precision = precision[np.ix_(position, position)][::-1, ::-1]
    factor = np.linalg.cholesky(reversed_precision)[::-1, ::-1]
    n_core = len(order.core)
    for round in order.rounds:
        for i, inputs in enumerate(order.inputs_of(round), start=round.first):
            allowed = {n_core + i, *inputs[inputs >= 0]}
            present = set(np.flatnonzero(np.abs(factor[:, n_core + i]) > 1e-12))
            assert present <= allowed


def test_dense_order():
    order = dense(3)
    assert (order.size, order.n_coefficients, order.rounds) == (3, 0, ())
