"""Labels are read in three shapes, and never made up (D3)."""

import json
from typing import Any

import numpy as np
import pytest

from llmft.config.task import ClassConfig, MultilabelConfig, ScoresConfig
from llmft.data.fields import RowFaultError
from llmft.data.labels import (
    assign_tiers,
    compute_overall,
    parse_class,
    parse_labels,
    parse_multilabel,
    parse_scores,
)

SCORES = ScoresConfig.model_validate(
    {"type": "scores", "from": "scores", "dimensions": ["risk", "calm"], "range": [0, 10]}
)
DEEP = json.loads("[" * 900 + "]" * 900)


def make_class(mapping: dict[str, str] | None = None, **settings: Any) -> ClassConfig:
    return ClassConfig.model_validate({"type": "class", "from": "mood", "map": mapping, **settings})


def make_scores(**settings: Any) -> ScoresConfig:
    return SCORES.model_validate({**SCORES.model_dump(by_alias=True), **settings})


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
        ("7,5", "not a number: calm is '7,5', with a decimal comma"),
        ("", "label missing: calm"),
        (True, "not a number: calm is True"),
        ([7], "not a number: calm is a list"),
        (DEEP, "not a number: calm is a list"),
        ({"score": {"score": 7}}, "not a number: calm is an object"),
        (float("nan"), "label missing: calm"),
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
        ("\ud800", "not text: mood holds a lone surrogate"),
    ],
)
def test_d3_what_is_no_class_rejects_the_row(found: Any, reason: str) -> None:
    with pytest.raises(RowFaultError) as caught:
        parse_class({"mood": found}, make_class({"calm": "calm"}))
    assert str(caught.value) == reason


def test_d3_a_row_without_the_label_field_is_rejected() -> None:
    with pytest.raises(RowFaultError, match="label missing: mood"):
        parse_class({}, make_class())


def test_a_plain_number_is_the_score_of_the_only_dimension() -> None:
    config = make_scores(dimensions=["risk"])
    assert parse_scores({"scores": 7}, config) == {"risk": 7.0}
    assert parse_scores({"scores": "7"}, config) == {"risk": 7.0}
    for found in (True, float("nan"), 11):
        with pytest.raises(RowFaultError):
            parse_scores({"scores": found}, config)


# classes from columns, in an order, left out


MARKS = make_class({"is_sad": "sad"}, **{"from": ["is_sad", "is_glad"], "otherwise": "neither"})


@pytest.mark.parametrize("one", [1, 1.0, True, "1", "1.0", " true", "True"])
@pytest.mark.parametrize("zero", [0, 0.0, False, "0", "0.0", "false ", "False"])
def test_the_class_is_the_column_that_holds_1(one: Any, zero: Any) -> None:
    assert parse_class({"is_sad": one, "is_glad": zero}, MARKS) == "sad"
    assert parse_class({"is_sad": zero, "is_glad": one}, MARKS) == "is_glad"
    assert parse_class({"is_sad": zero, "is_glad": zero}, MARKS) == "neither"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"is_sad": 1, "is_glad": 1}, "several classes: is_sad and is_glad are 1"),
        ({"is_sad": 1, "is_glad": None}, "label missing: is_glad"),
        ({"is_sad": 0}, "label missing: is_glad"),
        ({"is_sad": 2, "is_glad": 0}, "not 0 or 1: is_sad holds 2"),
        ({"is_sad": 0, "is_glad": ""}, "not 0 or 1: is_glad holds ''"),
        ({"is_sad": 0, "is_glad": float("nan")}, "not 0 or 1: is_glad holds nan"),
        (
            {"is_sad": DEEP, "is_glad": 0},
            "not 0 or 1: is_sad holds a list; write `from: is_sad` for a list of labels",
        ),
    ],
)
def test_d3_columns_that_do_not_name_one_class_reject_the_row(row: Any, reason: str) -> None:
    with pytest.raises(RowFaultError) as caught:
        parse_class(row, MARKS)
    assert str(caught.value) == reason


def test_d3_without_otherwise_a_row_of_zeros_has_no_class() -> None:
    config = make_class(**{"from": ["is_sad", "is_glad"]})
    with pytest.raises(RowFaultError, match=r"label missing: none of is_sad, is_glad is 1"):
        parse_class({"is_sad": 0, "is_glad": 0}, config)


