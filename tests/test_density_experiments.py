"""The density experiments: their data, structures and architectures."""

import json

from dataclasses import replace

import numpy as np
import pymc as pm
import pytest

from scipy import stats

import pymc_emf as emf

from case_studies import density
from case_studies.densities import DATA, STRUCTURES
from case_studies.density import ARCHITECTURES, PAPER, QUICK, Settings

TINY = Settings("tiny", {1: 100, 2: 100, 3: 100}, (4,), None)


@pytest.mark.parametrize("name", DATA)
def test_data(name):
    data = DATA[name]
    rows = data.draw(np.random.default_rng(0), 50)
    assert rows.shape == (50, data.size)
    assert np.isfinite(rows).all()
    if data.log_density is not None:
        assert np.isfinite(data.log_density(rows)).all()


@pytest.mark.parametrize("name", ["8 gaussians", "checkerboard"])
def test_true_density_in_two_dimensions(name):
    data = DATA[name]
    axis = np.linspace(-6, 6, 601)[:-1] + 0.01
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mass = np.exp(data.log_density(grid)).sum() * 0.02**2
    assert mass == pytest.approx(1.0, abs=1e-6)
    # and it is that of the draws: as many of them lie in a square as it says
    drawn = data.draw(np.random.default_rng(0), 400_000)
    inside = (np.abs(drawn - [1.0, 1.0]) < 0.8).all(axis=1)
    cell = (np.abs(grid - [1.0, 1.0]) < 0.8).all(axis=1)
    share = np.exp(data.log_density(grid[cell])).sum() * 0.02**2
    assert inside.mean() == pytest.approx(share, abs=0.004)


@pytest.mark.parametrize("name", [name for name in DATA if DATA[name].entropy is not None])
def test_entropies(name):
    data = DATA[name]
    log_density = data.log_density(data.draw(np.random.default_rng(0), 100_000))
    se = log_density.std() / np.sqrt(100_000)
    assert -log_density.mean() == pytest.approx(data.entropy, abs=4 * se + 1e-9)


def test_luck_of_the_test_data_does_not_count():
    data = DATA["Ornstein-Uhlenbeck"]

    class Truth:
        log_prob = staticmethod(data.log_density)

    found = density.evaluate(Truth, data)
    assert found["neg_log_density"] == pytest.approx(data.entropy)
    assert found["se"] < 1e-9


def test_true_density_of_lorenz_is_that_of_the_model():
    data = DATA["Lorenz"]
    row = data.draw(np.random.default_rng(0), 1)
    v = row.reshape(30, 3)
    with pm.Model() as model:
        x = pm.Normal("x_0", 0, 1, shape=3)
        for t in range(1, 30):
            drift = [10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]]
            x = pm.Normal(f"x_{t}", x + 0.02 * pm.math.stack(drift), 0.1 * np.sqrt(0.02))
    layer = emf.compile(emf.StructuredLayer(model))
    noise, log_det = layer.inverse(v.ravel())
    exact = stats.norm.logpdf(noise).sum() + log_det
    assert data.log_density(row)[0] == pytest.approx(exact)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name):
    """The order of the values is that of the data: time or member, then coordinate."""
    layer = emf.StructuredLayer(STRUCTURES[name](4, 2))
    x, _ = emf.compile(layer).forward(np.arange(1.0, 9.0))
    noise, steps = np.arange(1.0, 9.0).reshape(4, 2), x.reshape(4, 2)
    np.testing.assert_allclose(steps[0], noise[0])
    if name == "continuity":
        np.testing.assert_allclose(np.diff(steps, axis=0), noise[1:])
    elif name == "hierarchy":
        np.testing.assert_allclose(steps[1:] - steps[0], noise[1:])
    else:
        np.testing.assert_allclose(np.diff(steps, n=2, axis=0), noise[2:])


def perturbed(table, method, data):
    """An architecture that is no longer as it starts."""
    flow = emf.Chain(ARCHITECTURES[table][method](data, TINY))
    rng = np.random.default_rng(0)
    for parameter in flow.parameters:
        value = parameter.get_value()
        parameter.set_value((value + 0.05 * rng.normal(size=value.shape)).astype(value.dtype))
    return flow


QUICK_CASES = [(1, "8 gaussians", "MAF"), (2, "IRIS", "GEMF-M"), (3, "Brownian", "GEMF-T(s)")]


@pytest.mark.parametrize(
    ("table", "name", "method"),
    # one of each table, and all others in the slow session
    [
        pytest.param(*case, marks=[] if case in QUICK_CASES else [pytest.mark.slow])
        for case in (
            *((1, "8 gaussians", m) for m in ARCHITECTURES[1]),
            *((2, "IRIS", m) for m in ("GEMF-T", "GEMF-M", "GNSF-T")),
            *((3, "Brownian", m) for m in ("GEMF-T(s)", "B-MAF", "GNSF-T(c)")),
        )
    ],
)
def test_inverse_of_forward(table, name, method):
    data = DATA[name]
    compiled = emf.compile(perturbed(table, method, data))
    noise = np.random.default_rng(1).normal(size=(3, data.size))
    value, log_det = compiled.forward(noise)
    back, log_det_back = compiled.inverse(value)
    np.testing.assert_allclose(back, noise, atol=1e-6)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-5)


@pytest.mark.parametrize("method", ["GEMF-T(c)", "B-MAF"])
def test_density_integrates_to_one(method):
    """By importance sampling, six elements."""
    data = replace(DATA["Lorenz"], shape=(2, 3))
    compiled = emf.compile(perturbed(3, method, data))
    rng = np.random.default_rng(1)
    drawn, _ = compiled.forward(rng.normal(size=(2000, data.size)))
    wider = stats.multivariate_t(drawn.mean(axis=0), np.cov(drawn.T), df=5)
    x = wider.rvs(size=20_000, random_state=rng)
    noise, log_det = compiled.inverse(x)
    weights = np.exp(stats.norm.logpdf(noise).sum(axis=1) + log_det - wider.logpdf(x))
    assert weights.std() < 3
    assert weights.mean() == pytest.approx(1.0, abs=4 * weights.std() / np.sqrt(len(x)))


def test_every_architecture_can_be_made():
    """Mistakes that would show only after days."""
    for settings in (PAPER, QUICK):
        for data in (DATA["8 gaussians"], DATA["IRIS"], DATA["Brownian"]):
            for make in ARCHITECTURES[data.table].values():
                assert emf.Chain(make(data, settings)).size == data.size


@pytest.mark.slow
def test_a_campaign(tmp_path, capsys):
    arguments = ["--quick", "--steps", "100", "--out", str(tmp_path), "--data", "8 gaussians"]
    density.main([*arguments, "--methods", "MAF"])
    assert "entropy" in capsys.readouterr().out
    folder = tmp_path / "quick-100-steps"
    (fitted,) = folder.glob("8 gaussians/*.json")
    record = json.loads(fitted.read_text(encoding="utf-8"))
    assert record["neg_log_density"] > 2.8
    assert np.load(fitted.with_suffix(".npz"))["log_density"].shape == (200 * 200,)
    density.main([*arguments, "--methods", "MAF", "EMF-T"])
    assert "1 of 2 fits are in" in capsys.readouterr().out


def test_unknown_names(capsys):
    with pytest.raises(SystemExit):
        density.main(["--data", "MNIST"])
    assert "unknown data: MNIST" in capsys.readouterr().err
