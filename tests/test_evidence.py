"""Evidences and simulated data of the benchmark problems."""

import numpy as np
import pytest

from case_studies import evidence
from case_studies.evidence import log_evidence, particle_filter, tree
from case_studies.problems import load, names
from case_studies.simulation import simulate
from tests.helpers import parametrize

EXACT = [(name, seed) for name, seed in names() if not name.startswith("LZ")]


@pytest.mark.parametrize(
    ("name", "seed"),
    # a tree of 255 variables takes seconds to build
    [pytest.param(*c, marks=[pytest.mark.slow] if c[0] == "Tanh-8" else []) for c in EXACT],
)
def test_exact(name, seed):
    """Two derivations of one number: ours, and that in the file."""
    problem = load(name, seed)
    found, se = log_evidence(name, problem.observed)
    assert se == 0
    assert abs(found + problem.neg_log_evidence) < 1e-8


@parametrize(["LZB-r", "LZS-c"], slow=["LZS-c"])  # the same filter, twice as long
def test_particle_filter(name, monkeypatch):
    monkeypatch.setattr(evidence, "PARTICLES", 20_000)
    problem = load(name)
    found, se = log_evidence(name, problem.observed)
    assert se < 0.1
    assert abs(found + problem.neg_log_evidence) < 4 * np.hypot(se, problem.se)


def test_particle_filter_of_a_linear_process(monkeypatch):
    """Against the marginal density, which is normal."""
    monkeypatch.setattr(evidence, "PARTICLES", 20_000)
    y = np.array([0.5, np.nan, 1.0, 0.2])

    def drift(state):
        return (-state[0],)

    found, se = particle_filter(y, drift, 1, 0.5, "r", 0.3, 1.0, seed=0, diffusion=1.0)
    weights = np.array([[0.5 ** (t - s) for s in range(4)] for t in range(4)])
    shocks = np.tril(weights) * np.sqrt([1.0, 0.5, 0.5, 0.5])
    seen = ~np.isnan(y)
    covariance = (shocks @ shocks.T)[np.ix_(seen, seen)] + 0.09 * np.eye(3)
    quadratic = y[seen] @ np.linalg.solve(covariance, y[seen])
    expected = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert abs(found - expected) < 4 * se < 0.05


@pytest.mark.parametrize("sigmas", [(0.1, 0.05), (1.0, 1.0)])
def test_density_of_a_root_integrates_to_one(sigmas):
    y = np.linspace(-8, 8, 161)
    total = np.exp(tree(y, 3, "tanh", *sigmas)).sum() * (y[1] - y[0])
    assert abs(total - 1) < 1e-6


@parametrize(["BRB-c", "VDB-r", "Tanh-4"], slow=["Tanh-4"])  # whose evidence is a long sum
def test_simulated_data(name, monkeypatch):
    monkeypatch.setattr(evidence, "PARTICLES", 1000)
    problem, again, other = simulate(name, 1), simulate(name, 1), simulate(name, 2)
    np.testing.assert_array_equal(problem.observed, again.observed)
    assert not np.array_equal(problem.observed, other.observed, equal_nan=True)
    assert np.isfinite(problem.neg_log_evidence)
    point = problem.model.initial_point()
    assert problem.true_latents.keys() == point.keys()
    assert all(problem.true_latents[key].shape == point[key].shape for key in point)
    assert problem.dim == sum(value.size for value in point.values())
    assert np.isfinite(problem.model.compile_logp()(problem.true_latents))
