"""The correction of the common elements' marginal distribution."""

from dataclasses import replace

import numpy as np
import pymc as pm
import pytest

from scipy.special import logsumexp

import pymc_emf as emf

from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.variational import check, marginal, moments
from pymc_emf.variational.doubt import correction_in_doubt
from pymc_emf.variational.marginal import correct_by_chains, moments_by_chains
from pymc_emf.variational.moments import MAX_FACTOR, MAX_WAY, moments_of_common
from pymc_emf.variational.verdict import ask_chains, draw, judge

N = 20_000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def log_normal_weights(rng, offset=0.0):
    """Noise, and log weights that are normal given it, of known derivatives."""
    z = rng.normal(size=(N, 2))
    slope, curvature = np.array([0.3, -0.2]), np.array([[-0.2, 0.1], [0.1, 0.15]])
    mean = z @ slope + np.einsum("ni,ij,nj->n", z, curvature, z) / 2
    grow = np.array([0.25, -0.1])
    sd = np.exp(z @ grow)
    noise = 0.6 * rng.normal(size=N)
    gap = slope + z @ curvature + (sd * noise)[:, None] * grow
    log_weights = mean + sd * noise + offset

    # by quadrature: the density of z times the mean weight there
    grid = np.stack(np.meshgrid(*[np.linspace(-6, 6, 301)] * 2, indexing="ij"), axis=-1)
    of_mean = grid @ slope + np.einsum("abi,ij,abj->ab", grid, curvature, grid) / 2
    of_variance = 0.36 * np.exp(2 * grid @ grow)
    log_density = of_mean + of_variance / 2 - (grid**2).sum(axis=-1) / 2
    log_density[(grid**2).sum(axis=-1) > 25] = -np.inf
    density = np.exp(log_density - logsumexp(log_density))
    loc = np.einsum("ab,abi->i", density, grid)
    covariance = np.einsum("ab,abi,abj->ij", density, grid - loc, grid - loc)
    return z, log_weights, gap, loc, covariance


def test_moments_are_those_of_the_weighted_marginal(rng):
    z, log_weights, gap, loc, covariance = log_normal_weights(rng, offset=-1e4)
    found = moments_of_common(z, log_weights, gap)
    # the mean weight here is not quite the exp of third powers
    np.testing.assert_allclose(found.loc, loc, atol=0.02)
    np.testing.assert_allclose(found.factor @ found.factor.T, covariance, atol=0.05)
    # the mean of the log weights alone, which the highest ELBO goes by, leads elsewhere
    assert abs(loc[0] - 0.3 / 1.2) > 0.08
    assert found.se < 0.02


