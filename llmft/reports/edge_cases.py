"""Edge cases: how many each arm passed, and which ones it failed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llmft.reports.formatting import format_share
from llmft.reports.series import Series
from llmft.reports.tables import Head, Table, make_columns


def make_edge_case_table(edge_cases: dict[str, Any], series: Sequence[Series]) -> Table:
    """Return how many edge cases each arm passed."""
    arms = [s for s in series if s.name in edge_cases and not s.is_baseline]
    found = [edge_cases[s.name] for s in arms]
    texts = {
        "passed": [f"{f['num_passed']} of {f['num_cases']}" for f in found],
        "pass rate, 95 % interval": [
            " to ".join(format_share(end) for end in f["pass_rate_interval"]) for f in found
        ],
        "must-pass cases failed": [", ".join(f["must_pass_failed"]) or "none" for f in found],
    }
    columns = make_columns(texts, words=["must-pass cases failed"])
    return Table("Edge cases passed", "arm", [Head(s.name, s) for s in arms], columns)


class FailedCase(NamedTuple):
    """An edge case that some arm failed."""

    id: str
    category: str
    must_pass: bool
    failures: list[tuple[Series, list[str]]]


def list_failed_cases(edge_cases: dict[str, Any], arms: Sequence[Series]) -> list[FailedCase]:
    """Return the cases that some arm failed, those that must pass first."""
    failed: dict[str, FailedCase] = {}
    for arm in arms:
        for case in edge_cases.get(arm.name, {}).get("cases", []):
            if not case["passed"]:
                entry = FailedCase(case["id"], case["category"], case["must_pass"], [])
                failed.setdefault(case["id"], entry).failures.append((arm, case["failures"]))
    return sorted(failed.values(), key=lambda case: not case.must_pass)
