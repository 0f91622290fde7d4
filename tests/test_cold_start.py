"""Remedies for a cold start: what they are made of, and what they find."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest

import pymc_emf as emf

from case_studies import cold_start
from case_studies.problems import load
from pymc_emf.model.program import Program
from pymc_emf.variational.prepare import prepare


def test_tempered_model():
    """At power one it is the model, at power zero the prior, but for the offset."""
    problem = load("BRB-c", 0)
    model, point = problem.model, problem.true_latents
    prior = float(model.compile_logp(vars=model.free_RVs)(point))
    likelihood = float(model.compile_logp(vars=model.observed_RVs)(point))
    for power in (0.0, 0.3, 1.0):
        tempered = cold_start.tempered(model, power)
        exact = prior + power * likelihood + power * cold_start.OFFSET
        assert float(tempered.compile_logp()(point)) == pytest.approx(exact, rel=1e-10)


def test_power_ends_at_one_and_the_rest_is_adam():
    optimizer = cold_start.raising_the_power(100, 0.01, 0.5)
    values = [np.ones(2), np.ones(1), np.array(0.01)]
    state = optimizer.init(values)
    powers = []
    for _ in range(60):
        updates, state = optimizer.update([np.ones(2), np.ones(1), np.array(7.0)], state, values)
        values = [value + np.asarray(update) for value, update in zip(values, updates, strict=True)]
        powers.append(float(values[-1]))
    assert powers[0] == pytest.approx(0.01, rel=0.2)
    assert np.all(np.diff(powers[:50]) > 0)
    np.testing.assert_allclose(powers[49:], 1.0)
    assert values[0][0] < values[1][0] < 1.0  # gates move a tenth as far


def test_importance_weighted_loss_is_a_tighter_bound():
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 1.0)
        pm.Normal("y", x, 1.0, observed=2.0)
    method = emf.EMFApprox(model=model, layers="affine", gate=None, random_seed=1)
    objective = prepare(Program(model), method.options, np.random.default_rng(0)).objective
    values = [v.get_value() for v in objective.variables]
    trained, fixed = objective.trained(values), objective.fixed(values)
    noise = np.random.default_rng(1).normal(size=(20_000, 1))
    drawn = noise, objective.target.minibatches.first
    elbo_loss = float(objective.loss(trained, fixed, drawn))
    bound = float(cold_start.importance_weighted_loss(objective, trained, fixed, drawn))
    exact = 0.5 * np.log(2 * np.pi * 2.0) + 1.0  # y ~ N(0, 2)
    assert bound == pytest.approx(exact, abs=0.05)
    assert elbo_loss > exact + 0.5


@pytest.mark.slow  # two fits of a bridge; that the start is right test_targets.py asks as well
def test_regression_is_right_where_the_cold_start_is_wrong():
    problem = load("LZB-r", 0)
    gaps = {}
    for name in cold_start.BETTER_OF:
        approx, _ = cold_start.METHODS[name](problem.model, 0, 300)
        gaps[name] = -problem.neg_log_evidence - approx.elbo(2_000, random_seed=1).mean
    assert gaps["cold"] > 100
    assert -0.1 < gaps["regression, no modes"] < 2


def test_table(tmp_path, capsys):
    cold, regression = cold_start.BETTER_OF
    rows = [("LZB-r", cold, 0, 350.0, 10.0), ("LZB-r", regression, 0, 0.5, 5.0)]
    rows += [("LZB-r", cold, 1, 0.2, 10.0)]  # the other fit is still to come
    frame = pd.DataFrame(rows, columns=["problem", "method", "run", "gap", "seconds"])
    best = cold_start.with_better_of(frame).iloc[3:]
    assert best[["run", "gap", "seconds"]].to_numpy().tolist() == [[0, 0.5, 15.0]]
    wrong = list(cold_start.tabulate(frame).columns[-2].cells)
    assert wrong == ["1 of 2", "0 of 1"]
