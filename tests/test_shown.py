"""What a user sees: of results in a terminal and a notebook, and of a model before its fit."""

import logging
import re
import sys

from types import SimpleNamespace

import numpy as np
import optax
import pymc as pm
import pytensor.tensor as pt
import pytest
import rich.console

import pymc_emf as emf

from pymc_emf.engine.stopping import Stopping
from pymc_emf.exceptions import NonFiniteELBOError
from pymc_emf.variational import first_look
from pymc_emf.variational.importance import ELBO
from pymc_emf.variational.options import FitOptions
from pymc_emf.variational.record import FitRecord
from pymc_emf.variational.search import WarmStart
from pymc_emf.variational.summary import Summary

quiet = {"progressbar": False, "random_seed": 1}


@pytest.fixture(scope="module")
def line():
    """A fit that is exact, of which all is known."""
    with pm.Model(coords={"cell": list("abc")}) as model:
        x = pm.Normal("x", 0.0, 1.0, dims="cell")
        s = pm.Normal("s", 0.0, 1.0)
        pm.Normal("y", x + s, 1.0, observed=[1.0, 2.0, 3.0])
    return emf.fit(200, model=model, layers="full_rank", **quiet)


@pytest.fixture
def notebook(monkeypatch):
    """As rich sees it in Jupyter; what it shows there."""
    shown = []
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    display = SimpleNamespace(display=lambda *args, **kwargs: shown.append(args))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


class TestResults:
    def test_a_description_in_a_notebook(self, line, notebook):
        """Is written rather than shown, as the notebook shows its HTML itself."""
        table = repr(emf.describe(line.model))
        assert table.splitlines()[0].startswith("variable  family")
        assert notebook == []

    def test_an_approximation(self, line):
        text = repr(line)
        rows = dict(row.split("  ", 1) for row in text.splitlines())
        assert rows["variables"].strip() == "x, s (4 unknowns)"
        assert rows["layers"].strip() == "LowerTriangular > StructuredLayer"
        assert rows["fit"].strip() == f"exact, after step {line.stopping.step}"
        elbo = float(rows["ELBO"].split()[0])
        assert elbo == pytest.approx(line.elbo(100).mean, abs=0.01)
        assert f"Pareto k-hat  {line.pareto_k:.2f}" in text
        assert line.verdict.sentence in text
        assert line.diagnose(100).advice.startswith("Use it: its draws are worth 100 of 100")
        assert "<td>x, s (4 unknowns)</td>" in line._repr_html_()
        assert str(line) == "EMFApproximation[4: LowerTriangular > StructuredLayer]"

    def test_an_approximation_before_its_fit(self):
        with pm.Model() as model:
            for i in range(9):
                pm.Normal(f"x{i}")
        text = repr(emf.EMFApprox(model).approx)
        assert "x0, x1, x2, x3, x4, 3 more, x8 (9 unknowns)" in text
        assert "none yet" in text

    def test_gates_and_what_is_not_known(self, line):
        gates = line.gates.assign(x=("cell", np.array([0.128, 0.5, 1.0])))
        record = FitRecord(np.zeros(0), WarmStart("none"), Stopping("interrupted", 1234))
        text = repr(Summary(line.objective, record, gates))
        assert "x 0.13 to 1.00, all others 0.99 or more" in text
        assert "interrupted, after step 1,234" in text
        assert "there was no last check" in text
        assert "ELBO" not in text

    def test_an_elbo(self):
        assert repr([ELBO(-1.23456789, 0.0123456789, 10_000)]) == (
            "[ELBO -1.2346 ± 0.0123 nats (10,000 draws)]"
        )


