"""On whom a verdict rests, and what becomes of it where these have too few seeds."""

import pytest

from llmft.evaluation.comparison import decide_comparison, find_deciding_variants
from llmft.evaluation.verdict import Verdict
from tests.reports.made_up import make_comparison


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict("WINNER", "a", ""), ["ref", "a"]),
        (Verdict("REFERENCE_HOLDS", "ref", ""), ["ref", "a", "b"]),  # each might have beaten it
        (Verdict("UNRESOLVED", None, ""), ["ref", "a", "b"]),
    ],
)
def test_a_verdict_rests_on_those_whom_it_compares(verdict: Verdict, expected: list[str]) -> None:
    assert find_deciding_variants(verdict, ["ref", "a", "b"], reference="ref") == expected


@pytest.mark.parametrize(
    ("provisional", "expected"), [([], "DEPLOY"), (["a"], "REVIEW"), (["ref", "a"], "REVIEW")]
)
def test_a_variant_with_few_seeds_holds_the_decision_back(provisional, expected: str) -> None:
    verdict = Verdict("REFERENCE_HOLDS", "ref", "")
    passed = make_comparison().variants["distillation"].replace(decision="DEPLOY")
    found = decide_comparison(verdict, {"ref": passed}, provisional=provisional)
    assert found.decision == expected
    assert all(variant in found.reasons[0] for variant in provisional)
