"""How fits end and what they refuse: nothing is lost, and what is said is to the point."""

import jax
import numpy as np
import optax
import pymc as pm
import pytest

from pytensor.compile.mode import Mode
from scipy.stats import norm

import pymc_emf as emf

from pymc_emf.exceptions import BadStartError
from pymc_emf.variational import conclude

quiet = {"progressbar": False}


def scale(observed=(1.2, 0.4, 2.1, 1.7)):
    """A skewed posterior of one unknown, which a mean field misses by a little."""
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", 0.0, sigma, observed=np.array(observed))
    return model


def place():
    """A normal posterior of one unknown."""
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("x", 0.0, 10.0), 1.0, observed=np.array([4.0, 6.0]))
    return model


def method(model=None, **options):
    given = {"layers": "affine", "random_seed": 1, "warm_start": False} | options
    return emf.EMFApprox(scale() if model is None else model, **given)


def ends_at(step, error):
    def callback(approx, losses, i):
        if i >= step:
            raise error

    return callback


class TestEveryEndIsChecked:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [(StopIteration("enough"), "callback"), (KeyboardInterrupt, "interrupted")],
    )
    def test_callbacks_and_interrupts(self, error, reason, caplog):
        """After another fit, whose k-hat and whose end they do not keep."""
        fitted = method()
        first = fitted.fit(400, **quiet)
        assert first.stopping == ("steps", 400)
        k = first.pareto_k
        with caplog.at_level("INFO", logger="pymc_emf"):
            approx = fitted.fit(1000, callbacks=[ends_at(100, error)], **quiet)
        assert approx.stopping == (reason, 100)
        assert approx.pareto_k is not None
        assert approx.pareto_k != k
        assert "Interrupted at 100 [10%]: Average Loss" in caplog.text

    def test_a_poor_fit_warns_however_it_ends(self, caplog):
        """Of PyMC's own criterion, too."""
        with pm.Model() as model:
            tau = pm.Normal("tau", 0.0, 3.0)
            pm.Normal("x", 0.0, pm.math.exp(tau / 2), shape=9)  # a funnel
        method(model, embed=False).fit(500, callbacks=[ends_at(200, StopIteration)], **quiet)
        assert "Verdict on the fit. " in caplog.text

    def test_pymcs_own_loop(self):
        options = {"mode": Mode(linker="py", optimizer="fast_compile")}  # compiles at once
        fitted = method(layers="affine")
        approx = fitted.fit(300, obj_n_mc=5, **quiet)
        k = approx.pareto_k
        for callbacks, stopping in (
            (None, ("steps", 30)),
            ([ends_at(20, StopIteration)], ("callback", 20)),
            ([ends_at(10, KeyboardInterrupt)], ("interrupted", 10)),
        ):
            fitted.fit(30, compile_kwargs=options, obj_n_mc=5, callbacks=callbacks, **quiet)
            assert approx.stopping == stopping
            assert approx.pareto_k is not None
            assert approx.pareto_k != k
            k = approx.pareto_k

    def test_an_interrupted_check_costs_nothing(self, monkeypatch, caplog):
        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(conclude, "check", interrupted)
        approx = method().fit(100, **quiet)
        assert approx.stopping == ("steps", 100)
        assert approx.pareto_k is None
        assert "There was no last check" in caplog.text

    def test_what_an_error_of_a_callback_leaves(self):
        fitted = method()
        with pytest.raises(ZeroDivisionError):
            fitted.fit(200, callbacks=[ends_at(100, ZeroDivisionError)], **quiet)
        assert fitted.approx.stopping == ("unfinished", 100)
        assert fitted.approx.hist.shape == (100,)
        assert fitted.fit(50, **quiet).hist.shape == (150,)


def uphill_after(step):
    """An optimiser that turns round."""
    return optax.adam(lambda i: jax.numpy.where(i < step, 0.02, -0.02))


