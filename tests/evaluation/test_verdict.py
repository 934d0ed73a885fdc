"""One verdict from the differences between arms and what the audit says of them."""

from functools import partial

import pytest

from llmft.evaluation.audit import Finding
from llmft.evaluation.differences import Difference
from llmft.evaluation.intervals import Interval
from llmft.evaluation.power import Needed
from llmft.evaluation.verdict import find_valid_arms, is_provisional, reach_verdict


def make_difference(
    gain: float, half: float, finding: str, *, needed: Needed | None = None, is_small: bool = False
) -> Difference:
    ends = (gain - half, gain + half)
    return Difference(
        gain, Interval(*ends), *ends, 0.03, 0.02, 0.04, finding, None, needed, is_small
    )


BETTER = make_difference(0.5, 0.2, "better")
WORSE = make_difference(-0.1, 0.1, "not better")
OPEN = make_difference(0.2, 0.2, "unresolved", needed=Needed(400, None))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({"a": BETTER, "b": WORSE}, ("WINNER", "a")),
        ({"a": BETTER, "b": make_difference(0.6, 0.2, "better")}, ("WINNER", "b")),
        ({"a": WORSE, "b": WORSE}, ("REFERENCE_HOLDS", "ref")),
        ({"a": OPEN, "b": WORSE}, ("UNRESOLVED", None)),
    ],
)
def test_the_verdict_follows_from_the_differences(differences, expected) -> None:
    found = reach_verdict(
        differences, valid_arms=["ref", "a", "b"], findings=[], reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == expected


@pytest.mark.parametrize(
    ("finding", "valid_arms", "expected"),
    [
        (Finding("x", "invalid", ["ref"], "other rows"), ["a", "b"], "INVALID"),
        (Finding("x", "invalid", ["a"], "other rows"), ["ref"], "INVALID"),
        (Finding("x", "confounded", ["a"], "epochs is 9"), ["ref", "a"], "CONFOUNDED"),
    ],
)
def test_d2_a_broken_comparison_has_no_winner(finding, valid_arms, expected: str) -> None:
    found = reach_verdict(
        {"a": BETTER}, valid_arms=valid_arms, findings=[finding], reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == (expected, None)
    assert finding.message in found.why


def test_d14_few_rows_are_named_as_the_reason() -> None:
    few = make_difference(5.0, 1.0, "unresolved", needed=Needed(20, None), is_small=True)
    found = reach_verdict(
        {"a": few}, valid_arms=["ref", "a"], findings=[], reference="ref", metric="mae", margin=0.1
    )
    assert found.name == "UNRESOLVED"
    assert "fewer than 20 test rows" in found.why


def test_a_metric_that_is_undefined_resolves_nothing() -> None:
    judge_arms = partial(
        reach_verdict, valid_arms=["ref", "a", "b"], findings=[], reference="ref",
        metric="roc_auc", margin=0.1,
    )  # fmt: skip
    found = judge_arms({"b": WORSE})
    assert (found.name, found.winner) == ("UNRESOLVED", None)
    assert "is not defined for ref or a" in found.why
    assert judge_arms({"b": BETTER}).winner == "b"
    assert judge_arms({}).name == "UNRESOLVED"


def test_a_struck_out_arm_confounds_nobody() -> None:
    findings = [
        Finding("x", "invalid", ["b"], "other rows"),
        Finding("x", "confounded", ["b"], "epochs is 9"),
    ]
    found = reach_verdict(
        {"a": BETTER}, valid_arms=["ref", "a"], findings=findings, reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == ("WINNER", "a")


def test_a_waived_finding_strikes_and_confounds_nobody() -> None:
    waived = [
        Finding("x", "invalid", ["a"], "other rows", waived="known"),
        Finding("y", "confounded", ["a"], "epochs is 9", waived="meant"),
    ]
    assert find_valid_arms(["ref", "a"], waived) == ["ref", "a"]
    found = reach_verdict(
        {"a": BETTER}, valid_arms=["ref", "a"], findings=waived, reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == ("WINNER", "a")


def test_a_finding_without_arms_confounds_all() -> None:
    found = reach_verdict(
        {"a": BETTER}, valid_arms=["ref", "a"], findings=[Finding("x", "confounded", [], "why")],
        reference="ref", metric="mae", margin=0.1,
    )  # fmt: skip
    assert found.name == "CONFOUNDED"


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (Needed(400, None), "about 400 test rows would settle it"),
        (Needed(None, 9), "about 9 seeds an arm would settle it"),
        (Needed(400, 9), "about 400 test rows and 9 seeds an arm would settle it"),
        (Needed(None, None), "no number of rows or seeds will settle it"),
    ],
)
def test_what_would_settle_it_is_said(needed: Needed, said: str) -> None:
    unresolved = make_difference(0.2, 0.2, "unresolved", needed=needed)
    found = reach_verdict(
        {"a": unresolved, "b": WORSE}, valid_arms=["ref", "a", "b"], findings=[], reference="ref",
        metric="mae", margin=0.1,
    )  # fmt: skip
    assert found.why.endswith((said, said + ", if the gain stays what it is"))
    assert "by Holm over 2 challengers" in found.why


def test_fewer_than_three_seeds_are_provisional() -> None:
    assert [is_provisional(number) for number in (1, 2, 3)] == [True, True, False]
