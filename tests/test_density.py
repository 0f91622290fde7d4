"""Density estimation: against exact densities, and what surrounds it."""

import logging

from pathlib import Path

import numpy as np
import optax
import pymc as pm
import pytest
import xarray as xr

from pymc.distributions.distribution import _support_point
from pymc.logprob.abstract import _logprob
from pytensor.compile.mode import Mode
from scipy import stats

import pymc_emf as emf

from pymc_emf.bijections.core.base import _build
from pymc_emf.exceptions import NonFiniteLossError
from pymc_emf.storage import read_arrays, write_arrays
from pymc_emf.variational.files import FORMAT, VERSION
from tests.helpers import compilations

#: Compiles at once, where numba takes minutes for both densities and their gradients.
PYTHON = Mode(linker="py", optimizer="fast_compile")

DATA = Path(__file__).parent / "data"

MEAN, COV = np.array([3.0, -50.0]), np.array([[1.0, 6.0], [6.0, 100.0]])


def normal_data(n=2000, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COV, size=n)


def small_flow(seed=0):
    """One layer of each kind that a density takes apart; its forward is a loop and a search."""
    net = emf.MaskedAutoregressive(2, hidden=(8,), random_seed=seed)
    return [emf.Invert(net), emf.Permutation([1, 0]), emf.MixtureOfGaussians(2, 5, loc_range=2.0)]


