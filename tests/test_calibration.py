"""Simulation-based calibration."""

import logging

from dataclasses import replace

import jax
import numpy as np
import pymc as pm
import pytest
import xarray as xr

from pymc.distributions.transforms import ordered
from scipy.stats import kstest

import pymc_emf as emf

from pymc_emf.calibration import fitter as fitter_module
from pymc_emf.calibration.fitter import Fitter
from pymc_emf.calibration.result import Calibration
from pymc_emf.engine.stopping import Stopping
from pymc_emf.model.program import Program
from pymc_emf.variational.draws import Draws
from pymc_emf.variational.options import FitOptions, Options
from pymc_emf.variational.prepare import prepare


def conjugate(scale=2.0):
    """Two groups with known noise; the counts see to it that data may be integers."""
    with pm.Model(coords={"group": ["a", "b"]}) as model:
        mu = pm.Normal("mu", 0.0, scale, dims="group")
        sigma = pm.LogNormal("rate", 0.0, 0.5)
        pm.Normal("y", mu[:, None], 1.0, observed=np.zeros((2, 5)))
        pm.Poisson("count", sigma, observed=[1, 2, 3, 4, 5])
    return model


def calibrate(model=None, simulations=30, **options):
    given = {"n": 300, "draws": 99, "layers": "full_rank", "random_seed": 2} | options
    return emf.calibrate(model or conjugate(), simulations, progressbar=False, **given)


@pytest.fixture(scope="module")
def calibrated():
    return calibrate()


def test_ranks_of_exact_fits(calibrated):
    found = calibrated
    assert dict(found.ranks.sizes) == {"simulation": 30, "group": 2}
    assert found.ranks["mu"].coords["group"].values.tolist() == ["a", "b"]
    assert set(found.ranks.data_vars) == {"mu", "rate"}
    assert found.pareto_k.shape == (30,)
    for ranks in found.ranks.data_vars.values():
        assert ranks.min() >= 0
        assert ranks.max() <= 99
        uniform = (ranks.values.ravel() + np.random.default_rng(0).random(ranks.size)) / 100
        assert kstest(uniform, "uniform").pvalue > 0.001
    assert "No sign of miscalibration" in found.advice
    assert found.errors == {}


def fitter(**options):
    ask = FitOptions(300, progressbar=False)
    program = Program(conjugate(), data_may_change=True)
    prepared = prepare(program, Options(layers="full_rank", **options), np.random.default_rng(0))
    return Fitter(prepared, ask, 1000, 1)


def test_every_fit_is_of_its_own_data():
    """The posterior mean of a conjugate model follows the simulated data."""
    fits, rng = fitter(), np.random.default_rng(2)
    for i in range(2):
        data = {"y": rng.normal(3.0 * i, 1.0, size=(2, 5)), "count": np.full(5, 1 + 3 * i)}
        values, _ = fits.fit(data, np.random.default_rng(0))
        draws = Draws(fits.prepared.objective).posterior(values, 4000, rng)
        precision = 5 + 1 / 4
        expected = data["y"].sum(axis=1) / precision
        np.testing.assert_allclose(draws["mu"].mean(axis=0), expected, atol=0.05)


def test_nothing_is_compiled_again():
    fits, rng = fitter(), np.random.default_rng(2)
    compiled = []

    def listen(event, duration, **kwargs):
        if "jaxpr_to_mlir_module" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        counts = []
        for _ in range(3):
            data = {"y": rng.normal(size=(2, 5)), "count": np.arange(5)}
            fits.fit(data, np.random.default_rng(0))
            counts.append(len(compiled))
    finally:
        jax.monitoring.clear_event_listeners()
    assert counts[0] > 2
    assert counts[1] == counts[2] == counts[0]