def test_classes_out_of_the_order_and_excluded_ones_reject_the_row() -> None:
    config = make_class({"0": "weak", "1": "strong", "2": "unsure"}, order=["weak", "strong"],
                        exclude=["unsure"])  # fmt: skip
    assert parse_class({"mood": 1}, config) == "strong"
    with pytest.raises(RowFaultError, match="excluded class: unsure"):
        parse_class({"mood": 2}, config)
    with pytest.raises(RowFaultError, match="unknown class: 'odd' is not in the order"):
        parse_class({"mood": "odd"}, make_class(order=["weak", "strong"]))


@pytest.mark.parametrize(
    ("config", "found", "name"),
    [
        (make_class({"0": "calm", "1": "tense"}), 2, "2"),
        (make_class({"0": "calm", "1": "tense"}), 1.0, "tense"),
        (make_class({"no": "calm"}, order=["calm", "tense"]), "odd", "odd"),
        (make_class(order=["calm", "tense"]), "odd", "odd"),
    ],
)
def test_d24_where_a_model_is_evaluated_a_class_of_others_keeps_its_name(
    config: ClassConfig, found: Any, name: str
) -> None:
    assert parse_labels({"mood": found}, config, accepts_unknown=True) == name


def test_d24_where_a_model_is_evaluated_a_row_without_a_class_is_left_out_all_the_same() -> None:
    config = make_class({"0": "calm", "1": "tense"}, exclude=["2"])
    for found in (None, "", ["calm"]):
        with pytest.raises(RowFaultError):
            parse_labels({"mood": found}, config, accepts_unknown=True)
    with pytest.raises(RowFaultError, match="excluded class: 2"):
        parse_labels({"mood": 2}, config, accepts_unknown=True)


def test_d24_where_a_model_is_evaluated_a_label_of_others_keeps_its_name() -> None:
    config = MultilabelConfig.model_validate(
        {"type": "multilabel", "from": "topics", "names": ["sport", "music"]}
    )
    row = {"topics": ["sport", "art"]}
    assert parse_labels(row, config, accepts_unknown=True) == ["sport", "art"]
    with pytest.raises(RowFaultError, match="unknown label: 'art'"):
        parse_labels(row, config)


# several labels


def test_several_labels_stand_in_the_order_of_the_task() -> None:
    config = MultilabelConfig.model_validate(
        {"type": "multilabel", "from": ["sport", "music"], "map": {"music": "concert"}}
    )
    assert parse_multilabel({"music": "1", "sport": 1}, config) == ["sport", "concert"]
    assert parse_labels({"music": 0, "sport": 0}, config) == []
    with pytest.raises(RowFaultError, match="label missing: music"):
        parse_multilabel({"sport": 1}, config)


# overall scores and tiers


def test_the_overall_score_is_a_weighted_mean_and_what_is_left_out_weighs_nothing() -> None:
    scores = np.array([[2.0, 8.0], [10.0, 0.0]])
    assert compute_overall(scores, SCORES).tolist() == [5.0, 5.0]
    weighted = make_scores(weights={"risk": 3, "calm": 1})
    assert compute_overall(scores, weighted).tolist() == [3.5, 7.5]
    assert compute_overall(scores, make_scores(weights={"calm": 0.2})).tolist() == [8.0, 0.0]


def test_a_score_on_a_bound_is_in_the_upper_tier() -> None:
    config = make_scores(tiers={"noise": 0, "blue": 3, "red": 7})
    overall = np.array([0, 2.99, 3, 6.999, 6.9999999, 7, 10, -0.5, 11])
    assert assign_tiers(overall, config).tolist() == [0, 0, 1, 1, 2, 2, 2, 0, 2]


def test_rounding_in_the_mean_does_not_cost_a_tier() -> None:
    names = [f"d{i}" for i in range(7)]
    config = make_scores(
        dimensions=names, weights=dict.fromkeys(names, 0.1), tiers={"low": 0, "high": 7}
    )
    overall = compute_overall(np.full((1, 7), 7.0), config)
    assert assign_tiers(overall, config).tolist() == [1]


def test_a_bound_with_many_digits_is_met_by_its_own_score() -> None:
    config = make_scores(tiers={"low": 0, "high": 10 / 3})
    assert assign_tiers(np.array([10 / 3]), config).tolist() == [1]
