"""One variant, for `evaluate` and `compare` alike: measured, and held against its gates."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llmft.config.gates import GateConfig
from llmft.config.task import Split
from llmft.evaluation.arms import Run
from llmft.evaluation.calibration import calibrate_scores, measure_reliability
from llmft.evaluation.fitting import describe_fit
from llmft.evaluation.gate_facts import GateFacts, estimate_metric, estimate_parts
from llmft.evaluation.gates import apply_gates, decide
from llmft.evaluation.intervals import estimate_part_intervals
from llmft.evaluation.metrics import find_label_type, is_better
from llmft.evaluation.rows import Rows, average_metrics, average_parts
from llmft.evaluation.tables import (
    count_confusions,
    count_label_confusions,
    count_tier_confusions,
)
from llmft.results.variant import Finding, MetricValue, RunResult, VariantResult


def measure_variant(runs: Sequence[Run], rows: Rows, *, valid: bool = True) -> VariantResult:
    """Return what a variant's runs come to on the rows that count, its gates still to be applied.

    Metrics are means over the runs, confusions their sums. Calibration is that of the first run:
    the mean of several would be an ensemble, with a calibration that none of them has.

    Args:
        runs: One for each seed.
        rows: The rows that count.
        valid: Whether the audit left the variant in; else nothing of it is measured.
    """
    told = [
        RunResult(
            path=str(run.path),
            record=run.record,
            curve=run.curve,
            num_test_reads=run.num_test_reads,
        )
        for run in runs
    ]
    result = VariantResult(
        valid=valid,
        runs=told,
        train_seconds=float(np.mean([run.record.train_seconds for run in runs])),
        peak_memory_gib=max(run.record.peak_memory_gib for run in runs),
        num_test_reads=max(run.num_test_reads for run in told),
    )
    if not valid:
        return result
    labels, names, config, groups = rows.labels, rows.names, rows.config, rows.groups
    label_type = find_label_type(labels)
    is_scores = label_type == "scores"
    outputs, shown = [run.outputs for run in runs], runs[0].shown
    measured = rows.measure(outputs)
    return result.replace(
        metrics=average_metrics([m.metrics for m in measured]),
        per_dimension=average_parts([m.per_dimension for m in measured]),
        per_class=average_parts([m.per_class for m in measured]),
        metrics_per_run=[m.metrics for m in measured],
        intervals=rows.estimate_intervals(outputs),
        part_intervals=estimate_part_intervals(labels, outputs, names=names, groups=groups),
        confusion_matrix=count_confusions(labels, outputs, num_classes=len(names))
        if label_type == "class"
        else None,
        label_confusions=count_label_confusions(labels, outputs, names=names)
        if label_type == "multilabel"
        else {},
        tiers=count_tier_confusions(labels, outputs, config),
        calibration=calibrate_scores(labels, shown, names=names) if is_scores else {},
        reliability=None if is_scores else measure_reliability(labels, shown, groups=groups),
        fit=describe_fit(
            runs[0].fit, labels, [run.raw for run in runs], names=names, config=config
        ),
    )


class Criteria(NamedTuple):
    """By what variants are judged."""

    gates: Mapping[str, GateConfig]
    metric: str
    """The one that decides."""
    findings: Sequence[Finding]
    """Of the audit, of whatever variant."""
    constant: float | None
    """The metric of the constant baseline (D9)."""


def judge_variant(
    name: str,
    variant: VariantResult,
    runs: Sequence[Run],
    rows: Rows,
    *,
    criteria: Criteria,
    splits: Mapping[Split, MetricValue],
    provisional: bool,
) -> VariantResult:
    """Return a variant with `gates`, `decision` and `reasons`.

    Args:
        name: What findings call it.
        variant: What was measured of it.
        runs: Its runs.
        rows: The rows that it was measured on.
        criteria: By what it is judged.
        splits: The metric on `train` and `val`; empty where the gaps mean nothing.
        provisional: Whether it has too few seeds to be deployed.
    """
    assert variant.part_intervals is not None, "nothing is judged that was not measured"
    metric, labels, groups = criteria.metric, rows.labels, rows.groups
    on_splits: dict[str, MetricValue] = {name: found for name, found in splits.items()}
    if on_splits:
        raw = [run.raw for run in runs]
        on_splits["test"] = estimate_metric(metric, labels, raw, config=rows.config, groups=groups)
    facts = GateFacts(
        num_rows=len(rows.rows),
        metric=metric,
        metrics=variant.metrics,
        intervals=variant.intervals,
        parts=estimate_parts(
            labels,
            [run.outputs for run in runs],
            names=rows.names,
            intervals=variant.part_intervals.intervals,
            groups=groups,
        ),
        splits=on_splits,
        histories=[run.curve for run in variant.runs],
        latency=variant.latency,
        edge_cases=variant.edge_cases,
    )
    gates = apply_gates(criteria.gates, facts)
    ruling = decide(
        gates,
        findings=[f for f in criteria.findings if not f.variants or name in f.variants],
        beats_constant=is_better(metric, variant.metrics.get(metric), criteria.constant),
        num_rows=len(rows.rows),
        provisional=provisional,
    )
    return variant.replace(gates=gates, decision=ruling.decision, reasons=ruling.reasons)
