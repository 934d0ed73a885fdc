"""Edge cases: rows with an expected answer, written by people who know how models fail."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from llmft.config.loading import suggest
from llmft.config.suite import ResolvedSuite
from llmft.config.task import ClassConfig, FieldsConfig, LabelsConfig, ScoresConfig, Task
from llmft.data.fields import Row, RowFaultError, assemble_text
from llmft.data.labels import LABEL_THRESHOLD
from llmft.data.prompts import list_placeholders
from llmft.errors import UserError
from llmft.prediction.inference import Predictor
from llmft.results.evaluation import EdgeCaseResult, EdgeCases, PassCount
from llmft.statistics.intervals import bound_proportion

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class ScoreBounds:
    """Bounds of one expected score, inclusive."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, config=_STRICT)
class ExpectedClass:
    """The class that has to be predicted."""

    label: str


@dataclass(frozen=True, config=_STRICT)
class ExpectedLabels:
    """Labels that have to be predicted, and labels that must not be."""

    labels: list[str] = field(default_factory=list)
    not_labels: list[str] = field(default_factory=list)


Expectation = dict[str, ScoreBounds] | ExpectedClass | ExpectedLabels
"""Dimension -> bounds, a class, or labels."""


class EdgeCase(NamedTuple):
    """A row with its expectation."""

    row: Row
    """The fields of the article, and `id`."""
    expect: Expectation
    must_pass: bool
    category: str


def read_suite_cases(suite: ResolvedSuite, *, label_names: list[str]) -> list[EdgeCase]:
    """Return the edge cases that a suite names; none where it names no file.

    Raises:
        UserError: As `read_edge_cases`.
    """
    if suite.edge_cases_path is None:
        return []
    return read_edge_cases(suite.edge_cases_path, label_names=label_names, task=suite.task)


def read_edge_cases(path: Path, *, label_names: list[str], task: Task) -> list[EdgeCase]:
    """Read edge cases from JSONL.

    A bound at an end of the scores' range is ignored: a model may predict -0.3 on a scale from 0,
    which has to count as the lowest score.

    Args:
        path: The file.
        label_names: Names of the dimensions, classes or labels.
        task: The task, for its fields and labels.

    Raises:
        UserError: With file, line and fault of the first bad case, or for a repeated id: copies of
            a case would count as independent evidence.
    """
    cases = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; fix `edge_cases`") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                cases.append(_parse(json.loads(line), label_names, task))
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                raise UserError(
                    f"{path}:{number}: not an edge case: expect.{where}: {fault['msg']}; "
                    "fix this line"
                ) from error
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: not an edge case: {error}; fix this line"
                ) from error
    if not cases:
        raise UserError(f"{path}: holds no edge cases; write one a line, or remove `edge_cases`")
    counts = Counter(str(case.row["id"]) for case in cases)
    twice = [case_id for case_id, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: {len(twice)} ids are repeated, the first: {twice[0]!r}; rename one of each"
        )
    return cases


def run_cases(predictor: Predictor, cases: Sequence[EdgeCase], *, name: str) -> EdgeCases:
    """Predict the cases with a model, and return which ones pass.

    For a variant with several runs use the first: what would be deployed is one model, and the mean
    of several may pass cases that none of them passes.

    Raises:
        UserError: If the model lacks a field of a case.
    """
    try:
        final = predictor.predict([case.row for case in cases], show_progress=False).final
    except RowFaultError as error:
        raise UserError(f"edge_cases: {name} cannot predict a case: {error}") from error
    label_names = predictor.spec.label_names
    decision_scores = final.decision_scores_NC.tolist()
    return summarise_cases(check_cases(cases, decision_scores, label_names=label_names))


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
                id=str(case.row["id"]),
                category=case.category,
                must_pass=case.must_pass,
                passed=not failures,
                failures=failures,
            )
        )
    return results


def summarise_cases(results: Sequence[EdgeCaseResult]) -> EdgeCases:
    """Count passes, overall and by category, with exact 95 % intervals."""
    overall = _count_passes(results)
    by_category: dict[str, list[EdgeCaseResult]] = {}
    for result in results:
        by_category.setdefault(result.category, []).append(result)
    return EdgeCases(
        num_passed=overall.num_passed,
        num_cases=overall.num_cases,
        pass_rate_interval=overall.interval,
        must_pass_failed=[r.id for r in results if r.must_pass and not r.passed],
        by_category={category: _count_passes(own) for category, own in by_category.items()},
        cases=list(results),
    )


