"""Approximations in files."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr

import pymc_emf as emf

from pymc_emf.storage import read_arrays, write_arrays
from pymc_emf.variational.files import VERSION
from tests.helpers import parametrize

DATA = Path(__file__).parent / "data"


def schools(name="theta", shape=3, scale=None, prior=5.0, observed=(28.0, 8.0, -3.0)):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, prior)
        tau = pm.HalfNormal("tau", 5.0) if scale is None else scale("tau")
        theta = pm.Normal(name, mu, tau, shape=shape)
        pm.Normal("y", theta[:3], 10.0, observed=np.array(observed))
    return model


@pytest.fixture(scope="module")
def fitted():
    method = emf.EMFApprox(layers=["affine", "lower_triangular"], random_seed=1)
    with schools():
        return pm.fit(300, method=method, progressbar=False)


def test_round_trip(fitted, tmp_path):
    path = tmp_path / "fit"
    fitted.save(path)
    again = emf.load(path, model=schools())
    for name in ("hist", "pareto_k", "stopping", "timing"):
        np.testing.assert_equal(getattr(again, name), getattr(fitted, name))
    np.testing.assert_equal(asdict(again.warm_start), asdict(fitted.warm_start))
    xr.testing.assert_equal(again.gates, fitted.gates)
    point = np.random.default_rng(0).normal(size=(4, 5))
    np.testing.assert_array_equal(again.log_prob(point), fitted.log_prob(point))
    # the stream of random numbers goes on where it was
    np.testing.assert_array_equal(
        again.sample(20).posterior["theta"], fitted.sample(20).posterior["theta"]
    )
    with schools():
        assert emf.load(path).elbo(100, random_seed=1) == again.elbo(100, random_seed=1)


def pair():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        pm.Normal("x", mu, 2.0)
    return model


def test_asvi(tmp_path):
    approx = emf.ASVI(pair(), prior_weight=0.3, random_seed=1).approx
    for variable in approx.params:
        variable.set_value(variable.get_value() + 0.1)
    approx.save(tmp_path / "fit")
    again = emf.load(tmp_path / "fit", model=pair())
    point = np.zeros((1, 2))
    np.testing.assert_array_equal(again.log_prob(point), approx.log_prob(point))


def test_layers_of_ones_own(tmp_path):
    def layers(size):
        return emf.Affine(size)

    approx = emf.EMFApprox(schools(), layers=layers, random_seed=1).approx
    approx.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"layers of its own \(Affine\); pass the same"):
        emf.load(tmp_path / "fit", model=schools())
    with pytest.raises(ValueError, match=r"of other layers \(Affine\) than these \(LowRank\)"):
        emf.load(tmp_path / "fit", model=schools(), layers="low_rank")
    assert emf.load(tmp_path / "fit", model=schools(), layers=layers).objective.size == 5


OWN = {
    "permutation": (emf.Permutation([1, 2, 0, 4, 3]), emf.Permutation([2, 1, 0, 4, 3])),
    "spline": (emf.Spline(5), emf.Spline(5, bound=1.0)),
}


@parametrize(OWN, slow=["spline"])  # the same comparison, with more to compile
def test_layers_of_the_same_shapes(name, tmp_path):
    """What their parameters do not show, their hyperparameters do."""
    layer, other = OWN[name]
    approx = emf.EMFApprox(schools(), layers=[layer, "affine"], random_seed=1).approx
    approx.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=rf"of other layers: its {type(layer).__name__} has anoth"):
        emf.load(tmp_path / "fit", model=schools(), layers=[other, "affine"])
    emf.load(tmp_path / "fit", model=schools(), layers=[layer, "affine"])


def test_layers_that_differ_in_their_code(tmp_path):
    class Scaled(emf.Bijection):
        size = 5

        def __init__(self, factor):
            self.factor = factor

        def forward(self, noise):
            return self.factor * noise, pt.constant(5 * np.log(self.factor))

        def inverse(self, value):
            return value / self.factor, pt.constant(-5 * np.log(self.factor))

    emf.EMFApprox(schools(), layers=Scaled(2.0), random_seed=1).approx.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="layers that do something else"):
        emf.load(tmp_path / "fit", model=schools(), layers=Scaled(2.5))
    emf.load(tmp_path / "fit", model=schools(), layers=Scaled(2.0))


@pytest.mark.parametrize(
    "model",
    [
        {"observed": (28.0, 8.0, -3.01)},
        # whatever it is, another number of the same two is compared
        pytest.param({"prior": 6.0}, marks=pytest.mark.slow),
        pytest.param({"prior": 6.0, "observed": (1.0, 2.0, 3.0)}, marks=pytest.mark.slow),
    ],
)
def test_another_prior_and_other_data(fitted, tmp_path, model):
    """Names, shapes and transforms are the same; the log densities tell."""
    fitted.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"is of another model or of .*log density"):
        emf.load(tmp_path / "fit", model=schools(**model))


def test_a_subclass_of_the_method(tmp_path):
    class Mine(emf.EMFApprox):
        pass

    Mine(schools(), layers="affine", random_seed=1).approx.save(tmp_path / "fit")
    assert emf.load(tmp_path / "fit", model=schools()).objective.size == 5
    header, arrays = read_arrays(tmp_path / "fit")
    write_arrays(tmp_path / "fit", header | {"method": "Theirs"}, arrays)
    with pytest.raises(ValueError, match="a fit by Theirs, a method that this package does not"):
        emf.load(tmp_path / "fit", model=schools())


def test_files_of_the_first_format():
    approx = emf.load(DATA / "format1_fit.npz", model=schools())
    point = np.random.default_rng(0).normal(size=(4, 5))
    expected = np.load(DATA / "format1_log_prob.npy")
    np.testing.assert_allclose(approx.log_prob(point), expected, rtol=1e-6)
    assert approx.stopping == ("steps", 300)
    with pytest.raises(ValueError, match="theta has shape and transform"):
        emf.load(DATA / "format1_fit.npz", model=schools(shape=4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "effect"}, "free variables are mu, tau, theta, those of the model mu, tau, effe"),
        ({"shape": 4}, r"theta has shape and transform \[3\], none in the file, and \[4\], none"),
        (
            {"scale": lambda name: pm.HalfNormal(name, 5.0, default_transform=None)},
            r"tau has shape and transform \[\], LogTransform in the file, and \[\], none",
        ),
    ],
)
def test_another_model(fitted, tmp_path, model, message):
    fitted.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=message):
        emf.load(tmp_path / "fit", model=schools(**model))


def test_files_that_are_refused(fitted, tmp_path):
    path = tmp_path / "fit"
    fitted.save(path)
    content = path.read_bytes()
    model, rng = schools(), np.random.default_rng(0)
    expected = [v.get_value() for v in fitted.objective.variables]
    n_refused = 0
    for i in range(50):
        damaged = bytearray(content)
        if i % 3:
            damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(content)) :]
        path.write_bytes(damaged)
        try:
            loaded = emf.load(path, model=model)
        except ValueError as error:
            n_refused += 1
            assert "damaged" in str(error) or "not written" in str(error)
        else:  # a bit that means nothing, such as a date
            for ours, theirs in zip(loaded.objective.variables, expected, strict=True):
                np.testing.assert_array_equal(ours.get_value(), theirs)
    assert n_refused > 25

    path.write_bytes(content)
    header, arrays = read_arrays(path)
    write_arrays(path, header | {"version": VERSION + 1}, arrays)
    with pytest.raises(ValueError, match="newer version"):
        emf.load(path, model=model)
    write_arrays(path, {"format": "another"}, arrays)
    with pytest.raises(ValueError, match="does not hold an approximation"):
        emf.load(path, model=model)
    with pytest.raises(FileNotFoundError):
        emf.load(tmp_path / "nothing", model=model)


def test_every_wrong_bit_of_a_file(tmp_path):
    """Refused with our sentence, or of no consequence; and so is every part of a file."""
    path, rng = tmp_path / "file", np.random.default_rng(0)
    arrays = [rng.normal(size=3), np.zeros((2, 2), dtype="float32"), np.asarray(1)]
    write_arrays(path, {"format": "some"}, arrays)
    content = path.read_bytes()
    n_refused = 0
    for bit in range(0, 8 * len(content), 11):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            header, read = read_arrays(path)
        except ValueError as error:
            n_refused += 1
            assert "is damaged, or was not written" in str(error)
        else:
            assert header == {"format": "some"}
            for ours, theirs in zip(read, arrays, strict=True):
                np.testing.assert_array_equal(ours, theirs, strict=True)
    assert n_refused > 0.75 * len(content) * 8 / 11
    for end in range(0, len(content), 5):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="damaged"):
            read_arrays(path)
