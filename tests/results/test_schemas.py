"""What is published of results files is what they hold; a new key is a visible change."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import llmft
from llmft.cli import main
from llmft.results.files import ResultFile
from llmft.results.run import Read, ReadLog
from llmft.schema import RESULTS, make_schema
from tests.reports.made_up import make_comparison, make_evaluation
from tests.results.made_up import make_curve, make_manifest, make_record

SHIPPED = Path(llmft.__file__).parent / "results" / "schemas"
SCHEMAS = {kind: make_schema(kind) for kind in RESULTS}
READ = Read(when="2026-01-02T03:04:05Z", by="compare", report="reports/comparison.json")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_shipped_schemas_are_those_of_the_code(kind: str) -> None:
    path = SHIPPED / f"{kind}.json"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        path.write_text(json.dumps(SCHEMAS[kind], indent=2) + "\n")
    assert json.loads(path.read_text()) == SCHEMAS[kind], (
        "the schema has changed; if that is meant, run "
        f"`UPDATE_SNAPSHOTS=1 pytest tests/results/test_schemas.py` and commit {path.name}"
    )


def test_the_verb_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "comparison"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMAS["comparison"]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_they_are_valid_json_schema(kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert SCHEMAS[kind]["title"] == f"llmft {kind}"


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("manifest", make_manifest()),
        ("training_metadata", make_record()),
        ("training_history", make_curve(0.9, 0.4)),
        ("test_reads", ReadLog(reads=[READ])),
        ("evaluation", make_evaluation(label_type="multilabel")),
        ("evaluation", make_evaluation()),
        ("comparison", make_comparison(label_type="class")),
        ("comparison", make_comparison("INVALID", invalid=("distillation", "instruction"))),
    ],
)
def test_a_file_is_as_its_schema_says(kind: str, made: ResultFile) -> None:
    written = json.loads(made.model_dump_json(by_alias=True))
    assert list_faults(kind, written) == []
    assert list_faults(kind, {**written, "extra": 1}) != []
    for key in written:
        assert list_faults(kind, {k: v for k, v in written.items() if k != key}) != [], key


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_part_is_closed_and_described(kind: str) -> None:
    parts = list(list_parts(SCHEMAS[kind]))
    assert parts
    for part in parts:
        assert part["additionalProperties"] is False
        assert part["description"]


def list_faults(kind: str, data: dict[str, Any]) -> list[str]:
    return [e.message for e in Draft202012Validator(SCHEMAS[kind]).iter_errors(data)]


def list_parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    yield from (part for part in schema["$defs"].values() if "properties" in part)