@pytest.fixture(scope="module")
def fitted():
    """A flow fitted to two clusters."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1000, 2)) * 0.5 + 2.0 * rng.integers(2, size=(1000, 1)) - 1.0
    return emf.DensityEstimator(small_flow(), random_seed=1).fit(X, n=300, progressbar=False)


@pytest.fixture(scope="module")
def walk():
    """A model with a trained scale, a transform and coords, fitted to draws of it."""
    with pm.Model(coords={"time": [3, 5, 7, 9], "unit": ["a"]}) as model:
        scale = emf.parameter("scale", [1.0], positive=True, dims="unit")
        tau = pm.HalfNormal("tau", 1.0)
        x = pm.Normal("x", 0.0, 1.0)
        pm.Normal("y", x, scale * tau, dims="time")
    rng = np.random.default_rng(2)
    tau, x = np.abs(rng.normal(size=500)), rng.normal(size=500)
    y = x[:, None] + 0.3 * tau[:, None] * rng.normal(size=(500, 4))
    data = {"tau": tau, "x": x, "y": y}
    layer = emf.StructuredLayer(model)
    estimator = emf.DensityEstimator(layer, random_seed=1)
    estimator.fit(data, n=1000, batch_size=500, validation=None, progressbar=False)
    return estimator, data


# --- what is learnt ----------------------------------------------------------------------------


def test_a_normal_is_learnt_from_its_moments():
    X = normal_data()
    estimator = emf.DensityEstimator("full_rank", random_seed=1)
    estimator.fit(X, n=200, validation=None, progressbar=False)
    best = stats.multivariate_normal(X.mean(axis=0), np.cov(X.T, bias=True)).logpdf(X).mean()
    assert estimator.log_prob(X).mean() == pytest.approx(best, abs=0.02)
    assert estimator.log_prob(X).mean() < best + 1e-9  # the maximum of the likelihood
    assert estimator.hist.shape == (200,)
    assert estimator.stopping.reason == "steps"


def test_density_integrates_to_one(fitted):
    axis = np.linspace(-6, 6, 241)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mass = np.exp(fitted.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_draws_follow_the_density(fitted):
    drawn = fitted.sample(4000, random_seed=3)
    assert drawn["x"].dims == ("sample", "x_dim_0")
    # the mean log density of draws is minus the entropy, which a grid gives
    axis = np.linspace(-6, 6, 241)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_prob = fitted.log_prob(grid)
    entropy = -(np.exp(log_prob) * log_prob).sum() * (axis[1] - axis[0]) ** 2
    of_draws = -fitted.log_prob(drawn)
    assert of_draws.mean() == pytest.approx(entropy, abs=4 * of_draws.std() / np.sqrt(4000))
    again = fitted.sample(4000, random_seed=3)
    xr.testing.assert_identical(drawn, again)


def test_parameters_of_a_model_are_trained(walk):
    estimator, data = walk
    residual = (data["y"] - data["x"][:, None]) / data["tau"][:, None]
    learnt = estimator.parameters["scale"]
    assert learnt.dims == ("unit",)
    assert list(learnt["unit"]) == ["a"]
    np.testing.assert_allclose(learnt, np.sqrt((residual**2).mean()), rtol=2e-3)


def test_density_of_a_models_variables(walk):
    estimator, data = walk
    scale = float(estimator.parameters["scale"][0])
    exact = (
        stats.halfnorm.logpdf(data["tau"])
        + stats.norm.logpdf(data["x"])
        + stats.norm.logpdf(data["y"], data["x"][:, None], scale * data["tau"][:, None]).sum(1)
    )
    np.testing.assert_allclose(estimator.log_prob(data), exact, rtol=1e-8)
    # of unconstrained values, given as an array, the derivative of the log is part of it
    flat = np.column_stack([np.log(data["tau"]), data["x"], data["y"]])
    np.testing.assert_allclose(estimator.log_prob(flat), exact + np.log(data["tau"]), rtol=1e-8)


def test_draws_of_a_model_are_labelled(walk):
    estimator, _ = walk
    drawn = estimator.sample(7)
    assert drawn["y"].dims == ("sample", "time")
    assert list(drawn["time"]) == [3, 5, 7, 9]
    assert (drawn["tau"] > 0).all()
    transposed = drawn.transpose("time", "sample")
    np.testing.assert_array_equal(estimator.log_prob(transposed), estimator.log_prob(drawn))


def test_a_model_with_a_dim_of_our_axis_name():
    with pm.Model(coords={"sample": ["a", "b", "c"], "sample_": [0]}) as model:
        pm.Normal("x", 0.0, emf.parameter("scale", 1.0, positive=True), dims="sample")
    X = np.random.default_rng(0).normal(size=(50, 3))
    estimator = emf.DensityEstimator(emf.StructuredLayer(model, gate=None), random_seed=1)
    estimator.fit({"x": X}, n=5, progressbar=False)
    drawn = estimator.sample(4)
    assert drawn["x"].dims == ("sample__", "sample")
    assert list(drawn["sample"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(estimator.log_prob(drawn), estimator.log_prob(drawn["x"].values))
    transposed = drawn.transpose("sample", "sample__")
    np.testing.assert_array_equal(estimator.log_prob(transposed), estimator.log_prob(drawn))
    estimator.fit(transposed, n=5, validation=None, progressbar=False)


def test_two_models_side_by_side():
    def half_normal(name, scale):
        with pm.Model() as model:
            scale = emf.parameter(f"{name}_scale", scale, positive=True)
            pm.Normal(name, 0.0, scale, shape=2)
        return emf.StructuredLayer(model, gate="variable")

    flow = emf.Parallel([half_normal("a", 1.0), half_normal("b", 2.0)], [2, 2])
    X = np.random.default_rng(0).normal(size=(2000, 4)) * [3.0, 3.0, 0.5, 0.5]
    estimator = emf.DensityEstimator(flow, random_seed=1)
    estimator.fit(X, n=1000, batch_size=2000, validation=None, progressbar=False)
    learnt = estimator.parameters
    assert list(learnt) == ["a_scale", "b_scale"]
    exact = stats.norm.logpdf(X, scale=np.sqrt((X**2).mean(axis=0))).sum(axis=1).mean()
    assert estimator.log_prob(X).mean() == pytest.approx(exact, abs=0.02)


def test_the_affine_layer_starts_from_moments_behind_a_model():
    with pm.Model() as model:
        pm.LogNormal("x", 0.0, 1.0, shape=2)
    X = np.exp(normal_data(500) / 10)
    layers = ["full_rank", emf.StructuredLayer(model)]
    estimator = emf.DensityEstimator(layers, random_seed=1)
    estimator.fit({"x": X}, n=1, validation=None, progressbar=False)
    exact = stats.multivariate_normal(MEAN / 10, COV / 100).logpdf(np.log(X)) - np.log(X).sum(1)
    assert estimator.log_prob({"x": X}).mean() == pytest.approx(exact.mean(), abs=0.02)


# --- how it is fitted --------------------------------------------------------------------------


def test_same_seed_same_fit():
    X = normal_data(300)
    fits = [
        emf.DensityEstimator("mean_field", random_seed=5).fit(X, n=150, progressbar=False)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(fits[0].hist, fits[1].hist)
    np.testing.assert_array_equal(fits[0].log_prob(X), fits[1].log_prob(X))


def test_a_second_fit_continues():
    X = normal_data(300)
    estimator = emf.DensityEstimator("mean_field", random_seed=5).fit(X, n=100, progressbar=False)
    with compilations() as names:
        assert estimator.fit(X, n=150, progressbar=False) is estimator
    assert not names
    with compilations() as names:
        estimator.fit(X, n=50, batch_size=50, progressbar=False)
    assert "jit(steps)" in names
    assert estimator.hist.shape == (300,)
    assert list(estimator.validation[:, 0]) == [100, 200, 250, 300]


def test_best_on_held_out_data_is_kept():
    """Ten observations and a flexible flow: what serves the training data harms others."""
    rng = np.random.default_rng(0)
    X, held_out = rng.normal(size=(10, 2)), rng.normal(size=(500, 2))
    layers = emf.MixtureOfGaussians(2, 20)
    estimator = emf.DensityEstimator(layers, random_seed=1)
    estimator.fit(X, n=5000, validation=held_out, patience=300, progressbar=False)
    assert estimator.stopping.reason == "converged"
    assert estimator.stopping.step < 5000
    losses = estimator.validation[:, 1]
    assert losses.argmin() < len(losses) - 1
    assert -estimator.log_prob(held_out).mean() == pytest.approx(losses.min(), abs=1e-8)


def test_fresh_observations_from_a_function():
    calls = []

    def draw(rng, n):
        calls.append(n)
        return rng.multivariate_normal(MEAN, COV, size=n)

    estimator = emf.DensityEstimator("full_rank", random_seed=1)
    estimator.fit(draw, n=250, batch_size=20, progressbar=False)
    assert calls == [2000] * 4  # one at the start, one after each chunk
    assert len(estimator.validation) == 0
    assert estimator.log_prob(MEAN[None]) == pytest.approx(
        stats.multivariate_normal(MEAN, COV).logpdf(MEAN), abs=0.2
    )


def test_a_function_that_returns_fewer_observations():
    sizes = iter([100, 90])
    estimator = emf.DensityEstimator("mean_field", random_seed=1)
    with pytest.raises(ValueError, match="returned 90 observations after 100"):
        estimator.fit(lambda rng, n: rng.normal(size=(next(sizes), 2)), n=300, progressbar=False)
    assert len(estimator.hist) == 100  # what was learnt is kept


def test_an_optimiser_of_pymc():
    with pytest.raises(TypeError, match="must be an optax transformation"):
        emf.DensityEstimator("mean_field").fit(normal_data(50), obj_optimizer=pm.adam())


def test_callbacks_and_stop():
    seen = []

    def stop(estimator, losses, i):
        seen.append((i, len(losses)))
        if i >= 200:
            raise StopIteration

    estimator = emf.DensityEstimator("mean_field", random_seed=1)
    estimator.fit(normal_data(200), n=1000, callbacks=[stop], progressbar=False)
    assert seen == [(100, 100), (200, 200)]
    assert estimator.stopping == ("callback", 200)
    assert len(estimator.hist) == 200


def test_a_loss_that_is_not_finite():
    optimizer = optax.sgd(1e200)
    estimator = emf.DensityEstimator("mean_field", random_seed=1)
    with pytest.raises(NonFiniteLossError, match="scale the data"):
        estimator.fit(
            normal_data(200), n=100, validation=None, obj_optimizer=optimizer, progressbar=False
        )
    assert estimator.stopping.reason == "non-finite"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": np.zeros((5, 3))}, r"X must have shape \(n, 2\), got \(5, 3\)"),
        ({"X": np.full((5, 2), np.nan)}, "X holds NaN"),
        ({"X": np.zeros((0, 2))}, "no observations"),
        ({"X": np.zeros((5, 2)), "n": 0}, "n must be a positive integer"),
        ({"X": np.zeros((5, 2)), "validation": 1.5}, "share between 0 and 1"),
        ({"X": np.zeros((5, 2)), "validation": None, "patience": 5}, "patience needs held-out"),
        ({"X": {"z": np.zeros((5, 2))}}, "the one variable 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    estimator = emf.DensityEstimator(emf.Affine(2))
    with pytest.raises(ValueError, match=message):
        estimator.fit(**arguments)


def test_bad_data_of_a_model(walk):
    estimator, data = walk
    with pytest.raises(ValueError, match="lacks the variables tau, x"):
        estimator.log_prob({"y": data["y"]})
    with pytest.raises(ValueError, match=r"hold y in shape \(n, 4\), got \(500, 3\)"):
        estimator.log_prob(data | {"y": data["y"][:, :3]})
    with pytest.raises(ValueError, match="values of tau outside of its support"):
        estimator.log_prob(data | {"tau": -data["tau"]})


def test_size_unknown_before_the_fit():
    with pytest.raises(AttributeError, match="call fit"):
        emf.DensityEstimator("maf").sample(3)


# --- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "initial", "wrong"),
    [
        ({}, [-1.0, 2.0], [np.inf, 1.0]),
        ({"positive": True}, [0.1, 20.0], [0.0, 1.0]),
        ({"unit_interval": True}, [0.1, 0.9], [0.5, 1.0]),
        ({"simplex": True}, [0.1, 0.2, 0.7], [0.5, 0.6]),
        ({"ordered": True}, [-1.0, 0.5, 7.0], [1.0, 1.0]),
    ],
)
def test_constraints(constraint, initial, wrong):
    value = emf.parameter("p", initial, **constraint)
    np.testing.assert_allclose(value.eval(), initial)
    with pytest.raises(ValueError, match="initial value of the parameter p must"):
        emf.parameter("p", wrong, **constraint)


def test_one_constraint_only():
    with pytest.raises(ValueError, match="positive and simplex; choose one"):
        emf.parameter("p", [0.5, 0.5], positive=True, simplex=True)


def test_a_parameter_in_two_layers():
    with pm.Model() as model:
        pm.Normal("x", emf.parameter("loc", 0.0), 1.0)
    with pytest.raises(ValueError, match="occurs twice in a Chain"):
        emf.Chain([emf.StructuredLayer(model), emf.StructuredLayer(model)])


def test_empirical_bayes():
    """In pm.fit the ELBO is maximised over them too: the maximum of the marginal likelihood."""
    y = np.random.default_rng(3).normal(0.0, np.sqrt(5.0), size=40)
    with pm.Model(coords={"unit": range(40)}):
        tau = emf.parameter("tau", 1.0, positive=True)
        shift = emf.parameter("shift", 0.5)  # in the likelihood
        theta = pm.Normal("theta", 0.0, tau, dims="unit")
        pm.Normal("y", theta + shift, 1.0, observed=y)
        method = emf.EMFApprox(layers="mean_field", random_seed=1)
        approx = pm.fit(1000, method=method, progressbar=False)
    # y is N(shift, 1 + tau**2), and the posterior of theta normal
    assert float(approx.parameters["tau"]) == pytest.approx(np.sqrt(y.var() - 1), abs=0.02)
    assert float(approx.parameters["shift"]) == pytest.approx(y.mean(), abs=0.05)
    exact = stats.norm.logpdf(y, y.mean(), y.std()).sum()
    assert approx.elbo(random_seed=1).mean == pytest.approx(exact, abs=0.01)
    np.testing.assert_allclose(approx.sample(3).posterior["tau"], approx.parameters["tau"])


# --- files -------------------------------------------------------------------------------------


def test_save_and_load(fitted, tmp_path):
    path = tmp_path / "density"
    fitted.save(path)
    other = emf.DensityEstimator(small_flow(seed=9)).load(path)
    X = np.random.default_rng(0).normal(size=(20, 2))
    np.testing.assert_array_equal(other.log_prob(X), fitted.log_prob(X))
    np.testing.assert_array_equal(other.hist, fitted.hist)
    assert [p.name for p in tmp_path.iterdir()] == ["density"]


def test_files_that_are_refused(fitted, tmp_path):
    path = tmp_path / "density"
    fitted.save(path)
    X = np.random.default_rng(0).normal(size=(5, 2))
    other = emf.DensityEstimator(small_flow(seed=9))
    before = other.log_prob(X)
    content = path.read_bytes()

    rng = np.random.default_rng(0)
    for i in range(10):
        damaged = bytearray(content)
        if i % 3:
            damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(content)) :]
        path.write_bytes(damaged)
        try:
            other.load(path)
        except ValueError as error:
            assert "damaged" in str(error) or "not written" in str(error)
            np.testing.assert_array_equal(other.log_prob(X), before)
        else:  # a bit that means nothing, such as a date
            np.testing.assert_array_equal(other.log_prob(X), fitted.log_prob(X))
            other = emf.DensityEstimator(small_flow(seed=9))

    path.write_bytes(content)
    net, _, mixture = small_flow()
    with pytest.raises(ValueError, match="of other layers"):
        emf.DensityEstimator([net, mixture]).load(path)
    swapped = emf.DensityEstimator([net, emf.Permutation([0, 1]), emf.MixtureOfGaussians(2, 5)])
    with pytest.raises(ValueError, match="its Permutation has another order"):
        swapped.load(path)
    unbound = emf.DensityEstimator("mean_field")
    with pytest.raises(ValueError, match="of other layers"):
        unbound.load(path)
    unbound.fit(np.random.default_rng(0).normal(size=(50, 3)), n=1, progressbar=False)
    header, arrays = read_arrays(path)
    write_arrays(path, header | {"version": VERSION + 1}, arrays)
    with pytest.raises(ValueError, match="newer version"):
        other.load(path)
    write_arrays(path, {"format": "another"}, arrays)
    with pytest.raises(ValueError, match="does not hold a density estimator"):
        other.load(path)
    assert header["format"] == FORMAT
    with pytest.raises(FileNotFoundError):
        other.load(tmp_path / "nothing")


def test_numbers_inside_of_a_model_are_part_of_a_file(tmp_path):
    """They show in neither names nor shapes, but in the density."""

    def estimator(scale):
        with pm.Model() as model:
            pm.Normal("x", 0.0, scale, shape=2)
        return emf.DensityEstimator([emf.Affine(2), emf.StructuredLayer(model)])

    X = np.random.default_rng(0).normal(size=(50, 2))
    estimator(1.0).fit(X, n=20, progressbar=False).save(tmp_path / "density")
    with pytest.raises(ValueError, match="layers that do something else"):
        estimator(2.0).load(tmp_path / "density")
    assert len(estimator(1.0).load(tmp_path / "density").hist) == 20


def test_files_of_the_first_format():
    estimator = emf.DensityEstimator(small_flow(seed=9)).load(DATA / "format1_density.npz")
    X = np.random.default_rng(1).normal(size=(200, 2))
    expected = np.load(DATA / "format1_density_log_prob.npy")
    np.testing.assert_allclose(estimator.log_prob(X[:5]), expected, rtol=1e-6)
    assert len(estimator.hist) == 50


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "arrays"
    write_arrays(path, {"a": 1}, [np.arange(3)])

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="full"):
        write_arrays(path, {"a": 2}, [np.arange(4)])
    header, (array,) = read_arrays(path)
    assert header == {"a": 1}
    np.testing.assert_array_equal(array, np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["arrays"]


# --- as a distribution -------------------------------------------------------------------------


def test_as_a_prior_and_a_likelihood(fitted):
    dist = fitted.as_dist()
    X = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_allclose(pm.logp(dist.dist(), X[0]).eval(), fitted.log_prob(X[:1])[0])
    np.testing.assert_allclose(
        pm.logp(dist.dist(shape=(2, 3, 2)), X.reshape(2, 3, 2)).eval(),
        fitted.log_prob(X).reshape(2, 3),
    )
    with pm.Model(coords={"group": range(6), "axis": ["a", "b"]}) as model:
        theta = dist("theta", dims=("group", "axis"))
        dist("y", observed=X)
    point = {"theta": X}
    log_prob = model.compile_logp(mode=PYTHON)(point)
    np.testing.assert_allclose(log_prob, 2 * fitted.log_prob(X).sum(), rtol=1e-6)
    slope = model.compile_dlogp(theta, mode=PYTHON)(point).reshape(6, 2)
    moved = X + 1e-5 * np.array([1.0, 0.0])
    rise = (fitted.log_prob(moved) - fitted.log_prob(X - (moved - X))) / 2e-5
    np.testing.assert_allclose(slope[:, 0], rise, rtol=1e-3, atol=1e-3)


def test_a_flow_whose_density_is_a_loop():
    """The inverse of an autoregressive layer has as many passes as elements."""
    flow = emf.MaskedAutoregressive(2, hidden=(4,), random_seed=1)
    estimator = emf.DensityEstimator(flow, random_seed=1)
    estimator.fit(normal_data(200) / 50, n=100, validation=None, progressbar=False)
    X = np.random.default_rng(0).normal(size=(3, 2))
    of_rows = pm.logp(estimator.as_dist().dist(shape=(3, 2)), X).eval()
    np.testing.assert_allclose(of_rows, estimator.log_prob(X), rtol=1e-6)


# PyMC says so of every custom distribution
@pytest.mark.filterwarnings("ignore:Numba will use object mode")
def test_draws_and_start_of_the_distribution(fitted):
    dist = fitted.as_dist()
    drawn = pm.draw(dist.dist(shape=(2000, 2)), random_seed=1)
    expected = fitted.sample(4000, random_seed=2)["x"].values
    np.testing.assert_allclose(drawn.mean(axis=0), expected.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0), expected.std(axis=0), rtol=0.1)
    with pm.Model() as model:
        dist("theta")
    assert np.isfinite(model.point_logps()["theta"])


def test_training_on_does_not_change_the_distribution():
    estimator = emf.DensityEstimator("mean_field", random_seed=1)
    X = normal_data(200)
    estimator.fit(X, n=100, validation=None, progressbar=False)
    dist, before = estimator.as_dist(), estimator.log_prob(X[:1])
    estimator.fit(X + 5, n=200, validation=None, progressbar=False)
    assert estimator.log_prob(X[:1]) != before
    np.testing.assert_allclose(pm.logp(dist.dist(), X[0]).eval(), before[0])


def test_embedded_in_another_model(fitted):
    dist = fitted.as_dist()
    with pm.Model() as model:
        theta = dist("theta")
        pm.Normal("y", theta.sum(), 1.0, observed=1.0)
    assert "embedded" in emf.describe(model).rows[0][-1]
    layer = emf.compile(emf.StructuredLayer(model))
    noise = np.random.default_rng(0).normal(size=(4, 2))
    value, log_det = layer.forward(noise)
    exact = stats.norm.logpdf(noise).sum(axis=1) - log_det
    np.testing.assert_allclose(fitted.log_prob(value), exact, rtol=1e-6)


@pytest.mark.parametrize("of_a_loop", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_variables_of_one_density(of_a_loop):
    flow = emf.MaskedAutoregressive(2, hidden=(4,), random_seed=1)
    estimator = emf.DensityEstimator(flow if of_a_loop else emf.Invert(flow), random_seed=1)
    estimator.fit(normal_data(200) / 50, n=100, validation=None, progressbar=False)
    dist = estimator.as_dist()
    with pm.Model() as model:
        for i in range(3):
            dist(f"theta_{i}", initval=[0.1, 0.2 * i])
    assert model.initial_point()["theta_2"] == pytest.approx([0.1, 0.4])
    noise = np.random.default_rng(0).normal(size=(4, 6))
    value, log_det = emf.compile(emf.StructuredLayer(model)).forward(noise)
    exact = stats.norm.logpdf(noise).sum(axis=1) - log_det
    of_events = estimator.log_prob(value.reshape(12, 2)).reshape(4, 3)
    np.testing.assert_allclose(of_events.sum(axis=1), exact, rtol=1e-6)


def test_many_variables_fill_no_registry(fitted):
    dist = fitted.as_dist()
    registries = [_logprob.registry, _support_point.registry, _build.registry]
    dist.dist()
    before = [len(registry) for registry in registries]
    with pm.Model():
        for i in range(5):
            dist(f"theta_{i}")
        dist("y", observed=np.zeros((3, 2)))
    dist.dist(shape=(4, 2))
    assert [len(registry) for registry in registries] == before


@pytest.mark.slow
def test_nuts_under_a_learnt_prior(caplog):
    """The posterior under a learnt prior is that under the true one."""
    caplog.set_level(logging.ERROR, logger="pymc")
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal([1.0, 2.0], [[0.5, 0.3], [0.3, 0.4]], size=20_000)
    learnt = emf.DensityEstimator("maf", random_seed=1).fit(X, n=3000, progressbar=False).as_dist()
    with pm.Model():
        theta = learnt("theta")
        pm.Normal("y", theta[0] * theta[1], 0.3, observed=4.0)
        idata = pm.sample(2000, chains=4, cores=1, progressbar=False, random_seed=1)
    found = idata.posterior["theta"].stack(sample=("chain", "draw")).to_numpy()

    grid = np.stack(np.meshgrid(np.linspace(-3, 5, 801), np.linspace(-2, 6, 801)), axis=-1)
    grid = grid.reshape(-1, 2)
    log_density = stats.multivariate_normal([1.0, 2.0], [[0.5, 0.3], [0.3, 0.4]]).logpdf(grid)
    log_density += stats.norm.logpdf(4.0, grid.prod(axis=1), 0.3)
    weights = np.exp(log_density - log_density.max())
    mean = np.average(grid, axis=0, weights=weights)
    sd = np.sqrt(np.average((grid - mean) ** 2, axis=0, weights=weights))
    np.testing.assert_allclose((found.mean(axis=1) - mean) / sd, 0, atol=0.1)
    np.testing.assert_allclose(found.std(axis=1), sd, rtol=0.1)
