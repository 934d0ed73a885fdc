"""One verdict from the differences between variants and what the audit says of them."""

from functools import partial

import pytest

from llmft.evaluation.verdict import find_valid_variants, reach_verdict
from llmft.results.comparison import Pair, SampleSize
from llmft.results.evaluation import Finding, Interval


def make_difference(
    gain: float,
    half: float,
    finding: str,
    *,
    needed: SampleSize | None = None,
    shortage: str | None = None,
) -> Pair:
    ends = Interval(gain - half, gain + half)
    return Pair(
        challenger="a", reference="ref", gain=gain, interval=ends, lower=ends.low, upper=ends.high,
        p_value=0.03, p_margin=0.02, p_margin_adjusted=0.04, safety_factor=1.2, finding=finding,
        power=None, needed=needed, shortage=shortage, simultaneous=ends,
    )  # fmt: skip


BETTER = make_difference(0.5, 0.2, "better")
WORSE = make_difference(-0.1, 0.1, "not better")
OPEN = make_difference(0.2, 0.2, "unresolved", needed=SampleSize(rows=400, seeds=None))


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
        differences, valid_variants=["ref", "a", "b"], findings=[],
        reference="ref", metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert (found.name, found.winner) == expected


@pytest.mark.parametrize(
    ("finding", "valid_variants", "expected"),
    [
        (
            Finding(check="same_data", status="invalid", variants=["ref"], message="other rows"),
            ["a", "b"],
            "INVALID",
        ),
        (
            Finding(check="same_data", status="invalid", variants=["a"], message="other rows"),
            ["ref"],
            "INVALID",
        ),
        (
            Finding(check="same_data", status="confounded", variants=["a"], message="epochs is 9"),
            ["ref", "a"],
            "CONFOUNDED",
        ),
    ],
)
def test_d2_a_broken_comparison_has_no_winner(finding, valid_variants, expected: str) -> None:
    found = reach_verdict(
        {"a": BETTER}, valid_variants=valid_variants, findings=[finding], reference="ref",
        metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert (found.name, found.winner) == (expected, None)
    assert finding.message in found.why


def test_d14_few_rows_are_named_as_the_reason() -> None:
    few = make_difference(
        5.0, 1.0, "unresolved", needed=SampleSize(rows=20, seeds=None), shortage="6 rows are few"
    )
    found = reach_verdict(
        {"a": few},
        valid_variants=["ref", "a"],
        findings=[],
        reference="ref",
        metric="mae",
        margin=0.1,
        scope="recipes",
    )
    assert found.name == "UNRESOLVED"
    assert "but 6 rows are few" in found.why


def test_a_metric_that_is_undefined_resolves_nothing() -> None:
    judge_variants = partial(
        reach_verdict, valid_variants=["ref", "a", "b"], findings=[],
        reference="ref", metric="roc_auc", margin=0.1, scope="recipes",
    )  # fmt: skip
    found = judge_variants({"b": WORSE})
    assert (found.name, found.winner) == ("UNRESOLVED", None)
    assert "is not defined for ref or a" in found.why
    assert judge_variants({"b": BETTER}).winner == "b"
    assert judge_variants({}).name == "UNRESOLVED"


def test_a_excluded_variant_confounds_nobody() -> None:
    findings = [
        Finding(check="same_data", status="invalid", variants=["b"], message="other rows"),
        Finding(check="same_data", status="confounded", variants=["b"], message="epochs is 9"),
    ]
    found = reach_verdict(
        {"a": BETTER}, valid_variants=["ref", "a"], findings=findings, reference="ref",
        metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert (found.name, found.winner) == ("WINNER", "a")


def test_a_waived_finding_strikes_and_confounds_nobody() -> None:
    waived = [
        Finding(
            check="same_data",
            status="invalid",
            variants=["a"],
            message="other rows",
            waived="known",
        ),
        Finding(
            check="comparability",
            status="confounded",
            variants=["a"],
            message="epochs is 9",
            waived="meant",
        ),
    ]
    assert find_valid_variants(["ref", "a"], waived) == ["ref", "a"]
    found = reach_verdict(
        {"a": BETTER}, valid_variants=["ref", "a"], findings=waived, reference="ref",
        metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert (found.name, found.winner) == ("WINNER", "a")


def test_a_finding_without_variants_confounds_all() -> None:
    finding = Finding(check="same_data", status="confounded", variants=[], message="why")
    found = reach_verdict(
        {"a": BETTER}, valid_variants=["ref", "a"], findings=[finding],
        reference="ref", metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert found.name == "CONFOUNDED"


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (SampleSize(rows=400, seeds=None), "about 400 test rows"),
        (SampleSize(rows=None, seeds=9), "about 9 seeds per variant"),
        (SampleSize(rows=400, seeds=9), "about 400 test rows and 9 seeds per variant"),
        (SampleSize(rows=None, seeds=None), None),
    ],
)
def test_what_would_settle_it_is_said(needed: SampleSize, said: str | None) -> None:
    unresolved = make_difference(0.2, 0.2, "unresolved", needed=needed)
    found = reach_verdict(
        {"a": unresolved, "b": WORSE}, valid_variants=["ref", "a", "b"], findings=[],
        reference="ref", metric="mae", margin=0.1, scope="recipes",
    )  # fmt: skip
    assert found.why.endswith(
        "no number of rows or seeds resolves it"
        if said is None
        else f"with {said} a gain of this size is resolved in 80 % of all cases, at the next look"
    )
    assert "by Holm over 2 challengers" in found.why
