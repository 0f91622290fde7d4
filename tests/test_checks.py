"""What a fit says of itself at its end."""

import json
import logging
import re

import arviz as az
import numpy as np
import optax
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr

from arviz_stats import loo_approximate_posterior
from scipy.stats import multivariate_normal, norm

import pymc_emf as emf

from benchmarks.large import intercepts
from pymc_emf.engine.stopping import Stopping
from pymc_emf.variational.check import Checked, report, still_gaining
from pymc_emf.variational.doubt import moments_in_doubt, scores_in_doubt
from pymc_emf.variational.importance import (
    MIN_DRAWS,
    average,
    convergence_rate,
    missed_evidence,
    resample,
    smooth,
    standard_deviation,
)
from pymc_emf.variational.verdict import MANY_ELEMENTS, Verdict


def test_pareto_k_of_known_tails():
    rng = np.random.default_rng(0)
    exponential = rng.exponential(size=20_000)
    for k in (0.3, 0.8, 1.5):  # exp of an exponential of mean k is a Pareto of tail index 1/k
        smoothed = smooth(k * exponential)
        assert abs(smoothed.pareto_k - k) < 0.1
        np.testing.assert_allclose(np.exp(smoothed.log_weights).sum(), 1.0)
    equal = smooth(np.full(1000, -3.0))
    assert equal.pareto_k == -np.inf
    assert equal.log_evidence == pytest.approx(-3.0)
    assert equal.ess == pytest.approx(1000)
    np.testing.assert_allclose(np.exp(equal.log_weights), 1e-3)
    assert np.isnan(smooth(np.append(exponential, -np.inf)).pareto_k)


def test_moments_of_infinite_log_weights():
    assert np.isnan(average(np.array([np.inf, -np.inf, 0.0])))
    assert average(np.array([-np.inf, 0.0])) == -np.inf
    assert np.isnan(standard_deviation(np.array([-np.inf, 0.0])))
    assert standard_deviation(np.array([-1e200, 1e200])) == np.inf


def test_weights_without_a_tail():
    """Where ArviZ has no answer: some draws are worth the same, or one is worth all."""
    rng = np.random.default_rng(0)
    two = smooth(np.where(np.arange(1000) < 600, 0.0, -1.0))
    assert two.pareto_k == -np.inf
    assert two.ess == pytest.approx((600 + 400 / np.e) ** 2 / (600 + 400 / np.e**2))
    assert two.log_evidence == pytest.approx(np.log(0.6 + 0.4 / np.e))
    for log_weights in (1e6 * rng.normal(size=1000), np.append(rng.normal(size=999), 1e5)):
        one = smooth(log_weights)
        assert one.pareto_k == np.inf
        assert one.ess == pytest.approx(1)
    for scale in (1e200, 300.0, 50.0):
        heavy = smooth(scale * rng.exponential(size=1000))
        assert heavy.pareto_k > 1
        assert np.isfinite(heavy.log_weights).all()
    assert np.isfinite(smooth(rng.normal(size=MIN_DRAWS)).pareto_k)


def test_log_evidence_of_known_weights():
    """Draws from a normal that is too wide: the mean weight is the constant of the target."""
    x = 1.5 * np.random.default_rng(0).normal(size=20_000)
    smoothed = smooth(7.0 + norm.logpdf(x) - norm.logpdf(x, scale=1.5))
    assert smoothed.log_evidence == pytest.approx(7.0, abs=4 * smoothed.se)
    assert 0 < smoothed.se < 0.01
    # E[w]**2 / E[w**2] of these two normals
    share = np.sqrt(2 * 1.5**2 - 1) / 1.5**2
    assert smoothed.ess == pytest.approx(20_000 * share, rel=0.05)


def test_standard_errors_of_heavy_tails():
    """Weights of known mean and tail: errors beyond three standard errors are as rare as they say.

    By the central limit theorem they were one in eleven here.
    """
    rng, k, n = np.random.default_rng(0), 0.65, 5000
    scores, plain = [], []
    for _ in range(200):
        weights = rng.pareto(1 / k, size=n) + 1  # of mean 1 / (1 - k)
        smoothed = smooth(np.log(weights))
        error = smoothed.log_evidence + np.log(1 - k)
        scores.append(error / smoothed.se)
        plain.append(error / (np.exp(smoothed.log_weights).std() * np.sqrt(n)))
    assert np.mean(np.abs(scores) > 3) < 0.04
    assert np.mean(np.abs(plain) > 3) > 0.06


