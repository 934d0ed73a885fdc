"""The schema for editors allows what the loader takes; a new knob is a visible change."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmft.config.loading import load_values, validate
from llmft.schema import CONFIGS, make_schema
from tests.config.examples import CLASS_TASK, RECIPE, SCORES_TASK, SUITE

SCHEMAS = {kind: make_schema(kind) for kind in CONFIGS}
WHOLE = {"task": SCORES_TASK, "recipe": RECIPE, "suite": SUITE}


def test_every_field_is_described() -> None:
    fields = [field for section in list_sections() for field in list_fields(*section)]
    assert len(fields) > 100
    assert [name for name, description in fields if not description] == []


def test_every_section_refuses_unknown_keys() -> None:
    sections = [section for name, section, _ in list_sections()]
    assert len(sections) > 20
    assert all(section["additionalProperties"] is False for section in sections)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("task", CLASS_TASK),
        ("task", SCORES_TASK),
        ("recipe", RECIPE),
        ("suite", SUITE),
        ("task", CLASS_TASK + "extends:\n"),
        ("task", CLASS_TASK + "fields: {text: title}\n"),
        ("task", CLASS_TASK + "fields: {text: [title, content], group: null}\n"),
        ("task", CLASS_TASK.replace("mood", "mood, order: [0, 1, 2.5], exclude: [9]")),
        ("task", CLASS_TASK.replace("mood", "mood, map: {0: 1, 1: good}")),
        ("task", CLASS_TASK.replace("mood", "[calm, wild], map: {wild: 2}, otherwise: none")),
        ("task", CLASS_TASK.replace("class, from: mood", "multilabel, from: [a], map: {a: 1}")),
        ("task", CLASS_TASK + "filters: [{field: year, in: [2019, twenty, 2.5, true]}]\n"),
        ("recipe", RECIPE + "train: {learning_rate: 1e-4, epochs: 3}\n"),
        ("suite", SUITE.replace("runs/small", "[runs/small/1, runs/small/2]")),
        ("suite", SUITE.replace("runs/small", "{recipe: small.yaml, seeds: [1, 2]}")),
    ],
)
def test_they_accept_what_the_loader_accepts(
    write: Callable[[str, str], Path], kind: str, text: str
) -> None:
    values = load_values(write("file.yaml", text), schema=CONFIGS[kind])
    validate(values, schema=CONFIGS[kind])
    assert list_faults(kind, values.data) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("task", "labels: {weights: {risk: 2}}"),
        ("task", "labels: {from: other}"),
        ("task", "labels: {tiers: {red: 8}}\nsplit: {seed: 1}"),
        ("recipe", "base: {tuning: lora, lora: {rank: 4}}\nprompt: {mode: exclude}"),
        ("recipe", "head: {loss: {name: huber}}"),
        ("suite", "variants: {large: runs/other}\ngates: {mae: {deploy: 0.5}}"),
    ],
)
def test_they_accept_a_part_of_a_file_if_it_extends_another(
    write: Callable[[str, str], Path], kind: str, text: str
) -> None:
    whole = WHOLE[kind].replace("range", "tiers: {noise: 0, red: 7}, range")
    write("whole.yaml", whole + "gates: {mae: {deploy: 1, review: 2}}\n" * (kind == "suite"))
    path = write("part.yaml", f"extends: whole.yaml\n{text}\n")
    validate(load_values(path, schema=CONFIGS[kind]), schema=CONFIGS[kind])

    part = load_values(write("bare.yaml", text), schema=CONFIGS[kind]).data
    assert list_faults(kind, {"extends": "whole.yaml", **part}) == []
    assert list_faults(kind, part) != []


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("task", "outputs", "prepared"),
        ("task", "fields", {"texts": "title"}),
        ("task", "labels", {"type": "class", "from": "mood", "dimensions": ["risk"]}),
        ("task", "labels", {"type": "classes", "from": "mood"}),
        ("task", "sources", [{"path": "rows.csv", "encodings": "latin-1"}]),
        ("recipe", "train", {"learning-rate": 0.1}),
        ("recipe", "train", {"epochs": "three"}),
        ("recipe", "base", {"model": "builtin:minilm", "tuning": "lore"}),
        ("suite", "metric", "mea"),
        ("suite", "gates", {"mea": {"deploy": 1, "review": 2}}),
        ("suite", "variants", {"small": {"recipes": "small.yaml"}, "large": "runs/large"}),
    ],
)
@pytest.mark.parametrize("extends", [True, False])
def test_they_flag_what_the_loader_refuses(
    write: Callable[[str, str], Path], *, kind: str, key: str, value: Any, extends: bool
) -> None:
    data = load_values(write("file.yaml", WHOLE[kind]), schema=CONFIGS[kind]).data
    data |= {"extends": "whole.yaml"} if extends else {}
    assert list_faults(kind, data) == []
    assert list_faults(kind, data | {key: value}) != []


def list_faults(kind: str, data: dict[str, Any]) -> list[str]:
    return [e.message for e in Draft202012Validator(SCHEMAS[kind]).iter_errors(data)]


def list_sections() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the name of every section, what it says, and the sections that it may refer to."""
    for kind, schema in SCHEMAS.items():
        for place in ("then", "else"):
            others = schema[place]["$defs"]
            for name, section in {kind: schema[place], **others}.items():
                yield f"{place}.{name}", section, others


def list_fields(
    section_name: str, section: dict[str, Any], others: dict[str, Any]
) -> Iterator[tuple[str, str | None]]:
    for key, field in section["properties"].items():
        # a description that is the section's own is not written twice
        referred = others.get(field.get("$ref", "").rpartition("/")[2], {})
        yield f"{section_name}.{key}", field.get("description", referred.get("description"))
