"""What `evaluate` and `compare` leave for several labels, ordered classes and tiers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmft.cli import main
from llmft.evaluation.variants import Run
from llmft.metrics.definitions import measure
from llmft.prediction.stored import StoredPredictions
from llmft.results.run import PostHocFit
from tests.evaluation.conftest import make_row, write_rows


def load(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def home(trained_home: Path) -> Iterator[Path]:
    """The trained runs, as the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained_home)
        yield trained_home


def write_suite(kind: str, metric: str, *, extra: str = "") -> None:
    Path("suite.yaml").write_text(
        f"task: {kind}-task.yaml\nvariants: {{one: runs/{kind}, two: runs/{kind}-again}}\n"
        f"reference: one\nmetric: {metric}\nmargin: 0.01\noutput_dir: reports\n"
        "waive: [{check: collapsed_predictions, reason: toy}, "
        "{check: identical_inputs, reason: toy}]\n"
        f"{extra}"
    )


def compare(kind: str, metric: str, *, extra: str = "") -> dict[str, Any]:
    write_suite(kind, metric, extra=extra)
    assert main(["compare", "suite.yaml"]) == 0
    assert Path("reports/report.html").stat().st_size > 1000
    return load("reports/comparison.json")


def test_several_labels_are_evaluated(home: Path) -> None:
    results = load("runs/several/evaluation/test.json")
    assert (results["label_type"], results["num_rows"]) == ("multilabel", 24)
    assert set(results["per_class"]) == {"crisis", "profit"}
    assert results["confusion_matrix"] is None
    counts = results["label_confusions"]["crisis"]
    assert sum(map(sum, counts)) == 24
    crisis = results["per_class"]["crisis"]
    assert sum(counts[1]) == crisis["support"]
    assert set(results["intervals"]) == set(results["metrics"])
    assert results["part_intervals"]["metric"] == "f1"
    assert set(results["part_intervals"]["intervals"]) == {"crisis", "profit"}
    assert 0 <= results["reliability"]["ece"] <= 1
    gates = {gate["name"]: gate for gate in results["gates"]}
    assert list(gates) == ["beats_constant", "beats_tfidf"]
    gain = results["metrics"]["f1_micro"] - results["baselines"]["tfidf"]["metrics"]["f1_micro"]
    assert gates["beats_tfidf"]["value"] == pytest.approx(gain)
    assert gates["beats_tfidf"]["bound"] == results["gains"]["tfidf"]["interval"][0]
    assert results["metric"] == "f1_micro"  # the loss chose, but it is no metric of the report


def test_several_labels_of_a_file_are_evaluated(home: Path) -> None:
    write_rows("more.jsonl", range(1000, 1030))
    assert main(["evaluate", "runs/several", "--data", "more.jsonl"]) == 0
    results = load("runs/several/evaluation/data-more.json")
    assert (results["num_rows"], results["left_out"], results["coverage"]) == (30, {}, 1.0)
    assert results["rows"][3]["labels"] == ["crisis", "profit"]


