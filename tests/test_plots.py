"""Plots of a fit: what they draw, where, and what they refuse."""

import sys

from dataclasses import replace

import matplotlib
import numpy as np
import pymc as pm
import pytest
import xarray as xr

from arviz_base import rc_context
from arviz_base.labels import MapLabeller

import pymc_emf as emf

from pymc_emf.calibration.result import Calibration
from pymc_emf.engine.stopping import Stopping

matplotlib.use("Agg")

import matplotlib.pyplot as plt

SCHOOLS = ["Choate", "Deerfield", "Andover", "Exeter"]
STEPS = 120


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def approx():
    """Scalars, one of them with a heavy tail and a bound, and variables with one and two dims."""
    rng = np.random.default_rng(0)
    with pm.Model(coords={"school": SCHOOLS, "year": range(2000, 2003)}) as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, dims="school")
        effect = pm.Normal("effect", 0.0, 1.0, dims=("year", "school"))
        pm.Deterministic("twice", 2 * mu)
        pm.Potential("narrow", -((mu / 5) ** 2))
        pm.Normal("y", theta + effect, 1.0, observed=rng.normal(2.0, size=(3, 4)))
    options = {"layers": "affine", "warm_start": False, "progressbar": False}
    return emf.fit(STEPS, model=model, random_seed=1, **options)


@pytest.fixture(scope="module")
def idata(approx, tmp_path_factory):
    """Draws that have been to a file, as a user reopens them."""
    path = tmp_path_factory.mktemp("plots") / "draws.nc"
    tree = approx.sample(100, random_seed=1)
    prior = pm.draw([approx.model["mu"], approx.model["tau"]], 100, random_seed=1)
    tree["prior"] = xr.DataTree(
        xr.Dataset(
            {
                name: (("chain", "draw"), values[None])
                for name, values in zip(["mu", "tau"], prior, strict=True)
            }
        )
    )
    tree.to_netcdf(path)
    return xr.load_datatree(path)


def of_losses(losses, n_gates=0):
    """Draws whose fit had these losses, and gates of a variable called x."""
    fit = xr.Dataset({"elbo": ("step", -np.asarray(losses, dtype=float))})
    if n_gates:
        fit["x_gate"] = ("x_dim_0", np.linspace(0, 1, n_gates))
    return xr.DataTree.from_dict({"fit": fit})


def labels_of(ax):
    return [text.get_text() for text in ax.get_xticklabels()]


# --- losses ------------------------------------------------------------------------------------


def test_losses_and_trend(approx):
    ax = emf.plot_loss(approx, window=3, color="red")
    every, trend, end = ax.lines
    np.testing.assert_array_equal(every.get_ydata(), approx.hist)
    np.testing.assert_array_equal(every.get_xdata(), np.arange(1, STEPS + 1))
    triples = np.lib.stride_tricks.sliding_window_view(approx.hist, 3)
    np.testing.assert_array_equal(trend.get_ydata()[1:-1], np.median(triples, axis=1))
    assert trend.get_color() == "red"
    assert end.get_label() == "end after step 120"
    assert end.get_xdata() == STEPS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "negative ELBO, nats")
    (legend,) = ax.figure.legends
    assert "median of 3 steps" in [text.get_text() for text in legend.get_texts()]


def test_why_a_fit_ended(approx, monkeypatch):
    ended = replace(approx.record, stopping=Stopping("converged", STEPS))
    monkeypatch.setattr(approx, "record", ended)
    assert emf.plot_loss(approx).lines[-1].get_label() == "converged after step 120"


def test_losses_of_saved_draws(approx, idata):
    ax = emf.plot_loss(idata)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), approx.hist)
    assert ax.lines[-1].get_label() == "end after step 120"


