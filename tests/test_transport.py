"""NUTS through the flow."""

import logging

from functools import partial

import arviz as az
import numpy as np
import pymc as pm
import pytest

from scipy.stats import norm

import pymc_emf as emf

from benchmarks.transport import measure
from pymc_emf.variational.minibatches import weighted_minibatches

#: A short run.
SHORT = dict(draws=250, tune=200, chains=4, progressbar=False, quiet=True)
X = np.random.default_rng(0).normal(size=20)


@pytest.fixture(scope="module")
def line():
    """A line through points, and its exact posterior."""
    y = 1.0 + 0.5 * X + np.random.default_rng(1).normal(size=20)
    coords = {"term": ["level", "slope"], "point": np.arange(20)}
    with pm.Model(coords=coords) as model:
        x = pm.Data("x", X, dims="point")
        beta = pm.Normal("beta", 0.0, 2.0, dims="term")
        pm.Deterministic("middle", beta[0] + beta[1] * x, dims="point")
        pm.Normal("y", beta[0] + beta[1] * x, 1.0, observed=y, dims="point")
    # too few unknowns to be known by a mean field alone: NUTS has something to do
    approx = emf.fit(
        300, model=model, layers="mean_field", warm_start=False, random_seed=1, progressbar=False
    )
    design = np.column_stack([np.ones(20), X])
    covariance = np.linalg.inv(np.eye(2) / 4 + design.T @ design)
    return approx, covariance @ design.T @ y, covariance


@pytest.fixture(scope="module")
def drawn(line):
    return line[0].nuts(**SHORT | {"draws": 500}, random_seed=2, nuts_sampler="pymc")


def test_moments(line, drawn):
    _, mean, covariance = line
    beta = drawn.posterior["beta"].values.reshape(-1, 2)
    np.testing.assert_allclose(beta.mean(0), mean, atol=0.15 * np.sqrt(covariance.max()))
    np.testing.assert_allclose(np.cov(beta.T), covariance, rtol=0.2, atol=0.005)
    assert float(az.rhat(drawn)["beta"].max()) < 1.03


def test_in_the_context_of_the_model():
    """Twice, and after the data have changed: the user's model gets no variable of ours."""
    with pm.Model(coords={"row": range(3)}) as model:
        data = pm.Data("data", np.zeros(3), dims="row")
        pm.Normal("y", pm.Normal("x"), 1.0, observed=data, dims="row")
        approx = emf.fit(20, random_seed=1, layers="affine", progressbar=False)
        pm.set_data({"data": np.zeros(5)}, coords={"row": range(5)})
        before = list(model.named_vars)
        for seed in (1, 2):
            drawn = approx.nuts(
                **SHORT | {"draws": 20, "tune": 20, "chains": 1},
                random_seed=seed,
                nuts_sampler="pymc",
            )
        assert list(model.named_vars) == before
    np.testing.assert_array_equal(drawn.observed_data["row"], range(3))
    assert set(drawn.posterior.data_vars) == {"x"}


def test_groups_and_statistics(line, drawn):
    approx, *_ = line
    plain = approx.sample(10)
    assert set(drawn.children) == set(plain.children)
    assert dict(drawn.posterior.sizes) == {"chain": 4, "draw": 500, "term": 2, "point": 20}
    assert list(drawn.posterior.data_vars) == list(plain.posterior.data_vars)
    for name, coord in plain.posterior.coords.items():
        if name != "draw" and name != "chain":
            np.testing.assert_array_equal(drawn.posterior.coords[name], coord)
    beta = drawn.posterior["beta"].values
    np.testing.assert_allclose(
        drawn.posterior["middle"], beta[..., :1] + beta[..., 1:] * X, rtol=1e-10
    )
    stats = drawn.sample_stats
    assert {"diverging", "n_steps", "tree_depth", "energy", "step_size", "acceptance_rate"} <= set(
        stats.data_vars
    )
    logp = approx.model.compile_logp()
    expected = [logp({"beta": b}) for b in beta[1, :5]]
    np.testing.assert_allclose(stats["lp"].values[1, :5], expected, rtol=1e-8)
    assert drawn.posterior.attrs["tuning_steps"] == 200


def test_arviz_and_predictions(line, drawn):
    idata = drawn.copy()
    assert az.summary(idata).shape[0] == 22
    with line[0].model:
        pm.compute_log_likelihood(idata, progressbar=False)
        pm.sample_posterior_predictive(
            idata, extend_inferencedata=True, progressbar=False, random_seed=1
        )
    assert np.isfinite(az.loo(idata).elpd)
    assert idata.posterior_predictive["y"].shape == (4, 500, 20)


