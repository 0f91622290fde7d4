"""Several models in one flow: each on its own slice, and the gates' choice between two rivals."""

import numpy as np
import pandas as pd
import pytest

from scipy import stats

import pymc_emf as emf

from case_studies import embeddings
from case_studies.densities import STRUCTURES
from case_studies.embeddings import DATA, IN_SEQUENCE, SIDE_BY_SIDE, Flow

QUICK = 2_000
SLOW = pytest.mark.slow


def fits(data, flows):
    return {str(flow): embeddings.fit(data, flow, QUICK) for flow in flows}


@pytest.mark.parametrize("name", ["continuity", "smoothness", "hierarchy"])
def test_true_density_is_that_of_the_structure(name):
    model = STRUCTURES[name](embeddings.N, 1)
    layer = emf.StructuredLayer(model)
    for scale in layer.parameters:
        scale.set_value(np.log(np.full(1, embeddings.SCALE)))
    x = embeddings.draws_of(name)(np.random.default_rng(0), 5)
    noise, log_det = emf.compile(layer).inverse(x)
    exact = stats.norm.logpdf(noise).sum(axis=1) + log_det
    np.testing.assert_allclose(embeddings.log_density(name, x), exact)


def test_models_on_their_own_slices():
    right, swapped = SIDE_BY_SIDE[:2]
    fitted = fits("both", [right, swapped])
    assert fitted[str(right)].excess == pytest.approx(0.0, abs=0.01)
    assert all(gates.min() > 0.99 for gates in fitted[str(right)].gates.values())
    assert fitted[str(swapped)].excess > 10


@pytest.mark.parametrize(
    ("right", "rival", "order"),
    [
        ("continuity", "smoothness", ("smoothness", "continuity")),
        # the same in the other order, and of the other data
        pytest.param("continuity", "smoothness", ("continuity", "smoothness"), marks=SLOW),
        pytest.param("smoothness", "continuity", ("continuity", "smoothness"), marks=SLOW),
    ],
)
def test_the_gates_choose_the_right_one_of_two_rivals(right, rival, order):
    both, alone = Flow(order), Flow((rival,))
    fitted = fits(right, [both, alone])
    chosen = fitted[str(both)]
    assert chosen.gates[right].min() > 0.97
    assert chosen.gates[rival].max() < 0.1
    assert -0.005 < chosen.excess < 0.02 < fitted[str(alone)].excess - 4


def test_where_the_choice_takes_longest():
    """The rival next to the data closes last, and is no worse than alone meanwhile."""
    fitted = fits("smoothness", [Flow(("smoothness", "continuity")), Flow(("continuity",))])
    both = fitted["smoothness > continuity"]
    assert both.gates["smoothness"].mean() > both.gates["continuity"].mean() + 0.3
    assert both.excess < fitted["continuity"].excess - 15


@pytest.mark.slow  # fits every flow; what is fitted and drawn is tested above
def test_command(tmp_path, capsys):
    embeddings.main(["--steps", "5", "--out", str(tmp_path)])
    assert "continuity > smoothness" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "results.csv")
    assert set(table["data"]) == set(DATA)
    assert set(table["flow"]) == {str(flow) for flow in [*SIDE_BY_SIDE, *IN_SEQUENCE]}
    assert (tmp_path / "embeddings.png").stat().st_size > 10_000
