"""Fits that are written while they run, and taken up again."""

import subprocess
import sys
import time

from dataclasses import asdict
from pathlib import Path
from shutil import copy

import jax
import numpy as np
import optax
import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.storage import read_arrays, write_arrays
from pymc_emf.variational import target

LAYERS = ["affine", "lower_triangular"]

#: As in the file of the first format; all steps, so that there is something to interrupt.
OPTIONS = {"obj_n_mc": 50, "tol": None, "progressbar": False}


def schools(data=(28.0, 8.0, -3.0), scale=5.0, shape=3):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", scale)
        theta = pm.Normal("theta", mu, tau, shape=shape)
        pm.Normal("y", theta[:3], 10.0, observed=np.array(data))
    return model


def method(model=None, **options):
    return emf.EMFApprox(model or schools(), **({"layers": LAYERS, "random_seed": 1} | options))


def fit(path, method=None, n=600, **options):
    given = {"checkpoint_every": 100} | OPTIONS | options
    return (method or globals()["method"]()).fit(n, checkpoint=path, **given)


class Stop(Exception):
    """Something that befalls a fit."""


def dies_after(step, error=Stop):
    def callback(approx, losses, i):
        if i == step:
            raise error

    callback.every = step
    return callback


def snapshot(approx):
    """All that two equal fits have in common, the next random numbers included."""
    return {
        "variables": [v.get_value() for v in approx.objective.variables],
        "hist": approx.hist,
        "stopping": approx.stopping,
        "warm_start": asdict(approx.warm_start),
        "pareto_k": approx.pareto_k,
        "draws": approx.sample(10).posterior["theta"].values,
    }


