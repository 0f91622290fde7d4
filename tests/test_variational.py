"""The campaign of the variational experiments, on the least that can be fitted."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from case_studies import variational
from case_studies.eight_schools import exact_draws, solve
from case_studies.methods import METHODS, PAPER, QUICK
from case_studies.problems import load
from pymc_emf.model.program import Program
from pymc_emf.variational.prepare import prepare


def test_exact_draws_of_eight_schools():
    y = load("ES").observed
    draws = exact_draws(y, 200_000, seed=0)
    together = np.column_stack([draws["mu"], draws["log_tau"], draws["theta"]])
    mean, sd = solve(y).moments()
    np.testing.assert_allclose(together.mean(axis=0), mean, atol=0.01 * sd.max())
    np.testing.assert_allclose(together.std(axis=0), sd, rtol=0.01)


@pytest.mark.slow
def test_a_campaign(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variational, "DRAWS", 500)
    arguments = ["--quick", "--problems", "BRS-r", "--steps", "100", "--out", str(tmp_path)]
    folder = tmp_path / "quick-100-steps"

    variational.main([*arguments, "--methods", "MF"])
    first = capsys.readouterr().out
    assert "Gap to the exact log evidence" in first
    (fitted,) = folder.glob("BRS-r/*.json")
    written = fitted.stat().st_mtime_ns
    record = json.loads(fitted.read_text(encoding="utf-8"))
    assert record["log_evidence"] == pytest.approx(-load("BRS-r").neg_log_evidence)
    assert len(record["losses"]) == 100
    draws = xr.open_datatree(fitted.with_suffix(".nc"))
    assert draws["posterior"]["x"].shape == (1, 200, 30)

    # what is there is not fitted again
    variational.main([*arguments, "--methods", "MF", "ASVI"])
    assert "1 of 2 fits are in" in capsys.readouterr().out
    assert fitted.stat().st_mtime_ns == written
    frame = pd.read_csv(folder / "results.csv")
    assert list(frame["method"]) == ["MF", "ASVI"]
    assert (frame["gap"] > 0).all()
    assert not list(folder.glob("BRS-r/*.[0-9]*"))  # nothing half-written
    assert xr.open_dataset(folder / "results.nc").sizes["method"] == 2
    assert "ASVI" in (folder / "tables.txt").read_text(encoding="utf-8")


def test_unknown_names(capsys):
    with pytest.raises(SystemExit):
        variational.main(["--methods", "GEMF", "--problems", "ES"])
    assert "unknown methods: GEMF" in capsys.readouterr().err


def test_methods():
    """Options that would fail only after days."""
    for settings in (PAPER, QUICK):
        for make in METHODS.values():
            make(settings, 0)
    program, options = Program(load("Lin-4").model), METHODS["GEMF-T"](QUICK, 0).options
    layers = prepare(program, options, np.random.default_rng(0)).objective.layers
    assert [layer.reverse for layer in layers] == [False, True]
