"""Cases with a known answer, written by people who know how models go wrong."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.stats import binomtest

from llmft.data.labels import LABEL_THRESHOLD
from llmft.errors import UserError
from llmft.evaluation.metrics import LabelType

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class ScoreBounds:
    """What is expected of one score."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, config=_STRICT)
class ExpectedClass:
    """The class that is expected."""

    label: str


@dataclass(frozen=True, config=_STRICT)
class ExpectedLabels:
    """Labels that have to apply, and labels that must not."""

    labels: list[str] = field(default_factory=list)
    not_labels: list[str] = field(default_factory=list)


Expectation = dict[str, ScoreBounds] | ExpectedClass | ExpectedLabels
"""Of scores by dimension, of a class, or of labels."""


class EdgeCase(NamedTuple):
    """One case."""

    row: dict[str, Any]
    """The fields of the article, and `id`."""
    expect: Expectation
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


def read_edge_cases(path: Path, *, label_names: list[str], label_type: LabelType) -> list[EdgeCase]:
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
                cases.append(_parse(json.loads(line), label_names, label_type))
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


def _parse(data: Any, label_names: list[str], label_type: LabelType) -> EdgeCase:
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    expect = data.pop("expect", None)
    must_pass, category = data.pop("must_pass", False), data.pop("category", "")
    if "id" not in data or not isinstance(expect, dict) or not expect:
        raise ValueError("a case needs `id`, the article's fields and `expect`")
    parsed = _parse_expectation(expect, label_names, label_type)
    return EdgeCase(data, parsed, bool(must_pass), str(category))


def _parse_expectation(
    expect: dict[str, Any], label_names: list[str], label_type: LabelType
) -> Expectation:
    match label_type:
        case "scores":
            bounds = TypeAdapter(dict[str, ScoreBounds]).validate_python(expect)
            open_ended = [name for name, b in bounds.items() if b.min is None and b.max is None]
            if open_ended:
                raise ValueError(f"expect.{open_ended[0]}: needs min or max, else it always passes")
            _refuse_unknown(bounds, label_names, kind="dimension")
            return bounds
        case "class":
            if "label" not in expect:
                raise ValueError(f"expect: expected {{label: one of {', '.join(label_names)}}}")
            one = TypeAdapter(ExpectedClass).validate_python(expect)
            _refuse_unknown([one.label], label_names, kind="class")
            return one
        case "multilabel":
            several = TypeAdapter(ExpectedLabels).validate_python(expect)
            named = [*several.labels, *several.not_labels]
            if not named:
                raise ValueError("expect: needs labels or not_labels, else it always passes")
            _refuse_unknown(named, label_names, kind="label")
            both = [name for name in several.labels if name in several.not_labels]
            if both:
                raise ValueError(f"expect: {both[0]!r} is in labels and in not_labels")
            return several


def _refuse_unknown(names: Iterable[str], known: list[str], *, kind: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"expect: unknown {kind} {name!r}, known: {', '.join(known)}")


def _list_failures(expect: Expectation, found: dict[str, float]) -> list[str]:
    match expect:
        case ExpectedClass(label=label):
            best = max(found, key=lambda name: found[name])
            return [] if best == label else [f"expected {label}, found {best}"]
        case ExpectedLabels(labels=wanted, not_labels=unwanted):
            missed = [name for name in wanted if found[name] < LABEL_THRESHOLD]
            added = [name for name in unwanted if found[name] >= LABEL_THRESHOLD]
            return [f"{n}: expected to apply, found at {found[n]:.2f}" for n in missed] + [
                f"{n}: expected not to apply, found at {found[n]:.2f}" for n in added
            ]
    failures = []
    for name, bounds in expect.items():
        if bounds.min is not None and found[name] < bounds.min:
            failures.append(f"{name}: expected at least {bounds.min:g}, found {found[name]:.2f}")
        if bounds.max is not None and found[name] > bounds.max:
            failures.append(f"{name}: expected at most {bounds.max:g}, found {found[name]:.2f}")
    return failures
