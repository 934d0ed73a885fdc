"""May this run be deployed? Thresholds that a confidence bound has to pass (D14)."""

from typing import Literal, NamedTuple

from llmft.config.metrics import METRICS
from llmft.config.suite import GateConfig
from llmft.evaluation.audit import Finding
from llmft.evaluation.statistics import MIN_ROWS, Interval

Decision = Literal["DEPLOY", "REVIEW", "FAIL"]
_SEVERITY: list[Decision] = ["DEPLOY", "REVIEW", "FAIL"]


class GateResult(NamedTuple):
    """What one gate says."""

    metric: str
    value: float | None
    """None if the metric is undefined for these rows."""
    interval: Interval | None
    """95 %, over rows."""
    bound: float | None
    """Its worse end, which has to pass."""
    deploy: float
    review: float
    result: Decision


def apply_gates(
    gates: dict[str, GateConfig],
    *,
    metrics: dict[str, float | None],
    intervals: dict[str, Interval | None],
    num_rows: int,
) -> list[GateResult]:
    """Apply gates: DEPLOY if the bound passes, FAIL if the value is beyond review.

    On fewer than 20 rows nothing is deployed, nor by a metric that is undefined for the rows.
    """
    return [
        _apply(name, gate, metrics.get(name), intervals.get(name), num_rows)
        for name, gate in gates.items()
    ]


def decide(results: list[GateResult], *, findings: list[Finding], beats_constant: bool) -> Decision:
    """Return the worst result; an invalid audit fails.

    Without gates, or if the constant baseline is not beaten (D9), it is never DEPLOY.
    """
    found = [r.result for r in results]
    if any(finding.status == "invalid" for finding in findings):
        found.append("FAIL")
    if not results or not beats_constant:
        found.append("REVIEW")
    return max(found, key=_SEVERITY.index)


def _apply(
    metric: str, gate: GateConfig, value: float | None, interval: Interval | None, num_rows: int
) -> GateResult:
    higher = METRICS[metric].higher_is_better
    sign = 1.0 if higher else -1.0
    bound = None if interval is None else interval.low if higher else interval.high
    result: Decision = "REVIEW"
    if bound is not None and num_rows >= MIN_ROWS and sign * bound >= sign * gate.deploy:
        result = "DEPLOY"
    elif value is not None and sign * value < sign * gate.review:
        result = "FAIL"
    return GateResult(metric, value, interval, bound, gate.deploy, gate.review, result)
