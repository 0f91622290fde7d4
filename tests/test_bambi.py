"""Bambi calls ``pm.fit`` for its users, with the method made outside of any model."""

import bambi as bmb
import numpy as np
import pandas as pd

import pymc_emf as emf


def test_bambi():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    data = pd.DataFrame({"x": x, "y": 1.0 + 2.0 * x + 0.5 * rng.normal(size=80)})
    model = bmb.Model("y ~ x", data)
    method = emf.EMFApprox(random_seed=1)
    approx = model.fit(inference_method="vi", method=method, n=1000, progressbar=False)
    assert approx is method.approx
    posterior = approx.sample(2000, random_seed=2).posterior
    slope, _ = np.polyfit(x, data["y"], 1)
    np.testing.assert_allclose(posterior["x"].mean(), slope, atol=0.02)
    # Bambi centres the predictors, so that this is the mean of y
    np.testing.assert_allclose(posterior["Intercept"].mean(), data["y"].mean(), atol=0.02)
    np.testing.assert_allclose(posterior["sigma"].mean(), 0.5, atol=0.1)
