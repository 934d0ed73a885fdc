"""What is published of results files is what they hold."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmft.results.files import ResultFile
from llmft.results.manifest import PredictionManifest
from llmft.results.run import Read, ReadLog
from llmft.schema import RESULTS, make_schema
from tests.reports.made_up import make_comparison, make_evaluation
from tests.results.made_up import (
    make_curve,
    make_fit,
    make_manifest,
    make_record,
    make_spec,
    make_unfinished,
)

SCHEMAS = {kind: make_schema(kind) for kind in RESULTS}
PREDICTIONS = PredictionManifest(
    model_hash="a",
    fit_hash=None,
    num_rows=6,
    num_empty=1,
    inputs={"rows.jsonl": "b"},
    shards={"rows-000000000000.jsonl": 6},
)
READ = Read(when="2026-01-02T03:04:05Z", by="compare", report="reports/comparison.json")


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("manifest", make_manifest()),
        ("training_metadata", make_record()),
        ("training_metadata", make_unfinished()),
        ("training_history", make_curve(0.9, 0.4)),
        ("model_spec", make_spec()),
        ("fit", make_fit()),
        ("prediction_manifest", PREDICTIONS),
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
    yield from [schema] if "properties" in schema else []
    yield from (part for part in schema.get("$defs", {}).values() if "properties" in part)
