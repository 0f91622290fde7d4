"""What the default fit must reach on problems whose evidence is known."""

import numpy as np
import pytest

import pymc_emf as emf

from case_studies import eight_schools, problems


def fit_and_gap(name, data_seed, fit_seed, steps=10_000):
    problem = problems.load(name, data_seed)
    approx = emf.fit(steps, model=problem.model, random_seed=fit_seed, progressbar=False)
    elbo = approx.elbo(20_000, random_seed=fit_seed + 1000)
    gap = -elbo.mean - problem.neg_log_evidence
    assert gap > -3 * elbo.se - 3 * problem.se - 1e-9, "below the evidence: log q or log p is wrong"
    return approx, gap


def check_eight_schools(fit_seed, steps=10_000):
    """Gap at most 0.02 nats; means within 0.05 sd and sds within 5 % of quadrature."""
    approx, gap = fit_and_gap("ES", 0, fit_seed, steps)
    assert gap <= 0.02
    posterior = approx.sample(50_000, random_seed=fit_seed + 2000).posterior
    draws = np.column_stack(
        [posterior["mu"].values[0], posterior["log_tau"].values[0], posterior["theta"].values[0]]
    )
    exact = eight_schools.solve(problems.load("ES").observed)
    mean, sd = exact.moments()
    assert (np.abs(draws.mean(0) - mean) < 0.05 * sd).all()
    assert (np.abs(draws.std(0) / sd - 1) < 0.05).all()


def test_eight_schools():
    check_eight_schools(0, steps=3000)  # the number of users' fits is for the slow session


@pytest.mark.slow
@pytest.mark.parametrize("fit_seed", range(10))
def test_eight_schools_any_seed(fit_seed):
    check_eight_schools(fit_seed)


@pytest.mark.slow  # the start is exact, as that of test_fit.py
def test_linear_gaussian_chain():
    _, gap = fit_and_gap("BRS-r", 0, 0, steps=1000)
    assert gap <= 0.001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BRS-r", "BRB-r", "Lin-4", "Lin-8"])
@pytest.mark.parametrize("data_seed", [0, 1])
def test_linear_gaussian(name, data_seed):
    _, gap = fit_and_gap(name, data_seed, 0)
    assert gap <= 0.001
