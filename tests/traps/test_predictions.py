"""D9 to D12: predictions that collapsed, that other rows have, or of a compressed range."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmft.cli import main
from tests.planting import (
    compare_by_command,
    compare_folders,
    find,
    load,
    load_rows,
    rewrite_predictions,
)

PROMPTED = Path("runs/prompted/seed-1")
BERT = Path("runs/bert/seed-1")


def test_d9_a_variant_that_answers_with_a_constant_is_excluded(copy: Path) -> None:
    rewrite_predictions(
        PROMPTED,
        score_risk=np.full(6, 5.0, dtype=np.float32),
        score_calm=np.linspace(4.9, 5.1, 6, dtype=np.float32),
    )
    results = compare_folders()
    assert not results["variants"]["prompted"]["valid"]
    finding = find(results, "collapsed_predictions", "prompted")
    assert "the predictions of prompted collapsed (seed 1)" in finding["message"]


def test_d9_a_variant_below_a_baseline_is_warned_of(copy: Path) -> None:
    rewrite_predictions(
        BERT,
        score_risk=np.linspace(90, 10, 6, dtype=np.float32),
        score_calm=np.linspace(10, 90, 6, dtype=np.float32),
    )
    finding = find(compare_folders(), "baselines", "bert")
    assert finding["status"] == "warning"
    assert "baseline constant or tfidf" in finding["message"]


def test_d10_reports_say_what_the_results_file_says(copy: Path) -> None:
    results = compare_by_command()
    report = Path("reports/risk/report.md").read_text().replace("\N{MINUS SIGN}", "-")
    for pair in results["pairs"]:
        assert f"{pair['gain']:.3f}" in report
        assert f"{pair['interval'][0]:.3f} to {pair['interval'][1]:.3f}" in report
    for finding in results["audit"]:
        assert finding["message"] in report
    assert results["why"].replace("\N{MINUS SIGN}", "-") in report


def test_d11_a_variant_with_other_test_rows_is_excluded(copy: Path) -> None:
    path = BERT / "predictions/test.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert results["variants"]["prompted"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left


def test_d11_shuffled_predictions_are_joined_by_id(copy: Path) -> None:
    before = load("reports/risk/comparison.json")["variants"]["bert"]["metrics"]
    path = BERT / "predictions/test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    assert compare_folders()["variants"]["bert"]["metrics"] == pytest.approx(before)


def test_d11_classes_in_another_order_are_other_data(
    workspace: Path, write_recipe, tiny_bert: Path
) -> None:
    """Columns follow the order of the map, so the order is part of what the data is."""
    moods = ["calm", "profit", "crisis"]
    lines = [{"text": f"bank loan {moods[i % 3]} w{i}", "y": i % 3} for i in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fingerprints = []
    for name, order in (("task", "0: a, 1: b, 2: c"), ("other", "2: c, 0: a, 1: b")):
        Path(f"{name}.yaml").write_text(
            f"name: {name}\nsources: [{{path: rows.jsonl}}]\n"
            f"labels: {{type: class, from: y, map: {{{order}}}}}\n"
            f"clean: {{near_duplicates: 1.0}}\noutput: prepared_{name}\n"
        )
        assert main(["prepare", f"{name}.yaml"]) == 0
        fingerprints.append(load(f"prepared_{name}/manifest.json")["fingerprint"])
    assert fingerprints[0] != fingerprints[1]


def test_d12_a_compressed_range_shows_in_slope_and_bias(copy: Path) -> None:
    labels = {row["id"]: row["labels"]["risk"] for row in load_rows("test")}
    ids = pq.read_table(BERT / "predictions/test.parquet")["id"].to_pylist()
    squeezed = np.array([5 + 0.4 * (labels[i] - 5) for i in ids], dtype=np.float32)
    rewrite_predictions(BERT, score_risk=squeezed)
    calibration = compare_folders()["variants"]["bert"]["calibration"]
    assert calibration["risk"]["slope"] == pytest.approx(0.4, abs=1e-4)


def test_a_variant_whose_model_says_no_number_is_excluded(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_rows = len(load_rows("test"))
    rewrite_predictions(PROMPTED, score_risk=np.full(num_rows, np.nan, dtype=np.float32))
    results = compare_by_command()
    assert not results["variants"]["prompted"]["valid"]
    assert f"NaN or infinity for {num_rows} of" in find(results, "same_rows")["message"]
    capsys.readouterr()
    assert main(["evaluate", str(PROMPTED)]) == 2
    assert "NaN or infinity" in capsys.readouterr().err
