"""What is decided before a fit."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_emf.model.program import Program
from pymc_emf.variational.options import FitOptions, Options
from pymc_emf.variational.prepare import make_steps, prepare
from tests.test_callback import own


def rows(n, minibatch=None):
    y = np.zeros(n)
    with pm.Model() as model:
        mu = pm.Normal("mu")
        observed = y if minibatch is None else pm.Minibatch(y, batch_size=minibatch)
        pm.Normal("y", mu, 1.0, observed=observed, total_size=None if minibatch is None else n)
    return model


def kernel(n):
    x = np.linspace(0, 1, n)
    with pm.Model() as model:
        length = pm.LogNormal("length")
        covariance = pt.exp(-(((x[:, None] - x) / length) ** 2)) + np.eye(n)
        pm.MvNormal("y", np.zeros(n), covariance, observed=np.zeros(n))
    return model


@pytest.mark.parametrize(
    ("model", "n_draws"),
    [
        (lambda: rows(20), 32),
        (lambda: rows(1000), 16),
        (lambda: rows(5000), 8),
        (lambda: rows(5000, minibatch=10), 8),
        (lambda: kernel(60), 8),
        (own, 8),
    ],
    ids=["few rows", "a thousand", "many", "minibatches of many", "large arrays", "Python"],
)
def test_draws_of_a_step(model, n_draws, request):
    """As many as cost little, unless their number is given."""
    prepared = prepare(Program(model()), Options(layers="affine"), np.random.default_rng(0))
    assert prepared.n_draws(FitOptions()) == n_draws
    assert prepared.n_draws(FitOptions(obj_n_mc=3)) == 3
    more = {"few rows": None, "Python": None}.get(request.node.callspec.id, 32)
    assert prepared.n_more(FitOptions()) == more
    assert prepared.n_more(FitOptions(obj_n_mc=3)) is None
    steps = make_steps(prepared, prepared.initial, FitOptions())
    assert n_draws in steps.settings