@pytest.fixture(scope="module")
def whole():
    """A fit that was not interrupted, and what further steps make of it."""
    fitted = method()
    first = snapshot(fitted.fit(600, **OPTIONS))
    fitted.refine(200, **OPTIONS)
    return first, snapshot(fitted.approx)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A file of a fit that was left after 300 of 600 steps."""
    path = tmp_path_factory.mktemp("checkpoint") / "left"
    with pytest.raises(Stop):
        fit(path, callbacks=[dies_after(300)])
    return path


@pytest.fixture
def path(left, tmp_path):
    return Path(copy(left, tmp_path / "fit"))


def test_resumed_is_uninterrupted(whole, path):
    with schools():
        on_its_way = emf.load(path, layers=LAYERS)
    assert on_its_way.stopping == ("unfinished", 300)
    np.testing.assert_array_equal(on_its_way.hist, whole[0]["hist"][:300])
    resumed = method()
    steps = []
    fit(path, resumed, callbacks=[lambda approx, losses, i: steps.append((len(losses), i))])
    assert steps == [(i, i) for i in range(360, 601, 60)]
    np.testing.assert_equal(snapshot(resumed.approx), whole[0])
    # what comes after is the same, too
    resumed.refine(200, **OPTIONS)
    np.testing.assert_equal(snapshot(resumed.approx), whole[1])
    # and of the fit itself only the last check is left
    again = fit(path, callbacks=[dies_after(700)])
    np.testing.assert_equal(snapshot(again), whole[0])


@pytest.mark.slow  # what is refined after a resumed fit is the same in the test above
def test_resumed_refinement(whole, path, tmp_path):
    def script(**options):
        """What a user runs again after it was killed."""
        fitted = method()
        fit(path, fitted)
        fitted.approx.sample(10)  # as in the other script
        fitted.refine(
            200, checkpoint=tmp_path / "refined", checkpoint_every=100, **OPTIONS, **options
        )
        return snapshot(fitted.approx)

    with pytest.raises(Stop):
        script(callbacks=[dies_after(100)])
    np.testing.assert_equal(script(), whole[1])
    with pytest.raises(ValueError, match="number of steps before it"):
        fit(tmp_path / "refined", n=200)


def test_interrupted(whole, tmp_path):
    path = tmp_path / "interrupted"
    # more often than it is written, since nothing should be lost that need not be
    approx = fit(path, checkpoint_every=1000, callbacks=[dies_after(200, KeyboardInterrupt)])
    assert approx.stopping == ("interrupted", 200)
    np.testing.assert_equal(snapshot(fit(path)), whole[0])


@pytest.mark.slow  # written as an interrupted fit is
def test_stopped(tmp_path):
    path = tmp_path / "stopped"
    first = snapshot(fit(path, callbacks=[dies_after(200, StopIteration)]))
    assert first["stopping"] == ("callback", 200)
    np.testing.assert_equal(snapshot(fit(path)), first)


@pytest.mark.slow  # six fits of thousands of steps, each compiled anew
def test_other_settings_of_the_loop(tmp_path):
    """Tolerance, clipping, an optimiser with a random stream of its own."""
    options = {"tol": 0.05, "n": 4000, "total_grad_norm_constraint": 10.0}
    noisy = optax.chain(
        optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.scale_by_adam(), optax.scale(-0.01)
    )
    for optimizer, share in ((None, 0.9), (noisy, 0.5)):  # the first while it cools down
        path = tmp_path / str(optimizer is None)
        whole = fit(None, obj_optimizer=optimizer, **options)
        dies = dies_after(int(share * whole.stopping.step))
        with pytest.raises(Stop):
            fit(path, obj_optimizer=optimizer, callbacks=[dies], **options)
        resumed = fit(path, obj_optimizer=optimizer, **options)
        assert whole.stopping.reason == "converged"
        np.testing.assert_equal(snapshot(resumed), snapshot(whole))
    with pytest.raises(ValueError, match="another optimiser; give the same obj_optimizer="):
        fit(path, obj_optimizer=optax.sgd(0.1), **options)


@pytest.mark.slow  # three fits of ASVI, each compiled anew
def test_other_methods_through_pymc(tmp_path):
    """ASVI, which trains other numbers and has no warm start, and the arguments of pm.fit."""

    def run(**options):
        with schools():
            return pm.fit(
                300,
                method=emf.ASVI(random_seed=1),
                progressbar=False,
                checkpoint=tmp_path / "fit",
                checkpoint_every=100,
                **options,
            )

    with schools():
        whole = snapshot(pm.fit(300, method=emf.ASVI(random_seed=1), progressbar=False))
    with pytest.raises(Stop):
        run(callbacks=[dies_after(100)])
    np.testing.assert_equal(snapshot(run()), whole)
    with pytest.raises(ValueError, match=r"another method \(ASVI, and here EMFApprox\)"):
        fit(tmp_path / "fit", n=300)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        pytest.param(
            *(schools(scale=6.0), {}, "of another model"),
            marks=pytest.mark.slow,  # as the next, where the densities tell, too
        ),
        (schools(data=(28.0, 8.0, -3.001)), {}, "of another model or of other data"),
        (schools(shape=4), {}, r"theta has shape and transform \[3\], none in the file"),
        (schools(), {"n": 700}, r"another n \(600, and here 700\)"),
        (schools(), {"obj_n_mc": 20}, r"another obj_n_mc \(50, and here 20\)"),
        (schools(), {"tol": 0.1}, r"another tol \(None, and here 0.1\)"),
        (schools(), {"random_seed": 2}, "another random_seed;"),
        (schools(), {"start": {"mu": 1.0}}, r"another start \(None, and here"),
        (schools(), {"score": False}, r"another score \(True, and here False\)"),
        (schools(), {"devices": jax.devices()[:1]}, r"another devices \(None, and here 1\)"),
        (schools(), {"gate": "variable"}, r"another gate \(element, and here variable\)"),
        (schools(), {"layers": ["affine"]}, "other layers|another layers"),
        (schools(), {"obj_optimizer": optax.adam(0.01)}, "another obj_optimizer"),
    ],
)
def test_another_fit_is_refused(path, model, options, message):
    content = path.read_bytes()
    options = dict(options)
    names = ("random_seed", "gate", "layers", "start")
    of_method = {k: options.pop(k) for k in names if k in options}
    fitted = method(model, **of_method)
    before = fitted.approx.values
    with pytest.raises(ValueError, match=message):
        fit(path, fitted, **options)
    assert path.read_bytes() == content
    # the method is as if it had not been used
    np.testing.assert_equal(fitted.approx.values, before)
    assert fitted.approx.stopping is None
    with pytest.raises(TypeError, match="Need to call"):
        fitted.refine(1)


def test_a_file_of_the_first_format(whole, tmp_path):
    path = Path(copy(Path(__file__).parent / "data" / "format1_checkpoint.npz", tmp_path / "fit"))
    resumed = fit(path)
    assert resumed.stopping == ("steps", 600)
    assert resumed.hist.shape == (600,) and np.isfinite(resumed.hist).all()
    # it was begun by another version, whose start was another one
    np.testing.assert_allclose(resumed.hist[-100:].mean(), whole[0]["hist"][-100:].mean(), atol=0.1)
    with pytest.raises(ValueError, match="of another model"):
        fit(
            copy(Path(__file__).parent / "data" / "format1_checkpoint.npz", tmp_path / "other"),
            method(schools(scale=6.0)),
        )


@pytest.mark.slow  # another fit for an argument that is not compared
def test_without_a_seed_any_is_taken_up(path):
    assert fit(path, method(random_seed=None)).stopping == ("steps", 600)


def test_damaged_files_are_refused(path):
    content, model = path.read_bytes(), schools()
    rng = np.random.default_rng(0)
    n_refused = 0
    for i in range(50):
        damaged = bytearray(content)
        if i % 3:
            damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(content)) :]
        path.write_bytes(damaged)
        try:
            read_arrays(path)
        except ValueError as error:
            n_refused += 1
            assert "is damaged, or was not written" in str(error)
            if i < 6:
                with pytest.raises(ValueError, match="damaged"):
                    fit(path, method(model))
                assert path.read_bytes() == damaged
        else:  # a bit that means nothing, such as a date
            for ours, theirs in zip(read_arrays(path)[1], original(content, path), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert n_refused > 40


def original(content, path):
    other = path.with_name("original")
    other.write_bytes(content)
    return read_arrays(other)[1]


def test_altered_files_are_refused(path):
    """Numbers that were changed by a program which writes the format as it should be."""
    with np.load(path) as file:
        contents = dict(file.items())
    contents["array_0"] = contents["array_0"] + 1.0
    np.savez(path, **contents)
    path.with_name("fit.npz").replace(path)
    with pytest.raises(ValueError, match="damaged"):
        fit(path)
    header, arrays = {"format": "another"}, []
    write_arrays(path, header, arrays)
    with pytest.raises(ValueError, match="does not hold an approximation"):
        fit(path)
    method().approx.save(path)
    with pytest.raises(ValueError, match="that was saved, not a fit on its way"):
        fit(path)


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        fit(tmp_path / "nowhere" / "fit")
    with pytest.raises(ValueError, match="checkpoint_every must be a positive integer"):
        fit(tmp_path / "fit", checkpoint_every=0)
    with pytest.raises(TypeError, match="checkpoint needs the JAX engine"):
        fit(tmp_path / "fit", backend="numba")


def test_a_write_that_fails_costs_nothing(path, monkeypatch, caplog):
    content = path.read_bytes()

    def full(*args, **kwargs):
        args[0].write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    approx = fit(path)
    assert approx.stopping == ("steps", 600)
    assert "could not be written (No space left" in caplog.text
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


SCRIPT = """
import sys
import numpy as np
from tests.test_checkpoint import method, snapshot, fit
path, result = sys.argv[1:]
approx = fit(path if path else None, n=6000, tol=None)
np.savez(result, *[v.get_value() for v in approx.objective.variables], approx.hist)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """In processes of their own: whatever is left can be read, and goes on to the same end."""
    path, rng = tmp_path / "fit", np.random.default_rng(0)

    def start(path, result):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), str(result)])

    assert start("", tmp_path / "whole.npz").wait() == 0
    n_kills, steps = 0, [0]
    while n_kills < 20:
        process = start(path, tmp_path / "result.npz")
        age = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > age):
            time.sleep(0.01)  # until it has written for the first time
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        if process.wait() == 0:  # was faster
            path.unlink()
            continue
        n_kills += 1
        header, _ = read_arrays(path)
        steps.append(header["stopping"][1])
        assert steps[-1] >= steps[-2] or steps[-1] < 6000
    assert start(path, tmp_path / "result.npz").wait() == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "result.npz") as result:
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], result[name])