def test_first_losses_do_not_set_the_limits():
    steps = np.arange(5000)
    noise = np.random.default_rng(0).normal(size=5000)
    losses = 40 + 1e6 * np.exp(-steps / 20) + noise
    losses[[0, 2000, 4999]] = np.inf, np.nan, -np.inf
    ax = emf.plot_loss(of_losses(losses))
    low, high = ax.get_ylim()
    assert 35 < low < 38
    assert 42 < high < 46
    _, trend, end = ax.lines
    assert np.isfinite(trend.get_ydata()).all()
    np.testing.assert_allclose(end.get_ydata(), 40.0, atol=0.5)


@pytest.mark.parametrize("losses", [[3.0], [3.0, 2.0], np.full(500, 3.0), [np.nan, np.inf, 1.0]])
def test_few_losses_and_equal_ones(losses):
    ax = emf.plot_loss(of_losses(losses), window=1000)
    low, high = ax.get_ylim()
    assert high - low > 0.99e-3
    ax.figure.canvas.draw()


def test_no_losses(approx, monkeypatch):
    monkeypatch.setattr(approx, "record", replace(approx.record, hist=np.zeros(0)))
    with pytest.raises(ValueError, match="There are no losses to plot: fit with score=True"):
        emf.plot_loss(approx)
    with pytest.raises(ValueError, match="window must be a positive integer, got 0"):
        emf.plot_loss(approx, window=0)
    with pytest.raises(ValueError, match=r"no group fit, but none.*result of approx.sample or"):
        emf.plot_loss(xr.DataTree())


def test_a_long_fit():
    losses = np.random.default_rng(0).normal(size=100_000)
    _, trend, _ = emf.plot_loss(of_losses(losses)).lines
    assert trend.get_label() == "median of 1,000 steps"
    assert np.abs(trend.get_ydata()[1000:-1000]).max() < 6 / np.sqrt(1000)


# --- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True])
def test_gates(approx, idata, saved):
    scalars, theta, effect = axes = emf.plot_gates(idata if saved else approx)
    gates = approx.gates
    np.testing.assert_array_equal(scalars.lines[0].get_ydata(), [gates["mu"], gates["tau"]])
    np.testing.assert_array_equal(theta.lines[0].get_ydata(), gates["theta"])
    np.testing.assert_array_equal(effect.images[0].get_array(), gates["effect"])
    assert effect.images[0].get_clim() == (0, 1)
    assert [ax.get_title() for ax in axes] == ["scalars", "theta", "effect"]
    assert labels_of(scalars) == ["mu", "tau"]
    assert labels_of(theta) == labels_of(effect) == SCHOOLS
    assert [text.get_text() for text in effect.get_yticklabels()] == ["2000", "2001", "2002"]
    assert (theta.get_xlabel(), effect.get_xlabel(), effect.get_ylabel()) == (
        "school",
        "school",
        "year",
    )
    assert theta.get_ylim() == (0, 1)


def test_selection_of_gates(approx):
    labeller = MapLabeller(var_name_map={"theta": "effect of the school"})
    ax = emf.plot_gates(
        approx, ["theta"], coords={"school": ["Andover", "Choate"]}, labeller=labeller, ms=9
    )
    assert ax.get_title() == "effect of the school"
    assert labels_of(ax) == ["Andover", "Choate"]
    assert ax.lines[0].get_markersize() == 9
    assert emf.plot_gates(approx, "~effect")[-1].get_title() == "theta"
    assert emf.plot_gates(approx, "the", filter_vars="like").get_title() == "theta"
    with pytest.raises(KeyError, match="no variable 'nu' to plot; there are mu, tau, theta"):
        emf.plot_gates(approx, "nu")


def test_thousands_of_gates():
    ax = emf.plot_gates(of_losses([0.0], n_gates=5000))
    assert ax.lines[0].get_ydata().size == 5000
    ax.figure.canvas.draw()
    assert len(ax.get_xticks()) < 12


