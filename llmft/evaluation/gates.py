"""Gates: their inputs, the result of each, and the decision from all."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.metrics import METRICS
from llmft.config.suite import DEFAULT_GATES, FEWEST_SEEDS, HIGHER_IS_BETTER, GateConfig
from llmft.config.task import LabelsConfig, Split
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.evaluation.rows import open_rows
from llmft.metrics.definitions import (
    Floats,
    average,
    compute_metric,
    compute_parts,
    find_label_type,
)
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict, name_source
from llmft.results.evaluation import (
    DECISIONS,
    BaselineGain,
    Decision,
    EdgeCases,
    Finding,
    GateResult,
    Interval,
    Latency,
    MetricValue,
)
from llmft.results.run import LearningCurve, RunRecord
from llmft.statistics.intervals import bound_proportion, estimate_interval
from llmft.statistics.shortages import MIN_CLUSTERS
from llmft.training.inputs import limit_rows
from llmft.wording import shorten_list

_MAX_TRAIN_ROWS = 500
MIN_COVERAGE = 0.98
"""Rows that are left out are seldom a random sample."""


class GateFacts(NamedTuple):
    """Inputs of the gates: of one run, or the mean over the runs (seeds) of a variant."""

    metric: str
    """The leading metric, which the gaps compare."""
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    parts: Mapping[str, Mapping[str, MetricValue]]
    """`mae`, or `f1` and `recall` -> dimension, class or label -> its value (`estimate_parts`)."""
    splits: Mapping[str, MetricValue]
    """The leading metric on `train`, `val` and `test`, without calibrators and thresholds, which
    were fitted on `val` (D7); empty if no gap between splits is a gate."""
    histories: Sequence[LearningCurve]
    """Learning curve of each run."""
    latency: Latency | None = None
    edge_cases: EdgeCases | None = None
    gains: Mapping[str, BaselineGain] = MappingProxyType({})
    """Baseline -> gain over it."""
    baselines: Mapping[str, float | None] = MappingProxyType({})
    """Baseline -> its leading metric."""
    shortages: Mapping[str, str | None] = MappingProxyType({})
    """Gate on the test rows -> why they are too few for it; None if they suffice."""
    rare: Sequence[str] = ()
    """Classes or labels with too few rows (`list_rare`)."""


def estimate_parts(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    intervals: Mapping[str, Interval | None],
    groups: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, MetricValue]]:
    """Return the mae of each dimension, or f1 and recall of each class or label.

    A class without rows has none. The interval of a recall is the exact one of a proportion of the
    class's rows, or of its clusters of rows; hits are the mean over the runs, rounded down, since
    more seeds do not add rows.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        names: Of the dimensions, classes or labels.
        intervals: Of each mae or f1.
        groups: The cluster of each row, [N]; None if rows are independent.
    """

    def average(metric: str) -> Floats:
        return np.asarray(np.mean([compute_parts(metric, labels, o) for o in runs], axis=0))

    if find_label_type(labels) == "scores":
        means = zip(names, average("mae").tolist(), strict=True)
        return {
            "mae": {name: MetricValue(value=mae, interval=intervals[name]) for name, mae in means}
        }
    support_C, f1_C, recall_C = average("support"), average("f1"), average("recall")
    units_N = np.arange(len(labels)) if groups is None else groups
    found: dict[str, dict[str, MetricValue]] = {"f1": {}, "recall": {}}
    for i, name in enumerate(names):
        if support_C[i] == 0:
            found["f1"][name] = found["recall"][name] = MetricValue(value=None, interval=None)
            continue
        has_it_N = labels[:, i] if labels.ndim == 2 else labels == i
        num_units = len(np.unique(units_N[has_it_N]))
        num_hits = int(recall_C[i] * num_units + 1e-9)
        found["f1"][name] = MetricValue(value=float(f1_C[i]), interval=intervals[name])
        found["recall"][name] = MetricValue(
            value=float(recall_C[i]), interval=bound_proportion(num_hits, num_units)
        )
    return found


def predict_train_and_val(
    run: Path,
    record: RunRecord,
    data: PreparedData,
    *,
    names: Collection[str],
    open_predictor: Callable[[], Predictor] | None = None,
    across_processes: bool = False,
) -> dict[Split, StoredPredictions]:
    """Return predictions of a run for the validation rows, and a sample of the train rows.

    The training has stored those for validation. The sample is predicted and stored once, since it
    depends on the ids of the rows only; with a large base that takes long, so it is left out where
    no gate asks for it.

    Args:
        run: Run folder.
        record: Its record.
        data: The prepared data that it was trained on.
        names: Names of the gates.
        open_predictor: Returns its model, which may be open already.
        across_processes: Whether to distribute the prediction over all processes of the launch,
            which all have to call this.

    Raises:
        UserError: If the model changed since, or a row cannot be predicted.
    """
    limit = record.recipe.train.limit_rows
    source = name_source(record.model_hash, data.fingerprint, limit_rows=limit)
    found: dict[Split, StoredPredictions] = {}
    files: dict[Split, str] = {"val": "val"}
    if "train_val_gap" in names:
        files["train"] = "train-sample"
    for split, file in files.items():
        rows = pick_train_and_val(data, split, limit=limit)
        found[split] = load_or_predict(
            run,
            rows,
            path=run / "predictions" / f"{file}.parquet",
            source=source,
            across_processes=across_processes,
            open_predictor=open_predictor,
        ).align([row["id"] for row in rows])
    return found


def pick_train_and_val(data: PreparedData, split: Split, *, limit: int | None) -> list[Row]:
    """Return the rows of `val`, or at most 500 of `train`, that a run with this limit used."""
    rows = limit_rows(data.read_split(split), limit)
    return limit_rows(rows, _MAX_TRAIN_ROWS) if split == "train" else rows


def measure_train_and_val(
    runs: Sequence[Mapping[Split, StoredPredictions]],
    data: PreparedData,
    *,
    metric: str,
    limit: int | None,
) -> dict[Split, MetricValue]:
    """Return a metric on the splits of stored predictions, the mean over runs."""
    found: dict[Split, MetricValue] = {}
    for split in runs[0]:
        rows = open_rows(pick_train_and_val(data, split, limit=limit), data)
        outputs = [run[split].outputs for run in runs]
        found[split] = estimate_metric(
            metric, rows.labels, outputs, config=rows.config, groups=rows.groups
        )
    return found


def estimate_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    config: LabelsConfig | None,
    groups: NDArray[np.int64] | None = None,
) -> MetricValue:
    """Return an overall metric, the mean over runs with outputs [N, C], and its interval."""
    values = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    value = average(values)
    interval = estimate_interval(metric, labels, runs, groups=groups, config=config)
    return MetricValue(value=value, interval=interval)


def estimate_gap(before: MetricValue, after: MetricValue, *, higher_is_better: bool) -> MetricValue:
    """Return by how much a value is worse on the later of two disjoint splits.

    The interval combines the distances of the ends of the two intervals from their values (MOVER).

    Source:
        Zou and Donner 2008, Construction of Confidence Limits about Effect Measures,
        doi:10.1002/sim.3095.
    """
    larger, smaller = (before, after) if higher_is_better else (after, before)
    if larger.value is None or smaller.value is None:
        return MetricValue(value=None, interval=None)
    gap = larger.value - smaller.value
    if larger.interval is None or smaller.interval is None:
        return MetricValue(value=gap, interval=None)
    below = math.hypot(larger.value - larger.interval.low, smaller.interval.high - smaller.value)
    above = math.hypot(larger.interval.high - larger.value, smaller.value - smaller.interval.low)
    return MetricValue(value=gap, interval=Interval(gap - below, gap + above))


def find_last_improvement(curve: LearningCurve) -> float | None:
    """Return by what fraction the last epoch improved the validation metric; 0 if it did not.

    Compared with the best validation that is an epoch or more before the last one.

    Args:
        curve: Of a run.

    Returns:
        None if there is no such validation.
    """
    metric = curve.metric
    sign = 1.0 if metric in METRICS and METRICS[metric].higher_is_better else -1.0
    points = [(p.epoch, sign * p.val[metric]) for p in curve.epochs if metric in p.val]
    if not points:
        return None
    last = points[-1][0]
    before = [value for epoch, value in points if epoch <= last - 1 + 1e-6]
    if not before:
        return None
    best = max(before)
    gained = max(value for _, value in points) - best
    return gained / abs(best) if best else float(gained > 0)


class Outcome(NamedTuple):
    """A decision with its reasons."""

    decision: Decision
    reasons: list[str]
    """Why the decision is not better, most severe first; for DEPLOY, the reason of every gate."""


def apply_gates(gates: Mapping[str, GateConfig], facts: GateFacts) -> list[GateResult]:
    """Apply gates: DEPLOY if the bound reaches deploy, FAIL if the value is worse than review.

    Gates without inputs, such as edge cases that the suite does not have, are left out. On fewer
    than 20 rows no gate on the test rows is DEPLOY, nor is one with an undefined value, or one that
    weighs classes where a class has too few rows.
    """
    found = [_SPECIAL.get(name, _apply_metric)(name, gate, facts) for name, gate in gates.items()]
    return [result for result in found if result is not None]


def decide(
    results: Sequence[GateResult],
    *,
    findings: Sequence[Finding],
    shortage: str | None,
    coverage: float = 1.0,
    few_seeds: Sequence[str] = (),
) -> Outcome:
    """Return the worst result with its reasons.

    Args:
        results: Results of the gates; without gates the decision is REVIEW.
        findings: Findings of the audit about the run; an invalid one fails.
        shortage: Why the rows it was measured on are too few; then it is never DEPLOY.
        coverage: Fraction of the rows that could be used; below 98 % it is never DEPLOY (D24).
        few_seeds: Variants with so few seeds that the comparison is about trained models only.
    """
    reasons: list[tuple[Decision, str]] = [
        ("FAIL", f"the audit found: {f.message}") for f in findings if f.status == "invalid"
    ]
    reasons += [(r.result, r.reason) for r in results]
    doubts = {
        "no gate was set, so a person has to decide": not results,
        str(shortage): shortage is not None,
        f"only {100 * coverage:.1f} % of the rows could be measured, below "
        f"{100 * MIN_COVERAGE:g} %: those left out may be the hard ones": coverage < MIN_COVERAGE,
        f"one run stands for each variant, since {', '.join(few_seeds)} "
        f"{'has' if len(few_seeds) == 1 else 'have'} fewer than {FEWEST_SEEDS} seeds": few_seeds,
    }
    reasons += [("REVIEW", doubt) for doubt, holds in doubts.items() if holds]
    reasons.sort(key=lambda pair: DECISIONS.index(pair[0]))
    decision = reasons[0][0]
    return Outcome(
        decision, [why for one, why in reasons if one != "DEPLOY" or decision == "DEPLOY"]
    )


def _make_result(
    name: str,
    gate: GateConfig,
    *,
    what: str,
    value: float | None,
    bound: float | None,
    interval: Interval | None = None,
    doubt: str | None = None,
    may_fail: bool = True,
) -> GateResult:
    """Compare value and bound with the thresholds, by the rule that all gates share.

    Args:
        name: Name of the gate.
        gate: The thresholds.
        what: The start of the reason: the value, in words.
        value: Must not be worse than `review`.
        bound: Has to reach `deploy`.
        interval: Interval of the value.
        doubt: Why it is not DEPLOY, whatever the bound.
        may_fail: Whether a value worse than `review` fails.
    """
    sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
    deploy, review = gate.deploy, gate.review
    reaches = bound is not None and sign * bound >= sign * deploy
    result: Decision = "DEPLOY" if reaches and doubt is None else "REVIEW"
    at_bound = "it " if bound is None or bound == value else f"the bound {_show(bound)} "
    side = "at least" if sign > 0 else "at most"
    ending = f"{at_bound}{'is' if reaches else 'is not'} {side} {deploy:.4g}"
    if value is None or bound is None:
        ending = f"so nobody knows whether it is {side} {deploy:.4g}"
        if value is not None:
            ending = f"without an interval, {ending}"
    is_worse = value is not None and review is not None and sign * value < sign * review
    if is_worse and may_fail:
        result, ending = "FAIL", f"{ending}, and a value worse than {review:.4g} fails"
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
    return _make_result(
        name, gate, what=what, value=value, bound=_find_worse_end(name, interval),
        interval=interval, doubt=facts.shortages.get(name),
    )  # fmt: skip


def _apply_dimensions(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    """A fraction of the dimensions has to reach the threshold by their bounds."""
    found = facts.parts.get("mae", {})
    worst = _find_worst(found, higher=False)
    if worst is None:
        return None
    # Minus an epsilon, since 0.7 * 10 is above 7 in floating point.
    needed = math.ceil((gate.fraction or 1.0) * len(found) - 1e-9)
    ranked = sorted(found, key=lambda part: _bound_above(found[part]))
    num_passing = sum(_bound_above(found[part]) <= gate.deploy for part in ranked)
    deciding = found[ranked[needed - 1]]
    bound = _bound_above(deciding)
    what = (
        f"in {num_passing} of {len(found)} dimensions ({needed} required) mae has an upper bound "
        f"of at most {gate.deploy:g}; the deciding one, {ranked[needed - 1]}, has "
        f"{_show(deciding.value)}"
    )
    result = _make_result(
        name, gate, what=what, value=deciding.value,
        bound=bound if math.isfinite(bound) else None, interval=deciding.interval,
        doubt=facts.shortages.get(name),
    )  # fmt: skip
    value = found[worst].value
    if gate.review is None or value is None or value <= gate.review:
        return result
    reason = f"{result.reason}; {worst} has {_show(value)}, above {gate.review:.4g}, which fails"
    return result.replace(result="FAIL", reason=reason)


def _bound_above(estimate: MetricValue) -> float:
    return math.inf if estimate.interval is None else estimate.interval.high


def _apply_classes(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    metric = name.removeprefix("class_")
    found = facts.parts.get(metric, {})
    if not found:
        return None
    absent = [part for part, estimate in found.items() if estimate.value is None]
    doubt = facts.shortages.get(name)
    if absent:
        doubt = f"no row of {', '.join(absent)}"
    elif facts.rare and doubt is None:
        doubt = f"fewer than {MIN_CLUSTERS} rows of (or not of) {shorten_list(facts.rare)}"
    worst = _find_worst(found, higher=True)
    if worst is None:
        return _make_result(name, gate, what="not defined", value=None, bound=None, doubt=doubt)
    ends = [e.interval.low if e.interval else None for e in found.values() if e.value is not None]
    known = [end for end in ends if end is not None]
    return _make_result(
        name, gate, what=f"{worst} is worst with {_show(found[worst].value)}",
        value=found[worst].value, bound=min(known) if len(known) == len(ends) else None,
        interval=found[worst].interval, doubt=doubt,
    )  # fmt: skip


def _apply_gap(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    """It passes by the upper end of its interval, and fails only where it is surely a gap."""
    metric = facts.metric
    earlier, later, _ = name.split("_")
    before, after = facts.splits.get(earlier), facts.splits.get(later)
    if before is None or after is None:
        return None
    doubt = facts.shortages.get(name)
    higher = METRICS[metric].higher_is_better
    gap = estimate_gap(before, after, higher_is_better=higher)
    if gap.value is None:
        what = f"{metric} is not defined on {earlier} or {later}"
        return _make_result(name, gate, what=what, value=None, bound=None, doubt=doubt)
    what = (
        f"{metric} is {_show(after.value)} on {later} and {_show(before.value)} on {earlier}, "
        f"{_show(abs(gap.value))} {'worse' if gap.value > 0 else 'better'}"
    )
    return _make_result(
        name, gate, what=what, value=gap.value, bound=gap.interval and gap.interval.high,
        interval=gap.interval, doubt=doubt, may_fail=gap.interval is None or gap.interval.low > 0,
    )  # fmt: skip


def _apply_convergence(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if not facts.histories:
        return None
    found = [find_last_improvement(history) for history in facts.histories]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        what = "not known from a single epoch"
        return _make_result(name, gate, what=what, value=None, bound=None)
    value = max(known)
    what = f"the last epoch improved the validation metric by {value:.3f} of its value"
    return _make_result(name, gate, what=what, value=value, bound=value)


def _apply_latency(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if facts.latency is None:
        return None
    value, count = facts.latency.single_p95_ms, facts.latency.num_singles
    what = f"{_show(value)} ms in {count} measurements"
    return _make_result(name, gate, what=what, value=value, bound=facts.latency.single_p95_bound_ms)


def _apply_edge_cases(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    if facts.edge_cases is None:
        return None
    num_passed, num_cases = facts.edge_cases.num_passed, facts.edge_cases.num_cases
    interval = facts.edge_cases.pass_rate_interval
    value = num_passed / num_cases
    what = f"{num_passed} of {num_cases} passed, {_show(value)}"
    result = _make_result(
        name, gate, what=what, value=value, bound=interval.low, interval=interval
    )  # fmt: skip
    missed = facts.edge_cases.must_pass_failed
    if missed:
        reason = f"{result.reason}; {', '.join(missed)} must pass and did not"
        return result.replace(result="FAIL", reason=reason)
    if gate == DEFAULT_GATES[name]:
        return result.replace(reason=f"{name}: {what}; none failed that must pass")
    return result


def _apply_baseline(name: str, gate: GateConfig, facts: GateFacts) -> GateResult | None:
    baseline, named = _BASELINES[name]
    found = facts.gains.get(baseline)
    if found is None:
        if baseline in facts.baselines and facts.baselines[baseline] is None:
            return None  # such as the rank correlation of a constant
        what = f"the gain over {named} in {facts.metric} is not defined on these rows"
        return _make_result(name, gate, what=what, value=None, bound=None)
    direction = "better" if found.gain >= 0 else "worse"
    is_unsure = gate.deploy >= 0 and found.finding == "not told apart"
    return _make_result(
        name, gate,
        what=f"{facts.metric} is {_show(abs(found.gain))} {direction} than that of {named}",
        value=found.gain, bound=found.interval.low, interval=found.interval,
        doubt=f"not told apart from {named}" if is_unsure else None,
    )  # fmt: skip


_BASELINES = {
    "beats_constant": ("constant", "the best constant"),
    "beats_tfidf": ("tfidf", "TF-IDF"),
    "beats_probe": ("probe", "the probe"),
}
"""Gate -> its baseline, and what a reason calls it."""
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
    "beats_constant": _apply_baseline,
    "beats_tfidf": _apply_baseline,
    "beats_probe": _apply_baseline,
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


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"
