"""D7, D8: what was fitted to, chosen by or often read from the rows that are measured."""

import json
from pathlib import Path

import pytest

from llmft.cli import main
from tests.planting import (
    compare_by_command,
    compare_folders,
    find,
    load,
    rewrite_metadata,
)

BERT = Path("runs/bert/seed-1")


@pytest.mark.parametrize("split", ["train", "val"])
def test_d7_d8_a_split_that_took_part_in_training_never_deploys(copy: Path, split: str) -> None:
    assert main(["evaluate", "runs/bert/seed-1", "--split", split]) == 0
    assert load(f"runs/bert/seed-1/evaluation/{split}.json")["decision"] == "FAIL"


def test_d8_test_reads_are_counted_in_every_report(copy: Path) -> None:
    first = load("reports/risk/comparison.json")
    assert find(first, "test_reads", "bert")["status"] == "ok"
    finding = find(compare_by_command(), "test_reads", "bert")
    assert finding["status"] == "note"
    assert "the test rows of bert were read 2 times" in finding["message"]
    path = BERT / "evaluation/test_reads.json"
    log = load(path)
    reads = log["reads"]
    assert [(r["by"], r["report"]) for r in reads] == [
        ("compare", "reports/risk/comparison.json")
    ] * 2
    path.write_text(json.dumps({**log, "reads": reads * 5}))
    assert find(compare_folders(), "test_reads", "bert")["status"] == "warning"


def test_d8_a_broken_count_of_test_reads_is_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for broken in ("{", "{}"):
        (BERT / "evaluation/test_reads.json").write_text(broken)
        assert main(["compare", "suite.yaml"]) == 2
        assert "test_reads.json" in capsys.readouterr().err


def test_d8_a_checkpoint_that_the_test_rows_chose_is_invalid(copy: Path) -> None:
    rewrite_metadata(BERT, lambda m: m.update(best_metric_name="test_mae"))
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert "was chosen by test_mae" in find(results, "checkpoint_selection", "bert")["message"]
