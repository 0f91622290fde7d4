"""Draws dealt to several devices, which a process has to be started with."""

import os
import subprocess
import sys

import jax
import pymc as pm
import pytest

import pymc_emf as emf

SCRIPT = """
import jax
import numpy as np
import pymc as pm
import pymc_emf as emf
from pymc_emf.engine.devices import shardings

devices = jax.devices()
assert len(devices) == 4
with pm.Model() as model:
    tau = pm.HalfNormal("tau", 1.0)
    theta = pm.Normal("theta", 0.0, tau, shape=3)
    pm.Normal("y", theta, 1.0, observed=[1.0, 2.0, 3.0])


def parameters(devices):
    method = emf.EMFApprox(model, layers="affine", warm_start=False, random_seed=1)
    quiet = dict(obj_n_mc=8, progressbar=False, devices=devices)
    approx = method.fit(100, **quiet)
    method.refine(50, **quiet)  # runs the same compiled loop
    values = [p.get_value() for p in approx.objective.layer_parameters]
    return np.concatenate([v.ravel() for v in values]), approx.hist, approx.objective


alone, losses, _ = parameters(None)
dealt, dealt_losses, objective = parameters(devices)
each, _ = shardings(devices)
noise, _ = jax.jit(lambda key: objective.draw(key, 8, each))(jax.random.key(0))
# two of the eight draws of four elements on each device
assert [shard.data.shape for shard in noise.addressable_shards] == [(2, 4)] * 4
np.testing.assert_allclose(dealt_losses, losses, rtol=1e-4)
np.testing.assert_allclose(dealt, alone, atol=1e-4)
assert np.abs(alone).max() > 0.01, alone  # from zero
"""


def test_same_result_on_several_devices():
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_bad_devices():
    with pm.Model():
        pm.Normal("x", 0.0, 1.0)
        method = emf.EMFApprox()
        with pytest.raises(TypeError, match="devices must be JAX devices"):
            method.fit(10, devices=["cpu"])
        with pytest.raises(ValueError, match="make it a multiple of 3"):
            method.fit(10, obj_n_mc=50, devices=jax.devices()[:1] * 3)
        with pytest.raises(TypeError, match="devices needs the JAX engine"):
            method.fit(10, devices=jax.devices(), backend="numba")