def test_gates_over_dates_and_three_dims():
    days = np.datetime64("2024-01-01", "ns") + np.arange(50) * np.timedelta64(1, "D")
    gates = np.random.default_rng(0).uniform(size=(2, 3, 50))
    fit = xr.Dataset(
        {"x_gate": (("a", "b", "day"), gates), "z_gate": ("day", gates[0, 0])}, {"day": days}
    )
    first, second, series = axes = emf.plot_gates(xr.DataTree.from_dict({"fit": fit}))
    assert [ax.get_title() for ax in axes] == ["x[0]", "x[1]", "z"]
    np.testing.assert_array_equal(second.images[0].get_array(), gates[1])
    assert labels_of(first)[0] == "2024-01-01"
    np.testing.assert_array_equal(series.lines[0].get_xdata(), days)


# --- densities ---------------------------------------------------------------------------------


def test_prior_and_posterior(approx):
    axes = emf.plot_prior_posterior(approx, ["mu", "tau", "twice", "theta"], random_seed=1)
    titles = [ax.get_title() for ax in axes]
    assert titles == ["mu", "tau", "twice", *(f"theta[{name}]" for name in SCHOOLS)]
    for ax in axes:
        prior, posterior = ax.lines
        assert prior.get_label() == "prior without potentials"
        assert posterior.get_label() == "posterior"
        share = np.trapezoid(posterior.get_ydata(), posterior.get_xdata())
        assert share == pytest.approx(1.0, abs=0.02)
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > max(prior.get_ydata().max(), posterior.get_ydata().max())
    tau = axes[1]
    assert all(line.get_xdata().min() >= 0 for line in tau.lines)  # no leak over the bound
    # a thousandth of the draws of this prior lies beyond 3,000
    assert tau.get_xlim()[1] < 200
    prior, _ = axes[0].lines
    peak = np.exp(0) / (5 * np.sqrt(2 * np.pi))
    assert prior.get_ydata().max() == pytest.approx(peak, rel=0.2)


def test_default_panels_are_those_of_the_free_variables(approx):
    with (
        rc_context({"plot.max_subplots": 4}),
        pytest.warns(UserWarning, match="Only the first 4 panels"),
    ):
        axes = emf.plot_prior_posterior(approx, draws=50, random_seed=1)
    assert [ax.get_title() for ax in axes] == ["mu", "tau", "theta[Choate]", "theta[Deerfield]"]
    with rc_context({"plot.max_subplots": None}):
        assert len(emf.plot_prior_posterior(approx, draws=50, random_seed=1)) == 2 + 4 + 12


def test_draws_with_a_prior(idata):
    axes = emf.plot_prior_posterior(idata)
    assert [ax.get_title() for ax in axes] == ["mu", "tau"]
    assert axes[0].lines[0].get_label() == "prior"
    without = idata.copy()
    del without["prior"]
    added = r"no group prior.*itself, or data to which pm.sample_prior_predictive has been added"
    with pytest.raises(ValueError, match=added):
        emf.plot_prior_posterior(without)


def test_a_prior_that_cannot_be_drawn_from():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Normal("z", 0.0, 1.0)
        pm.Normal("y", x, 1.0, observed=[1.0])
    approx = emf.EMFApprox(model, layers="affine", random_seed=1).approx
    flat, normal = emf.plot_prior_posterior(approx, draws=50, random_seed=1)
    assert [line.get_label() for line in flat.lines] == ["posterior"]
    assert [line.get_label() for line in normal.lines] == ["prior", "posterior"]


def test_a_prior_that_is_much_wider():
    """No draw of it falls into the panel, and its density there is shown all the same."""
    rng = np.random.default_rng(0)

    def group(scale, loc):
        return xr.Dataset({"x": (("chain", "draw"), rng.normal(loc, scale, size=(1, 2000)))})

    both = {"prior": group(1000.0, 0.0), "posterior": group(0.1, 3.0)}
    prior, _ = emf.plot_prior_posterior(xr.DataTree.from_dict(both)).lines
    np.testing.assert_allclose(prior.get_ydata(), 1 / (1000 * np.sqrt(2 * np.pi)), rtol=0.3)