def test_convergence_rate():
    assert convergence_rate(-1.0, 1000) == convergence_rate(0.0, 1000) == 1
    assert convergence_rate(1.0, 1000) == convergence_rate(2.0, 1000) == 0
    rates = [convergence_rate(k, 10_000) for k in np.linspace(0.01, 0.99, 99)]
    assert (np.diff(rates) <= 0).all()
    around = convergence_rate(0.4999, 10_000), convergence_rate(0.5001, 10_000)
    np.testing.assert_allclose(around, convergence_rate(0.5, 10_000), atol=1e-3)


def test_resampling():
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        chosen = resample(np.log(weights), 10_000, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(chosen, minlength=4), weights * 10_000)
    assert np.ptp(chosen[:100]) > 0  # not sorted


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
    weights = np.exp(smooth(log_weights).log_weights)
    doubt = moments_in_doubt(7 + 2 * values, weights)
    if words is None:
        assert doubt is None
    else:
        assert doubt[0] == 1
        assert doubt[1].startswith(f"importance weights would {words[:-1]}")


def test_moments_of_values_without_bound():
    """Squares of large values overflow; what is not finite has no moments."""
    values = np.random.default_rng(0).normal(size=(1000, 2)) * [1e200, 1.0]
    weights = np.exp(values[:, 1]) / np.exp(values[:, 1]).sum()
    assert moments_in_doubt(values, np.full(1000, 1e-3)) is None
    assert moments_in_doubt(values, weights)[0] == 1
    values[0, 0] = np.inf
    assert moments_in_doubt(values, weights) is None


@pytest.mark.parametrize(
    ("losses", "gain"),
    [
        (np.zeros(1000), 0.0),
        (np.linspace(1000, 0, 1000), 200.0),
        (np.linspace(0.4, 0, 1000), 0.0),  # less than a tenth of a nat
        (np.random.default_rng(0).normal(size=1000), 0.0),
        (np.array([3.0]), 0.0),
        (1e200 * np.random.default_rng(0).normal(size=1000), 0.0),
    ],
)
def test_an_elbo_that_still_rises(losses, gain):
    assert still_gaining(losses, Stopping("steps", 1000)) == pytest.approx(gain, abs=1.0)
    assert still_gaining(losses, Stopping("converged", 1000)) == 0.0


def weighed(**given):
    """A verdict on weights that are as good as can be, but for what is given."""
    good = {"pareto_k": 0.3, "elbo": -2.0, "log_evidence": -2.0, "ess": 990.0, "draws": 1000}
    return Verdict(**good | given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, None),
        ({"pareto_k": -np.inf, "ess": 1000.0}, None),
        ({"pareto_k": 0.8}, None),  # a heavy tail of weights that hardly vary
        ({"pareto_k": 0.8, "ess": 700.0}, "Do not trust it: Pareto k-hat is 0.80, above 0.7"),
        ({"ess": 700.0}, None),
        ({"pareto_k": 0.6, "ess": 790.0}, "Resample it: its draws are worth 790 of 1,000"),
        ({"pareto_k": 0.6, "ess": 810.0}, None),
        ({"ess": 54.1, "elbo": -2.97}, "Resample it: its draws are worth 54 of 1,000 .* 0.97 nats"),
        ({"gain": 0.97, "ess": 54.0}, "Fit longer: it has not converged, the ELBO rose by 0.97"),
        ({"doubt": ("tau[1]", "weights say so")}, "approximation of tau.1. is off: weights say so"),
        ({"missed": 15.0, "pareto_k": np.inf}, "Do not trust it: draws .* find more evidence"),
        ({"pareto_k": np.nan, "outside": 1000}, "the log density of the model is not finite"),
        (
            {"pareto_k": np.nan, "outside": 20, "culprit": "trap"},
            "Use it with care: .* log density of trap is not finite at 20 of 1,000",
        ),
        ({"pareto_k": np.nan, "outside": 1}, None),
        ({"pareto_k": 0.9, "ess": np.nan, "draws": 0}, "k-hat is 0.90"),  # of an older file
        ({"pareto_k": 0.9, "many": True, "ess": 3.0}, None),
        ({"many": True, "doubt": ("tau", "scores say so")}, "Do not trust it: the approximation"),
    ],
)
def test_one_verdict(given, words, caplog):
    """The same in the warning and in what is asked for later."""
    verdict = weighed(**given)
    report(Checked([], verdict), np.zeros(1000), Stopping("steps", 1000), 1000)
    assert Verdict.from_file(json.loads(json.dumps(verdict.to_file()))).sentence == verdict.sentence
    assert verdict.is_good == (words is None)
    if words is None:
        assert verdict.sentence.startswith("Use it: ")
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert verdict.sentence in record.getMessage()
        assert re.search(words, record.getMessage())


