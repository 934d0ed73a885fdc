"""Rows that do not meet a condition are left out, and the reason says which one."""

import json
from typing import Any

import pytest

from llmft.config.task import FilterConfig
from llmft.data.fields import RowFaultError
from llmft.data.reading import apply_filters
from tests.data.conftest import number_rows


def judge(value: Any, **condition: Any) -> str | None:
    """Return why a value is filtered, or None if it passes."""
    config = FilterConfig.model_validate({"field": "x", **condition})
    try:
        apply_filters({"x": value}, [config])
    except RowFaultError as fault:
        return str(fault).removeprefix("filtered by x: ")
    return None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.7, None),
        ("0.7", None),
        (1, None),
        (0.699, "0.699 is below 0.7"),
        (1.01, "1.01 is above 1"),
        (None, "it is empty"),
        (float("nan"), "it is empty"),
        ("high", "not a number: x holds 'high'"),
        (float("inf"), "not a number: x holds 'inf'"),
        (True, "not a number: x holds 'true'"),
        ([0.8], "not a number: x holds '[0.8]'"),
    ],
)
def test_numbers_have_to_lie_between_the_bounds(value: Any, reason: str | None) -> None:
    assert judge(value, min=0.7, max=1) == reason


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, float("nan")])
def test_empty_is_what_holds_nothing(value: Any) -> None:
    assert judge(value, empty=True) is None
    assert judge(value, empty=False) == "it is empty"


@pytest.mark.parametrize("value", [0, False, "x", [None], {"code": 404}])
def test_zero_and_false_are_not_empty(value: Any) -> None:
    assert judge(value, empty=False) is None
    assert "it is not empty" in str(judge(value, empty=True))


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ("en", True),
        (2, True),
        ("2", True),
        (True, True),
        ("de", False),
        (None, False),
        (2.0, True),
        ("2.0", True),
        ("02", False),
    ],
)
def test_lists_compare_as_text(value: Any, passes: bool) -> None:
    values = ["en", 2, True]
    assert (judge(value, **{"in": values}) is None) is passes
    assert (judge(value, not_in=values) is None) is not passes


def test_patterns_are_searched_for_in_the_text() -> None:
    assert judge("Rates rise again", matches="rise|fall") is None
    assert judge("Music", matches="rise|fall") == "no match of 'rise|fall'"
    assert judge("HOT Stock tip", not_matches="(?i)hot stock") == "a match of '(?i)hot stock'"
    assert judge(None, not_matches="x") is None
    assert judge(None, matches="x") == "no match of 'x'"


@pytest.mark.parametrize("value", [json.loads("[" * 900 + "]" * 900), b"\xff", 10**400, "\ud800"])
def test_any_value_passes_or_is_a_fault_of_its_row(value: Any) -> None:
    for condition in ({"min": 0}, {"empty": True}, {"in": ["x"]}, {"matches": "x"}):
        assert judge(value, **condition) is not None


def test_all_conditions_have_to_hold_and_the_first_is_reported() -> None:
    filters = [FilterConfig(field="a", min=1), FilterConfig(field="b", empty=True)]
    apply_filters({"a": 2}, filters)
    with pytest.raises(RowFaultError, match=r"filtered by a: 0 is below 1"):
        apply_filters({"a": 0, "b": "x"}, filters)
    with pytest.raises(RowFaultError, match=r"filtered by b: it is not empty, but 'x'"):
        apply_filters({"a": 2, "b": "x"}, filters)


def test_filtered_rows_are_rejected_with_their_reason(prepare) -> None:
    rows = number_rows(30)
    rows[3]["error"] = "HTTP 404"
    for i, row in enumerate(rows):
        row["confidence"] = 0.1 if i == 5 else 0.9
    filters = "filters=[{field: error, empty: true}, {field: confidence, min: 0.7}]"
    outcome = prepare(rows, filters)
    assert outcome.reasons == [
        (4, "filtered by error: it is not empty, but 'HTTP 404'"),
        (6, "filtered by confidence: 0.1 is below 0.7"),
    ]
    assert outcome.manifest["rejected"] == {"filtered by error": 1, "filtered by confidence": 1}


def test_a_filter_on_a_field_that_no_row_has_is_refused_as_misspelt(prepare) -> None:
    outcome = prepare(number_rows(30), "filters=[{field: mod, not_in: [angry]}]")
    assert outcome.status == 2
    assert "no row has the field 'mod'. Did you mean `mood`?" in outcome.message


# length bounds


def test_texts_out_of_the_length_bounds_are_rejected(prepare) -> None:
    rows = number_rows(30)
    for name, length in (("short", 4), ("least", 5), ("most", 100), ("long", 101)):
        rows.append({"id": name, "text": (name * 50)[:length], "mood": "calm"})
    outcome = prepare(rows, "clean.min_chars=5", "clean.max_chars=100")
    assert outcome.reasons == [
        (31, "too short: 4 characters, below 5"),
        (34, "too long: 101 characters, above 100"),
    ]
    assert {"least", "most"} <= set(outcome.rows)
