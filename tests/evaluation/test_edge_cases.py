"""Edge cases say what was expected and found; a bad one is named with its line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmft.config.task import Task
from llmft.errors import UserError
from llmft.evaluation.edge_cases import (
    EdgeCase,
    ExpectedClass,
    check_cases,
    read_edge_cases,
    summarise_cases,
)

LABELS: dict[str, dict[str, Any]] = {
    "scores": {"type": "scores", "dimensions": ["risk", "proof"], "range": [0, 10]},
    "class": {"type": "class", "from": "topic"},
    "multilabel": {"type": "multilabel", "from": ["a", "b", "c"]},
}


def make_task(label_type: str, **fields: Any) -> Task:
    return Task.model_validate(
        {"name": "t", "sources": [{"path": "rows.jsonl"}], "labels": LABELS[label_type],
         "fields": fields, "output": "prepared"}
    )  # fmt: skip


SCORES = make_task("scores")
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
        write_cases(tmp_path / "c.jsonl", CASES), label_names=names, task=SCORES
    )
    found = check_cases(cases, [[4.5, 0.0], [7.0, 3.0]], label_names=names)
    assert [r.passed for r in found] == [False, True]
    assert found[0].failures == ["risk: expected at most 3, found 4.50"]
    summary = summarise_cases(found)
    assert summary.num_passed == 1
    assert summary.must_pass_failed == ["loud"]


def test_cases_are_counted_by_category_with_exact_intervals() -> None:
    def make(category: str) -> EdgeCase:
        return EdgeCase({"id": category, "text": "x"}, ExpectedClass("yes"), False, category)

    cases = [make("wording"), make("wording"), make("time")]
    outputs = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]
    found = summarise_cases(check_cases(cases, outputs, label_names=["yes", "no"]))
    assert list(found.by_category) == ["wording", "time"]
    wording, time = found.by_category.values()
    assert (wording.num_passed, wording.num_cases) == (1, 2)
    # Clopper and Pearson, 1 of 2: 1 - sqrt(0.975) and sqrt(0.975).
    assert wording.interval == pytest.approx([1 - 0.975**0.5, 0.975**0.5])
    assert time.interval == pytest.approx([0.025, 1.0])


def test_d14_27_of_27_does_not_prove_3_percent() -> None:
    case = EdgeCase({"id": "c", "text": "x"}, ExpectedClass("yes"), must_pass=False, category="")
    results = check_cases([case] * 27, [[0.9, 0.1]] * 27, label_names=["yes", "no"])
    low, high = summarise_cases(results).pass_rate_interval
    assert high == 1.0
    assert 1 - low == pytest.approx(0.128, abs=0.001)  # two-sided; one-sided it is 10.5 %


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"id": "a", "text": "x", "expect": {"rsik": {"min": 1}}}, "unknown dimension 'rsik'"),
        ({"id": "a", "text": "x", "expect": {"risk": {"mim": 1}}}, "expect.risk.mim"),
        ({"id": "a", "text": "x", "expect": {"risk": 5}}, "expect.risk"),
        ({"id": "a", "text": "x", "expect": {"risk": {}}}, "needs min or max"),
        ("hello", "expected a JSON object"),
        ({"text": "x", "expect": {"risk": {"min": 1}}}, "a case needs `id`"),
        ({"id": "a", "text": "x"}, "expect"),
        (
            {"id": "a", "text": "x", "expct": {"risk": {"min": 1}}},
            "unknown key `expct`. Did you mean `expect`?",
        ),
        (
            {"id": "a", "text": "x", "expect": {"risk": {"min": 1}}, "mustpass": True},
            "unknown key `mustpass`. Did you mean `must_pass`?",
        ),
        (
            {"id": "a", "text": "x", "expect": {"risk": {"min": 1}}, "must_pass": "no"},
            "must_pass: found 'no', allowed: true, false",
        ),
        (
            {"id": "a", "text": "x", "expect": {"risk": {"min": 6, "max": 3}}},
            "expect.risk: no score from 0 to 10 meets min 6 and max 3, so it never passes",
        ),
        (
            {"id": "a", "text": "x", "expect": {"risk": {"min": 11}}},
            "no score from 0 to 10 meets min 11",
        ),
        (
            {"id": "a", "text": "x", "expect": {"risk": {"max": -1}}},
            "no score from 0 to 10 meets max -1",
        ),
        ({"id": "a", "text": "x", "expect": {"risk": {"max": float("nan")}}}, "expect.risk.max"),
        ({"id": "a", "text": " ", "expect": {"risk": {"min": 1}}}, "empty text: nothing in text"),
        (
            {"id": "a", "txt": "x", "expect": {"risk": {"min": 1}}},
            "'a' lacks the field text, which is part of the task's text",
        ),
    ],
)
def test_a_bad_edge_case_is_named_with_its_line(tmp_path: Path, case, message: str) -> None:
    path = write_cases(tmp_path / "c.jsonl", [CASES[0], case])
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_edge_cases(path, label_names=["risk", "proof"], task=SCORES)
    assert "c.jsonl:2:" in str(caught.value)


def test_a_score_beyond_the_range_is_as_low_or_as_high_as_it_gets(tmp_path: Path) -> None:
    case = {"id": "a", "text": "x", "expect": {"risk": {"min": 0, "max": 3}, "proof": {"max": 10}}}
    names = ["risk", "proof"]
    cases = read_edge_cases(
        write_cases(tmp_path / "c.jsonl", [case]), label_names=names, task=SCORES
    )
    for outputs, passes in (([-0.33, 10.4], True), ([3.01, 10.4], False)):
        (found,) = check_cases(cases, [outputs], label_names=names)
        assert found.passed is passes


@pytest.mark.parametrize(
    ("article", "lacks"),
    [
        ({"title": "T", "body": "B", "question": "Q"}, None),
        ({"title": "", "body": "B", "question": "Q"}, None),
        ({"text": "as prepared", "question": "Q"}, None),
        ({"titel": "T", "body": "B", "question": "Q"}, "title"),
        ({"question": "Q"}, "title, body"),
        ({"title": "T", "body": "B"}, "question"),
    ],
)
def test_an_article_has_every_field_that_texts_are_made_of(
    tmp_path: Path, article: dict[str, str], lacks: str | None
) -> None:
    task = make_task("class", text=["title", "body"], text_pair="question")
    path = write_cases(tmp_path / "c.jsonl", [{"id": "c1", **article, "expect": {"label": "a"}}])
    if lacks is None:
        assert len(read_edge_cases(path, label_names=["a"], task=task)) == 1
        return
    with pytest.raises(
        UserError, match=f"c.jsonl:1: .*'c1' lacks the field {lacks}, which is part of the task"
    ):
        read_edge_cases(path, label_names=["a"], task=task)


def read_cases(tmp_path: Path, *expected: dict, label_type: str) -> list[EdgeCase]:
    cases = [{"id": str(i), "text": "x", "expect": expect} for i, expect in enumerate(expected)]
    path = write_cases(tmp_path / "c.jsonl", cases)
    return read_edge_cases(path, label_names=["a", "b", "c"], task=make_task(label_type))


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
        ["b: expected to apply, found 0.49", "a: expected not to apply, found 0.50"],
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


def test_copies_of_a_case_are_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "text": "x", "expect": {"label": "a"}}\n' * 2)
    with pytest.raises(UserError, match="1 ids are repeated, the first: 'a'"):
        read_edge_cases(path, label_names=["a"], task=make_task("class"))
