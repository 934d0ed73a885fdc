"""Edge cases say what was expected and found; a bad one is named with its line."""

import json
from pathlib import Path

import pytest

from llmft.errors import UserError
from llmft.evaluation.edge_cases import (
    EdgeCase,
    ExpectedClass,
    check_cases,
    read_edge_cases,
    summarise_cases,
)

CASES = [
    {"id": "loud", "text": "x", "expect": {"risk": {"max": 3}}, "must_pass": True},
    {"id": "grave", "text": "y", "expect": {"risk": {"min": 6}, "proof": {"min": 2, "max": 5}}},
]


def write_cases(path: Path, cases: list[dict]) -> Path:
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    return path


def test_edge_cases_say_what_was_expected_and_found(tmp_path: Path) -> None:
    names = ["risk", "proof"]
    cases = read_edge_cases(
        write_cases(tmp_path / "c.jsonl", CASES), label_names=names, label_type="scores"
    )
    found = check_cases(cases, [[4.5, 0.0], [7.0, 3.0]], label_names=names)
    assert [r.passed for r in found] == [False, True]
    assert found[0].failures == ["risk: expected at most 3, found 4.50"]
    summary = summarise_cases(found)
    assert summary["num_passed"] == 1
    assert summary["must_pass_failed"] == ["loud"]


def test_d14_27_of_27_does_not_prove_3_percent() -> None:
    case = EdgeCase({"id": "c", "text": "x"}, ExpectedClass("yes"), must_pass=False, category="")
    results = check_cases([case] * 27, [[0.9, 0.1]] * 27, label_names=["yes", "no"])
    low, high = summarise_cases(results)["pass_rate_interval"]
    assert high == 1.0
    assert 1 - low == pytest.approx(0.128, abs=0.001)  # two-sided; one-sided it is 10.5 %


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"id": "a", "text": "x", "expect": {"rsik": {"min": 1}}}, "unknown dimension 'rsik'"),
        ({"id": "a", "text": "x", "expect": {"risk": {"mim": 1}}}, r"expect\.risk\.mim"),
        ({"id": "a", "text": "x", "expect": {"risk": 5}}, r"expect\.risk"),
        ({"id": "a", "text": "x", "expect": {"risk": {}}}, "needs min or max"),
        ("hello", "expected a JSON object"),
        ({"text": "x", "expect": {"risk": {"min": 1}}}, "a case needs `id`"),
        ({"id": "a", "text": "x"}, "expect"),
    ],
)
def test_a_bad_edge_case_is_named_with_its_line(tmp_path: Path, case, message: str) -> None:
    path = write_cases(tmp_path / "c.jsonl", [CASES[0], case])
    with pytest.raises(UserError, match=message) as caught:
        read_edge_cases(path, label_names=["risk", "proof"], label_type="scores")
    assert "c.jsonl:2:" in str(caught.value)


def read_cases(tmp_path: Path, *expected: dict, label_type: str) -> list[EdgeCase]:
    cases = [{"id": str(i), "text": "x", "expect": expect} for i, expect in enumerate(expected)]
    path = write_cases(tmp_path / "c.jsonl", cases)
    return read_edge_cases(path, label_names=["a", "b", "c"], label_type=label_type)


def test_a_class_is_expected_by_name(tmp_path: Path) -> None:
    cases = read_cases(tmp_path, {"label": "a"}, {"label": "c"}, label_type="class")
    found = check_cases(cases, [[0.5, 0.3, 0.2]] * 2, label_names=["a", "b", "c"])
    assert [r.failures for r in found] == [[], ["expected c, found a"]]


def test_labels_are_expected_to_apply_or_not_to(tmp_path: Path) -> None:
    cases = read_cases(
        tmp_path,
        {"labels": ["a"]},
        {"not_labels": ["c"]},
        {"labels": ["b"], "not_labels": ["a", "c"]},
        label_type="multilabel",
    )
    found = check_cases(cases, [[0.5, 0.49, 0.1]] * 3, label_names=["a", "b", "c"])
    assert [r.failures for r in found] == [
        [],
        [],
        ["b: expected to apply, found at 0.49", "a: expected not to apply, found at 0.50"],
    ]


@pytest.mark.parametrize(
    ("label_type", "expect", "message"),
    [
        ("class", {"labels": ["a"]}, "expected {label: one of a, b, c}"),
        ("class", {"label": "d"}, "unknown class 'd', known: a, b, c"),
        ("class", {"label": "a", "min": 1}, r"expect\.min"),
        ("multilabel", {"label": "a"}, r"expect\.label"),
        ("multilabel", {"labels": "a"}, r"expect\.labels"),
        ("multilabel", {"labels": ["d"]}, "unknown label 'd'"),
        ("multilabel", {"not_labels": ["d"]}, "unknown label 'd'"),
        ("multilabel", {"labels": [], "not_labels": []}, "else it always passes"),
        (
            "multilabel",
            {"labels": ["a"], "not_labels": ["a"]},
            "'a' is in labels and in not_labels",
        ),
    ],
)
def test_what_cannot_be_expected_is_named(tmp_path: Path, label_type, expect, message) -> None:
    valid = {"class": {"label": "a"}, "multilabel": {"labels": ["a"]}}[label_type]
    with pytest.raises(UserError, match=message) as caught:
        read_cases(tmp_path, valid, expect, label_type=label_type)
    assert "c.jsonl:2: not an edge case" in str(caught.value)