@pytest.mark.parametrize("sampler", ["pymc", "nutpie"])
def test_seeds(line, sampler):
    approx = line[0]
    options = SHORT | {"draws": 10, "tune": 20, "chains": 2, "nuts_sampler": sampler}
    once, again, other = (
        approx.nuts(**options, random_seed=seed).posterior["beta"].values for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.any(once == other)
    assert not np.any(once[0] == once[1])


def test_the_stream_of_the_fit_continues(line, tmp_path):
    approx = line[0]
    approx.save(tmp_path / "fit")
    again = emf.load(tmp_path / "fit", model=approx.model)
    options = SHORT | {"draws": 5, "tune": 5, "chains": 1, "nuts_sampler": "pymc"}
    once = approx.nuts(**options).posterior["beta"].values
    np.testing.assert_array_equal(once, again.nuts(**options).posterior["beta"].values)
    assert not np.any(once == approx.nuts(**options).posterior["beta"].values)


def test_nutpie(line):
    """The same numbers under the same names, from another sampler."""
    approx, mean, covariance = line
    idata = approx.nuts(**SHORT, random_seed=3, nuts_sampler="nutpie", nuts={"max_treedepth": 8})
    beta = idata.posterior["beta"].values.reshape(-1, 2)
    np.testing.assert_allclose(beta.mean(0), mean, atol=0.2 * np.sqrt(covariance.max()))
    stats = {"diverging", "n_steps", "tree_depth", "energy", "step_size", "acceptance_rate", "lp"}
    assert stats <= set(idata.sample_stats.data_vars)
    assert int(idata.sample_stats["tree_depth"].max()) <= 8


def funnel():
    with pm.Model() as model:
        v = pm.Normal("v", 0.0, 3.0)
        pm.Normal("x", 0.0, pm.math.exp(v / 2), shape=8)
    return model


@pytest.mark.slow  # the default layers, for which `test_targets` asks more
def test_funnel_without_divergences():
    """NUTS on the model itself diverges here."""
    approx = emf.fit(300, model=funnel(), random_seed=1, progressbar=False)
    idata = approx.nuts(**SHORT, random_seed=1, nuts_sampler="pymc")
    assert int(idata.sample_stats["diverging"].sum()) == 0
    assert float(idata.posterior["v"].std()) == pytest.approx(3.0, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["schools", "funnel"])
def test_targets(name, seed):
    """No divergences, and three times as many effective draws per gradient as plain NUTS."""
    through, plain, _ = measure(name, "pymc", 10_000, 1000, seed)
    assert through["divergences"] == 0
    assert plain["ratio"] > 3


def test_asvi_and_transformed_values(caplog):
    """Any flow will do, after a fit by PyMC's own loop, too; and PyMC's warnings appear."""
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", 0.0, sigma, observed=np.array([0.5, -1.0, 0.3]))
    with model:
        approx = pm.fit(50, method=emf.ASVI(random_seed=1), backend="numba", progressbar=False)
    options = SHORT | {"draws": 20, "tune": 20, "chains": 2, "nuts_sampler": "pymc"}
    caplog.set_level(logging.INFO, logger="pymc")  # whatever other tests have set
    idata = approx.nuts(**options | {"quiet": False}, include_transformed=True)
    np.testing.assert_allclose(idata.posterior["sigma_log__"], np.log(idata.posterior["sigma"]))
    assert "too small to check convergence" in caplog.text
    caplog.clear()
    assert "sigma_log__" not in approx.nuts(**options).posterior
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("n_rows", "size"), [(12, 4), (10, 4), (11, 7), (3, 10), (1, 1), (97, 64), (1000, 101)]
)
def test_minibatches_that_hold_every_row_once(n_rows, size):
    indices, weights = weighted_minibatches(n_rows, size)
    counts = np.zeros(n_rows)
    np.add.at(counts, indices, np.repeat(weights[:, None], size, axis=1))
    np.testing.assert_allclose(counts, size / n_rows)
    assert weights.sum() == pytest.approx(1.0)
    assert len(indices) <= n_rows // size + 2 * np.log2(size) + 1