class TestTheBestState:
    """To which a fit returns when its loss has climbed, or is not finite any more."""

    def test_a_loss_that_climbs(self):
        options = {"obj_n_mc": 20, **quiet}
        short = method(place()).fit(300, obj_optimizer=uphill_after(300), tol=None, **options)
        climbed = method(place()).fit(600, obj_optimizer=uphill_after(300), tol=None, **options)
        assert climbed.stopping == ("returned", 600)
        assert climbed.hist.shape == (600,)
        assert climbed.hist[-100:].mean() > climbed.hist[200:300].mean() + 1.0
        reached = climbed.elbo(2000, random_seed=1).mean
        assert reached == pytest.approx(short.elbo(2000, random_seed=1).mean, abs=0.2)

    def test_a_loss_that_wanders(self):
        """Within its noise it is not followed back."""
        stay = method().fit(400, obj_optimizer=optax.sgd(0.0), tol=None, obj_n_mc=5, **quiet)
        assert stay.stopping == ("steps", 400)

    def test_a_density_that_ends(self, caplog):
        """Behind which there is nothing: the fit stays before it, and says so."""
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Normal("y", x, 0.1, observed=5.0)
            pm.Potential("trap", pm.math.switch(x > 4.0, np.nan, 0.0))
        approx = method(model).fit(3000, **quiet)
        assert approx.stopping.reason == "returned"
        assert np.isfinite(approx.log_prob(np.array([[2.0]]))).all()
        assert "Verdict on the fit. " in caplog.text

    def test_a_checkpoint_has_it(self, tmp_path):
        """Taken up after the climb has begun, the fit goes back to what was before."""
        path, options = tmp_path / "fit", {"obj_n_mc": 20, "tol": None, **quiet}

        def dies(approx, losses, i):
            if i == 420:
                raise ZeroDivisionError

        def looks(approx, losses, i):
            pass  # with callbacks, chunks are shorter

        asked = {"obj_optimizer": uphill_after(300), "checkpoint_every": 60, **options}
        whole = method().fit(600, callbacks=[looks], **asked)
        with pytest.raises(ZeroDivisionError):
            method().fit(600, callbacks=[dies], checkpoint=path, **asked)
        resumed = method().fit(600, callbacks=[looks], checkpoint=path, **asked)
        assert resumed.stopping == whole.stopping == ("returned", 600)
        for kept, wanted in zip(resumed.values, whole.values, strict=True):
            np.testing.assert_array_equal(kept, wanted)


class TestFailuresLeaveNothing:
    def test_the_seed_after_a_failed_call(self):
        with pm.Model() as good:
            pm.Normal("y", pm.Normal("x"), 1.0, observed=2.0)
        with pm.Model() as bad:
            x = pm.Normal("x")
            pm.Potential("nowhere", -np.inf * pm.math.exp(x))
        fits = []
        for models in ([good], [bad, good]):
            fitted = emf.EMFApprox(layers="affine", random_seed=4)
            for model in models[:-1]:
                with model, pytest.raises(BadStartError):
                    fitted.fit(20, **quiet)
            with models[-1]:
                approx = fitted.fit(20, **quiet)
            fits.append((approx.hist, approx.sample(3).posterior["x"].values))
        np.testing.assert_equal(*fits)

    def test_a_compilation_that_fails_is_tried_again(self, monkeypatch):
        fitted = method(random_seed=2)
        original, n_calls = jax.stages.Lowered.compile, []

        def compile_or_fail(self, *args, **kwargs):
            n_calls.append(1)
            if len(n_calls) == 1:
                raise MemoryError("no space for the program")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile_or_fail)
        with pytest.raises(MemoryError, match="no space"):
            fitted.fit(20, **quiet)
        again = fitted.fit(20, **quiet)
        np.testing.assert_array_equal(again.hist, method(random_seed=2).fit(20, **quiet).hist)

    def test_width_of_data_that_were_refused(self):
        estimator = emf.DensityEstimator("mean_field", random_seed=1)
        rng = np.random.default_rng(0)
        with pytest.raises(ValueError, match="NaN"):
            estimator.fit(np.full((10, 3), np.nan), **quiet)
        with pytest.raises(ValueError, match="NaN"):
            estimator.log_prob(np.full((10, 3), np.nan))
        fitted = estimator.fit(rng.normal(size=(50, 2)), n=10, **quiet)
        other = emf.DensityEstimator("mean_field", random_seed=1)
        same = other.fit(np.random.default_rng(0).normal(size=(50, 2)), n=10, **quiet)
        np.testing.assert_array_equal(fitted.hist, same.hist)