def test_k_hat_of_many_elements(caplog):
    """Whose small errors add up: no reason for a warning, but not passed over in silence."""
    verdict = weighed(pareto_k=0.9, many=True, ess=3.0)
    with caplog.at_level(logging.INFO, logger="pymc_emf"):
        report(Checked([], verdict), np.zeros(1000), Stopping("steps", 1000), 1000)
    record = caplog.records[-1]
    assert record.levelname == "INFO" and "but do not resample" in record.message


def test_scores_in_doubt():
    """Of normal posteriors whose mean and precision are known."""
    rng, size = np.random.default_rng(0), 300
    noise = rng.normal(size=(200, size))
    assert scores_in_doubt(np.zeros((200, size))) is None
    assert scores_in_doubt(0.1 * noise) is None
    assert scores_in_doubt(np.full((200, size), np.nan)) is None
    shifted = np.zeros((200, size))
    shifted[:, 7] = 0.3
    element, words = scores_in_doubt(shifted)
    assert element == 7 and "shift its mean by +0.30 standard deviations" in words
    # correlations with many others that are missing: a precision of 1 + e between each and one
    correlated = np.zeros((200, size))
    correlated[:, 0] = 0.05 * noise[:, 1:].sum(axis=1)
    precision = np.eye(size)
    precision[0, 1:] = precision[1:, 0] = 0.05
    true_sd = np.sqrt(np.linalg.inv(precision)[0, 0])
    element, words = scores_in_doubt(correlated)
    assert element == 0
    error = float(words.split()[-2]) / 100
    assert 0.1 < error < 1.5 * (true_sd - 1)


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_density_that_is_zero_within_reach(warm_start, caplog):
    """Half of the prior is ruled out: the ELBO is minus infinity, which is said plainly."""
    with pm.Model() as model:
        x = pm.Normal("x", 3.0, 1.0)
        pm.Potential("upper half", pt.switch(x > 3.0, 0.0, -np.inf))
    approx = emf.fit(
        5,
        model=model,
        layers="affine",
        warm_start=warm_start,
        obj_n_mc=1,
        obj_optimizer=optax.sgd(0.0),
        random_seed=0,
        progressbar=False,
    )
    assert np.isnan(approx.pareto_k)
    assert "not all finite" in caplog.text
    elbo, found = approx.elbo(100), approx.diagnose(100)
    assert elbo.mean == found.elbo == -np.inf
    assert np.isnan(elbo.se)
    assert "not finite" in found.advice


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
    options = {"layers": "affine", "random_seed": 0, "progressbar": False}
    approx = emf.fit(500, model=model, **options)  # the prior itself
    assert approx.pareto_k < 0.7
    assert not caplog.records


def test_missed_evidence():
    rng = np.random.default_rng(0)
    smoothed = smooth(0.1 * rng.normal(size=1000))  # evidence one, it believes
    nothing = np.full(1000, -50.0)
    assert missed_evidence(smoothed, nothing) == 0
    nothing[0] = np.log(1000) + 4.0  # less than a factor of a hundred
    assert missed_evidence(smoothed, nothing) == 0
    nothing[0] = np.log(1000) + 20.0
    assert missed_evidence(smoothed, nothing) == pytest.approx(20.0, abs=0.1)
    nothing[1:] = -np.inf
    nothing[2] = np.nan
    assert missed_evidence(smoothed, nothing) == pytest.approx(20.0, abs=0.1)
    assert missed_evidence(smooth(np.array([0.0, np.nan])), nothing) == 0