# --- truth -------------------------------------------------------------------------------------


def test_truth(approx):
    theta = np.arange(4.0)
    mu, school = emf.plot_truth(approx, {"mu": 1.5, "theta": theta}, random_seed=1, draws=200)
    density, line = mu.lines
    assert density.get_label() == "posterior"
    np.testing.assert_array_equal(line.get_xdata(), [1.5, 1.5])
    median, points = school.lines
    expected = approx.sample(200, random_seed=1).posterior["theta"][0]
    np.testing.assert_allclose(median.get_ydata(), expected.median("draw"))
    np.testing.assert_array_equal(points.get_ydata(), theta)
    inner, outer = (np.array(c.get_segments())[:, :, 1] for c in school.collections)
    np.testing.assert_allclose(inner.T, expected.quantile([0.25, 0.75], "draw"))
    np.testing.assert_allclose(outer.T, expected.quantile([0.055, 0.945], "draw"))
    assert labels_of(school) == SCHOOLS
    (legend,) = mu.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "posterior",
        "truth",
        "median",
        "50%",
        "89%",
    ]


def test_truth_along_the_longest_dim():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1, 500, 60, 2))
    posterior = xr.Dataset(
        {"x": (("chain", "draw", "time", "k"), draws)}, {"time": np.arange(60) / 2}
    )
    idata = xr.DataTree.from_dict({"posterior": posterior})
    true = rng.normal(size=(60, 2))
    axes = emf.plot_truth(idata, {"x": true}, ci_probs=(0.9, 0.3), ci_kind="hdi")
    assert [ax.get_title() for ax in axes] == ["x[0]", "x[1]"]
    for i, ax in enumerate(axes):
        median, truth = ax.lines
        np.testing.assert_array_equal(truth.get_ydata(), true[:, i])
        np.testing.assert_array_equal(median.get_xdata(), np.arange(60) / 2)
        np.testing.assert_allclose(median.get_ydata(), np.median(draws[0, ..., i], axis=0))
        assert [band.get_label() for band in ax.collections] == ["30%", "90%"]
    late = emf.plot_truth(idata, {"x": true}, coords={"time": slice(20, None), "k": [1]})
    np.testing.assert_array_equal(late.lines[1].get_ydata(), true[40:, 1])


@pytest.mark.parametrize("wrap", [dict, xr.Dataset, lambda x: xr.DataTree(xr.Dataset(x))])
def test_truth_is_aligned_by_its_coords(idata, wrap):
    values = idata.posterior["effect"].mean(("chain", "draw"))
    shuffled = values.transpose("school", "year").sel(school=SCHOOLS[::-1])
    axes = emf.plot_truth(idata, wrap({"effect": shuffled}))
    assert axes[1].get_title() == "effect[2001]"
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), values.sel(year=2001))


@pytest.mark.parametrize(
    ("truth", "error", "words"),
    [
        ({"nu": 1.0}, KeyError, r"no variable \['nu'\] to plot; there are mu, "),
        ({}, ValueError, "There is nothing to plot"),
        (1.0, TypeError, "truth must map names of variables to their values, got float"),
        ({"theta": np.zeros(3)}, ValueError, r"truth of theta must have shape \(4,\), got \(3,\)"),
        ({"theta": xr.DataArray(np.zeros(4), dims="k")}, ValueError, r"theta has dims \('k',\)"),
        (
            {"theta": xr.DataArray(np.zeros(1), {"school": ["Eton"]})},
            ValueError,
            "truth of theta lacks coords",
        ),
    ],
)
def test_wrong_truth(idata, truth, error, words):
    with pytest.raises(error, match=words):
        emf.plot_truth(idata, truth)


def test_truth_of_less_than_was_asked_for(idata):
    with pytest.raises(KeyError, match="The truth has no values of tau"):
        emf.plot_truth(idata, {"mu": 1.0}, ["mu", "tau"])


