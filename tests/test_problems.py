"""The benchmark problems: densities against SciPy, evidences against exact marginals."""

from itertools import pairwise

import numpy as np
import pytest

from scipy import integrate
from scipy.special import expit
from scipy.stats import bernoulli, multivariate_normal, norm

from case_studies import problems
from case_studies.problems import SCHOOL_SIGMA, load


def outcome_logpdf(y, latent, variant, sigma, slope):
    seen = ~np.isnan(y)
    if variant == "r":
        return norm.logpdf(y[seen], latent[seen], sigma).sum()
    return bernoulli.logpmf(y[seen], expit(slope * latent[seen])).sum()


def brownian_logpdf(point, y, variant):
    x = point["x"]
    steps = np.diff(x, prepend=0.0)
    return norm.logpdf(steps, 0, 0.1).sum() + outcome_logpdf(y, x, variant, 0.15, 5)


def lorenz_logpdf(point, y, variant):
    v = point["v"].T if "v" in point else np.stack([point[f"v_{t}"] for t in range(len(y))])
    a, b, c = v[:-1].T
    drift = np.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], axis=1)
    logp = norm.logpdf(v[0]).sum()
    logp += norm.logpdf(v[1:], v[:-1] + 0.02 * drift, 0.1 * 0.02**0.5).sum()
    return logp + outcome_logpdf(y, v[:, 0], variant, 1, 2)


def van_der_pol_logpdf(point, y, variant):
    v = point["v"].T if "v" in point else np.stack([point[f"v_{t}"] for t in range(len(y))])
    a, b = v[:-1].T
    drift = np.stack([b, (1 - a**2) * b - a], axis=1)
    logp = norm.logpdf(v[0]).sum()
    logp += norm.logpdf(v[1:], v[:-1] + 0.05 * drift, 0.1 * 0.05**0.5).sum()
    return logp + outcome_logpdf(y, v[:, 0], variant, 0.5, 1)


def eight_schools_logpdf(point, y, variant):
    mu, log_tau, theta = point["mu"], point["log_tau"], point["theta"]
    logp = norm.logpdf(mu, 0, 10) + norm.logpdf(log_tau, 5, 1)
    logp += norm.logpdf(theta, mu, np.exp(log_tau)).sum()
    return logp + norm.logpdf(y, theta, SCHOOL_SIGMA).sum()


def tree_logpdf(link, leaf_sigma, sigma):
    def logpdf(point, y, depth):
        layers = [point[f"layer_{level}"] for level in reversed(range(1, int(depth)))] + [y]
        logp = norm.logpdf(layers[0], 0, leaf_sigma).sum()
        for child, parent in pairwise(layers):
            left, right = link(child.reshape(-1, 2)).T
            logp += norm.logpdf(parent, left - right, sigma).sum()
        return logp

    return logpdf


LOGPDF = {
    "BRS": brownian_logpdf,
    "BRB": brownian_logpdf,
    "LZS": lorenz_logpdf,
    "LZB": lorenz_logpdf,
    "ES": eight_schools_logpdf,
    "Lin": tree_logpdf(np.asarray, 0.2, 0.15),
    "Tanh": tree_logpdf(np.tanh, 0.1, 0.05),
}

CASES = [(name, seed, {}) for name, seed in problems.names() if seed == 0] + [
    ("LZB-r", 1, {"form": "sde"}),
    ("LZS-c", 1, {"form": "sde"}),
]


#: Ninety variables in a Python loop, of which two of the four models are enough.
LONG = ("LZS-r", "LZB-c")


@pytest.mark.parametrize(
    ("name", "seed", "options"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in LONG else [], id=str(case))
        for case in CASES
    ],
)
def test_log_density(name, seed, options):
    problem = load(name, seed, **options)
    model = problem.model
    rng = np.random.default_rng(seed)
    point = {k: 0.3 * rng.normal(size=np.shape(v)) for k, v in model.initial_point().items()}
    assert sum(v.size for v in map(np.asarray, point.values())) == problem.dim

    logp = model.compile_logp(mode="FAST_COMPILE")
    family, _, variant = name.partition("-")
    expected = LOGPDF[family](point, problem.observed, variant)
    np.testing.assert_allclose(logp(point), expected, rtol=1e-9)

    if problem.true_latents:
        assert problem.true_latents.keys() == point.keys()
        truth = LOGPDF[family](problem.true_latents, problem.observed, variant)
        np.testing.assert_allclose(logp(problem.true_latents), truth, rtol=1e-9)


@pytest.mark.parametrize("form", ["sde", "steps"])
@pytest.mark.parametrize("variant", ["r", "c"])
def test_log_density_of_the_van_der_pol_oscillator(variant, form):
    y = np.array([0.0, 1.0, np.nan, np.nan, 1.0, 0.0])
    model = problems.build(f"VDB-{variant}", y, form=form)
    rng = np.random.default_rng(0)
    point = {k: rng.normal(size=np.shape(v)) for k, v in model.initial_point().items()}
    expected = van_der_pol_logpdf(point, y, variant)
    np.testing.assert_allclose(model.compile_logp(mode="FAST_COMPILE")(point), expected, rtol=1e-9)


def test_the_papers_trees():
    model = problems.tree(0.5, 3, "tanh", sigmas="paper")
    rng = np.random.default_rng(0)
    point = {k: rng.normal(size=np.shape(v)) for k, v in model.initial_point().items()}
    expected = tree_logpdf(np.tanh, 1.0, 1.0)(point, np.array([0.5]), 3)
    np.testing.assert_allclose(model.compile_logp(mode="FAST_COMPILE")(point), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["BRS-r", "BRB-r"])
def test_evidence_of_brownian_regression(name, seed):
    problem = load(name, seed)
    y = problem.observed
    steps = np.arange(1, len(y) + 1)
    cov = 0.1**2 * np.minimum.outer(steps, steps) + 0.15**2 * np.eye(len(y))
    seen = ~np.isnan(y)
    exact = multivariate_normal(cov=cov[np.ix_(seen, seen)]).logpdf(y[seen])
    np.testing.assert_allclose(-exact, problem.neg_log_evidence, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("depth", [4, 8])
def test_evidence_of_linear_trees(depth, seed):
    problem = load(f"Lin-{depth}", seed)
    variance = 0.2**2
    for _ in range(depth - 1):
        variance = 2 * variance + 0.15**2
    exact = norm.logpdf(problem.observed.item(), 0, variance**0.5)
    np.testing.assert_allclose(-exact, problem.neg_log_evidence, atol=1e-8)


def test_evidence_of_eight_schools():
    problem = load("ES")
    noise = np.diag(np.square(SCHOOL_SIGMA))

    def integrand(log_tau):
        # given log_tau, mu and theta integrate to one Gaussian
        cov = 10.0**2 + np.exp(2 * log_tau) * np.eye(8) + noise
        marginal = multivariate_normal(cov=cov).logpdf(problem.observed)
        return np.exp(marginal + norm.logpdf(log_tau, 5, 1))

    exact, _ = integrate.quad(integrand, -10, 15, points=[0, 2, 4, 6], epsabs=0, epsrel=1e-10)
    np.testing.assert_allclose(-np.log(exact), problem.neg_log_evidence, atol=1e-7)


def test_unknown_problem_is_named():
    with pytest.raises(KeyError, match="XYZ"):
        load("XYZ")
