"""May this run be deployed? Thresholds that a confidence bound has to pass (D14)."""

from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from llmft.config.suite import GateConfig
from llmft.evaluation.audit import Finding
from llmft.evaluation.metrics import HIGHER_IS_BETTER
from llmft.evaluation.statistics import MIN_ROWS, Interval, compute_metric, estimate_interval

Decision = Literal["DEPLOY", "REVIEW", "FAIL"]
_SEVERITY: list[Decision] = ["DEPLOY", "REVIEW", "FAIL"]


class GateResult(NamedTuple):
    """What one gate says."""

    metric: str
    value: float
    interval: Interval
    """95 %, over rows."""
    bound: float
    """Its worse end, which has to pass."""
    deploy: float
    review: float
    result: Decision


def apply_gates(
    gates: dict[str, GateConfig], labels: NDArray[Any], outputs_NC: NDArray[Any]
) -> list[GateResult]:
    """Apply gates: DEPLOY if the bound passes, FAIL if the value is beyond review.

    On fewer than 20 rows nothing is deployed.
    """
    return [_apply(metric, gate, labels, outputs_NC) for metric, gate in gates.items()]


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
    metric: str, gate: GateConfig, labels: NDArray[Any], outputs_NC: NDArray[Any]
) -> GateResult:
    value = compute_metric(metric, labels, outputs_NC)
    interval = estimate_interval(metric, labels, [outputs_NC])
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    bound = interval.low if HIGHER_IS_BETTER[metric] else interval.high
    result: Decision = "REVIEW"
    if len(labels) >= MIN_ROWS and sign * bound >= sign * gate.deploy:
        result = "DEPLOY"
    elif sign * value < sign * gate.review:
        result = "FAIL"
    return GateResult(metric, value, interval, bound, gate.deploy, gate.review, result)
