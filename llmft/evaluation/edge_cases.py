"""Cases with a known answer, written by people who know how models go wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.stats import binomtest

from llmft.errors import UserError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Bounds:
    min: float | None = None
    max: float | None = None


class EdgeCase(NamedTuple):
    """One case."""

    row: dict[str, Any]
    """The fields of the article, and `id`."""
    expect: dict[str, Any]
    """{dimension: {min, max}} or {label: class}."""
    must_pass: bool
    category: str


class EdgeCaseResult(NamedTuple):
    """What came of one case."""

    id: str
    category: str
    must_pass: bool
    passed: bool
    failures: list[str]
    """What was expected and what was found, per failed expectation."""


_EXPECTED_SCORES = TypeAdapter(dict[str, _Bounds])


def read_edge_cases(path: Path, *, label_names: list[str], head: str) -> list[EdgeCase]:
    """Read edge cases from JSONL.

    Raises:
        UserError: Naming file, line and what is wrong with the first bad case.
    """
    cases = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                cases.append(_parse(json.loads(line), label_names, head))
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                raise UserError(
                    f"{path}:{number}: not an edge case: expect.{where}: {fault['msg']}"
                ) from error
            except ValueError as error:
                raise UserError(f"{path}:{number}: not an edge case: {error}") from error
    if not cases:
        raise UserError(f"{path}: holds no edge cases")
    return cases


def check_cases(
    cases: Sequence[EdgeCase], outputs: Sequence[Sequence[float]], *, label_names: list[str]
) -> list[EdgeCaseResult]:
    """Compare outputs [N, C] with what the cases expect."""
    results = []
    for case, values in zip(cases, outputs, strict=True):
        found = dict(zip(label_names, values, strict=True))
        failures = _list_failures(case.expect, found)
        results.append(
            EdgeCaseResult(
                str(case.row["id"]), case.category, case.must_pass, not failures, failures
            )
        )
    return results


def summarise_cases(results: Sequence[EdgeCaseResult]) -> dict[str, Any]:
    """Count passes, with the exact 95 % interval of Clopper and Pearson (1934)."""
    num_passed = sum(r.passed for r in results)
    interval = binomtest(num_passed, len(results)).proportion_ci(0.95, method="exact")
    return {
        "num_passed": num_passed,
        "num_cases": len(results),
        "pass_rate_interval": [float(interval.low), float(interval.high)],
        "must_pass_failed": [r.id for r in results if r.must_pass and not r.passed],
        "cases": [r._asdict() for r in results],
    }


def _parse(data: Any, label_names: list[str], head: str) -> EdgeCase:
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    expect = data.pop("expect", None)
    must_pass, category = data.pop("must_pass", False), data.pop("category", "")
    if "id" not in data or not isinstance(expect, dict) or not expect:
        raise ValueError("a case needs `id`, the article's fields and `expect`")
    if head == "regression":
        bounds = _EXPECTED_SCORES.validate_python(expect)
        open_ended = [name for name, b in bounds.items() if b.min is None and b.max is None]
        if open_ended:
            raise ValueError(f"expect.{open_ended[0]}: needs min or max, else it always passes")
        unknown = [name for name in expect if name not in label_names]
        if unknown:
            raise ValueError(f"expect: unknown dimension {unknown[0]!r}")
    elif expect.get("label") not in label_names:
        raise ValueError(f"expect: expected {{label: one of {', '.join(label_names)}}}")
    return EdgeCase(data, expect, bool(must_pass), str(category))


def _list_failures(expect: dict[str, Any], found: dict[str, float]) -> list[str]:
    if "label" in expect:
        best = max(found, key=lambda name: found[name])
        return [] if best == expect["label"] else [f"expected {expect['label']}, found {best}"]
    failures = []
    for name, bounds in expect.items():
        low, high = bounds.get("min"), bounds.get("max")
        if low is not None and found[name] < low:
            failures.append(f"{name}: expected at least {low:g}, found {found[name]:.2f}")
        if high is not None and found[name] > high:
            failures.append(f"{name}: expected at most {high:g}, found {found[name]:.2f}")
    return failures
