"""D1, D4: articles that a model, or the oracle, has not seen."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmft.cli import main
from tests.planting import (
    compare_by_command,
    compare_folders,
    find,
    rewrite_metadata,
    rewrite_predictions,
)

PROMPTED = Path("runs/prompted/seed-1")
BERT = Path("runs/bert/seed-1")
PLAIN = Path("runs/plain/seed-1")


def test_d1_a_variant_that_hardly_sees_its_articles_is_excluded(copy: Path) -> None:
    whole = pq.read_table(PROMPTED / "predictions/test.parquet")["article_tokens"].to_numpy()
    rewrite_predictions(PROMPTED, kept_tokens=np.full(len(whole), 2))
    waived = "a reason for training it"
    rewrite_metadata(PROMPTED, lambda m: m["recipe"]["tokens"].update(waive=waived))
    results = compare_by_command()
    assert not results["variants"]["prompted"]["valid"]
    assert results["verdict"] != "INVALID"  # two variants are left
    finding = find(results, "truncation", "prompted")
    assert finding["status"] == "invalid"
    assert re.search(
        r"leaves the median test row \d% of its article: a prompt of \d+ tokens", finding["message"]
    )
    assert waived in find(results, "token_budget", "prompted")["message"]
    assert finding["message"] in Path("reports/risk/report.md").read_text()


def test_d1_a_comparison_whose_reference_sees_nothing_is_invalid(copy: Path) -> None:
    rewrite_predictions(PLAIN, kept_tokens=np.full(6, 2))  # one of two seeds is enough
    results = compare_folders()
    assert (results["verdict"], results["winner"], results["pairs"]) == ("INVALID", None, [])
    assert "plain: truncation leaves the median test row" in results["why"]


def test_d1_rows_that_the_model_cannot_tell_apart_are_found(copy: Path) -> None:
    hashes = pq.read_table(BERT / "predictions/test.parquet")["input_hash"].to_pylist()
    rewrite_predictions(BERT, input_hash=[hashes[0]] * 2 + hashes[2:])
    results = compare_folders()
    assert not results["variants"]["bert"]["valid"]
    assert (
        "2 of 6 rows with different texts have identical inputs"
        in find(results, "identical_inputs", "bert")["message"]
    )


def test_d1_train_and_check_refuse_a_prompt_that_leaves_no_room(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "prompted.md").write_text("market " * 78 + "{text}")
    for verb in ("check", "train"):
        assert main([verb, "prompted.yaml", "--set", "output_dir=runs/new"]) == 2
        error = capsys.readouterr().err
        assert "token budget is refused" in error
        assert "the median row keeps" in error
    assert not Path("runs/new").exists()
    waived = ["--set", "tokens.waive=a planned mistake"]
    assert main(["check", "prompted.yaml", *waived]) == 0
    assert "a planned mistake" in capsys.readouterr().out


def test_d4_what_the_oracle_did_not_see_is_reported(copy: Path) -> None:
    task = Path("task.yaml").read_text()
    Path("task.yaml").write_text(f"{task}oracle_sees: {{max_words: 9, head_share: 1.0}}\n")
    results = compare_folders()  # articles have 34 words, and the students see them whole
    finding = find(results, "oracle_view", "plain")
    assert finding["status"] == "warning"
    expected = (
        r"plain got about 100% of the text that the oracle got, and the oracle about 2\d% of the "
        "text that plain got"
    )
    assert re.search(expected, finding["message"])
    Path("task.yaml").write_text(f"{task}oracle_sees: {{max_words: 900}}\n")
    assert find(compare_folders(), "oracle_view", "plain")["status"] == "ok"


def test_d4_cut_articles_of_an_unknown_oracle_are_noted(copy: Path) -> None:
    kept = pq.read_table(BERT / "predictions/test.parquet")["article_tokens"].to_numpy() - 1
    rewrite_predictions(BERT, kept_tokens=kept)
    assert "`oracle_sees`" in find(compare_folders(), "oracle_view")["message"]
