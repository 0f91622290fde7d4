"""The Eight Schools case study: the exact posterior against independent sums, and the script."""

import arviz as az
import numpy as np
import pytest

from scipy import integrate
from scipy.stats import multivariate_normal, norm

from case_studies.eight_schools import main, solve
from case_studies.gaps import Gaps, show_gaps
from case_studies.problems import SCHOOL_SIGMA, load


@pytest.fixture(scope="module")
def problem():
    return load("ES")


@pytest.fixture(scope="module")
def exact(problem):
    return solve(problem.observed)


def test_evidence(exact, problem):
    np.testing.assert_allclose(-exact.log_evidence, problem.neg_log_evidence, atol=1e-8)
    finer = solve(problem.observed, step=0.005)
    np.testing.assert_allclose(exact.log_evidence, finer.log_evidence, atol=1e-12)
    np.testing.assert_allclose(exact.moments(), finer.moments(), rtol=1e-12)


def test_moments_of_mu_and_log_tau(exact, problem):
    """Integrate mu numerically too."""
    y, variance = problem.observed, np.square(SCHOOL_SIGMA)

    def density(mu, log_tau):
        total = variance + np.exp(2 * log_tau)
        log_likelihood = -((y - mu) ** 2 / total + np.log(2 * np.pi * total)).sum() / 2
        log_prior = -((mu / 10) ** 2 + (log_tau - 5) ** 2) / 2 - np.log(2 * np.pi * 10)
        return np.exp(log_likelihood + log_prior + problem.neg_log_evidence)

    def expect(function):
        return integrate.dblquad(
            lambda mu, log_tau: function(mu, log_tau) * density(mu, log_tau),
            *(-3, 10, -60, 60),
            epsabs=1e-9,
        )[0]

    np.testing.assert_allclose(expect(lambda mu, log_tau: 1.0), 1, atol=1e-8)
    means = [expect(lambda mu, log_tau: mu), expect(lambda mu, log_tau: log_tau)]
    squares = [expect(lambda mu, log_tau: mu**2), expect(lambda mu, log_tau: log_tau**2)]
    mean, sd = exact.moments()
    np.testing.assert_allclose(mean[:2], means, rtol=1e-7)
    np.testing.assert_allclose(sd[:2], np.sqrt(squares - np.square(means)), rtol=1e-7)


def test_moments_of_theta(exact, problem):
    """Condition the joint normal of (theta, y) given log_tau, and integrate by another rule."""
    y = problem.observed

    def moments(log_tau):
        prior = 10.0**2 + np.exp(2 * log_tau) * np.eye(8)
        marginal = prior + np.diag(np.square(SCHOOL_SIGMA))
        gain = np.linalg.solve(marginal, prior).T
        mean, variance = gain @ y, np.diag(prior - gain @ prior)
        log_density = multivariate_normal(cov=marginal).logpdf(y) + norm.logpdf(log_tau, 5, 1)
        weight = np.exp(log_density + problem.neg_log_evidence)
        return weight * np.concatenate([[1.0], mean, variance + mean**2])

    expected, _ = integrate.quad_vec(moments, -7, 14, epsabs=1e-9)
    total, mean, square = expected[0], expected[1:9], expected[9:]
    np.testing.assert_allclose(total, 1, atol=1e-8)
    exact_mean, exact_sd = exact.moments()
    np.testing.assert_allclose(exact_mean[2:], mean, rtol=1e-8)
    np.testing.assert_allclose(exact_sd[2:], np.sqrt(square - mean**2), rtol=1e-8)


@pytest.mark.parametrize("index", [0, 1, 2, 9])
def test_densities_have_the_moments(exact, index):
    mean, sd = (moment[index] for moment in exact.moments())
    x = np.linspace(mean - 12 * sd, mean + 12 * sd, 4001)
    density = exact.density(index, x)
    step = x[1] - x[0]
    np.testing.assert_allclose(density.sum() * step, 1, rtol=1e-4)
    np.testing.assert_allclose(x @ density * step, mean, rtol=1e-4)
    np.testing.assert_allclose((x - mean) ** 2 @ density * step, sd**2, rtol=1e-4)


@pytest.mark.slow  # four fits, and NUTS
def test_script(tmp_path, capsys, compiled_by_numba):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "results", tmp_path / "docs" / "picture.png"
    main(["--steps", "200", "--draws", "10", "--out", str(out), "--picture", str(picture)])

    printed = capsys.readouterr().out
    for expected in ("36.130816", "36.140", "mean field", "theta[7]", "eight_schools.nc"):
        assert expected in printed
    for path in (out / "eight_schools.png", picture):
        assert path.read_bytes().startswith(b"\x89PNG")
    with az.from_netcdf(out / "eight_schools.nc") as idata:
        assert {"posterior", "sample_stats", "fit"} <= set(idata.children)
        assert dict(idata.posterior.sizes) == {"chain": 1, "draw": 20_000, "school": 8}
        assert {"lp", "lq"} <= set(idata.sample_stats)
        assert idata.fit["elbo"].shape == (200,)


def test_gaps_below_zero_are_shown():
    """Noise takes the mean losses of an all but exact fit below the least loss that there is."""
    figure = pytest.importorskip("matplotlib.figure")
    log_evidence, rng = -36.0, np.random.default_rng(0)
    losses = -log_evidence + np.exp(-np.arange(1000) / 50) + rng.normal(0, 0.01, 1000)
    gaps = Gaps.of_losses(losses, log_evidence)
    assert len(gaps.steps) == len(gaps.means) == 25
    np.testing.assert_allclose(gaps.means.mean(), (losses + log_evidence).mean())
    assert gaps.means.min() < 0 < gaps.means[0]
    assert gaps.noise == pytest.approx(2 * 0.01 / np.sqrt(40), rel=0.3)
    ax = figure.Figure().subplots()
    ax.plot(gaps.steps, gaps.means)
    show_gaps(ax, [gaps])
    assert np.isfinite(ax.transData.transform(np.c_[gaps.steps, gaps.means])).all()
    low, high = ax.get_ylim()
    assert low <= min(gaps.means.min(), -gaps.noise)
    assert high >= gaps.means.max()