def test_draws_may_be_left_open(path, whole):
    """Earlier versions wrote the number of draws that was the default."""
    with pytest.raises(Stop):
        fit(path, obj_n_mc=None, callbacks=[dies_after(500)])
    np.testing.assert_array_equal(fit(path, obj_n_mc=None).hist, whole[0]["hist"])


def test_a_fit_that_took_more_draws(tmp_path, monkeypatch):
    """Where the losses have stopped falling, but vary as if much were left; resumed, too."""
    monkeypatch.setattr(target, "MAX_NUMBERS_OF_A_STEP", 0)
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Normal("y", x[0] - x[1], 0.2, observed=1.0)  # no independent normals come near

    def begun():
        return emf.EMFApprox(model, layers="affine", random_seed=1)

    whole = begun().fit(8000, progressbar=False)
    assert whole.stopping.reason == "converged"
    at_first, in_the_end = whole.hist[:1000], whole.hist[-1000:]
    assert 1.6 < at_first.std() / in_the_end.std() < 2.5  # of 8 draws, and of 32
    given = {"checkpoint": tmp_path / "fit", "checkpoint_every": 100, "progressbar": False}
    with pytest.raises(Stop):
        begun().fit(8000, callbacks=[dies_after(whole.stopping.step - 100)], **given)
    resumed = begun().fit(8000, **given)
    np.testing.assert_array_equal(resumed.hist, whole.hist)
    fixed = begun().fit(8000, obj_n_mc=8, progressbar=False)
    assert 0.8 < at_first.std() / fixed.hist[-1000:].std() < 1.25