def test_third_cumulants(rng):
    """Of a marginal with third derivatives, and none where they are lost in chance."""
    z, bend = rng.normal(size=(N, 2)), 0.12
    both = z[:, 0] * z[:, 1]
    gap = np.column_stack([bend * z[:, 0] ** 2 - 0.05 * z[:, 1] ** 2, -0.1 * both])
    log_weights = bend * z[:, 0] ** 3 / 3 - 0.05 * z[:, 0] * z[:, 1] ** 2
    found = moments_of_common(z, log_weights, gap)

    axis = np.linspace(-4, 4, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    first, second = grid[..., 0], grid[..., 1]
    log_density = bend * first**3 / 3 - 0.05 * first * second**2 - (grid**2).sum(axis=-1) / 2
    density = np.exp(log_density - logsumexp(log_density))
    off = grid - np.einsum("ab,abi->i", density, grid)
    third = np.einsum("ab,abi,abj,abk->ijk", density, off, off, off)
    np.testing.assert_allclose(found.third, third, atol=0.08)
    assert third[0, 0, 0] > 0.25 and third[0, 1, 1] < -0.1

    noise = moments_of_common(z, rng.normal(size=N), rng.normal(size=(N, 2)))
    assert (noise.third == 0).mean() > 0.7


def test_exact_weights_change_nothing(rng):
    z = rng.normal(size=(N, 3))
    found = moments_of_common(z, np.full(N, 7.0), np.zeros_like(z))
    np.testing.assert_allclose(found.loc, 0, atol=1e-12)
    np.testing.assert_allclose(found.factor, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.third, 0, atol=1e-12)


@pytest.mark.parametrize("kind", ["infinite", "wide", "skewed"])
def test_weights_that_do_not_tell(rng, kind):
    z, log_weights, gap, *_ = log_normal_weights(rng)
    match kind:
        case "infinite":
            log_weights[3] = -np.inf
        case "wide":
            log_weights += 3 * rng.normal(size=N)
        case "skewed":
            log_weights -= rng.exponential(1.5, size=N)
    assert moments_of_common(z, log_weights, gap) is None


def test_no_correction_goes_too_far(rng):
    z, log_weights, gap, *_ = log_normal_weights(rng)
    found = moments_of_common(z, log_weights, gap + 2 * z)  # the density grows as the noise does
    assert np.isfinite(found.loc).all()
    assert (np.abs(found.loc) <= MAX_WAY).all()
    np.testing.assert_allclose(found.factor @ found.factor.T, MAX_FACTOR * np.eye(2), atol=1e-9)
    assert found.is_capped
    assert not moments_of_common(z, log_weights, gap).is_capped


def test_one_draw_does_not_decide(rng):
    z, log_weights, gap, *_ = log_normal_weights(rng)
    z, log_weights, gap = z[:2000], log_weights[:2000], gap[:2000]
    before = moments_of_common(z, log_weights, gap)
    z[0], log_weights[0], gap[0] = 5.0, 20.0, 50.0
    after = moments_of_common(z, log_weights, gap)
    np.testing.assert_allclose(after.loc, before.loc, atol=0.05)


def test_preceded_by(rng):
    layer = LowerTriangular(3)
    values = [rng.normal(size=v.type.shape) * 0.3 for v in layer.variables]
    values[-1] = np.tril(values[-1], -1) + np.eye(3)
    loc, factor = rng.normal(size=3), np.tril(0.3 * rng.normal(size=(3, 3)), -1) + 2 * np.eye(3)
    noise = rng.normal(size=3)

    def image(values, noise):
        for variable, value in zip(layer.variables, values, strict=True):
            variable.set_value(np.asarray(value, variable.type.dtype))
        return emf.compile(layer).forward(noise)

    expected, log_det = image(values, loc + factor @ noise)
    found, found_log_det = image(layer.preceded_by(values, loc, factor), noise)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(
        found_log_det, log_det + np.log(np.diag(factor)).sum(), rtol=1e-6, atol=1e-6
    )


class TestRandomWalk:
    """Given its step the walk is normal, so that the step's own posterior is known."""

    def test_needs_no_step(self, approx):
        assert approx.stopping == ("converged", 0)

    def test_is_right(self, approx, observed):
        mean, sd = exact_log_step(observed)
        found = np.log(approx.sample(4000, random_seed=0).posterior["step"].to_numpy())
        assert abs(found.mean() - mean) < 0.1 * sd
        assert abs(np.log(found.std() / sd)) < 0.1

    def test_nothing_is_in_doubt(self, approx):
        assert approx.diagnose(random_seed=0).advice.startswith("Use it")


STEPS = 250


@pytest.fixture(scope="module")
def observed():
    rng = np.random.default_rng(0)
    return np.cumsum(0.3 * rng.normal(size=STEPS)) + rng.normal(size=STEPS)


@pytest.fixture(scope="module")
def approx(observed):
    with pm.Model():
        step = pm.HalfNormal("step", 1)
        first = pm.Normal.dist(0, 2)
        x = pm.GaussianRandomWalk("x", sigma=step, init_dist=first, shape=STEPS)
        pm.Normal("y", x, 1, observed=observed)
        return pm.fit(method=emf.EMFApprox(), random_seed=1, progressbar=False)


def exact_log_step(y):
    """Mean and standard deviation of the log of the step, by quadrature."""
    steps = np.exp(np.linspace(np.log(0.05), np.log(1.2), 60))
    walk = np.minimum.outer(np.arange(STEPS), np.arange(STEPS))
    log_density = []
    for step in steps:
        root = np.linalg.cholesky(4 + step**2 * walk + np.eye(STEPS))
        z = np.linalg.solve(root, y)
        log_density.append(-(z**2).sum() / 2 - np.log(np.diag(root)).sum() - step**2 / 2)
    density = np.exp(np.array(log_density) - max(log_density)) * steps
    density /= density.sum()
    mean = density @ np.log(steps)
    return mean, np.sqrt(density @ (np.log(steps) - mean) ** 2)


def test_a_correction_in_doubt_is_made_again(approx, rng, monkeypatch):
    """From more draws, and once at most."""
    judge, asked = check.judge, []

    def doubted(*args):
        return replace(judge(*args), doubt=("step", "as told"))

    def counted(objective, values, rng, precision, known):
        asked.append(precision)
        return list(values)

    monkeypatch.setattr(check, "correct_common", counted)
    monkeypatch.setattr(check, "weights_tell", lambda *args, **kwargs: True)  # of any fit
    check.check(approx.objective, None, approx.values, rng)
    assert asked == [check.PRECISIONS[0]]
    monkeypatch.setattr(check, "judge", doubted)
    check.check(approx.objective, None, approx.values, rng)
    assert asked[1:] == list(check.PRECISIONS)


def test_moments_of_draws_are_as_far_off_as_chance_does_not_explain(rng):
    noise, none = rng.normal(size=(1000, 20)), np.zeros((1000, 20))
    found = moments.moments_of_draws(noise, none)
    assert np.abs(found.loc).max() < 0.5 * np.abs(noise.mean(axis=0)).max()
    off = np.abs(np.cov(noise.T) - np.eye(20)).max()
    assert np.abs(found.factor @ found.factor.T - np.eye(20)).max() < 0.5 * off
    assert (found.third == 0).mean() > 0.9

    z = rng.normal(size=(20_000, 2))
    root = np.array([[1.5, 0.0], [0.4, 0.8]])
    found = moments.moments_of_draws(0.7 + z @ root.T, np.zeros_like(z))
    np.testing.assert_allclose(found.loc, 0.7, atol=0.04)
    np.testing.assert_allclose(found.factor, root, atol=0.03)
    assert found.se == pytest.approx(1.5 / np.sqrt(20_000), rel=0.7)
    found = moments.moments_of_draws(rng.exponential(size=(20_000, 1)), np.zeros((20_000, 1)))
    np.testing.assert_allclose(found.third, 2.0, atol=0.3)


def test_scores_tell_how_far_draws_are_off_by_chance(rng):
    root = np.array([[1.5, 0.0], [0.4, 0.8]])
    z = rng.normal(size=(1000, 2))
    found = moments.moments_of_draws(0.7 + z @ root.T, -z @ np.linalg.inv(root))
    np.testing.assert_allclose(found.loc, 0.7, atol=1e-9)
    np.testing.assert_allclose(found.factor, root, atol=1e-9)
    assert found.se < 1e-9

    # a logistic density, whose scores are no more than one
    x = rng.logistic(size=(200, 400, 1))
    told = [
        (one.loc[0], one.factor[0, 0], x_.mean(), x_.std())
        for x_, one in zip(x, map(moments.moments_of_draws, x, -np.tanh(x / 2)), strict=True)
    ]
    mean, sd, of_draws, sd_of_draws = np.std(told, axis=0)
    assert mean < 0.5 * of_draws
    assert sd < 0.8 * sd_of_draws
    np.testing.assert_allclose(np.mean(told, axis=0)[1], np.pi / np.sqrt(3), rtol=0.03)


def test_scores_are_no_controls_where_the_posterior_ends(rng):
    x = rng.exponential(size=(20_000, 2))
    found = moments.moments_of_draws(x, np.full_like(x, -1.0) + 1e-3 * rng.normal(size=x.shape))
    np.testing.assert_allclose(found.loc, 1.0, atol=0.03)
    np.testing.assert_allclose(found.ratios, 1.0, atol=0.03)


@pytest.mark.parametrize(
    ("shift", "grow", "expected"), [(0.0, 1.0, False), (0.5, 1.0, True), (0.0, 1.5, True)]
)
def test_chains_that_still_move(rng, shift, grow, expected):
    steps = np.linspace(0, 1, 8)
    each = rng.normal(size=(200, 2))  # chains move slowly
    states = [
        t * shift + (1 + t * (grow - 1)) * (0.8 * each + 0.6 * rng.normal(size=(200, 2)))
        for t in steps
    ]
    assert marginal._drifts(states) == expected


def spoiled(approx, loc=0.6, factor=0.7):
    """Values of an approximation whose common element is off, in the noise."""
    objective, values = approx.objective, approx.values
    layer = objective.layers[0].layer
    own = layer.preceded_by(objective.own(values, layer.variables), [loc], [[factor]])
    return objective.replace(values, layer.variables, own)


def test_chains_correct_what_they_find(approx, observed, rng):
    objective, values = approx.objective, spoiled(approx)
    drawn = draw(objective, values, rng.normal(size=(2000, objective.size)))
    corrected, left = correct_by_chains(objective, values, drawn.noise, drawn.log_weights, rng)
    assert 0 < left.se < 0.08
    assert correction_in_doubt(left, "short chains") is None
    mean, sd = exact_log_step(observed)
    walk, *_ = objective.weigh(corrected, drawn.noise)
    assert abs(walk[:, 0].mean() - mean) < (0.1 + 4 * left.se) * sd
    assert abs(np.log(walk[:, 0].std() / sd)) < 0.1 + 4 * left.se


def test_chains_are_asked_where_weights_vary(approx, observed, rng, monkeypatch):
    """Before a correction by weights, or after one that made them vary, and in the verdict."""
    monkeypatch.setattr(moments, "CLOSE", 0.0)
    checked = check.check(approx.objective, None, spoiled(approx), rng)
    assert checked.verdict.doubt is None
    mean, sd = exact_log_step(observed)
    noise = rng.normal(size=(4000, approx.objective.size))
    values, *_ = approx.objective.weigh(checked.values, noise)
    assert abs(values[:, 0].mean() - mean) < 0.15 * sd
    assert abs(np.log(values[:, 0].std() / sd)) < 0.12
    drawn = draw(approx.objective, spoiled(approx), noise[:2000])
    told = ask_chains(approx.objective, spoiled(approx), drawn, rng)
    verdict = judge(approx.objective, spoiled(approx), drawn, rng, of_common=told)
    name, how = verdict.doubt
    assert name == "step"
    assert how.startswith("short chains would")


@pytest.mark.parametrize(("close", "kept"), [(np.inf, True), (0.0, False)])
def test_without_chains_weights_are_trusted_where_they_tell(approx, rng, monkeypatch, close, kept):
    monkeypatch.setattr(moments, "VERY_CLOSE", 0.0)
    monkeypatch.setattr(moments, "CLOSE", close)
    monkeypatch.setattr(check, "correct_by_chains", lambda *args: None)
    before = spoiled(approx, loc=0.2, factor=1.1)
    checked = check.check(approx.objective, None, before, rng)
    unchanged = all(map(np.array_equal, checked.values, before))
    assert unchanged != kept
    assert (checked.verdict.doubt is None) == kept


def test_what_chance_explains_of_weights_is_left_out(rng):
    z = rng.normal(size=(N // 20, 2))
    noisy = moments_of_common(z, 0.3 * rng.normal(size=len(z)), rng.normal(size=z.shape))
    assert 0.02 < noisy.se < 0.1
    assert np.abs(noisy.loc).max() < noisy.se / 2
    assert np.abs(noisy.covariance - np.eye(2)).max() < 0.03


@pytest.mark.parametrize("limit", [None, "FORGOTTEN", "N_SE_OF_DRIFT", "MAX_SE_OF_CHAINS"])
def test_chains_that_have_not_arrived_do_not_tell(approx, rng, monkeypatch, limit):
    monkeypatch.setattr(marginal, "SE_OF_CHAINS", 0.0)  # all transitions
    monkeypatch.setattr(marginal, "MAX_TRANSITIONS", 2 * marginal.MIN_KEPT)
    monkeypatch.setattr(marginal, "N_SE_OF_DRIFT", 5.0)  # three may be met by chance
    if limit is not None:
        monkeypatch.setattr(marginal, limit, 0.0)
    noise = rng.normal(size=(500, approx.objective.size))
    found = moments_by_chains(approx.objective, approx.values, noise, np.zeros(500), rng)
    assert (found is None) == (limit is not None)


@pytest.mark.slow  # three corrections; how far one may go is tested above
def test_a_correction_that_went_as_far_as_it_may_is_followed_by_another(approx, rng, monkeypatch):
    told, asked = marginal.moments_of_common, []

    def first_capped(*args):
        asked.append(len(args[0]))
        return told(*args)._replace(is_capped=len(asked) <= 2)

    monkeypatch.setattr(marginal, "moments_of_common", first_capped)
    corrected = marginal.correct_common(approx.objective, approx.values, rng, 0.1)
    assert corrected is not None
    # twice from more draws, then for the corrected values from new ones
    assert asked[:3] == [marginal.N_DRAWS, 2 * marginal.N_DRAWS, marginal.N_DRAWS]

    monkeypatch.setattr(
        marginal, "moments_of_common", lambda *args: told(*args)._replace(is_capped=True)
    )
    assert marginal.correct_common(approx.objective, approx.values, rng, 0.1) is None
