"""Fits in several threads and processes."""

import multiprocessing
import sys

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

DATA = [0.0, 2.0]


def mean(y):
    """Posterior mean of a normal one, by a fit, for which half of the datum is exact."""
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("x"), 1.0, observed=y)
    approx = emf.fit(100, model=model, layers="affine", random_seed=1, progressbar=False)
    return float(approx.sample(4000, random_seed=1).posterior["x"].mean())


def test_threads():
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_allclose(list(pool.map(mean, DATA)), [0.0, 1.0], atol=0.05)


@pytest.mark.slow  # imports everything once more
def test_spawn():
    mean(0.0)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_allclose(list(pool.map(mean, DATA)), [0.0, 1.0], atol=0.05)


def refused(y):
    try:
        mean(y)
    except RuntimeError as error:
        return str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_fork_is_refused():
    """Rather than wait for ever."""
    mean(0.0)
    pool = multiprocessing.get_context("fork").Pool(1)
    try:
        assert "forked after JAX had run" in pool.apply_async(refused, [0.0]).get(timeout=60)
    finally:
        pool.terminate()
