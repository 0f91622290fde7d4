"""What a fit says of itself at its end."""

import logging
import re

import numpy as np
import pymc as pm
import pytest

from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.variational.checks import moments_in_doubt, pareto_smoothed, warn_if_poor


def test_pareto_k_of_known_tails():
    rng = np.random.default_rng(0)
    exponential = rng.exponential(size=20_000)
    for k in (0.3, 0.8, 1.5):  # exp of an exponential of mean k is a Pareto of tail index 1/k
        weights, khat = pareto_smoothed(k * exponential)
        assert abs(khat - k) < 0.1
        np.testing.assert_allclose(weights.sum(), 1.0)
    weights, khat = pareto_smoothed(np.full(1000, -3.0))
    assert khat == -np.inf
    np.testing.assert_allclose(weights, 1e-3)
    assert np.isnan(pareto_smoothed(np.append(exponential, -np.inf))[1])


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        (0.0, 1.0, None),
        (0.05, 1.0, None),
        (0.5, 1.0, "shift its mean by +0.5"),
        (-0.5, 1.0, "shift its mean by -0.5"),
        (0.0, 0.8, "multiply its standard deviation by 0.8"),
        (0.0, 1.2, "multiply its standard deviation by 1.2"),
    ],
)
def test_moments_that_the_weights_correct(mean, sd, words):
    """Draws from a standard normal, of which one element should have been another normal."""
    values = np.random.default_rng(0).normal(size=(20_000, 3))
    log_weights = norm(mean, sd).logpdf(values[:, 1]) - norm.logpdf(values[:, 1])
    weights, _ = pareto_smoothed(log_weights)
    doubt = moments_in_doubt(7 + 2 * values, weights)
    if words is None:
        assert doubt is None
    else:
        assert doubt[0] == 1
        assert doubt[1].startswith(words[:-1])


@pytest.mark.parametrize(
    ("k", "losses", "words"),
    [
        (0.5, np.zeros(1000), None),
        (0.5, np.linspace(1000, 0, 1000), "has not converged: the ELBO rose by 2e.02 nats"),
        (0.5, np.linspace(0.4, 0, 1000), None),  # less than a tenth of a nat
        (0.5, np.random.default_rng(0).normal(size=1000), None),
        (0.5, np.array([3.0]), None),
        (0.95, np.zeros(1000), "Pareto k-hat is 0.95, above 0.7"),
        (np.nan, np.zeros(1000), "not all finite"),
        (-np.inf, np.zeros(1000), None),
    ],
)
def test_warnings(k, losses, words, caplog):
    warn_if_poor(k, losses)
    if words is None:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert re.search(words, record.getMessage())


def test_warning_of_moments(caplog):
    warn_if_poor(0.1, np.zeros(1000), ("tau[1]", "multiply its standard deviation by 1.40"))
    assert "The approximation of tau[1] is off: importance weights would multiply" in caplog.text


def test_a_poor_fit_warns(caplog):
    """A mean-field normal has too light tails for a Cauchy posterior."""
    with pm.Model() as model:
        pm.Cauchy("x", 0.0, 1.0, shape=5)
    approx = emf.fit(
        2000, model=model, layers="affine", embed=False, random_seed=0, progressbar=False
    )
    assert approx.pareto_k > 0.7
    assert "Pareto k-hat is" in caplog.text
    assert approx.objective.program.element_name(3) == "x[3]"
    caplog.clear()
    approx = emf.fit(500, model=model, random_seed=0, progressbar=False)  # the prior itself
    assert approx.pareto_k < 0.7
    assert not caplog.records