def test_d24_rows_that_cannot_be_used_are_told_and_keep_a_run_from_being_deployed(
    home: Path, capsys
) -> None:
    before = Path("runs/several/evaluation/report.html").read_bytes()
    rows = [make_row(i) for i in range(1000, 1030)]
    del rows[4]["crisis"]
    rows[7]["profit"] = "perhaps"
    rows[9]["profit"] = "maybe"
    Path("gaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "runs/several", "--data", "gaps.jsonl"]) == 0
    assert "3 rows left out: 2 not 0 or 1, 1 label missing" in capsys.readouterr().out
    results = load("runs/several/evaluation/data-gaps.json")
    assert results["left_out"] == {"not 0 or 1": 2, "label missing": 1}
    assert (results["num_rows"], results["coverage"]) == (27, 0.9)
    assert results["decision"] != "DEPLOY"
    page = Path("runs/several/evaluation/report-data-gaps.md").read_text()
    assert "3 rows left out: 2 not 0 or 1, 1 label missing" in page
    assert Path("runs/several/evaluation/report.html").read_bytes() == before


def test_d24_rows_of_a_class_that_the_model_does_not_know_count_as_wrong(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_row(i) for i in range(1000, 1040)]
    Path("known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    for row in rows[30:36]:
        row["mood"] = "odd"
    for row in rows[36:]:
        row["mood"] = "ugly"
    Path("strange.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "runs/plain", "--data", "known.jsonl"]) == 0
    assert main(["evaluate", "runs/plain", "--data", "strange.jsonl"]) == 0
    known = load("runs/plain/evaluation/data-known.json")
    strange = load("runs/plain/evaluation/data-strange.json")
    said = (
        "10 of 40 rows have a class or label that the model does not know, so they count as wrong"
    )
    assert f"{said}: odd, ugly" in capsys.readouterr().out
    assert said in Path("runs/plain/evaluation/report-data-strange.md").read_text()
    assert (strange["num_rows"], strange["coverage"], strange["left_out"]) == (40, 1.0, {})
    assert strange["label_names"] == ["bad", "good", "odd", "ugly"]
    num_right = known["metrics"]["accuracy"] * 30
    assert strange["metrics"]["accuracy"] == pytest.approx(num_right / 40)
    assert strange["per_class"]["odd"] == {
        "precision": None, "recall": 0, "f1": 0, "support": 6, "roc_auc": 0.5,
        "average_precision": pytest.approx(6 / 40),
    }  # fmt: skip
    matrix = np.array(strange["confusion_matrix"])
    assert matrix[:, 2:].sum() == 0
    assert matrix[2].sum() == 6
    assert strange["baselines"]["tfidf"]["per_class"]["ugly"]["recall"] == 0
    rest = [row for row in strange["rows"] if row["labels"] in ("odd", "ugly")]
    assert {row["errors"]["plain"] for row in rest} == {1.0}


def test_d24_a_class_that_an_ordered_task_does_not_list_counts_as_wrong(home: Path) -> None:
    rows = [make_row(i) for i in range(1000, 1040)]
    for row in rows[30:]:
        row["mood"] = "ugly"
    Path("worse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "runs/ordered", "--data", "worse.jsonl"]) == 0
    found = load("runs/ordered/evaluation/data-worse.json")
    assert (found["num_rows"], found["left_out"]) == (40, {})
    assert found["label_names"] == ["bad", "good", "ugly"]
    assert found["per_class"]["ugly"]["recall"] == 0
    assert found["metrics"]["accuracy"] <= 0.75
    assert "quadratic_kappa" not in found["metrics"], "nobody knows where ugly belongs"


def test_two_files_of_one_name_have_a_report_each(home: Path) -> None:
    for folder, numbers in (("new", range(1000, 1040)), ("old", range(1100, 1130))):
        Path(folder).mkdir()
        write_rows(f"{folder}/march.jsonl", numbers)
    for path in ("new/march.jsonl", "old/march.jsonl", "./new/../new/march.jsonl"):
        assert main(["evaluate", "runs/plain", "--data", path]) == 0
    evaluation = Path("runs/plain/evaluation")
    assert load(f"{evaluation}/data-march.json")["num_rows"] == 40
    second = load(f"{evaluation}/data-march-2.json")
    assert (second["num_rows"], second["file"]) == (30, "old/march.jsonl")
    assert (evaluation / "report-data-march-2.html").exists()
    assert not (evaluation / "data-march-3.json").exists()


def test_a_file_of_other_classes_only_names_both(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**make_row(i), "mood": "odd"} for i in range(1000, 1030)]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "runs/plain", "--data", "odd.jsonl"]) == 2
    assert "found odd, known are bad, good" in capsys.readouterr().err
    assert not Path("runs/plain/evaluation/data-odd.json").exists()


def test_d24_labels_that_the_model_does_not_know_are_missed() -> None:
    """Thresholds are applied before, since they are for the model's own labels."""
    labels = np.array([[True, True], [False, True], [False, False]])
    outputs = np.array([[0.4], [0.2], [0.1]], dtype=np.float32)
    stored = StoredPredictions(["a", "b", "c"], outputs, *[np.zeros(3, dtype=np.int64)] * 2, [])
    fit = PostHocFit(
        method="f1", head="multilabel", num_rows=9, model_hash="m", data_fingerprint="d",
        thresholds={"x": 0.3},
    )  # fmt: skip
    run = Run(Path(), None, None, 0, fit, stored, num_unknown=1)  # type: ignore[arg-type]
    assert run.raw_outputs.tolist() == [[pytest.approx(p), 0] for p in (0.4, 0.2, 0.1)]
    found = measure(labels, run.decision_scores, names=["x", "new"]).per_class
    assert (found["x"]["f1"], found["new"]["recall"], found["new"]["support"]) == (1, 0, 2)


def test_d15_rows_that_repeat_each_other_add_no_evidence(home: Path, capsys) -> None:
    write_rows("once.jsonl", range(1000, 1030))
    rows = [{**make_row(i), "id": f"{i}-{k}"} for i in range(1000, 1030) for k in range(3)]
    Path("thrice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", "runs/tiered", "--data", "once.jsonl"]) == 0
    assert "tiered on 30 rows of once.jsonl" in capsys.readouterr().out
    assert main(["evaluate", "runs/tiered", "--data", "thrice.jsonl"]) == 0
    assert "tiered on 90 rows in 30 clusters of thrice.jsonl" in capsys.readouterr().out
    once, thrice = (load(f"runs/tiered/evaluation/data-{name}.json") for name in ("once", "thrice"))
    assert (thrice["num_rows"], thrice["num_clusters"]) == (90, 30)
    assert (once["num_rows"], once["num_clusters"]) == (30, 30)
    assert thrice["intervals"]["mae"] == pytest.approx(once["intervals"]["mae"], rel=1e-6)
    assert "in 30 clusters" in Path("runs/tiered/evaluation/report-data-thrice.md").read_text()


