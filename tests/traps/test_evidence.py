"""D14: few rows, trials, and winners that fail."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmft.cli import main
from tests.planting import (
    add_test_rows,
    compare_by_command,
    compare_folders,
    find,
    find_runs,
    load,
    load_rows,
    rewrite_metadata,
    rewrite_predictions,
    rewrite_splits,
)

PROMPTED = Path("runs/prompted/seed-1")
BERT = Path("runs/bert/seed-1")
PLAIN = Path("runs/plain/seed-1")


def test_d14_six_rows_prove_nothing_however_large_the_gain(copy: Path) -> None:
    labels = {row["id"]: row["labels"] for row in load_rows("test")}
    ids = pq.read_table(BERT / "predictions/test.parquet")["id"].to_pylist()
    scores = {
        f"score_{name}": np.array([labels[i][name] for i in ids], dtype=np.float32)
        for name in ("risk", "calm")
    }
    rewrite_predictions(BERT, **scores)
    results = compare_folders()
    assert results["verdict"] == "UNRESOLVED"
    assert "20 test rows" in results["why"]


def test_a_quick_trial_is_compared_by_the_validation_rows_that_it_saw(copy: Path) -> None:
    for run in find_runs():
        rewrite_metadata(run, lambda m: m["recipe"]["train"].update(limit_rows=4))
    results = compare_by_command(others="prompted: runs/prompted/seed-1")
    assert "mean ensemble" in results["ensembles"]
    assert find(results, "trial_run", "plain")["status"] == "warning"


def test_a_winner_that_its_gates_fail_is_not_recommended(copy: Path) -> None:
    rows = add_test_rows(60)
    rewrite_splits(test=rows)
    for path, error in ((PLAIN, 4.0), (PROMPTED, 2.0)):
        assert main(["evaluate", str(path)]) == 0
        signs = [1 if i % 2 else -1 for i in range(len(rows))]
        columns = {
            f"score_{name}": np.array(
                [row["labels"][name] + error * s for row, s in zip(rows, signs, strict=True)],
                dtype=np.float32,
            )
            for name in ("risk", "calm")
        }
        rewrite_predictions(path, **columns)
    Path("two.yaml").write_text(
        f"task: task.yaml\nvariants: {{plain: {PLAIN}, prompted: {PROMPTED}}}\n"
        "reference: plain\nmetric: mae\nmargin: 0.1\noutput_dir: reports/two\n"
        "gates: {mae: {deploy: 1.0, review: 1.2}}\n"
    )
    assert main(["compare", "two.yaml"]) == 0
    results = load("reports/two/comparison.json")
    assert [results[key] for key in ("verdict", "winner", "decision", "recommended")] == [
        "WINNER", "prompted", "FAIL", None,
    ]  # fmt: skip
