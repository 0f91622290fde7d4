"""pymc-marketing: its models fitted beside it, and the draws handed back."""

import copy

import numpy as np
import pandas as pd
import pymc as pm
import pytest

import pymc_emf as emf

pytest.importorskip("pymc_marketing")

from pymc_marketing import clv
from pymc_marketing.clv.distributions import BetaGeoNBD, ParetoNBD

NUTS = {"draws": 3000, "tune": 1000, "chains": 2, "cores": 1, "progressbar": False}


def handed_back(model, draws, fit_data):
    model = copy.copy(model)
    model.idata = draws
    model.idata["fit_data"] = fit_data
    model.set_idata_attrs(model.idata)
    model.is_fitted_ = True
    return model


class TestMediaMix:
    @pytest.fixture(scope="class")
    def page(self, run_page):
        return run_page("pymc_marketing.md")

    @pytest.fixture(scope="class")
    def by_nuts(self, page):
        """The same model with draws by NUTS."""
        draws = pm.sample(model=page["mmm"].model, random_seed=1, **NUTS)
        return handed_back(page["mmm"], draws, page["mmm"].idata["fit_data"])

    @pytest.fixture(scope="class")
    def names(self, page):
        return [rv.name for rv in page["mmm"].model.free_RVs]

    def test_all_is_embedded(self, page):
        assert "bypassed" not in str(emf.describe(page["mmm"].model))

    def test_means(self, page, by_nuts, names, agree):
        assert page["approx"].verdict.is_good
        draws = page["approx"].sample(4000, importance=True, random_seed=4)
        own, exact = (t.posterior.to_dataset()[names] for t in (draws, by_nuts.idata))
        agree(own, exact, names, spread=np.inf)
        # the last hundredths of a channel's size are missed, as the page says
        heavy = "saturation_beta"
        agree(own, exact, [name for name in names if name != heavy])
        levels, axes = [0.05, 0.25, 0.5, 0.75, 0.9], ("chain", "draw")
        own, exact = (draws[heavy].quantile(levels, axes) for draws in (own, exact))
        quartiles = exact.sel(quantile=0.75) - exact.sel(quantile=0.25)
        assert float((abs(own - exact) / quartiles).max()) < 0.25

    def test_contributions(self, page, by_nuts):
        exact = by_nuts.idata.posterior["channel_contribution_original_scale"].sum("date")
        error = page["contributions"].mean(("chain", "draw")) - exact.mean(("chain", "draw"))
        assert float(abs(error / exact.std(("chain", "draw"))).max()) < 0.1
        summed = page["mmm"].compute_mean_contributions_over_time()
        expected = by_nuts.compute_mean_contributions_over_time()
        numbers = [frame.select_dtypes("number").to_numpy() for frame in (summed, expected)]
        np.testing.assert_allclose(*numbers, rtol=0.05, atol=0.01 * np.abs(numbers[1]).max())

    def test_posterior_predictive(self, page, by_nuts):
        options = {"progressbar": False, "random_seed": 3}
        exact = by_nuts.sample_posterior_predictive(page["X"], **options)["y"]
        own = page["predicted"]["y"]
        error = abs(own.mean("sample") - exact.mean("sample")) / exact.std("sample")
        # their Monte Carlo error is 0.03, at the largest of 104
        assert float(error.max()) < 0.15
        assert abs(float((own.std("sample") / exact.std("sample")).mean()) - 1) < 0.03

    def test_budget(self, page, by_nuts):
        optimizer = by_nuts.budget_optimizer("2024-01-01", "2024-03-04")
        expected = optimizer.allocate_budget(total_budget=2.0).budgets
        assert abs(float(page["plan"].budgets.sum()) - 2.0) < 1e-6
        np.testing.assert_allclose(page["plan"].budgets, expected, rtol=0.03)

    def test_saved_and_loaded(self, page, names):
        own, again = page["mmm"], page["again"]
        for name in names:
            np.testing.assert_array_equal(own.idata.posterior[name], again.idata.posterior[name])
        options = {"progressbar": False, "random_seed": 3}
        predicted = again.sample_posterior_predictive(page["X"], **options)
        np.testing.assert_allclose(predicted["y"], page["predicted"]["y"], rtol=1e-6)

    def test_lifetimes_of_the_page(self, page):
        assert page["lifetimes_approx"].pareto_k < 0.7
        expected = float(page["customers"]["frequency"].sum() / page["customers"]["T"].sum()) * 10
        # those who have left buy no more
        assert 0.5 * expected < float(page["purchases"].mean()) < expected


LIFETIMES = {
    "BetaGeo": (clv.BetaGeoModel, BetaGeoNBD, {"a": 0.8, "b": 2.5, "r": 0.6, "alpha": 4.4}),
    "ParetoNBD": (clv.ParetoNBDModel, ParetoNBD, {"r": 0.6, "alpha": 8.0, "s": 0.6, "beta": 12.0}),
}


@pytest.mark.parametrize("name", LIFETIMES)
def test_lifetimes(name, agree):
    kind, distribution, parameters = LIFETIMES[name]
    span = np.random.default_rng(0).integers(25, 40, size=200).astype(float)
    seen = pm.draw(distribution.dist(**parameters, T=span), random_seed=1)
    data = {"customer_id": np.arange(200), "recency": seen[:, 0], "frequency": seen[:, 1]}
    model = kind()
    model.build_model(pd.DataFrame({**data, "T": span}))
    approx = emf.fit(model=model.model, random_seed=1, progressbar=False)
    draws = approx.sample(8000, importance=True, random_seed=2)
    exact = pm.sample(model=model.model, random_seed=1, **NUTS)
    names = [rv.name for rv in model.model.free_RVs]
    # their tails are so heavy that means of draws differ
    logs = [np.log(tree.posterior.to_dataset()[names]) for tree in (draws, exact)]
    agree(*logs, names)

    fitted = handed_back(model, draws.isel(draw=slice(1000)), model.create_fit_data_group())
    by_nuts = handed_back(model, exact.isel(draw=slice(500)), model.create_fit_data_group())
    own = fitted.expected_purchases(future_t=10).mean(("chain", "draw"))
    expected = by_nuts.expected_purchases(future_t=10).mean(("chain", "draw"))
    np.testing.assert_allclose(own, expected, rtol=0.05, atol=0.01)
