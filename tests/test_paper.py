"""The paper's tables beside ours, and the records behind them."""

import json

import pytest

from case_studies import paper
from case_studies.campaign import Task
from case_studies.densities import DATA
from case_studies.density import ARCHITECTURES
from case_studies.methods import METHODS


@pytest.fixture(scope="module")
def records():
    return paper.kept()


@pytest.fixture(scope="module")
def tables(records):
    return paper.Tables(records)


def test_every_cell_of_the_paper_has_a_method_of_ours(tables):
    for table, content in tables.paper.items():
        known = ARCHITECTURES[int(table)] if table in "123" else METHODS
        for problem, row in content["rows"].items():
            assert set(row) <= set(known), (table, problem)


def test_no_method_is_closer_than_the_default(records):
    gaps = {}
    for record in records:
        if record["kind"] == "variational" and record.get("elbo") is not None:
            key = record["problem"], record["run"]
            gap = record["log_evidence"] - record["elbo"]
            gaps.setdefault(key, {})[record["method"]] = gap
    assert len(gaps) >= 13
    for key, of_one in gaps.items():
        if "default" in of_one:
            assert of_one["default"] <= min(of_one.values()) + 1e-3, key


def test_cells(tables):
    assert tables.of_paper(["4"], "ES", "GEMF-T") == "36.140 ± 0.004"
    assert tables.of_paper(["4"], "ES", "default") == ""
    record = {"kind": "variational", "problem": "ES", "method": "MF", "settings": "standard"}
    record["log_evidence"] = -1.0
    two = paper.Tables([record | {"elbo": -2.0}, record | {"elbo": -4.0}])
    assert two.ours("ES", "MF", "elbo", -1.0) == "3.000 ± 1.000"
    assert two.gap("ES", "MF") == "2.000 ± 1.000"
    assert two.n_runs("ES") == 0  # the other methods have not been fitted
    beyond = paper.Tables([record | {"log_q_of_truth": q} for q in (-1.0, float("nan"))])
    assert beyond.at_truth("ES", "MF") == "−∞"


def test_other_settings_are_rows_of_their_own():
    record = {"kind": "density", "problem": "IRIS", "method": "MAF", "se": 0.5}
    usual = record | {"settings": "standard", "neg_log_density": -8.0}
    longer = record | {"settings": "standard-500-steps", "neg_log_density": -9.0}
    first, second, third, fourth = paper.Tables([longer, usual]).densities("2")[-4:]
    assert first.startswith("| GEMF-M |")
    assert second.startswith("| MAF | −8.000 ± 0.500 | −7.213")
    assert third.startswith("| MAF, 500 steps | −9.000 ± 0.500 |  |")
    assert fourth.startswith("| MAF-L |")


def test_records_are_taken_up(records, tmp_path):
    known = next(r for r in records if r["kind"] == "variational")
    task = Task(known["problem"], known["method"], known["run"], 1)
    paper.unpack("variational", [task], known["settings"], tmp_path)
    written = json.loads(task.path(tmp_path).read_text())
    assert written["elbo"] == known["elbo"]
    paper.unpack("variational", [task], "others", tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_records_are_kept(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paper, "KEPT", tmp_path / "kept.jsonl.gz")
    task = Task("ES", "MF", 0, 1)
    record = task.labels | {"settings": "standard", "elbo": -1.0, "losses": [1.0]}
    path = task.path(tmp_path / "results" / "variational" / "standard")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    assert paper.keep() == paper.keep() == 1
    (kept,) = paper.kept()
    assert kept["elbo"] == -1.0 and "losses" not in kept


def test_no_density_is_above_the_truth(records):
    found = [
        r for r in records if r["kind"] == "density" and DATA[r["problem"]].entropy is not None
    ]
    assert len(found) >= 130
    for record in found:
        assert record["neg_log_density"] > DATA[record["problem"]].entropy, record