@pytest.mark.parametrize("layers", ["full_rank", pytest.param("affine", marks=pytest.mark.slow)])
def test_a_mode_that_was_missed(layers, caplog):
    """Two modes, of which a start chooses the one that has a millionth of the mass."""
    with pm.Model() as model:
        x = pm.Normal("x", 0.0, 3.0)
        y = pm.Normal("y", x, 1.0)
        pm.Potential(
            "modes",
            pm.math.logaddexp(-0.5 * ((y - 4.0) / 0.1) ** 2, -15 - 0.5 * ((y + 4.0) / 0.1) ** 2),
        )
    options = {"model": model, "layers": layers, "random_seed": 1, "progressbar": False}
    start = {"x": np.array(-4.0), "y": np.array(-4.0)}
    poor = emf.fit(500, start=start, warm_start=False, **options)
    assert poor.pareto_k == np.inf
    assert "in a mode that it has missed" in caplog.text
    found = poor.diagnose(1000, random_seed=1)
    assert found.pareto_k == np.inf
    assert found.missed == pytest.approx(15.0, abs=1.5)
    assert found.advice.startswith("Do not trust it: draws from the prior find more evidence")
    caplog.clear()
    if layers == "full_rank":
        good = emf.fit(500, **options)
        assert "missed" not in caplog.text
        assert good.diagnose(1000, random_seed=1).missed == 0


def test_prior_weights_are_the_likelihood(rough):
    """Whatever the gates are, and they are left as they were."""
    approx, *_ = rough
    gates = approx.gates
    noise = np.random.default_rng(0).normal(size=(5, 2))
    X, y = regression()
    expected = [norm.logpdf(y, X @ beta).sum() for beta in noise]  # the prior is standard normal
    np.testing.assert_allclose(
        approx.objective.prior_log_weights(approx.values, noise), expected, rtol=1e-3
    )
    xr.testing.assert_equal(approx.gates, gates)
    asvi = emf.ASVI(approx.model, prior_weight=0.3).approx
    found = asvi.objective.prior_log_weights(asvi.values, noise)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


#: Observations of the regression below.
N = 20


def regression():
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(N), 0.3 + rng.normal(size=N)])
    return X, X @ [1.0, 0.5] + rng.normal(size=N)


@pytest.fixture(scope="module")
def rough():
    """Mean field on two correlated unknowns, whose posterior and evidence are known."""
    X, y = regression()
    with pm.Model() as model:
        beta = pm.Normal("beta", 0.0, 1.0, shape=2)
        pm.Normal("y", pm.math.dot(X, beta), 1.0, observed=y)
    method = emf.EMFApprox(layers="mean_field", random_seed=1)
    with model:
        approx = pm.fit(2000, method=method, progressbar=False, tol=None)
    covariance = np.linalg.inv(np.eye(2) + X.T @ X)
    mean = covariance @ X.T @ y
    evidence = multivariate_normal(np.zeros(N), np.eye(N) + X @ X.T).logpdf(y)
    return approx, mean, covariance, evidence


def test_diagnosis(rough):
    approx, _, _, evidence = rough
    found = approx.diagnose(20_000, random_seed=1)
    assert found.log_evidence == pytest.approx(evidence, abs=4 * found.log_evidence_se)
    assert found.elbo < evidence - 5 * found.elbo_se
    assert found.elbo == pytest.approx(approx.elbo(20_000, random_seed=1).mean)
    assert found.stopped == f"{approx.stopping.reason}, after step {approx.stopping.step:,}"
    assert 0 < found.ess < 20_000
    text = str(found)
    assert f"Pareto k-hat     {found.pareto_k:.2f}" in text
    assert "gate of beta" in text
    assert found.advice in text
    assert "<th>ELBO</th>" in found._repr_html_()
    dataset = found.to_dataset()
    assert float(dataset["pareto_k"]) == found.pareto_k
    assert dataset["beta_gate"].shape == (2,)
    assert dataset.attrs["advice"] == found.advice
    with pytest.raises(ValueError, match="at least 30, got 29"):
        approx.diagnose(29)


def test_the_verdict_of_the_fit(rough):
    """Reported as often as one likes, and no draws are spent on it."""
    approx, state = rough[0], rough[0].random_state
    found = [approx.diagnose() for _ in range(2)]
    assert found[0].verdict == found[1].verdict == approx.verdict
    assert approx.random_state == state
    for asked in ({"draws": 1000}, {"random_seed": 1}):
        fresh = approx.diagnose(**asked).verdict
        assert fresh != approx.verdict
        assert fresh.draws == asked.get("draws", 10_000)


