"""Labels are read in three shapes, and never made up (D3)."""

import json
from typing import Any

import pytest

from llmft.config.task import ClassConfig, ScoresConfig
from llmft.data.labels import parse_class, parse_scores
from llmft.data.sources import RowFaultError

SCORES = ScoresConfig.model_validate(
    {"type": "scores", "from": "scores", "dimensions": ["risk", "calm"], "range": [0, 10]}
)
DEEP = json.loads("[" * 900 + "]" * 900)


def make_class(mapping: dict[str, str] | None = None) -> ClassConfig:
    return ClassConfig.model_validate({"type": "class", "from": "mood", "map": mapping})


@pytest.mark.parametrize(
    "found",
    [
        {"risk": 7, "calm": 2.5},
        {"risk": {"score": 7, "evidence": "x"}, "calm": {"score": 2.5}},
        {"dimensions": {"risk": 7, "calm": {"score": 2.5}}, "confidence": 1},
        '{"risk": 7, "calm": 2.5}',
        {"calm": 2.5, "risk": 7, "other": None},
    ],
)
def test_scores_are_read_in_three_shapes_and_from_csv_cells(found: Any) -> None:
    assert parse_scores({"scores": found}, SCORES) == {"risk": 7.0, "calm": 2.5}


def test_scores_stand_in_the_order_of_the_task() -> None:
    assert list(parse_scores({"scores": {"calm": 1, "risk": 2}}, SCORES)) == ["risk", "calm"]


def test_the_ends_of_the_range_are_allowed() -> None:
    assert parse_scores({"scores": {"risk": 0, "calm": 10}}, SCORES) == {"risk": 0.0, "calm": 10.0}


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (None, "label missing: calm"),
        ({}, "label missing: calm"),
        ({"score": None}, "label missing: calm"),
        ("n/a", "not a number: calm is 'n/a'"),
        ("7", "not a number: calm is '7'"),
        ("", "not a number: calm is ''"),
        (True, "not a number: calm is True"),
        ([7], "not a number: calm is a list"),
        (DEEP, "not a number: calm is a list"),
        ({"score": {"score": 7}}, "not a number: calm is an object"),
        (float("nan"), "not a number: calm is nan"),
        (float("inf"), "not a number: calm is inf"),
        (10**400, "not a number: calm is inf"),
        (-0.1, "out of range: calm is -0.1, allowed 0 to 10"),
        (10.5, "out of range: calm is 10.5, allowed 0 to 10"),
    ],
)
def test_d3_a_score_that_is_none_rejects_the_row(score: Any, reason: str) -> None:
    with pytest.raises(RowFaultError) as caught:
        parse_scores({"scores": {"risk": 7, "calm": score}}, SCORES)
    assert str(caught.value) == reason


def test_d3_a_missing_dimension_is_no_zero() -> None:
    with pytest.raises(RowFaultError, match="label missing: calm"):
        parse_scores({"scores": {"risk": 7}}, SCORES)


@pytest.mark.parametrize(
    "found", [None, 7, "seven", "[1, 2]", "{", [7, 2], "[" * 100_000, "9" * 5000]
)
def test_d3_scores_that_are_no_object_reject_the_row(found: Any) -> None:
    with pytest.raises(RowFaultError, match="label missing: scores"):
        parse_scores({"scores": found}, SCORES)


@pytest.mark.parametrize(
    ("found", "name"),
    [("calm", "calm"), (" calm ", "calm"), (1, "1"), (2.5, "2.5"), (True, "true")],
)
def test_a_class_is_the_text_of_its_value(found: Any, name: str) -> None:
    assert parse_class({"mood": found}, make_class()) == name


def test_a_map_names_numbered_classes() -> None:
    config = make_class({"0": "calm", "1": "tense", "true": "sure"})
    assert parse_class({"mood": 0}, config) == "calm"
    assert parse_class({"mood": "1"}, config) == "tense"
    assert parse_class({"mood": True}, config) == "sure"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "label missing: mood"),
        ("  ", "label missing: mood"),
        ("angry", "unknown class: 'angry' is not in the map of mood"),
        (["calm"], "not a class: mood holds a list"),
        ({"calm": 1}, "not a class: mood holds an object"),
        (DEEP, "not a class: mood holds a list"),
        (float("nan"), "not a class: mood holds nan"),
        ("calm\0", "not text: mood holds NUL bytes"),
        ("\ud800", "not text: mood holds half a surrogate pair"),
    ],
)
def test_d3_what_is_no_class_rejects_the_row(found: Any, reason: str) -> None:
    with pytest.raises(RowFaultError) as caught:
        parse_class({"mood": found}, make_class({"calm": "calm"}))
    assert str(caught.value) == reason


def test_d3_a_row_without_the_label_field_is_rejected() -> None:
    with pytest.raises(RowFaultError, match="label missing: mood"):
        parse_class({}, make_class())
