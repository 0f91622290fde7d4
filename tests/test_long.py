"""Long vectors, for which dense matrices would be too large."""

import os
import subprocess
import sys

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

from benchmarks.scaling import walk

quiet = {"progressbar": False}


def n_numbers(approx):
    objective = approx.objective
    return sum(v.get_value(borrow=True).size for v in objective.variables)


@pytest.mark.parametrize(
    "size",
    # from 200 elements on a vector is long, and the way is that of the walk in test_marginal.py
    [pytest.param(size, marks=pytest.mark.slow) for size in (500, 1100, 10_000)],
)
def test_walk(size):
    """Tridiagonal precision in value space: the start is all but exact."""
    model, log_evidence = walk(size)
    approx = emf.fit(100, model=model, random_seed=0, **quiet)
    assert [type(layer) for layer in approx.objective.layers][-1:] == [emf.ConditionalAffine]
    assert n_numbers(approx) < 200 * size
    assert approx.warm_start.chosen in ("scores", "mode")
    elbo = approx.elbo(1000, random_seed=1)
    assert abs(log_evidence - elbo.mean) < 0.5 + 3 * elbo.se
    assert approx.pareto_k < 0.7


GROUPS = """
import jax
jax.config.update("jax_enable_x64", True)
import pymc_emf as emf
from benchmarks.scaling import groups

model, log_evidence = groups(1100)
approx = emf.fit(4000, model=model, random_seed=0, progressbar=False)
*_, coupling, affine = approx.objective.layers
assert isinstance(coupling, emf.Coupling) and isinstance(affine, emf.ConditionalAffine)
assert coupling.steering.tolist() == [0, 1]  # mu and tau
n_numbers = sum(v.get_value(borrow=True).size for v in approx.objective.variables)
assert n_numbers < 300 * 1100
elbo = approx.elbo(2000, random_seed=1)
gap = log_evidence - elbo.mean
assert -3 * elbo.se < gap < 5, gap
"""


@pytest.mark.slow
def test_groups():
    """A hierarchy whose spread the groups' scales depend on, with the compiler's optimisations."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", GROUPS], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_hubs_are_the_smallest_variables():
    with pm.Model() as model:
        pm.Normal("many", shape=100)
        pm.Normal("scale")
        pm.Dirichlet("share", np.ones(4))
        pm.Normal("some", shape=50)
        pm.Normal("others", shape=30)
    program = emf.Program(model)
    places = {site.name: site.places.ravel().tolist() for site in program.sites}
    expected = sorted(places["scale"] + places["share"] + places["others"])
    assert program.hubs == expected