def test_importance_resampling_corrects_the_draws(rough):
    approx, mean, covariance, _ = rough
    plain = approx.sample(4000, random_seed=1)
    corrected = approx.sample(4000, random_seed=1, importance=True)
    draws = corrected.posterior["beta"].values[0]
    assert corrected.posterior.sizes == plain.posterior.sizes
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.1 * np.sqrt(covariance.max()))
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.15)
    assert abs(np.corrcoef(plain.posterior["beta"].values[0].T)[0, 1]) < 0.1
    stats = corrected.sample_stats
    assert set(stats.data_vars) == {"lp", "lq", "log_weight"}
    assert stats.attrs["pareto_k"] < 1.0
    again = approx.sample(4000, random_seed=1, importance=True)
    np.testing.assert_array_equal(again.posterior["beta"], corrected.posterior["beta"])


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # mean field has light tails
def test_loo_of_the_draws(rough):
    """ArviZ's leave-one-out works on the result, corrected either way."""
    approx, X, y = rough[0], *regression()
    elpds = []
    for importance in (True, False):
        idata = approx.sample(2000, random_seed=1, importance=importance)
        with approx.model:
            pm.compute_log_likelihood(idata, progressbar=False)
        if importance:
            elpds.append(float(az.loo(idata).elpd))
        else:
            stats = idata.sample_stats
            found = loo_approximate_posterior(idata, stats["lp"].values[0], stats["lq"].values[0])
            elpds.append(float(found.elpd))
    # exactly, from the posterior without each observation
    exact = 0.0
    for i in range(N):
        others = np.delete(np.arange(N), i)
        covariance = np.linalg.inv(np.eye(2) + X[others].T @ X[others])
        mean = covariance @ X[others].T @ y[others]
        exact += norm.logpdf(y[i], X[i] @ mean, np.sqrt(1 + X[i] @ covariance @ X[i]))
    np.testing.assert_allclose(elpds, exact, atol=0.2)


@pytest.mark.filterwarnings("ignore:Numba will use object mode")  # PyMC's minibatch
def test_draws_after_a_minibatch_fit():
    """Resampled by weights of all data, and good for predictions."""
    rng = np.random.default_rng(0)
    X, y = regression()
    X, y = np.tile(X, (10, 1)), np.tile(y, 10) + rng.normal(size=10 * N)
    with pm.Model():
        rows, outcomes = pm.Minibatch(X, y, batch_size=30)
        beta = pm.Normal("beta", 0.0, 1.0, shape=2)
        pm.Normal("y", pm.math.dot(rows, beta), 1.5, observed=outcomes, total_size=len(y))
        approx = pm.fit(
            300, method=emf.EMFApprox(layers="full_rank", random_seed=1), progressbar=False
        )
        idata = approx.sample(2000, importance=True, random_seed=1)
        predicted = pm.sample_posterior_predictive(idata, progressbar=False, random_seed=1)
    covariance = np.linalg.inv(np.eye(2) + X.T @ X / 1.5**2)
    draws = idata.posterior["beta"].values[0]
    np.testing.assert_allclose(
        draws.mean(axis=0), covariance @ X.T @ y / 1.5**2, atol=0.2 * np.sqrt(covariance.max())
    )
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.2)
    assert predicted.posterior_predictive["y"].shape == (1, 2000, 30)
    assert approx.diagnose(1000, random_seed=1).pareto_k < 0.7


def test_poor_resampling_warns(rough, caplog, monkeypatch):
    approx, *_ = rough
    monkeypatch.setattr("pymc_emf.variational.draws.HOPELESS_PARETO_K", -np.inf)
    approx.sample(10, importance=True)
    assert "cannot mend" in caplog.text
    with pytest.raises(TypeError, match="needs return_inferencedata"):
        approx.sample(10, importance=True, return_inferencedata=False)


@pytest.fixture(scope="module")
def varying_intercepts():
    return intercepts(groups=230)


# what is asked of scores is tested above; these are fits of 230 groups, of twenty seconds each
@pytest.mark.slow
def test_a_good_fit_of_many_unknowns(varying_intercepts, caplog):
    approx = emf.fit(300, model=varying_intercepts, random_seed=1, progressbar=False)
    assert approx.objective.size > MANY_ELEMENTS
    assert " is off" not in caplog.text


@pytest.mark.slow
def test_a_poor_fit_of_many_unknowns(varying_intercepts, caplog):
    """Mean field has but a part of the common parameters' spread."""
    layers = "mean_field"
    approx = emf.fit(
        1500, model=varying_intercepts, layers=layers, random_seed=1, progressbar=False
    )
    level = approx.sample(1000, random_seed=2).posterior["level"]
    assert level.std() < 0.5 / np.sqrt(230)  # as if the groups' intercepts were known
    assert re.search(r"approximation of (level|of_group|slope|tau|sigma) is off", caplog.text)