def test_minibatches():
    """The density is that of all data, though neither number of rows divides by its batch size."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1.0, size=50), rng.normal(2.0, 1.0, size=23)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 10.0)
        pm.Normal("a", mu, 1.0, observed=pm.Minibatch(a, batch_size=16), total_size=50)
        pm.Normal("b", mu + 1, 1.0, observed=pm.Minibatch(b, batch_size=10), total_size=23)
    approx = emf.fit(50, model=model, layers="affine", random_seed=0, progressbar=False)
    idata = approx.nuts(**SHORT, random_seed=1, nuts_sampler="pymc")
    mu = idata.posterior["mu"].values
    precision = 0.01 + 73
    assert mu.mean() == pytest.approx((a.sum() + (b - 1).sum()) / precision, abs=0.02)
    assert mu.std() == pytest.approx(precision**-0.5, rel=0.15)
    expected = norm(0, 10).logpdf(mu[0, 0]) + norm(mu[0, 0]).logpdf(np.append(a, b - 1)).sum()
    assert float(idata.sample_stats["lp"][0, 0]) == pytest.approx(expected, rel=1e-8)


def interrupt(monkeypatch, after):
    """Let PyMC's sampler be interrupted in every chain."""

    def stop(trace, draw):
        if draw.draw_idx + 1 >= after:
            raise KeyboardInterrupt

    monkeypatch.setattr(pm, "sample", partial(pm.sample, callback=stop))


def test_interrupted_while_it_tunes(line, monkeypatch):
    interrupt(monkeypatch, SHORT["tune"])
    with pytest.raises(KeyboardInterrupt, match="before it had drawn anything"):
        line[0].nuts(**SHORT, random_seed=1, nuts_sampler="pymc")


def test_interrupted_while_it_draws(line, monkeypatch):
    interrupt(monkeypatch, SHORT["tune"] + 50)
    idata = line[0].nuts(**SHORT, random_seed=1, nuts_sampler="pymc")
    assert idata.posterior.sizes["chain"] == 4
    assert 50 <= idata.posterior.sizes["draw"] <= 51
    assert np.isfinite(idata.sample_stats["lp"]).all()


@pytest.mark.filterwarnings("ignore:Found chain dimension to be longer")
def test_nutpie_interrupted_while_it_tunes(line, monkeypatch):
    nutpie = pytest.importorskip("nutpie")
    sample = nutpie.sample

    def abort(*args, **kwargs):
        return sample(*args, **kwargs, blocking=False).abort()

    monkeypatch.setattr(nutpie, "sample", abort)
    with pytest.raises(KeyboardInterrupt, match="before it had drawn anything"):
        line[0].nuts(**SHORT | {"tune": 10**7}, random_seed=1, nuts_sampler="nutpie")


@pytest.mark.parametrize(
    ("lengths", "chains", "draws"),
    [([5, 5, 5], [0, 1, 2], 5), ([5, 3, 0, 5], [0, 3], 5), ([0, 4, 3, 3], [1, 2, 3], 3)],
)
def test_chains_that_were_cut_short(line, lengths, chains, draws, monkeypatch):
    """NaN, with which nutpie fills them, is none of the draws."""
    noise = np.random.default_rng(0).normal(size=(len(lengths), 5, 2))
    for chain, length in zip(noise, lengths, strict=True):
        chain[length:] = np.nan
    groups = {"posterior": {"noise": noise}, "sample_stats": {"depth": noise[..., 0]}}
    monkeypatch.setattr(pm, "sample", lambda *args, **kwargs: az.from_dict(groups))
    idata = line[0].nuts(**SHORT, random_seed=3, nuts_sampler="pymc")
    assert idata.posterior["beta"].shape == (len(chains), draws, 2)
    assert np.isfinite(idata.posterior["beta"]).all()
    np.testing.assert_array_equal(idata.sample_stats["tree_depth"], noise[chains, :draws, 0])


@pytest.mark.parametrize("said", ["Not enough samples to", "Sampler has no results to take"])
def test_samplers_without_any_draw(line, said, monkeypatch):
    def interrupted(*args, **kwargs):
        raise ValueError(said)

    monkeypatch.setattr(pm, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt, match="before it had drawn anything"):
        line[0].nuts(**SHORT, nuts_sampler="pymc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws must be a positive integer, got 0"),
        ({"draws": 2.5}, "draws must be a positive integer, got 2.5"),
        ({"tune": -1}, "tune must be a positive integer, got -1"),
        ({"chains": True}, "chains must be a positive integer, got True"),
        ({"target_accept": 1.0}, "target_accept must lie between 0 and 1, got 1.0"),
        ({"nuts_sampler": "stan"}, "must be one of pymc, nutpie, numpyro, blackjax, got 'stan'"),
    ],
)
def test_errors(line, monkeypatch, options, message):
    monkeypatch.setattr("pymc_emf.variational.approximation.sample_noise", None)
    with pytest.raises(ValueError, match=message):
        line[0].nuts(**options)


def test_a_sampler_that_is_not_installed(line, monkeypatch):
    monkeypatch.setattr("pymc_emf.variational.transport.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="Install nutpie, or leave out nuts_sampler='nutpie'"):
        line[0].nuts(nuts_sampler="nutpie")