def test_narrow_and_shifted_draws_are_seen():
    rng = np.random.default_rng(0)

    def made(u):
        ranks = xr.Dataset({"x": ("simulation", np.clip((u * 1000).astype(int), 0, 999))})
        return Calibration(ranks, 999, np.zeros(len(u)), {})

    assert "No sign" in made(rng.random(300)).advice
    assert "x (draws too narrow)" in made(rng.beta(0.5, 0.5, 300)).advice
    assert "x (draws too wide)" in made(rng.beta(2.0, 2.0, 300)).advice
    assert "x (draws too low)" in made(rng.beta(1.5, 1.0, 300)).advice
    assert "x (draws too high)" in made(rng.beta(1.0, 1.5, 300)).advice
    two = np.concatenate([rng.uniform(0.2, 0.3, 150), rng.uniform(0.7, 0.8, 150)])
    assert "x (" in made(two).advice
    assert float(made(two).p_values["x"]) < 1e-6


def test_p_values_are_uniform_when_ranks_are():
    ranks = np.random.default_rng(0).integers(0, 100, size=(300, 500))
    found = Calibration(
        xr.Dataset({"x": (("simulation", "element"), ranks)}), 99, np.zeros(300), {}
    )
    assert kstest(found.p_values["x"], "uniform").pvalue > 0.01
    assert kstest(found.bias["x"], "norm").pvalue > 0.01
    assert kstest(found.spread["x"], "norm").pvalue > 0.01
    assert "No sign" in found.advice  # of five hundred, too


def test_representations(calibrated):
    text = str(calibrated)
    assert "simulations" in text
    assert "smallest p-value of mu" in text
    assert calibrated.advice in text
    assert "<th>failed fits</th><td>0</td>" in calibrated._repr_html_()
    fractions = calibrated.to_datatree()["prior_sbc"]
    assert fractions["mu"].dims == ("chain", "draw", "group")
    assert 0 < float(fractions["mu"].min()) < float(fractions["mu"].max()) < 1


