"""What a fit says of itself at its end."""

import logging
import re

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.variational.checks import pareto_k, warn_if_poor


def test_pareto_k_of_known_tails():
    rng = np.random.default_rng(0)
    exponential = rng.exponential(size=20_000)
    for k in (0.3, 0.8, 1.5):  # exp of an exponential of mean k is a Pareto of tail index 1/k
        assert abs(pareto_k(k * exponential) - k) < 0.1
    assert pareto_k(np.full(1000, -3.0)) == -np.inf
    assert np.isnan(pareto_k(np.append(exponential, -np.inf)))


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


def test_a_poor_fit_warns(caplog):
    """A mean-field normal has too light tails for a Cauchy posterior."""
    with pm.Model() as model:
        pm.Cauchy("x", 0.0, 1.0, shape=5)
    approx = emf.fit(
        2000, model=model, layers="affine", embed=False, random_seed=0, progressbar=False
    )
    assert approx.pareto_k > 0.7
    assert "Pareto k-hat is" in caplog.text
    caplog.clear()
    approx = emf.fit(500, model=model, random_seed=0, progressbar=False)  # the prior itself
    assert approx.pareto_k < 0.7
    assert not caplog.records