class TestChains:
    """Labels of independent draws."""

    @pytest.mark.parametrize("importance", [False, True])
    def test_the_draws_of_one_chain(self, line, importance):
        options = {"importance": importance, "random_seed": 3}
        one, four = line.sample(20, **options), line.sample(5, chains=4, **options)
        assert one.posterior.sizes == {"chain": 1, "draw": 20, "cell": 3}
        assert four.posterior.sizes == {"chain": 4, "draw": 5, "cell": 3}
        for group, name in (("posterior", "x"), ("sample_stats", "lp"), ("sample_stats", "lq")):
            wanted, found = (tree[group][name].values for tree in (one, four))
            np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)

    def test_errors(self, line):
        with pytest.raises(ValueError, match="chains must be a positive integer, got 0"):
            line.sample(5, chains=0)
        with pytest.raises(TypeError, match="chains= needs return_inferencedata=True"):
            line.sample(5, chains=2, return_inferencedata=False)


class TestBeforeTheFit:
    @pytest.mark.parametrize(
        ("build", "said"),
        [
            (
                lambda x: pm.Potential("wall", pt.switch(x > 0.1, 0.0, np.nan)),
                "wall has the .* nan",
            ),
            (lambda x: pm.Normal("y", pt.log(x), observed=0.5), "y has the logarithm -inf"),
            (lambda x: pm.Normal("y", 0.0, abs(x), observed=0.5), "y breaks the .* sigma > 0"),
        ],
    )
    def test_an_initial_point_without_density(self, build, said, caplog):
        with pm.Model() as model:
            build(pm.Normal("x"))
        emf.fit(1, model=model, layers="affine", **quiet)
        (message,) = [r.getMessage() for r in caplog.records if "initial point" in r.getMessage()]
        assert re.search(said, message)

    def test_nothing_is_said_of_others(self, caplog):
        """An initval is PyMC's initial point, too."""
        with pm.Model() as model:
            x = pm.Normal("x", initval=2.0)
            pm.Normal("y", pt.log(x), observed=0.5)
        emf.fit(1, model=model, layers="affine", **quiet)
        assert "initial point" not in caplog.text
        assert "slow" not in caplog.text

    def test_a_slow_model(self, line, monkeypatch, caplog):
        monkeypatch.setattr(first_look, "SLOW", 0.0)
        emf.fit(1, model=line.model, layers="affine", **quiet)
        (message,) = [r.getMessage() for r in caplog.records if "is slow" in r.getMessage()]
        assert "for the 32 draws of a step, so that 1,000 steps take" in message

    def test_pytensor_is_quiet(self, caplog):
        """One of its rewrites fails on truth values, and says so for pages."""
        with pm.Model() as model:
            pm.Beta("share", alpha=np.array(2.0), beta=np.array(2.0))
        with caplog.at_level(logging.ERROR):
            emf.EMFApprox(model).approx.objective.rewrite()
        assert not caplog.records


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "advice"),
        [
            ({"obj_optimizer": optax.adam(0.05)}, "rate of obj_optimizer"),
            ({"backend": "numba"}, r"\(obj_optimizer=pm.adam\(learning_rate=1e-3\)\)"),
        ],
    )
    def test_a_handle_to_what_is_kept(self, options, advice):
        """And no advice to do what was done."""
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Normal("y", x, 0.1, observed=5.0)
            pm.Potential("trap", pm.math.switch(x > 4.0, np.nan, 0.0))
        with pytest.raises(NonFiniteELBOError, match=advice) as caught:
            emf.fit(3000, model=model, layers="affine", warm_start=False, **options, **quiet)
        approx = caught.value.approx
        assert approx.stopping.reason == "non-finite"
        assert 0 < approx.hist.size < 3000
        assert np.isfinite(approx.log_prob(np.array([[2.0]]))).all()

    def test_advice_where_none_was_taken(self):
        options = FitOptions(progressbar=False)
        assert "(obj_optimizer=optax.adam(1e-3))" in options.slower("optax.adam(1e-3)")

    def test_advice_on_starts(self):
        assert 'warm_start="auto"' in WarmStart("none").other
        assert WarmStart("scores", {"prior": -2.0, "scores": -1.0}).other == "pass a start="
        assert WarmStart("mode", {"start": -2.0, "mode": -1.0}).other == "pass another start="
