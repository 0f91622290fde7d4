"""HSSM: its fits by this package, and the draws as its own sampler returns them."""

import subprocess
import sys

import pymc as pm
import pytest

import pymc_emf as emf

hssm = pytest.importorskip("hssm")

NUTS = {"draws": 2000, "tune": 1000, "chains": 2, "cores": 1, "progressbar": False}


@pytest.fixture(scope="module")
def page(run_page):
    return run_page("hssm.md")


@pytest.fixture(scope="module")
def data():
    theta = {"v": 0.5, "a": 1.5, "z": 0.5, "t": 0.5}
    return hssm.simulate_data(model="ddm", theta=theta, size=200, random_state=1)


def test_page(page, agree):
    """Draws with the intercept moved back, as by the package's own NUTS."""
    model = page["model"]
    exact = model.sample(sampler="pymc", random_seed=1, **NUTS)
    names = ["v_Intercept", "v_coherence", "a", "z", "t"]
    agree(page["idata"].posterior, exact.posterior, names, spread=0.2)
    assert float(model.vi_idata.posterior["v_Intercept"].mean()) > 0.2  # as the page says
    expected = model.sample_posterior_predictive(dt=exact, inplace=False, draws=20)
    own, other = (
        abs(tree.posterior_predictive["rt,response"].isel({"rt,response_dim": 0}))
        for tree in (page["predicted"], expected)
    )
    # some are lapses, of up to 20 seconds
    assert abs(float(own.median() / other.median()) - 1) < 0.1


@pytest.mark.parametrize("lapses", [True, False])
def test_lapses(data, lapses, agree):
    """A likelihood that evaluates its data, and one without bound."""
    options = {} if lapses else {"p_outlier": None, "lapse": None}
    model = hssm.HSSM(data=data, model="ddm", **options).pymc_model
    exact = pm.sample(model=model, nuts_sampler="pymc", random_seed=1, **NUTS).posterior
    for seed in (1, 2):
        approx = emf.fit(model=model, random_seed=seed, progressbar=False)
        draws = approx.sample(8000, importance=True, random_seed=2).posterior
        agree(draws, exact, ["v", "a", "z", "t"])


def test_single_precision():
    """In a process of its own; by JAX, and by PyMC's loop."""
    script = """
import hssm
import pymc_emf as emf

hssm.set_floatX("float32")
theta = {"v": 0.5, "a": 1.5, "z": 0.5, "t": 0.5}
data = hssm.simulate_data(model="ddm", theta=theta, size=200, random_state=1)
means = {}
for backend in ("jax", "numba"):
    model = hssm.HSSM(data=data, model="ddm")
    method = emf.EMFApprox(random_seed=1)
    idata = model.vi(method=method, niter=1000, backend=backend, progressbar=False)
    assert idata.posterior["v"].dtype == "float32"
    means[backend] = idata.posterior.mean()
for name in ("v", "a", "z", "t"):
    assert abs(float(means["jax"][name] - means["numba"][name])) < 0.02, means
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
