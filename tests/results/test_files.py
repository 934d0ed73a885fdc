"""A results file is read as it was written, or not at all: what, where and how to fix it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft import __version__
from llmft.errors import UserError
from llmft.results.comparison import ComparisonResult
from llmft.results.evaluation import EvaluationResult, Interval
from llmft.results.files import Result, ResultFile, read_result, write_result
from llmft.results.run import LearningCurve, RunRecord
from tests.reports.made_up import make_comparison, make_evaluation
from tests.results.made_up import (
    edit,
    make_curve,
    make_fit,
    make_manifest,
    make_record,
    make_spec,
    make_unfinished,
)

MADE: dict[str, ResultFile] = {
    "comparison.json": make_comparison(),
    "classes.json": make_comparison(label_type="class"),
    "invalid.json": make_comparison("INVALID", invalid=("distillation", "instruction")),
    "test.json": make_evaluation(label_type="multilabel"),
    "manifest.json": make_manifest(),
    "training_metadata.json": make_record(),
    "unfinished.json": make_unfinished(),
    "training_history.json": make_curve(0.9, 0.4),
    "llmft.json": make_spec(),
    "fit.json": make_fit(),
}


@pytest.mark.parametrize("name", MADE)
def test_what_was_written_is_read_again(tmp_path: Path, name: str) -> None:
    written = MADE[name]
    write_result(tmp_path / name, written)
    assert read_result(tmp_path / name, type(written), fix="x") == written


def read(tmp_path: Path, change: Callable[[dict[str, Any]], Any], name: str = "test.json") -> str:
    """Change a file by hand; return the message."""
    write_result(tmp_path / name, MADE[name])
    data = json.loads((tmp_path / name).read_text())
    change(data)
    (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        read_result(tmp_path / name, type(MADE[name]), fix="evaluate again")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert message.endswith("; evaluate again") or " or evaluate again" in message
    return message.removeprefix(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("decision"), "decision: missing"),
        (lambda r: r.pop("intervals"), "intervals: missing"),
        (lambda r: r["runs"][0]["record"].pop("model_hash"), "runs.0.record.model_hash: missing"),
        (lambda r: r["gates"][1].pop("review"), "gates.1.review: missing"),
        (lambda r: r.update(num_rows="6"), "num_rows: found '6', but expected a valid integer"),
        (lambda r: r.update(num_rows=True), "num_rows: found True, but expected a valid integer"),
        (
            lambda r: r["metrics"].update(f1_macro="0.5"),
            "metrics.f1_macro: found '0.5', but expected a valid number",
        ),
        (
            lambda r: r["intervals"].update(f1_macro=[0.1, "0.2"]),
            "intervals.f1_macro.1: found '0.2', but expected a valid number",
        ),
        (lambda r: r.update(decision="deploy"), "decision: found 'deploy', allowed: DEPLOY, "),
        (lambda r: r.update(winners="a"), "winners: unknown key. "),
        (
            lambda r: r["runs"][0]["record"]["recipe"]["train"].update(seed="7"),
            "runs.0.record.recipe.train.seed: found '7', but expected a valid integer",
        ),
        (
            lambda r: (r.pop("decision"), r.update(num_rows="6", name=3)),
            "num_rows: found '6', but expected a valid integer (and 2 more faults)",
        ),
    ],
)
def test_a_fault_is_reported_with_its_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    assert read(tmp_path, change).startswith(message)


def test_a_newer_file_says_which_version_wrote_it(tmp_path: Path) -> None:
    message = read(tmp_path, lambda r: r.update(schema_version=99, llmft_version="7.8.9"))
    assert message == (
        "schema_version: found 99, written by llmft 7.8.9, but this llmft "
        f"{__version__} reads 11; use an llmft that reads it, or evaluate again"
    )
    missing = read(tmp_path, lambda r: r.pop("schema_version"))
    assert missing == "schema_version: missing; evaluate again"
    text = read(tmp_path, lambda r: r.update(schema_version="7"))
    assert text.startswith("schema_version: found '7', allowed: 11")


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    message = read(tmp_path, lambda r: r["epochs"][0].update(epoch=float("nan")),
                "training_history.json")  # fmt: skip
    assert message.startswith("epochs.0.epoch: found nan, but expected a finite number")


def test_what_follows_from_the_rest_is_written_for_readers_of_the_json() -> None:
    result = make_comparison(label_type="class")
    written = json.loads(result.model_dump_json())
    assert written["per_class"]["weak"]["tfidf"] == result.baselines["tfidf"].per_class["weak"]
    assert set(written["per_class"]["weak"]) == {*result.variants, *result.baselines}
    assert set(written["edge_cases"]) == set(written["latency"]) == set(result.variants)
    assert written["per_dimension"] == {}
    assert edit(result, lambda r: r["latency"].clear()) == result, "it is not read again"


def test_results_do_not_change() -> None:
    result = make_record()
    with pytest.raises(ValueError, match="frozen"):
        result.device = "another"
    assert result.replace(device="another").device == "another"
    with pytest.raises(ValueError, match="device"):
        result.replace(device=3)


def test_an_interval_is_a_pair_in_json() -> None:
    written = json.loads(make_evaluation().model_dump_json())
    low, high = written["intervals"]["mae"]
    assert make_evaluation().intervals["mae"] == Interval(low, high)


@pytest.mark.parametrize("schema", [ComparisonResult, EvaluationResult, RunRecord, LearningCurve])
def test_parts_are_results_too(schema: type[ResultFile]) -> None:
    assert issubclass(schema, Result)
    assert schema.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("name", "section"),
    [
        *(("training_metadata.json", ("recipe", part)) for part in ("base", "head", "tokens")),
        ("training_metadata.json", ("recipe", "train")),
        ("training_metadata.json", ("task", "fields")),
        ("training_metadata.json", ("token_budget",)),
        ("training_metadata.json", ("num_rows",)),
        ("manifest.json", ("task", "clean")),
        *(("manifest.json", (part,)) for part in ("files", "counts", "label_stats")),
    ],
)
def test_no_default_of_today_takes_the_place_of_what_a_file_lacks(
    tmp_path: Path, name: str, section: tuple[str, ...]
) -> None:
    """A spec without `tokens.max_length` would predict with another length, and say nothing."""

    def find(data: dict[str, Any]) -> dict[str, Any]:
        for key in section:
            data = data[key]
        return data

    keys = list(find(json.loads(MADE[name].model_dump_json(by_alias=True))))
    assert keys
    for key in keys:
        message = read(tmp_path, lambda r, key=key: find(r).pop(key), name)
        assert key in message and "missing" in message
