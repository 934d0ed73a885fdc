"""`llmft schema` says of every kind of file what the code takes; any change of it is visible."""

import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import llmft
from llmft.cli import main
from llmft.schema import CONFIGS, KINDS, make_schema

SCHEMAS = {kind: make_schema(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_shipped_schemas_are_those_of_the_code(kind: str) -> None:
    package = "config" if kind in CONFIGS else "results"
    path = Path(llmft.__file__).parent / package / "schemas" / f"{kind}.json"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        path.write_text(json.dumps(SCHEMAS[kind], indent=2) + "\n")
    assert json.loads(path.read_text()) == SCHEMAS[kind], (
        "the schema has changed; if that is meant, run "
        f"`UPDATE_SNAPSHOTS=1 pytest tests/test_schema.py` and commit {path.name}"
    )


def test_the_verb_prints_one_schema_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMAS
    for kind in ("recipe", "comparison"):
        assert main(["schema", kind]) == 0
        assert json.loads(capsys.readouterr().out) == SCHEMAS[kind]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_they_are_valid_json_schema(kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert SCHEMAS[kind]["title"] == f"llmft {kind}"
