"""A snapshot of every schema, so that a new, renamed or reset knob is a visible change."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.config.recipe import RecipeConfig
from llmft.config.suite import SuiteConfig
from llmft.config.task import TaskConfig

SNAPSHOT = Path(__file__).with_name("schema.json")
SCHEMAS = {
    "task": TaskConfig.model_json_schema(),
    "recipe": RecipeConfig.model_json_schema(),
    "suite": SuiteConfig.model_json_schema(),
}


def test_the_schemas_are_those_of_the_snapshot() -> None:
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        SNAPSHOT.write_text(json.dumps(SCHEMAS, indent=2, sort_keys=True) + "\n")
    assert json.loads(SNAPSHOT.read_text()) == SCHEMAS, (
        "the schema has changed; if that is meant, run "
        "`UPDATE_SNAPSHOTS=1 pytest tests/config/test_schema.py` and commit schema.json"
    )


def test_every_field_is_described() -> None:
    fields = [field for name, schema in SCHEMAS.items() for field in list_fields(name, schema)]
    assert len(fields) > 50
    assert [name for name, field in fields if not field.get("description")] == []


def test_every_section_refuses_unknown_keys() -> None:
    sections = [
        section
        for schema in SCHEMAS.values()
        for section in (schema, *schema["$defs"].values())
        if section["type"] == "object"
    ]
    assert len(sections) > 10
    assert all(section["additionalProperties"] is False for section in sections)


def list_fields(name: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for title, section in {name: schema, **schema["$defs"]}.items():
        for key, field in section.get("properties", {}).items():
            # a description that is the section's own is not written twice
            section_name = field.get("$ref", "").rpartition("/")[2]
            yield f"{title}.{key}", {**schema["$defs"].get(section_name, {}), **field}
