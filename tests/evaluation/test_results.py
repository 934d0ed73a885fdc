"""What `evaluate` and `compare` leave for several labels, ordered classes and tiers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main
from tests.conftest import make_recipe_writer

LABELS = {
    "several": "{type: multilabel, from: [crisis, profit]}",
    "ordered": "{type: class, from: mood, order: [bad, good]}",
    "plain": "{type: class, from: mood}",
    "tiered": "{type: scores, from: score, dimensions: [risk], tiers: {low: 0, high: 5}}",
}
HEADS = {
    "several": "multilabel", "ordered": "binary", "plain": "multiclass", "tiered": "regression",
}  # fmt: skip


def make_row(number: int) -> dict[str, Any]:
    crisis, profit = number % 2, number // 2 % 2
    words = ["crisis"] * crisis * 3 + ["profit"] * profit * 3
    return {
        "id": f"row{number}",
        "text": f"bank loan {' '.join(words)} w{number}",
        "crisis": crisis,
        "profit": profit,
        "mood": "good" if profit else "bad",
        "score": 9 * crisis,
    }


def write_rows(path: str, numbers: range) -> None:
    Path(path).write_text("".join(json.dumps(make_row(i)) + "\n" for i in numbers))


def load(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Path]:
    """A working folder with a trained and evaluated run for each type of labels, twice."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows("rows.jsonl", range(240))
        write = make_recipe_writer(folder)
        for kind, labels in LABELS.items():
            Path("task.yaml").write_text(
                f"name: {kind}\nsources: [{{path: rows.jsonl}}]\nfields: {{id: id}}\n"
                f"labels: {labels}\nclean: {{near_duplicates: 1.0}}\noutput: prepared/{kind}\n"
            )
            assert main(["prepare", "task.yaml"]) == 0
            write(tiny_bert, name=kind, head=HEADS[kind], train=", metric: loss, limit_rows: 100")
            assert main(["train", f"{kind}.yaml"]) == 0
            assert main(["evaluate", f"runs/{kind}"]) == 0
            shutil.copytree(f"runs/{kind}", f"runs/{kind}-again")
            Path("task.yaml").rename(f"{kind}-task.yaml")
        yield folder


def write_suite(kind: str, metric: str, *, extra: str = "") -> None:
    Path("suite.yaml").write_text(
        f"task: {kind}-task.yaml\nvariants: {{one: runs/{kind}, two: runs/{kind}-again}}\n"
        f"reference: one\nmetric: {metric}\nmargin: 0.01\noutput_dir: reports\n{extra}"
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
    assert 0 <= results["calibration"]["ece"] <= 1
    assert [g["metric"] for g in results["gates"]] == ["f1_micro", "f1_macro"]
    assert 0 <= results["baselines"]["tfidf"]["f1_micro"] <= 1
    assert results["metric"] == "f1_micro"  # the loss chose, but it is no metric of the report


def test_several_labels_of_a_file_are_evaluated(home: Path) -> None:
    write_rows("more.jsonl", range(1000, 1030))
    assert main(["evaluate", "runs/several", "--data", "more.jsonl"]) == 0
    results = load("runs/several/evaluation/data-more.json")
    assert (results["num_rows"], results["num_rejected"]) == (30, 0)
    assert results["rows"][3]["labels"] == ["crisis", "profit"]


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
    assert {"ece", "bins"} == set(one["calibration"])
    assert results["pairs"][0] == {
        "challenger": "two", "reference": "one", "gain": 0, "interval": [0, 0],
        "finding": "not better",
    }  # fmt: skip


def test_ordered_classes_have_kappa_and_a_ranking(home: Path) -> None:
    results = load("runs/ordered/evaluation/test.json")
    assert results["label_type"] == "class"
    assert {"quadratic_kappa", "roc_auc", "average_precision"} < set(results["metrics"])
    assert "top_3_accuracy" not in results["metrics"]
    assert sum(map(sum, results["confusion_matrix"])) == 24
    assert results["label_confusions"] is None
    assert compare("ordered", "roc_auc")["verdict"] != "INVALID"


def test_tiers_are_measured_for_the_run_and_the_baselines(home: Path) -> None:
    results = load("runs/tiered/evaluation/test.json")
    assert results["tiers"]["names"] == ["low", "high"]
    matrix = results["tiers"]["confusion_matrix"]
    right = (matrix[0][0] + matrix[1][1]) / 24
    assert results["metrics"]["tier_accuracy"] == pytest.approx(right)
    for baseline in results["baselines"].values():
        assert 0 <= baseline["tier_accuracy"] <= 1
    assert results["part_intervals"]["metric"] == "mae"
    assert {"slope", "intercept", "bias", "strata"} == set(results["calibration"]["risk"])
    compared = compare("tiered", "tier_accuracy")
    assert compared["variants"]["two"]["tiers"]["names"] == ["low", "high"]


def test_a_quick_trial_is_marked_wherever_it_is_judged(home: Path) -> None:
    audits = load("runs/tiered/evaluation/test.json")["audit"], compare("tiered", "mae")["audit"]
    for audit in audits:
        assert "trial" in [f["check"] for f in audit if f["status"] == "warning"]


def test_a_metric_without_a_meaning_is_refused(home: Path, capsys) -> None:
    write_suite("plain", "top_3_accuracy")
    assert main(["compare", "suite.yaml"]) == 2
    assert "top_3_accuracy has no meaning for the 2 labels" in capsys.readouterr().err


def test_an_undefined_gate_decides_nothing_and_breaks_nothing(home: Path) -> None:
    write_suite("plain", "accuracy", extra="gates: {roc_auc: {deploy: 0, review: 0}}")
    Path("good.jsonl").write_text(
        "".join(json.dumps(make_row(i)) + "\n" for i in range(2002, 2100, 4))
    )
    arguments = ["--data", "good.jsonl", "--suite", "suite.yaml"]
    assert main(["evaluate", "runs/plain", *arguments]) == 0
    found = load("runs/plain/evaluation/data-good.json")
    (gate,) = found["gates"]
    assert (gate["value"], gate["bound"], gate["result"]) == (None, None, "REVIEW")
    assert found["metrics"]["roc_auc"] is None
    assert found["decision"] == "REVIEW"


def test_rows_with_a_label_that_the_model_does_not_know_are_left_out() -> None:
    from llmft.evaluate import _is_strange

    known = ["crisis", "profit"]
    assert not _is_strange(["crisis"], known)
    assert not _is_strange([], known)
    assert _is_strange(["crisis", "strike"], known)
    assert _is_strange("strike", known)
    assert not _is_strange({"crisis": 1.0, "profit": 2.0}, known)
