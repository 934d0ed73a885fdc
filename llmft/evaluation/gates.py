"""May this run be deployed? Thresholds that a confidence bound has to pass (D14)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmft.config.gates import HIGHER_IS_BETTER, GateConfig
from llmft.config.metrics import METRICS
from llmft.evaluation.gate_facts import (
    GateFacts,
    estimate_gap,
    find_last_improvement,
    find_standard_error,
)
from llmft.evaluation.intervals import MIN_ROWS
from llmft.results.variant import DECISIONS, Decision, Finding, GateResult, Interval, MetricValue


class Ruling(NamedTuple):
    """What the gates and the audit come to."""

    decision: Decision
    reasons: list[str]
    """Why it is no better, the gravest first; where it is DEPLOY, what every gate says."""


def apply_gates(gates: Mapping[str, GateConfig], facts: GateFacts) -> list[GateResult]:
    """Apply gates: DEPLOY if the bound passes, FAIL if the value is beyond review.

    Gates whose facts are not at hand, such as edge cases that nobody wrote, are left out. On fewer
    than 20 rows no gate deploys, nor does one whose value is undefined.
    """
    found = [_SPECIAL.get(name, _apply_metric)(name, gate, facts) for name, gate in gates.items()]
    return [result for result in found if result is not None]


def decide(
    results: Sequence[GateResult],
    *,
    findings: Sequence[Finding],
    beats_constant: bool,
    num_rows: int,
    provisional: bool = False,
) -> Ruling:
    """Return the worst result with its reasons.

    Args:
        results: What the gates say; without any a person has to decide.
        findings: Of the audit, as far as they concern the run; an invalid one fails.
        beats_constant: Whether it beats the best constant (D9); if not, it is never DEPLOY.
        num_rows: Number of rows it was measured on; fewer than 20 never deploy.
        provisional: Whether an arm of a comparison has too few seeds to be deployed.
    """
    said: list[tuple[Decision, str]] = [
        ("FAIL", f"the audit found: {f.message}") for f in findings if f.status == "invalid"
    ]
    said += [(r.result, r.reason) for r in results]
    doubts = {
        "no gate was set, so a person has to decide": not results,
        "it does not beat the best constant": not beats_constant,
        f"{num_rows} rows are fewer than {MIN_ROWS} and prove nothing": num_rows < MIN_ROWS,
        "provisional: fewer than 3 seeds do not tell the luck of training": provisional,
    }
    said += [("REVIEW", doubt) for doubt, holds in doubts.items() if holds]
    said.sort(key=lambda pair: DECISIONS.index(pair[0]))
    decision = said[0][0]
    return Ruling(decision, [why for one, why in said if one != "DEPLOY" or decision == "DEPLOY"])


def _judge(
    name: str,
    gate: GateConfig,
    *,
    what: str,
    value: float | None,
    bound: float | None,
    interval: Interval | None = None,
    doubt: str | None = None,
) -> GateResult:
    """Judge by the rule that all gates share.

    Args:
        name: Of the gate.
        gate: The thresholds.
        what: The start of the reason: what has which value.
        value: What must not be beyond `review`.
        bound: What has to pass `deploy`.
        interval: That of the value.
        doubt: Why it is not to be deployed, whatever the bound.
    """
    sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
    deploy, review = gate.deploy, gate.review
    passes = bound is not None and sign * bound >= sign * deploy
    result: Decision = "DEPLOY" if passes and doubt is None else "REVIEW"
    at_bound = "" if bound is None or bound == value else f"the bound {_show(bound)} "
    ending = f"{at_bound}{'passes' if passes else 'does not pass'} {deploy:.4g}"
    if value is None:
        ending = f"nothing that could pass {deploy:.4g}"
    elif bound is None:
        ending = f"no bound is known that could pass {deploy:.4g}"
    if value is not None and review is not None and sign * value < sign * review:
        result, ending = "FAIL", f"{ending}, and a value beyond {review:.4g} fails"
    reason = "; ".join(part for part in (what, ending, doubt) if part)
    return GateResult(
        name=name,
        value=value,
        interval=interval,
        bound=bound,
        deploy=deploy,
        review=review,
        result=result,
        reason=f"{name}: {reason}",
    )


def _apply_metric(name: str, gate: GateConfig, facts: GateFacts) -> GateResult:
    value, interval = facts.metrics.get(name), facts.intervals.get(name)
    what = "not defined on these rows" if value is None else _show(value)
    return _judge(
        name, gate, what=what, value=value, bound=_find_worse_end(name, interval),
        interval=interval, doubt=_doubt_few(facts.num_rows),
    )  # fmt: skip


def _apply_dimensions(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    """So many dimensions have to pass by their bounds: the last of them that is needed decides."""
    found = facts.parts.get("mae", {})
    worst = _find_worst(found, higher=False)
    if worst is None:
        return None
    # Less a little, since 0.7 * 10 is above 7 in floating point.
    needed = math.ceil((gate.share or 1.0) * len(found) - 1e-9)
    ranked = sorted(found, key=lambda part: _bound_above(found[part]))
    num_passing = sum(_bound_above(found[part]) <= gate.deploy for part in ranked)
    deciding = found[ranked[needed - 1]]
    bound = _bound_above(deciding)
    what = (
        f"{num_passing} of {len(found)} surely stay under an mae of {gate.deploy:g} and {needed} "
        f"have to; the one that decides is {ranked[needed - 1]} with {_show(deciding.value)}"
    )
    result = _judge(
        name, gate, what=what, value=deciding.value,
        bound=bound if math.isfinite(bound) else None, interval=deciding.interval,
        doubt=_doubt_few(facts.num_rows),
    )  # fmt: skip
    value = found[worst].value
    if gate.review is None or value is None or value <= gate.review:
        return result
    reason = f"{result.reason}; {worst} has {_show(value)}, beyond {gate.review:.4g}, which fails"
    return result.replace(result="FAIL", reason=reason)


def _bound_above(estimate: MetricValue) -> float:
    return math.inf if estimate.interval is None else estimate.interval.high


def _apply_classes(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    metric = name.removeprefix("class_")
    found = facts.parts.get(metric, {})
    if not found:
        return None
    absent = [part for part, estimate in found.items() if estimate.value is None]
    doubt = f"no row to judge {', '.join(absent)} by" if absent else _doubt_few(facts.num_rows)
    worst = _find_worst(found, higher=True)
    if worst is None:
        return _judge(name, gate, what="not defined", value=None, bound=None, doubt=doubt)
    ends = [e.interval.low if e.interval else None for e in found.values() if e.value is not None]
    known = [end for end in ends if end is not None]
    return _judge(
        name, gate, what=f"{worst} is worst with {_show(found[worst].value)}",
        value=found[worst].value, bound=min(known) if len(known) == len(ends) else None,
        interval=found[worst].interval, doubt=doubt,
    )  # fmt: skip


def _apply_gap(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    """Noise is no gap: 2 standard errors always pass, up to 4 never fail."""
    metric = facts.metric
    earlier, later, _ = name.split("_")
    before, after = facts.splits.get(earlier), facts.splits.get(later)
    if before is None or after is None:
        return None
    doubt = _doubt_few(facts.num_rows) if later == "test" else None
    higher = METRICS[metric].higher_is_better
    gap = estimate_gap(before, after, higher_is_better=higher)
    if gap.value is None:
        what = f"{metric} is not defined on {earlier} or {later}"
        return _judge(name, gate, what=what, value=None, bound=None, doubt=doubt)
    error = find_standard_error(gap.interval)
    widened = gate.model_copy(
        update={
            "deploy": max(gate.deploy, 2 * error),
            "review": None if gate.review is None else max(gate.review, 4 * error),
        }
    )
    what = (
        f"{metric} is {_show(after.value)} on {later} and {_show(before.value)} on {earlier}, "
        f"{_show(abs(gap.value))} {'worse' if gap.value > 0 else 'better'}; {gate.deploy:g} or "
        "2 standard errors are allowed"
    )
    return _judge(
        name, widened, what=what, value=gap.value, bound=gap.value, interval=gap.interval,
        doubt=doubt,
    )  # fmt: skip


def _apply_convergence(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if not facts.histories:
        return None
    found = [find_last_improvement(history) for history in facts.histories]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        what = "cannot be told from a single epoch"
        return _judge(name, gate, what=what, value=None, bound=None)
    value = max(known)
    what = f"the last epoch bettered the validation metric by {value:.1%}"
    return _judge(name, gate, what=what, value=value, bound=value)


def _apply_latency(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if facts.latency is None:
        return None
    value, count = facts.latency.single_p95_ms, facts.latency.num_singles
    what = f"{_show(value)} ms in {count} measures"
    return _judge(name, gate, what=what, value=value, bound=facts.latency.single_p95_bound_ms)


def _apply_edge_cases(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if facts.edge_cases is None:
        return None
    num_passed, num_cases = facts.edge_cases.num_passed, facts.edge_cases.num_cases
    interval = facts.edge_cases.pass_rate_interval
    value = num_passed / num_cases
    what = f"{num_passed} of {num_cases} passed, {_show(value)}"
    result = _judge(
        name, gate, what=what, value=value, bound=interval.low, interval=interval
    )  # fmt: skip
    missed = facts.edge_cases.must_pass_failed
    if not missed:
        return result
    reason = f"{result.reason}; {', '.join(missed)} must pass and did not"
    return result.replace(result="FAIL", reason=reason)


_Apply = Callable[[str, GateConfig, GateFacts], GateResult | None]
_SPECIAL: dict[str, _Apply] = {
    "dimensions": _apply_dimensions,
    "class_f1": _apply_classes,
    "class_recall": _apply_classes,
    "val_test_gap": _apply_gap,
    "train_val_gap": _apply_gap,
    "convergence": _apply_convergence,
    "p95_ms": _apply_latency,
    "edge_cases": _apply_edge_cases,
}


def _find_worse_end(metric: str, interval: Interval | None) -> float | None:
    if interval is None:
        return None
    return interval.low if METRICS[metric].higher_is_better else interval.high


def _find_worst(found: Mapping[str, MetricValue], *, higher: bool) -> str | None:
    """Return the dimension, class or label with the worst value."""
    known = {part: e.value for part, e in found.items() if e.value is not None}
    choose: Any = min if higher else max
    worst: str | None = choose(known, key=lambda part: known[part], default=None)
    return worst


def _doubt_few(num_rows: int) -> str | None:
    few = f"{num_rows} rows are fewer than {MIN_ROWS} and prove nothing"
    return few if num_rows < MIN_ROWS else None


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"