# --- ranks -------------------------------------------------------------------------------------


def test_ranks():
    rng = np.random.default_rng(0)
    data = {
        "mu": (("simulation",), rng.integers(0, 100, 80)),
        "theta": (("simulation", "school"), np.clip(rng.normal(50, 5, (80, 3)).astype(int), 0, 99)),
    }
    calibration = Calibration(xr.Dataset(data), 99, np.zeros(80), {})
    mu, theta = emf.plot_ranks(calibration)
    assert (mu.get_title(), theta.get_title()) == ("mu", "theta")
    x, y = mu.lines[0].get_data()
    ranks = np.sort(data["mu"][1])
    np.testing.assert_allclose(
        y, np.searchsorted((ranks + 0.5) / 100, x, side="right") / 80 - x, atol=1e-12
    )

    def leaves_the_band(ax, line):
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        return np.abs(line.get_ydata()).max() > np.abs(band).max()

    assert not leaves_the_band(mu, mu.lines[0])
    assert len(theta.lines) == 3 + 1
    assert all(leaves_the_band(theta, line) for line in theta.lines[:3])
    assert emf.plot_ranks(calibration, "mu").get_title() == "mu"
    empty = Calibration(xr.Dataset(data).isel(simulation=slice(0)), 99, np.zeros(0), {})
    with pytest.raises(ValueError, match="No fit succeeded"):
        emf.plot_ranks(empty)


def test_of_something_else(idata):
    for plot in (emf.plot_loss, emf.plot_gates, emf.plot_prior_posterior):
        with pytest.raises(TypeError, match=r"approx must be an approximation.* got Dataset"):
            plot(idata.posterior.to_dataset())
    with pytest.raises(TypeError, match=r"approx must be an approximation.* got NoneType"):
        emf.plot_truth(None, {"mu": 1.0})
    with pytest.raises(TypeError, match=r"must be what emf.calibrate returns, got DataTree"):
        emf.plot_ranks(idata)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ci_probs": 0.9}, "ci_probs must be two probabilities, got 0.9"),
        ({"ci_probs": (0.5, 90)}, "ci_probs must be two probabilities"),
        ({"ci_kind": "central"}, 'ci_kind must be "eti" or "hdi", got \'central\''),
    ],
)
def test_wrong_intervals(idata, options, words):
    with pytest.raises(ValueError, match=words):
        emf.plot_truth(idata, {"mu": 1.0}, **options)


# --- axes --------------------------------------------------------------------------------------


def test_axes_of_the_user(approx, idata):
    _, grid = plt.subplots(2, 2)
    assert emf.plot_loss(approx, ax=grid[0, 0]) is grid[0, 0]
    used = emf.plot_gates(approx, ax=grid)
    assert list(used) == list(grid.flat[:3])
    pair = emf.plot_prior_posterior(idata, ax=grid[1])
    assert list(pair) == list(grid[1])
    assert grid[1, 0].get_legend() is not None
    assert emf.plot_truth(idata, {"mu": 0.0}, ax=grid[0, 1]) is grid[0, 1]
    with pytest.raises(ValueError, match="The plot has 3 panels and ax only 1; choose fewer"):
        emf.plot_gates(approx, ax=grid[0, 0])
    assert len(plt.get_fignums()) == 1


def test_size_of_the_figure(approx):
    for ax in (
        emf.plot_loss(approx, figsize=(4.0, 3.0)),
        emf.plot_gates(approx, figsize=(4.0, 3.0))[0],
    ):
        np.testing.assert_allclose(ax.figure.get_size_inches(), (4.0, 3.0))


@pytest.mark.parametrize(
    "plot",
    [
        emf.plot_loss,
        emf.plot_gates,
        emf.plot_prior_posterior,
        lambda idata: emf.plot_truth(idata, {"mu": 0.0}),
    ],
)
def test_without_matplotlib(idata, plot, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "pymc-emf\[plots\]"'):
        plot(idata)
