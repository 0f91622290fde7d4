"""The inference method, end to end: exact posteriors, PyMC's habits, errors."""

import logging

import arviz as az
import numpy as np
import optax
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr

from scipy import stats

import pymc_emf as emf

from pymc_emf.arguments import make_rng
from pymc_emf.exceptions import BadStartError, DiscreteVariableError, NonFiniteELBOError
from pymc_emf.variational.draws import Draws
from pymc_emf.variational.pymc_fit import pymc_optimizer
from tests.helpers import UNREWRITTEN

y = np.array([1.2, 0.4, 2.1, 1.7])
quiet = {"progressbar": False}


def conjugate(observed=y):
    """Unknown mean, known variance; dims, a constant and a deterministic."""
    with pm.Model(coords={"obs": np.arange(len(observed))}) as model:
        pm.Data("offset", 0.5)
        mu = pm.Normal("mu", 0.0, 2.0)
        effect = pm.Normal("effect", 0.0, 1.0, dims="obs")
        pm.Deterministic("total", mu + effect, dims="obs")
        pm.Normal("y", mu + effect, 0.5, observed=observed, dims="obs")
    return model


def exact_posterior():
    """Mean and covariance of (mu, effect), and the log evidence, of ``conjugate``."""
    design = np.column_stack([np.ones(4), np.eye(4)])
    prior = np.diag([4.0, 1, 1, 1, 1])
    precision = np.linalg.inv(prior) + design.T @ design / 0.25
    cov = np.linalg.inv(precision)
    mean = cov @ design.T @ y / 0.25
    evidence = stats.multivariate_normal(cov=design @ prior @ design.T + 0.25 * np.eye(4))
    return mean, cov, evidence.logpdf(y)


def positive_scale():
    """A model with a transformed variable, for which nothing is exact."""
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", 0.0, sigma, observed=y)
    return model


@pytest.fixture(scope="module")
def model():
    return conjugate()


@pytest.fixture(scope="module")
def approx(model):
    with model:
        return pm.fit(200, method=emf.EMFApprox(random_seed=1), **quiet)


@pytest.fixture(scope="module")
def scale_approx():
    return emf.fit(2000, model=positive_scale(), random_seed=3, **quiet)


class Every:
    """A callback that asks to be called at some steps."""

    def __init__(self, every, steps):
        self.every, self.steps = every, steps

    def __call__(self, approx, losses, i):
        self.steps.append(i)