class TestMessages:
    def test_a_mistyped_option(self):
        with pytest.raises(
            TypeError, match=r"unexpected arguments: layer; those .* layers,"
        ) as told:
            emf.fit(10, model=scale(), layer="affine", **quiet)
        assert "numba" not in str(told.value)

    @pytest.mark.parametrize("validation", [0, 1, 0.0, 1.5])
    def test_a_validation_that_is_no_share(self, validation):
        X = np.random.default_rng(0).normal(size=(50, 2))
        with pytest.raises(ValueError, match="validation must be a share between 0 and 1"):
            emf.DensityEstimator("mean_field").fit(X, validation=validation, **quiet)

    def test_no_events(self):
        """As NumPy's functions do, nothing is made of nothing."""
        image, log_det = emf.compile(emf.Affine(3)).forward(np.zeros((0, 3)))
        assert image.shape == (0, 3)
        assert log_det.shape == (0,)

    def test_a_start_that_is_no_dict(self):
        with pytest.raises(TypeError, match="start must be a dict"):
            emf.EMFApprox(start=[1.0])

    def test_data_out_of_support(self):
        """A likelihood that folds to a constant."""
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Uniform("y", 0.0, 1.0, observed=[0.5, 2.0])
            pm.Normal("z", x, 1.0, observed=0.3)
        with pytest.raises(BadStartError, match="log density of y is minus infinity"):
            emf.fit(10, model=model, layers="affine", **quiet)

    def test_a_constant_likelihood(self):
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Uniform("y", 0.0, 2.0, observed=[0.5, 1.5])
            pm.Normal("z", x, 1.0, observed=0.3)
        approx = emf.fit(20, model=model, layers="affine", **quiet)
        exact = -np.log(4) - 0.5 * np.log(4 * np.pi) - 0.3**2 / 4
        assert approx.elbo(100).mean == pytest.approx(exact, abs=1e-6)


class TestOptimisers:
    """What the protocol hands on: values, draws, and each variable by itself."""

    @pytest.mark.slow  # to compile the search along a line takes long; the next uses all it needs
    def test_lbfgs(self):
        approx = method().fit(30, obj_optimizer=optax.lbfgs(), obj_n_mc=200, **quiet)
        assert approx.hist[-5:].mean() < approx.hist[0] - 0.1
        best = method().fit(1000, **quiet).elbo(20_000, random_seed=1)
        assert approx.elbo(20_000, random_seed=1).mean > best.mean - 0.1

    def test_natural_gradient(self):
        """Of a mean field, whose Fisher information is known: it learns a normal exactly."""

        def update(gradient, state, values, *, value, grad, value_fn):
            assert [v.shape for v in values] == [(2,), (2,)]  # variable by variable
            assert value.shape == ()
            _, log_scale = values
            same_draws = jax.numpy.isclose(value_fn(values), value)  # or the fit ends in NaN
            natural = [jax.numpy.exp(2 * log_scale) * grad[0], grad[1] / 2]
            rate = jax.numpy.where(same_draws, 0.3, jax.numpy.nan)
            return [-rate * g for g in natural], state

        natural = optax.GradientTransformationExtraArgs(lambda values: (), update)
        with pm.Model() as model:
            x = pm.Normal("x", 0.0, 1.0, shape=2)
            pm.Normal("y", x, [0.5, 10.0], observed=[0.5, 3.0])
        exact = emf.fit(10, model=model, layers="full_rank", random_seed=1, **quiet)
        exact = exact.elbo(1000).mean
        approx = method(model, gate=None).fit(100, obj_optimizer=natural, **quiet)
        assert approx.hist[0] > 1.0 - exact
        assert approx.elbo(1000).mean == pytest.approx(exact, abs=1e-4)


