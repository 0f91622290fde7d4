"""pymc-extras: the models of its page against NUTS."""

import numpy as np
import pymc as pm
import pytest

import pymc_emf as emf

pytest.importorskip("pymc_extras")

NUTS = {"draws": 2000, "tune": 1000, "chains": 2, "cores": 1, "progressbar": False}


@pytest.fixture(scope="module")
def page(run_page):
    return run_page("pymc_extras.md")


@pytest.mark.parametrize("name", ["marginal", "space", "regression", "extremes"])
def test_means(page, name, agree):
    approx = page[f"{name}_approx"]
    assert "bypassed" not in str(emf.describe(approx.model))
    draws = approx.sample(8000, importance=True, random_seed=4).posterior
    exact = pm.sample(model=approx.model, random_seed=1, **NUTS).posterior
    agree(draws, exact, [rv.name for rv in approx.model.free_RVs])


def test_marginalised_variables_are_recovered(page):
    """By what Bayes's rule says of each at the draws."""
    draws = page["idata"].posterior
    below, above = (
        share * np.exp(-((page["y"] - mean) ** 2) / 2)
        for share, mean in (
            (1 - draws["share"].values[..., None], draws["low"].values[..., None]),
            (draws["share"].values[..., None], (draws["low"] + draws["step"]).values[..., None]),
        )
    )
    expected = (above / (above + below)).mean(axis=(0, 1))
    found = draws["high"].values.mean(axis=(0, 1))
    np.testing.assert_allclose(found, expected, atol=0.06)  # four errors of 1,000 draws


def test_deterministics(page):
    draws = page["regression_approx"].sample(50, random_seed=1).posterior
    assert draws["beta"].sizes["predictor"] == 4
    assert list(draws["predictor"].values) == list("abcd")