def _count_passes(results: Sequence[EdgeCaseResult]) -> PassCount:
    num_passed, num_cases = sum(r.passed for r in results), len(results)
    interval = bound_proportion(num_passed, num_cases)
    return PassCount(num_passed=num_passed, num_cases=num_cases, interval=interval)


def _parse(data: Any, label_names: list[str], task: Task) -> EdgeCase:
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    _refuse_misspelt(data, task.fields)
    expect = data.pop("expect", None)
    must_pass, category = data.pop("must_pass", False), data.pop("category", "")
    if "id" not in data or not isinstance(expect, dict) or not expect:
        raise ValueError("a case needs `id`, the article's fields and `expect`")
    if not isinstance(must_pass, bool):
        raise ValueError(f"must_pass: found {must_pass!r}, allowed: true, false")
    _refuse_half_articles(data, task.fields)
    parsed = _parse_expectation(expect, label_names, task.labels)
    return EdgeCase(data, parsed, must_pass, str(category))


def _refuse_misspelt(data: Row, fields: FieldsConfig) -> None:
    """Raise for a key that looks misspelt; a case may have fields that the task does not have."""
    lacking = [key for key in ("id", "expect", "must_pass") if key not in data]
    for key in data:
        if key not in (*list_placeholders(fields), *fields.carried, "category"):
            hint = suggest(key, allowed=lacking)
            if hint:
                raise ValueError(f"unknown key `{key}`.{hint}")


def _refuse_half_articles(row: Row, fields: FieldsConfig) -> None:
    """Refuse a case that lacks a text field of the task; `text` may replace all of them."""
    is_joined = "text" in row and not any(name in row for name in fields.text)
    wanted = ["text"] if is_joined else list(fields.text)
    wanted += [fields.text_pair] if fields.text_pair else []
    absent = [name for name in wanted if name not in row]
    if absent:
        raise ValueError(
            f"{row['id']!r} lacks the field {', '.join(absent)}, which is part of the task's text"
        )
    assemble_text(row, fields)


def _parse_expectation(
    expect: dict[str, Any], label_names: list[str], labels: LabelsConfig
) -> Expectation:
    match labels:
        case ScoresConfig(range=[low, high]):
            bounds = TypeAdapter(dict[str, ScoreBounds]).validate_python(expect)
            open_ended = [name for name, b in bounds.items() if b.min is None and b.max is None]
            if open_ended:
                raise ValueError(f"expect.{open_ended[0]}: needs min or max, else it always passes")
            _refuse_unknown(bounds, label_names, kind="dimension")
            return {name: _fit_range(b, low, high, name=name) for name, b in bounds.items()}
        case ClassConfig():
            if "label" not in expect:
                raise ValueError(f"expect: expected {{label: one of {', '.join(label_names)}}}")
            one = TypeAdapter(ExpectedClass).validate_python(expect)
            _refuse_unknown([one.label], label_names, kind="class")
            return one
        case _:
            several = TypeAdapter(ExpectedLabels).validate_python(expect)
            named = [*several.labels, *several.not_labels]
            if not named:
                raise ValueError("expect: needs labels or not_labels, else it always passes")
            _refuse_unknown(named, label_names, kind="label")
            both = [name for name in several.labels if name in several.not_labels]
            if both:
                raise ValueError(f"expect: {both[0]!r} is in labels and in not_labels")
            return several


def _fit_range(bounds: ScoreBounds, low: float, high: float, *, name: str) -> ScoreBounds:
    """Return the bounds without those at an end of the range."""
    least = low if bounds.min is None else max(bounds.min, low)
    most = high if bounds.max is None else min(bounds.max, high)
    if least > most:
        given = {"min": bounds.min, "max": bounds.max}
        named = " and ".join(f"{key} {v:g}" for key, v in given.items() if v is not None)
        raise ValueError(
            f"expect.{name}: no score from {low:g} to {high:g} meets {named}, so it never passes"
        )
    return ScoreBounds(None if least == low else least, None if most == high else most)


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
            return [f"{n}: expected to apply, found {found[n]:.2f}" for n in missed] + [
                f"{n}: expected not to apply, found {found[n]:.2f}" for n in added
            ]
    failures = []
    for name, bounds in expect.items():
        if bounds.min is not None and found[name] < bounds.min:
            failures.append(f"{name}: expected at least {bounds.min:g}, found {found[name]:.2f}")
        if bounds.max is not None and found[name] > bounds.max:
            failures.append(f"{name}: expected at most {bounds.max:g}, found {found[name]:.2f}")
    return failures