def test_resumed(calibrated, tmp_path, monkeypatch):
    """After Ctrl-C in the middle of a fit, which is not ranked, nor is any after it."""
    path = tmp_path / "ranks"
    original, n_ranked, stop = fitter_module.maximise_elbo, [], 5

    def maximise_elbo(prepared, steps, run, ask):
        if len(n_ranked) == stop:
            return replace(original(prepared, steps, run, ask), stopping=Stopping("interrupted", 9))
        n_ranked.append(run.n)
        return original(prepared, steps, run, ask)

    monkeypatch.setattr(fitter_module, "maximise_elbo", maximise_elbo)
    partial = calibrate(simulations=8, checkpoint=path)
    assert partial.simulations == 5
    assert len(partial.pareto_k) == 5
    stop = None
    whole = calibrate(simulations=8, checkpoint=path)
    assert len(n_ranked) == 8
    xr.testing.assert_equal(whole.ranks, calibrated.ranks.isel(simulation=slice(8)))
    # more simulations go on from there, fewer are a part; without a seed, the file's is taken
    calibrate(simulations=9, checkpoint=path, random_seed=None)
    assert len(n_ranked) == 9
    assert calibrate(simulations=4, checkpoint=path).simulations == 4

    content = path.read_bytes()
    for options, message in (
        ({"n": 400}, r"another n \(300, and here 400\)"),
        ({"random_seed": 3}, "another random_seed;"),
        ({"model": conjugate(3.0)}, "is of another model"),
        ({"layers": "mean_field"}, "another layers"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(simulations=9, checkpoint=path, **options)
    assert path.read_bytes() == content
    path.write_bytes(content[:-50])
    with pytest.raises(ValueError, match="damaged"):
        calibrate(simulations=9, checkpoint=path)


def test_a_dim_of_the_name_of_our_axis():
    with pm.Model(coords={"simulation": ["a", "b"]}) as model:
        mu = pm.Normal("mu", dims="simulation")
        pm.Normal("y", mu, 1.0, observed=[0.0, 1.0], dims="simulation")
    found = calibrate(model, simulations=11)
    assert dict(found.ranks.sizes) == {"simulation_": 11, "simulation": 2}
    assert found.simulations == 11
    assert found.p_values["mu"].dims == ("simulation",)
    assert found.to_datatree()["prior_sbc"]["mu"].sizes["draw"] == 11


@pytest.mark.filterwarnings("ignore:Numba will use object mode")  # the function that draws
def test_fits_that_fail_are_told(monkeypatch, caplog):
    """A likelihood that is not finite for some data: their simulations are left out, and named."""
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.CustomDist(
            "y",
            x,
            logp=lambda value, x: pm.math.switch(value > 0.5, np.nan, -0.5 * (value - x) ** 2),
            random=lambda x, rng=None, size=None: rng.normal(x, 1.0, size=size),
            observed=0.0,
        )
    found = calibrate(model, simulations=6)
    assert 0 < len(found.errors) < 6
    assert "The log density of y is NaN" in next(iter(found.errors.values()))
    assert found.simulations == 6 - len(found.errors)
    assert np.isnan(found.pareto_k[list(found.errors)]).all()
    assert not set(found.errors) & set(found.ranks.simulation.values.tolist())


def test_quiet(caplog):
    before = logging.getLogger("pymc_emf").level
    found = calibrate(simulations=2, layers="mean_field", method=None, n=50)
    assert found.simulations == 2
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert logging.getLogger("pymc_emf").level == before


@pytest.mark.slow  # as with the other method
def test_asvi():
    found = emf.calibrate(conjugate(), 2, n=50, method=emf.ASVI(), progressbar=False)
    assert found.simulations == 2


def unobserved():
    with pm.Model() as model:
        pm.Normal("x")
    return model


def with_potential():
    with conjugate() as model:
        pm.Potential("soft", -(model["rate"] ** 2))
    return model


def with_flat():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Normal("y", x, observed=0.0)
    return model


def with_ordered():
    with pm.Model() as model:
        x = pm.Normal("x", shape=3, transform=ordered, initval=np.arange(3.0))
        pm.Normal("y", x, observed=np.zeros(3))
    return model


def with_minibatch():
    with pm.Model() as model:
        x = pm.Normal("x")
        batch = pm.Minibatch(np.zeros(100), batch_size=10)
        pm.Normal("y", x, observed=batch, total_size=100)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unobserved, "has no observed variable"),
        (with_potential, "has a potential, soft"),
        (with_flat, "x has an improper prior"),
        (with_ordered, "prior of x depends on its transform, Ordered"),
        (with_minibatch, "data of y are computed, as a minibatch"),
    ],
)
def test_models_that_cannot_simulate(model, message):
    with pytest.raises(ValueError, match=message):
        calibrate(model())


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="simulations must be a positive integer"):
        calibrate(simulations=0)
    with pytest.raises(TypeError, match="unexpected arguments: backend"):
        calibrate(backend="numba")
    with pytest.raises(TypeError, match="Give layers to the method"):
        calibrate(method=emf.EMFApprox())
    with pytest.raises(FileNotFoundError, match="no folder"):
        calibrate(checkpoint=tmp_path / "nowhere" / "file")


def test_missing_data_are_simulated():
    """Imputed observations are unknowns like others."""
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", x, 1.0, observed=np.ma.masked_invalid([0.0, np.nan, 1.0]))
    found = calibrate(model, simulations=2)
    assert set(found.ranks.data_vars) == {"x", "y_unobserved"}


def schools():
    error = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, error, observed=np.zeros(8))
    return model


@pytest.mark.slow
def test_eight_schools():
    """Uniform ranks after a fit with the model's structure; not after mean field."""
    found = emf.calibrate(schools(), 300, n=2000, random_seed=1, progressbar=False)
    p_values = np.concatenate([p.values.ravel() for p in found.p_values.data_vars.values()])
    assert len(p_values) == 10
    assert p_values.min() > 0.01 / 10
    assert "No sign of miscalibration" in found.advice
    found = emf.calibrate(
        schools(), 300, n=2000, random_seed=1, progressbar=False, layers="mean_field", embed=False
    )
    assert float(found.p_values["tau"]) < 1e-6
    assert "Do not trust the intervals of" in found.advice