class TestInitialValues:
    def test_a_point_that_only_the_user_knows(self):
        """No draw from the prior, nor its middle, has a density."""
        with pm.Model() as model:
            x = pm.Normal("x", 0.0, 1.0, initval=8.0)
            pm.Potential("far", pm.math.switch(x > 7.0, 0.0, -np.inf))
            pm.Normal("y", x, 0.1, observed=8.0)
        options = {"layers": "affine", "random_seed": 1} | quiet
        approx = emf.fit(200, model=model, **options)
        assert float(approx.sample(500, random_seed=1).posterior["x"].min()) > 7.0
        approx = emf.fit(200, model=model, warm_start=False, **options)
        assert approx.warm_start.chosen == "start"

    def test_a_density_that_ends_close_by(self, caplog):
        """Draws behind the wall are left out, and the share of those before it counts."""
        with pm.Model() as model:
            x = pm.Normal("x", 0.0, 1.0, initval=6.0)
            pm.Potential("above", pm.math.switch(x > 5.0, 0.0, -np.inf))
        approx = emf.fit(1000, model=model, random_seed=1, **quiet)
        assert "are not all finite" in caplog.text
        draws = approx.sample(4000, random_seed=1).posterior["x"]
        assert "Others took the place of" in caplog.text
        exact = norm(0.0, 1.0).expect(lambda x: x, lb=5.0, conditional=True)
        assert draws.min() > 5.0
        assert draws.mean() == pytest.approx(exact, abs=0.02)

    @pytest.mark.parametrize("name", ["start", "initval"])
    def test_out_of_support(self, name, caplog):
        with pm.Model() as model:
            pm.HalfNormal("x", 1.0, initval=-1.0 if name == "initval" else None)
        start = {"x": -1.0} if name == "start" else None
        with pytest.raises(BadStartError, match=f"The {name} of x lies outside of .*; give"):
            emf.fit(10, model=model, layers="affine", start=start, **quiet)
        assert "initial point" not in caplog.text  # the error says it

    def test_names_of_draws_are_no_points(self):
        with pm.Model() as model:
            pm.Normal("y", pm.Normal("x", initval="prior"), 1.0, observed=2.0)
        approx = emf.fit(20, model=model, layers="affine", random_seed=1, **quiet)
        assert "start" not in approx.warm_start.elbos


def test_a_dim_named_step():
    with pm.Model(coords={"step": [1, 2, 3]}) as model:
        x = pm.Normal("x", dims="step")
        pm.Normal("y", x, 1.0, observed=[1.0, 2.0, 3.0], dims="step")
    approx = emf.fit(50, model=model, layers="affine", random_seed=1, **quiet)
    fit = approx.sample(10).fit
    assert fit["x_gate"].dims == ("step",)
    assert fit["elbo"].sizes == {"step_": len(approx.hist)}


@pytest.mark.parametrize("layers", ["low_rank", "mean_field", "full_rank"])
def test_densities_start_from_the_moments(layers):
    rng = np.random.default_rng(0)
    covariance = np.diag([1.0, 100.0, 1e-4]) + 5.0 * np.outer([0.1, 1, 1e-3], [0.1, 1, 1e-3])
    X = rng.multivariate_normal([100.0, -50.0, 3.0], covariance, size=2000)
    estimator = emf.DensityEstimator(layers, random_seed=1)
    estimator.fit(X, n=1, obj_optimizer=optax.sgd(0.0), validation=None, **quiet)
    draws = estimator.sample(20_000, random_seed=1)["x"].values
    np.testing.assert_allclose(draws.mean(0), X.mean(0), atol=0.05 * X.std(0).max())
    np.testing.assert_allclose(draws.std(0), X.std(0), rtol=0.1)