class TestResult:
    def test_posterior_is_exact(self, approx):
        """The posterior is normal in the noise: the warm start finds it and the fit keeps it."""
        mean, cov, log_evidence = exact_posterior()
        elbo = approx.elbo(2000, random_seed=0)
        assert abs(elbo.mean - log_evidence) < 1e-6
        assert elbo.se < 1e-6
        posterior = approx.sample(20_000, random_seed=2).posterior
        draws = np.column_stack([posterior["mu"].values[0], posterior["effect"].values[0]])
        se = np.sqrt(np.diag(cov) / len(draws))
        assert (np.abs(draws.mean(0) - mean) < 5 * se).all()
        np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.02)

    def test_log_prob(self, approx):
        mean, cov, _ = exact_posterior()
        points = np.random.default_rng(0).multivariate_normal(mean, cov, size=(3, 2))
        expected = stats.multivariate_normal(mean, cov).logpdf(points)
        np.testing.assert_allclose(approx.log_prob(points), expected, atol=1e-6)
        as_dict = {"mu": points[..., 0], "effect": points[..., 1:]}
        np.testing.assert_allclose(approx.log_prob(as_dict), expected, atol=1e-6)
        assert approx.log_prob(points[0, 0]).shape == ()
        with pytest.raises(KeyError, match="effect"):
            approx.log_prob({"mu": 0.0})
        with pytest.raises(ValueError, match="effect must end in shape"):
            approx.log_prob({"mu": 0.0, "effect": np.zeros(3)})
        with pytest.raises(ValueError, match="5 elements"):
            approx.log_prob(np.zeros(4))

    def test_log_prob_of_its_own_draws(self, scale_approx):
        """The inverse of the whole flow, gates and all, agrees with the forward pass."""
        idata = scale_approx.sample(100, random_seed=1, include_transformed=True)
        point = {"sigma_log__": idata.posterior["sigma_log__"].values}
        np.testing.assert_allclose(
            scale_approx.log_prob(point), idata.sample_stats["lq"].values, atol=1e-6
        )

    def test_lp_is_the_log_density_of_the_model(self, scale_approx):
        idata = scale_approx.sample(50, random_seed=1, include_transformed=True)
        logp = scale_approx.model.compile_logp()
        expected = [logp({"sigma_log__": v}) for v in idata.posterior["sigma_log__"].values[0]]
        np.testing.assert_allclose(idata.sample_stats["lp"].values[0], expected, rtol=1e-6)
        np.testing.assert_allclose(
            np.exp(idata.posterior["sigma_log__"]), idata.posterior["sigma"], rtol=1e-10
        )

    def test_arviz(self, approx, tmp_path):
        idata = approx.sample(30, random_seed=0)
        assert isinstance(idata, xr.DataTree)
        groups = {"posterior", "sample_stats", "fit", "observed_data", "constant_data"}
        assert groups == set(idata.children)
        assert dict(idata.posterior.sizes) == {"chain": 1, "draw": 30, "obs": 4}
        assert set(idata.posterior.data_vars) == {"mu", "effect", "total"}
        np.testing.assert_allclose(
            idata.posterior["total"], idata.posterior["mu"] + idata.posterior["effect"]
        )
        np.testing.assert_allclose(idata.observed_data["y"], y)
        assert idata.constant_data["offset"] == 0.5
        assert idata.fit["elbo"].sizes == {"step": 1}  # of the start, which is exact
        assert idata.fit["effect_gate"].dims == ("obs",)
        assert "mu" in az.summary(idata).index
        idata.to_netcdf(tmp_path / "fit.nc")
        again = xr.open_datatree(tmp_path / "fit.nc")
        np.testing.assert_allclose(again["posterior"]["mu"], idata.posterior["mu"])
        again.close()

    def test_posterior_predictive(self, model, approx):
        idata = approx.sample(50, random_seed=0)
        with model:
            predicted = pm.sample_posterior_predictive(idata, progressbar=False, random_seed=1)
        assert predicted.posterior_predictive["y"].shape == (1, 50, 4)

    def test_gates(self, approx):
        gates = approx.gates
        assert gates["effect"].dims == ("obs",)
        np.testing.assert_array_equal(gates["obs"], np.arange(4))
        assert ((gates["effect"] > 0) & (gates["effect"] < 1)).all()
        assert gates["mu"].shape == ()

    def test_hist(self, scale_approx):
        assert np.isfinite(scale_approx.hist).all()
        assert scale_approx.stopping == ("converged", len(scale_approx.hist))

    def test_an_exact_start_leaves_nothing_to_do(self, approx):
        assert approx.warm_start.sd < 1e-6
        assert approx.stopping == ("exact", 0)
        np.testing.assert_allclose(-approx.hist, approx.elbo(10, random_seed=0).mean, atol=1e-6)
        assert approx.pareto_k == -np.inf

    def test_steps_are_taken_for_those_who_watch(self, model, caplog):
        """Callbacks, a fixed number of steps and refine are served after an exact start, too."""
        seen = []
        inference = emf.EMFApprox(model, random_seed=1)
        with caplog.at_level(logging.INFO, "pymc_emf"):
            approx = inference.fit(200, **quiet)
        assert approx.stopping == ("exact", 0)
        assert any("No steps were taken" in r.getMessage() for r in caplog.records)
        inference.refine(20, callbacks=[lambda approx, losses, i: seen.append(i)], **quiet)
        assert seen[-1] == 20
        assert len(approx.hist) == 21
        np.testing.assert_allclose(approx.hist, approx.hist[0], atol=1e-6)
        again = emf.EMFApprox(model, random_seed=1).fit(20, tol=None, **quiet)
        assert again.stopping.step == 20

    def test_state_is_in_the_space_of_the_model(self, scale_approx):
        state = scale_approx.state
        draws = scale_approx.sample(20_000, random_seed=5).posterior["sigma"]
        np.testing.assert_allclose(state.mean["sigma"], draws.mean(), rtol=0.05)
        np.testing.assert_allclose(state.std["sigma"], draws.std(), rtol=0.15)

    @pytest.mark.parametrize("draws", [0, -1, 2.5, True])
    def test_bad_draws(self, approx, draws):
        with pytest.raises(ValueError, match="draws must be a positive integer"):
            approx.sample(draws)
        with pytest.raises(ValueError, match="draws must be a positive integer"):
            approx.elbo(draws)

    def test_any_number_of_draws(self, approx):
        for draws in (1, 2, 3, 1001):
            assert approx.sample(draws).posterior.sizes["draw"] == draws
        assert np.isnan(approx.elbo(1).se)

    def test_seeds(self, approx):
        first, second = (approx.sample(5, random_seed=7).posterior["mu"] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(approx.sample(5).posterior["mu"], first)

    def test_pymc_interface(self, model, approx):
        """Symbolic nodes, sampled expressions and traces, as with PyMC's own approximations."""
        mean, _, _ = exact_posterior()
        unrewritten = {"mode": UNREWRITTEN}
        np.testing.assert_allclose(approx.mean.eval(**unrewritten), mean, atol=0.2)
        assert approx.cov.eval(**unrewritten).shape == (5, 5)
        node = approx.sample_node(model["mu"] * 2, size=500)
        np.testing.assert_allclose(node.eval(**unrewritten).mean(), 2 * mean[0], atol=0.3)
        assert approx.sample_node(model["effect"]).eval(**unrewritten).shape == (4,)
        trace = approx.sample(5, return_inferencedata=False)
        assert trace["effect"].shape == (5, 4)


class TestFit:
    def test_scale_posterior(self, scale_approx):
        """One positive parameter, against quadrature."""
        grid = np.linspace(1e-3, 8, 20_001)
        log_density = stats.halfnorm.logpdf(grid) + stats.norm.logpdf(y[:, None], scale=grid).sum(0)
        density = np.exp(log_density)
        evidence = np.trapezoid(density, grid)
        mean = np.trapezoid(grid * density, grid) / evidence
        elbo = scale_approx.elbo(10_000, random_seed=0)
        gap = np.log(evidence) - elbo.mean
        assert -3 * elbo.se < gap < 0.02
        draws = scale_approx.sample(20_000, random_seed=0).posterior["sigma"]
        np.testing.assert_allclose(draws.mean(), mean, rtol=0.02)
        assert (draws > 0).all()

    @pytest.mark.slow  # so are the two fits of the next test
    def test_reproducible(self):
        first, second = (
            emf.fit(20, model=positive_scale(), random_seed=4, layers="affine", **quiet)
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.hist, second.hist)
        np.testing.assert_array_equal(
            first.sample(3).posterior["sigma"], second.sample(3).posterior["sigma"]
        )

    def test_chunks_do_not_matter(self):
        """A step draws the noise that it would have drawn in a chunk of any other size."""
        given = {"model": positive_scale(), "random_seed": 4, "layers": "affine", **quiet}
        steps = []
        hists = [
            emf.fit(130, callbacks=callbacks, **given).hist
            for callbacks in (None, [Every(7, steps)])
        ]
        assert steps == [*range(7, 130, 7), 130]
        np.testing.assert_array_equal(*hists)

    def test_refine_continues(self):
        method = emf.EMFApprox(positive_scale(), layers="affine", random_seed=0, warm_start=False)
        with pytest.raises(TypeError, match="Need to call"):
            method.refine(10)
        approx = method.fit(300, **quiet)
        elbo = approx.elbo(20_000, random_seed=1)
        method.refine(100, progressbar=False, obj_optimizer=optax.sgd(0.0))
        assert method.approx is approx
        assert approx.hist.shape == (400,)
        # the steps begin where the fit has ended, far from where it had begun
        later = approx.hist[300:]
        assert abs(later.mean() + elbo.mean) < 5 * later.std() / np.sqrt(len(later))
        assert later.mean() < approx.hist[:20].mean() - 5 * later.std()

    def test_callbacks(self, model):
        calls = []

        def stop(approx, losses, i):
            calls.append((i, len(losses)))
            if i >= 200:
                raise StopIteration("enough")

        tracker = pm.variational.callbacks.Tracker(loss=lambda approx, losses, i: losses[-1])
        with model:
            approx = pm.fit(
                1000,
                method=emf.EMFApprox(layers="affine", random_seed=0),
                callbacks=[
                    tracker,
                    stop,
                    pm.variational.callbacks.CheckParametersConvergence(tolerance=0.0),
                ],
                **quiet,
            )
        assert calls == [(100, 100), (200, 200)]
        assert len(tracker["loss"]) == 2
        assert approx.hist.shape == (200,)
        assert approx.stopping == ("callback", 200)

    def test_callbacks_of_short_fits(self):
        """At least ten times in a fit, and where they ask to be called."""
        steps, asked = [], []
        callbacks = [lambda approx, losses, i: steps.append(i), Every(30, asked)]
        given = {"model": positive_scale(), "layers": "affine", "warm_start": False, **quiet}
        emf.fit(250, callbacks=callbacks[:1], **given)
        assert steps == list(range(25, 251, 25))
        emf.fit(250, callbacks=callbacks, **given)
        assert set(range(30, 251, 30)) <= set(asked)
        assert max(np.diff(asked)) <= 25

    def test_interrupt_keeps_what_was_learnt(self):
        learnt = {}

        def interrupt(approx, losses, i):
            learnt.update({p.name: p.get_value() for p in approx.params})
            raise KeyboardInterrupt

        method = emf.EMFApprox(positive_scale(), layers="affine", random_seed=0, warm_start=False)
        approx = method.fit(1000, callbacks=[interrupt], **quiet)
        assert approx.hist.shape == (100,)
        assert approx.stopping == ("interrupted", 100)
        for parameter in approx.params:
            np.testing.assert_array_equal(parameter.get_value(), learnt[parameter.name])
        assert not np.allclose(learnt["loc"], 0)

    def test_score_false(self):
        losses = []
        approx = emf.fit(
            10,
            model=positive_scale(),
            layers="affine",
            score=False,
            callbacks=[lambda approx, loss, i: losses.append(loss)],
            **quiet,
        )
        assert losses == [None] * 10
        assert approx.hist.size == 0

    @pytest.mark.parametrize(
        # one of PyMC's is compared with that of optax below
        "optimizer",
        [optax.adam(0.05), pytest.param(pm.adagrad_window, marks=pytest.mark.slow)],
    )
    def test_optimizers(self, optimizer):
        method = emf.EMFApprox(positive_scale(), layers="affine", random_seed=0, warm_start=False)
        start = np.array([p.get_value().sum() for p in method.approx.params])
        approx = method.fit(300, obj_optimizer=optimizer, total_grad_norm_constraint=10.0, **quiet)
        assert not np.allclose(start, [p.get_value().sum() for p in approx.params])
        assert approx.hist[-50:].mean() < approx.hist[:10].mean()

    def test_pymc_adam_is_optax_adam(self):
        """PyMC's optimiser, compiled, takes the steps that optax's takes."""
        hists = [
            emf.fit(
                30,
                model=positive_scale(),
                layers="affine",
                warm_start=False,
                random_seed=0,
                obj_optimizer=optimizer,
                **quiet,
            ).hist
            for optimizer in (pm.adam(learning_rate=0.02), optax.adam(0.02))
        ]
        np.testing.assert_allclose(*hists, rtol=1e-5)

    def test_progress_bar_shows_the_loss(self, capsys):
        emf.fit(10, model=positive_scale(), layers="affine", random_seed=0)
        assert "Average Loss" in capsys.readouterr().out

    @pytest.mark.slow  # as test_logging.py, where it is shown
    def test_logs(self, caplog):
        with caplog.at_level(logging.INFO, logger="pymc_emf"):
            emf.fit(10, model=positive_scale(), layers="affine", random_seed=0, **quiet)
        assert "Finished [100%]: Average Loss" in caplog.text

    def test_gate_options(self):
        options = {"layers": "affine", "random_seed": 0}
        approx = emf.fit(10, model=conjugate(), gate="variable", **options, **quiet)
        assert approx.gates["effect"].shape == (4,)
        assert len(np.unique(approx.gates["effect"])) == 1
        gates = emf.EMFApprox(conjugate(), gate=None, **options).approx.gates
        assert (gates["effect"] == 1).all()

    def test_no_layers(self):
        approx = emf.fit(20, model=positive_scale(), layers=None, random_seed=0, **quiet)
        assert approx.warm_start.chosen == "none"

    def test_numba(self):
        """PyMC's own loop runs the same approximation."""
        with conjugate():
            approx = pm.fit(
                20,
                method=emf.EMFApprox(layers="affine", random_seed=1),
                backend="numba",
                obj_n_mc=10,
                **quiet,
            )
        assert approx.hist.shape == (20,)
        assert np.isfinite(approx.hist).all()
        assert all(isinstance(p.get_value(), np.ndarray) for p in approx.params)
        idata = approx.sample(20, random_seed=0)
        assert idata.posterior["total"].shape == (1, 20, 4)
        assert approx.stopping == ("steps", 20)
        assert approx.pareto_k is not None
        noise = np.random.default_rng(1).normal(size=(500, 5))
        by_jax = approx.objective.weigh(approx.values, noise)
        by_numba = Draws(approx.objective, {"mode": "NUMBA"}).weigh(approx.values, noise)
        for ours, theirs in zip(by_jax, by_numba, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8)

    def test_numba_of_networks(self):
        """Which are in single precision, where PyMC's optimisers would update in double."""
        weights = pytensor.shared(np.ones(2, dtype="float32"))
        loss = (weights * np.array([1.0, 2.0])).sum() ** 2
        updates = pymc_optimizer(None)(loss, [weights])
        assert weights in updates and loss.dtype == "float64"
        assert all(v.type.is_super(update.type) for v, update in updates.items())
        pytensor.function([], [], updates=updates)()
        assert (weights.get_value() < 1.0).all()

    def test_tol(self, caplog):
        """Stops well before the end, as good as one that does not, and says so."""
        method = emf.EMFApprox(positive_scale(), layers="affine", random_seed=0)
        with caplog.at_level(logging.INFO, logger="pymc_emf"):
            approx = method.fit(50_000, **quiet)
        reason, step = approx.stopping
        assert reason == "converged"
        assert 300 <= step == approx.hist.size <= 5_000
        assert "the ELBO no longer rises" in caplog.text
        assert method.fit(400, tol=0.0, **quiet).stopping.step <= 400
        assert method.fit(400, tol=None, **quiet).stopping == ("steps", 400)

    @pytest.mark.parametrize("tol", [-1.0, np.nan])
    def test_bad_tol(self, tol):
        with pytest.raises(ValueError, match="tol must be"):
            emf.fit(10, model=positive_scale(), tol=tol, **quiet)
        with pytest.raises(TypeError, match="tol needs the JAX engine"):
            emf.fit(10, model=positive_scale(), tol=0.1, backend="numba", **quiet)

    @pytest.mark.parametrize("callbacks", [print, [3]])
    def test_bad_callbacks(self, callbacks):
        with pytest.raises(TypeError, match="callbacks must be a list of functions"):
            emf.fit(10, model=conjugate(), callbacks=callbacks, **quiet)

    @pytest.mark.parametrize(
        ("start", "match"),
        [
            ({"z": 1.0}, "start has a value of 'z', which is none of the model's free .*: mu"),
            ({"mu": [1.0, 2.0]}, r"start of mu must have shape \(\), got \(2,\)"),
        ],
    )
    def test_bad_start(self, start, match):
        with pytest.raises(ValueError, match=match):
            emf.fit(10, model=conjugate(), layers="affine", start=start, **quiet)

    def test_start(self):
        method = emf.EMFApprox(
            conjugate(), layers="affine", start={"mu": 1.5}, warm_start=False, gate=None
        )
        approx = method.fit(1, obj_optimizer=optax.sgd(0.0), **quiet)
        assert approx.warm_start.chosen == "start"
        (layer,) = approx.objective.layers
        np.testing.assert_allclose(layer.frame_loc.get_value()[0], 1.5 / 2.0)
        assert not any(p.get_value().any() for p in approx.params)

    def test_minibatch(self):
        """Two minibatches cut together share their rows; draws and densities work afterwards."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=2000)
        data = 1.0 + 3.0 * x + rng.normal(size=2000)
        with pm.Model() as model:
            slope = pm.Normal("slope", 0, 10)
            batch_x, batch_y = pm.Minibatch(x, data, batch_size=100)
            mean = pm.Deterministic("mean", 1.0 + slope * batch_x)
            pm.Deterministic("double", 2 * slope)
            pm.Normal("y", mean, 1.0, observed=batch_y, total_size=len(data))
        approx = emf.fit(1500, model=model, layers="affine", random_seed=0, **quiet)
        idata = approx.sample(4000, random_seed=1)
        assert set(idata.posterior.data_vars) == {"slope", "double"}
        exact = x @ (data - 1.0) / (x @ x)
        np.testing.assert_allclose(idata.posterior["slope"].mean(), exact, atol=0.02)
        np.testing.assert_allclose(idata.posterior["slope"].std(), (x @ x) ** -0.5, rtol=0.3)
        assert np.isfinite(approx.elbo(500).mean)
        assert np.isfinite(approx.log_prob(np.array([exact])))

    @pytest.mark.slow  # NUTS has two of them in test_transport.py
    def test_minibatches_of_different_sizes(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(1.0, 1.0, size=700), rng.normal(1.0, 1.0, size=500)
        with pm.Model() as model:
            mu = pm.Normal("mu", 0, 10)
            for name, data, size in (("first", first, 50), ("second", second, 30)):
                batch = pm.Minibatch(data, batch_size=size)
                pm.Normal(name, mu, 1.0, observed=batch, total_size=len(data))
        approx = emf.fit(1000, model=model, layers="affine", random_seed=0, **quiet)
        idata = approx.sample(2000, random_seed=1)
        mean, se = np.append(first, second).mean(), 1 / np.sqrt(1200)
        assert abs(float(idata.posterior["mu"].mean()) - mean) < 0.7 * se

    def test_minibatches_of_many_rows(self):
        """What is compared and checked is the log density of all rows, whatever the minibatch."""
        rng = np.random.default_rng(0)
        n = 60_000
        data = rng.normal(3.0, 2.0, size=n)
        with pm.Model() as model:
            mu = pm.Normal("mu", 0, 10)
            batch = pm.Minibatch(data, batch_size=64)
            pm.Normal("y", mu, 2.0, observed=batch, total_size=n)
        approx = emf.fit(1000, model=model, layers="affine", random_seed=0, **quiet)
        se = 2.0 / np.sqrt(n)
        assert approx.warm_start.chosen != "prior"
        idata = approx.sample(2000, random_seed=1)
        assert "lp" not in idata.sample_stats
        assert abs(float(idata.posterior["mu"].mean()) - data.mean()) < 1.5 * se
        np.testing.assert_allclose(idata.posterior["mu"].std(), se, rtol=0.2)
        # a weighted sum over minibatches that hold all rows is exact
        target = approx.objective.target
        assert target.minibatches.all_rows[0].size - n < 64
        _, values = approx.objective.split(approx.values)
        value, log_p, _ = target.evaluate_many(values, np.array([[0.3]]))
        exact = stats.norm(0, 10).logpdf(value) + stats.norm(value, 2.0).logpdf(data).sum()
        np.testing.assert_allclose(log_p, exact[0], rtol=1e-8)

    def test_data_changed_after_the_fit(self):
        """The draws stay with the data that were fitted."""
        with pm.Model():
            data = pm.Data("data", [1.0, 2.0])
            mu = pm.Normal("mu")
            pm.Normal("y", mu, 1.0, observed=data)
            approx = pm.fit(5, method=emf.EMFApprox(layers="affine"), **quiet)
            pm.set_data({"data": [7.0, 8.0, 9.0]})
        np.testing.assert_array_equal(approx.sample(3).observed_data["y"], [1.0, 2.0])

    @pytest.mark.slow  # as test_refine_continues, without the losses of the fit
    def test_score_false_then_refine(self):
        method = emf.EMFApprox(positive_scale(), layers="affine", random_seed=0, warm_start=False)
        approx = method.fit(300, score=False, **quiet)
        assert approx.hist.size == 0
        elbo = approx.elbo(20_000, random_seed=1)
        method.refine(100, progressbar=False, obj_optimizer=optax.sgd(0.0))
        assert approx.hist.shape == (100,)
        assert abs(approx.hist.mean() + elbo.mean) < 5 * approx.hist.std() / 10

    def test_random_deterministics_are_left_out(self):
        with positive_scale() as model:
            pm.Deterministic("predicted", pm.Normal.dist(0.0, model["sigma"]))
        approx = emf.EMFApprox(model, layers="affine").approx
        assert set(approx.sample(3).posterior.data_vars) == {"sigma"}


class TestErrors:
    def test_no_model(self):
        with pytest.raises(TypeError, match="has no model"):
            emf.EMFApprox().fit(10)
        with pytest.raises(AttributeError, match="no model yet"):
            _ = emf.EMFApprox().approx

    @pytest.mark.parametrize("n", [0, -5, 1.5])
    def test_bad_n(self, n):
        method = emf.EMFApprox(layers="affine")
        with positive_scale(), pytest.raises(ValueError, match="n must be a positive integer"):
            method.fit(n)
        with positive_scale(), pytest.raises(ValueError, match="obj_n_mc must be"):
            method.fit(10, obj_n_mc=0)
        with pytest.raises(AttributeError, match="no model yet"):
            _ = method.approx

    def test_second_model(self):
        method = emf.EMFApprox(layers="affine")
        with positive_scale():
            approx = method.fit(1, **quiet)
        with conjugate(), pytest.raises(ValueError, match="already been used for another model"):
            method.fit(1)
        assert method.approx is approx

    def test_discrete(self):
        method = emf.EMFApprox(layers="affine")
        with pm.Model():
            pm.Poisson("n", 3.0)
            with pytest.raises(DiscreteVariableError, match="n; marginalise it"):
                method.fit(1)
        with positive_scale():
            method.fit(1, **quiet)

    def test_no_free_variables(self):
        with pm.Model():
            pm.Normal("y", 0, 1, observed=0.0)
            with pytest.raises(TypeError, match="no free random variables"):
                emf.fit(1)

    @pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "minus infinity")])
    def test_bad_start(self, value, kind):
        with pm.Model():
            x = pm.Normal("x")
            pm.Potential("penalty", value * pm.math.exp(x))
            with pytest.raises(BadStartError, match=f"log density of penalty is {kind}"):
                emf.fit(1, layers="affine")

    def test_an_operation_that_jax_lacks_is_named(self):
        with pm.Model():
            x = pm.Normal("x")
            pm.PolyaGamma("omega", 1.0, x, observed=0.3)
            with pytest.raises(NotImplementedError, match="of omega cannot be compiled"):
                emf.fit(1, layers="affine")

    def test_a_deterministic_that_jax_lacks_is_named(self):
        with pm.Model() as model:
            x = pm.Normal("x", shape=3)
            pm.Deterministic("above", pt.nonzero(x > 0)[0])
            pm.Normal("y", x, 1.0, observed=np.zeros(3))
        approx = emf.EMFApprox(model, layers="affine").approx
        with pytest.raises(NotImplementedError, match="above cannot be compiled"):
            approx.sample(1)

    def test_a_density_that_pymc_cannot_derive_is_named(self):
        with pm.Model():
            x = pm.Normal("x")
            pm.AR("y", [0.5], 1.0, init_dist=pm.Normal.dist(), observed=np.zeros(0))
            pm.Normal("z", x, observed=0.0)
            with pytest.raises(ValueError, match="fails to derive the log density of y"):
                emf.fit(1, layers="affine")

    def test_bad_data_are_named(self):
        with pm.Model():
            x = pm.Normal("x")
            pm.Exponential("y", pm.math.exp(x), observed=[-1.0, 2.0])
            with pytest.raises(BadStartError, match="log density of y is minus infinity"):
                emf.fit(1, layers="affine")

    def test_nan_during_the_fit(self):
        """The step and the variable are named, and the parameters from before are kept."""
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Normal("y", x, 0.1, observed=5.0)
            # finite at the start, NaN once the fit has moved towards the data
            pm.Potential("trap", pm.math.switch(x > 4.5, np.nan, 0.0))
        method = emf.EMFApprox(model, layers="affine", warm_start=False, random_seed=0)
        with pytest.raises(NonFiniteELBOError, match=r"at step \d+: the log density of trap"):
            method.fit(1000, obj_optimizer=optax.adam(0.05), **quiet)
        assert 0 < method.hist.size < 1000
        assert np.isfinite(method.hist[0])
        assert all(np.isfinite(p.get_value()).all() for p in method.approx.params)
        assert isinstance(NonFiniteELBOError("x"), FloatingPointError)

    def test_nan_with_numba(self):
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Normal("y", x, 0.1, observed=5.0)
            pm.Potential("trap", pm.math.switch(x > 4.5, np.nan, 0.0))
        method = emf.EMFApprox(model, layers="affine", warm_start=False, random_seed=0)
        with pytest.raises(NonFiniteELBOError, match="not finite at step"):
            method.fit(1000, backend="numba", obj_n_mc=5, **quiet)
        assert all(np.isfinite(p.get_value()).all() for p in method.approx.params)

    def test_one_overflow_does_no_harm(self):
        """Draws without a density are left out; with them, the fit does not pass for exact."""
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Potential("rare", pm.math.switch(x > 2.0, np.nan, 0.0))
        approx = emf.fit(400, model=model, layers="affine", obj_n_mc=10, **quiet, random_seed=1)
        assert approx.hist.shape == (400,)
        assert np.isfinite(approx.hist).all()
        assert np.isnan(approx.pareto_k)
        assert all(np.isfinite(p.get_value()).all() for p in approx.params)

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"layers": "resnet"}, ValueError, "no layers named"),
            ({"gate": "each"}, ValueError, "gate must be"),
            ({"gate_init": 2.0}, ValueError, "gate_init"),
            ({"embed": "some"}, ValueError, "embed must be"),
            ({"warm_start": "hot"}, ValueError, "warm_start must be"),
        ],
    )
    def test_bad_options(self, options, error, match):
        with pytest.raises(error, match=match):
            emf.EMFApprox(**options)

    def test_jax_engine_takes_no_compile_kwargs(self):
        with positive_scale(), pytest.raises(TypeError, match="more_updates"):
            emf.fit(1, more_updates={})
        with positive_scale(), pytest.raises(TypeError, match="needs the JAX engine"):
            emf.fit(1, obj_optimizer=optax.adam(0.1), backend="numba")
        with positive_scale(), pytest.raises(TypeError, match="obj_optimizer must be"):
            emf.fit(1, obj_optimizer="adam")


def test_draws_that_overflow(caplog):
    """Of a prior beyond what floats can hold in one draw of twenty-six, and in nearly all."""
    with pm.Model() as model:
        pm.LogNormal("x", 0.0, 400.0, shape=2)
        pm.Normal("z")
    approx = emf.EMFApprox(model, random_seed=1).approx
    idata = approx.sample(500, random_seed=1)
    assert np.isfinite(idata.posterior["x"]).all()
    assert "draws that overflowed, or where the model has no density" in caplog.text
    # those that did not stay as they are
    noise = make_rng(1).normal(size=(500, 3))
    value, _ = approx.objective.transform(approx.values, noise)
    expected = np.exp(value[:, 0], where=value[:, 0] < 700, out=np.full(500, np.nan))
    kept = np.isclose(idata.posterior["x"].values[0, :, 0], expected)
    assert 400 < kept.sum() < 500
    with pm.Model() as model:
        pm.LogNormal("x", 2000.0, 1.0)
    with pytest.raises(
        emf.exceptions.NonFiniteDrawsError, match="x is not finite at 50 of 50 draws"
    ):
        emf.EMFApprox(model, random_seed=1).approx.sample(50)


def test_draws_where_there_is_no_density(caplog):
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("positive", pm.math.switch(x > 0, 0.0, -np.inf))
    draws = emf.EMFApprox(model, random_seed=1).approx.sample(500, random_seed=1).posterior["x"]
    assert (draws > 0).all()
    assert "Others took the place of" in caplog.text
    with model:
        pm.Potential("nowhere", pm.math.switch(x > 100, 0.0, -np.inf))
    with pytest.raises(emf.exceptions.NonFiniteDrawsError, match="The log density of the model is"):
        emf.EMFApprox(model, random_seed=1).approx.sample(20)