def test_several_labels_are_compared_with_edge_cases(home: Path) -> None:
    Path("cases.jsonl").write_text(
        '{"id": "c1", "text": "calm", "expect": {"labels": ["crisis"]}}\n'
        '{"id": "c2", "text": "calm", "expect": {"not_labels": ["crisis"]}}\n'
    )
    results = compare("several", "f1_micro", extra="edge_cases: cases.jsonl\n")
    assert results["label_type"] == "multilabel"
    assert results["edge_cases"]["one"]["num_passed"] == 1  # whatever it says of one text
    one = results["variants"]["one"]
    assert sum(map(sum, one["label_confusions"]["profit"])) == 24
    assert {"ece", "ece_by_chance", "bins", "brier", "brier_interval"} == set(one["reliability"])
    pair = results["pairs"][0]
    assert (pair["challenger"], pair["reference"]) == ("two", "one")
    assert (pair["gain"], pair["interval"], pair["finding"]) == (0, [0, 0], "unresolved")


def test_ordered_classes_have_kappa_and_a_ranking(home: Path) -> None:
    results = load("runs/ordered/evaluation/test.json")
    assert results["label_type"] == "class"
    assert {"quadratic_kappa", "roc_auc", "average_precision"} < set(results["metrics"])
    assert "top_3_accuracy" not in results["metrics"]
    assert sum(map(sum, results["confusion_matrix"])) == 24
    assert results["label_confusions"] == {}
    assert compare("ordered", "roc_auc")["verdict"] != "INVALID"


def test_tiers_are_measured_for_the_run_and_the_baselines(home: Path) -> None:
    results = load("runs/tiered/evaluation/test.json")
    assert results["tiers"]["names"] == ["low", "high"]
    matrix = results["tiers"]["confusion_matrix"]
    right = (matrix[0][0] + matrix[1][1]) / 24
    assert results["metrics"]["tier_accuracy"] == pytest.approx(right)
    for baseline in results["baselines"].values():
        assert 0 <= baseline["metrics"]["tier_accuracy"] <= 1
    assert results["part_intervals"]["metric"] == "mae"
    assert {"slope", "intercept", "bias", "strata"} == set(results["calibration"]["risk"])
    compared = compare("tiered", "tier_accuracy")
    assert compared["variants"]["two"]["tiers"]["names"] == ["low", "high"]


def test_a_quick_trial_is_marked_wherever_it_is_judged(home: Path) -> None:
    audits = load("runs/tiered/evaluation/test.json")["audit"], compare("tiered", "mae")["audit"]
    for audit in audits:
        assert "trial_run" in [f["check"] for f in audit if f["status"] == "warning"]


def test_a_metric_without_a_meaning_is_refused(home: Path, capsys) -> None:
    write_suite("plain", "top_3_accuracy")
    assert main(["compare", "suite.yaml"]) == 2
    assert "top_3_accuracy is not defined for the 2 labels" in capsys.readouterr().err


def test_an_undefined_gate_decides_nothing_and_breaks_nothing(home: Path) -> None:
    write_suite("plain", "accuracy", extra="gates: {roc_auc: {deploy: 0, review: 0}}")
    Path("good.jsonl").write_text(
        "".join(json.dumps(make_row(i)) + "\n" for i in range(2002, 2100, 4))
    )
    arguments = ["--data", "good.jsonl", "--suite", "suite.yaml"]
    assert main(["evaluate", "runs/plain", *arguments]) == 0
    found = load("runs/plain/evaluation/data-good.json")
    gate = next(g for g in found["gates"] if g["name"] == "roc_auc")
    assert (gate["value"], gate["bound"], gate["result"]) == (None, None, "REVIEW")
    assert found["metrics"]["roc_auc"] is None
    assert gate["reason"] in found["reasons"]
    names = {g["name"] for g in found["gates"]}
    assert not names & {"val_test_gap", "train_val_gap"}  # other rows, so no gap means anything


def test_rows_with_a_label_that_the_model_does_not_know_are_left_out() -> None:
    from llmft.data.labels import has_unknown_label

    known = ["crisis", "profit"]
    assert not has_unknown_label(["crisis"], known)
    assert not has_unknown_label([], known)
    assert has_unknown_label(["crisis", "strike"], known)
    assert has_unknown_label("strike", known)
    assert not has_unknown_label({"crisis": 1.0, "profit": 2.0}, known)
