"""Variants, for `evaluate` and `compare`: open, audit and measure them, and apply gates."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from llmft.audit.comparability import (
    check_data,
    check_replicates,
    check_run,
    check_test_use,
    check_treatment,
)
from llmft.audit.contamination import check_contamination
from llmft.audit.findings import RunFacts, apply_waivers, make_finding
from llmft.audit.truncation import check_inputs, check_oracle_view
from llmft.config.suite import GateConfig, WaiverConfig
from llmft.config.task import Split
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.errors import UserError
from llmft.evaluation.calibration import measure_reliability, measure_score_calibration
from llmft.evaluation.gates import GateFacts, apply_gates, decide, estimate_metric, estimate_parts
from llmft.evaluation.post_hoc_fitting import measure_fit_effect, name_fit
from llmft.evaluation.rows import (
    LabelledRows,
    average_metrics,
    average_parts,
    count_confusions,
    count_label_confusions,
    count_tier_confusions,
)
from llmft.evaluation.verdict import find_valid_variants
from llmft.metrics.definitions import Floats, find_label_type
from llmft.models.saved import read_spec
from llmft.prediction.post_hoc_fit import FinalOutputs, apply_fit, read_fit
from llmft.prediction.stored import (
    ChangedModelError,
    StoredPredictions,
    load_or_predict,
    name_source,
)
from llmft.results.evaluation import (
    Finding,
    MetricValue,
    RunResult,
    VariantResult,
)
from llmft.results.files import read_result, write_result
from llmft.results.run import LearningCurve, PostHocFit, Read, ReadLog, RunRecord
from llmft.statistics.intervals import estimate_part_intervals
from llmft.statistics.shortages import list_rare
from llmft.training.run_folder import read_curve, read_record


def record_test_read(run: Path, *, by: Literal["evaluate", "compare"], report: str) -> None:
    """Record that a report has read the test predictions of a run.

    Args:
        run: Run folder.
        by: The verb.
        report: Its results file.

    Raises:
        UserError: If the file is broken or cannot be written.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    reads = [*_list_reads(run), Read(when=when, by=by, report=report)]
    write_result(_find_file(run), ReadLog(reads=reads))


def count_test_reads(run: Path) -> int:
    """Return how many reports have read the test predictions of a run."""
    return len(_list_reads(run))


def _find_file(run: Path) -> Path:
    return run / "evaluation" / "test_reads.json"


def _list_reads(run: Path) -> list[Read]:
    path = _find_file(run)
    return read_result(path, ReadLog, fix="restore it").reads if path.is_file() else []


class Run(NamedTuple):
    """One finished run of a variant."""

    path: Path
    record: RunRecord
    curve: LearningCurve
    num_test_reads: int
    """Number of reports that read its test predictions, this one included if it reads them."""
    fit: PostHocFit | None
    """Its calibrators or thresholds, applied to all its predictions."""
    predictions: StoredPredictions | None = None
    """Its predictions in the order of the rows; None if the run is invalid."""
    num_unknown: int = 0
    """Number of classes or labels of the rows that the model does not know: it never predicts
    them, so a row that has one counts as wrong (D24)."""

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a finished run, without its predictions.

        Raises:
            UserError: If there is none, or one of its files is broken.
        """
        record = read_record(path)
        fit = read_fit(path, model_hash=record.model_hash)
        return cls(path, record, read_curve(path), count_test_reads(path), fit)

    def get_val(self, metric: str) -> float | None:
        """Return a metric of the chosen checkpoint on validation; None if it was not measured."""
        chosen = (point for point in self.curve.epochs if point.step == self.record.best_step)
        point = next(chosen, None)
        return None if point is None else point.val.get(metric)

    @property
    def decision_scores(self) -> Floats:
        """Decision scores: metrics and decisions are computed from them; shape [N, C]."""
        return self.final_outputs.decision_scores_NC

    @property
    def raw_outputs(self) -> Floats:
        """Outputs of the model without calibrators or thresholds; shape [N, C]."""
        assert self.predictions is not None
        return add_unknown(self.predictions.outputs, self.num_unknown)

    @property
    def probabilities(self) -> Floats:
        """Calibrated scores, or the model's probabilities; shape [N, C]."""
        return self.final_outputs.probabilities_NC

    @property
    def final_outputs(self) -> FinalOutputs:
        """The outputs after calibrators or thresholds."""
        assert self.predictions is not None
        final = apply_fit(self.predictions.outputs, self.fit)
        return FinalOutputs(*(add_unknown(found, self.num_unknown) for found in final))


Variants = dict[str, list[Run]]


def add_unknown(outputs_NC: Floats, num_unknown: int) -> Floats:
    """Return outputs with a probability of 0 for classes or labels that the model does not know."""
    return np.pad(outputs_NC, ((0, 0), (0, num_unknown))) if num_unknown else outputs_NC


class VariantSet(NamedTuple):
    """The variants of a comparison, and the findings of the audit."""

    variants: Variants
    audit: list[Finding]
    """Before waivers."""
    rows: list[Row]
    """The test rows to measure: those that no variant was trained on."""


def open_variants(
    paths: dict[str, list[Path]],
    *,
    data: PreparedData,
    rows: list[Row],
    reference: str,
    treatment: list[str] | None = None,
    waivers: Sequence[WaiverConfig] = (),
) -> VariantSet:
    """Open every run and audit it; a run with an invalid finding is excluded with its variant.

    Args:
        paths: Variant -> folders of its runs.
        data: The prepared data.
        rows: All test rows.
        reference: The variant that the others are compared with.
        treatment: Keys of the recipe in which the variants may differ; None: the default.
        waivers: Waivers of the suite.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    variants = {variant: [Run.open(path) for path in found] for variant, found in paths.items()}
    facts = {
        variant: [_gather_facts(variant, run) for run in runs] for variant, runs in variants.items()
    }
    every = [run for runs in facts.values() for run in runs]
    audit = check_data(every, fingerprint=data.fingerprint)
    audit += check_treatment(every, reference=reference, treatment=treatment)
    audit += check_replicates(every)
    contamination = check_contamination(every, rows, data=data)
    audit += contamination.findings
    scored = contamination.drop(rows)
    valid = find_valid_variants(list(paths), apply_waivers(audit, waivers))
    for variant, runs in variants.items():
        if variant in valid:
            for i, run in enumerate(runs):
                predictions, found = _open_predictions(
                    facts[variant][i], data=data, rows=rows, num_reads=run.num_test_reads + 1
                )
                audit += [f for f in found if f not in audit]
                if predictions is not None:
                    num_reads = run.num_test_reads + 1
                    runs[i] = run._replace(
                        predictions=predictions.take(scored), num_test_reads=num_reads
                    )
        audit += check_run(facts[variant][0])
    return VariantSet(variants, audit, [rows[i] for i in scored])


def _gather_facts(variant: str, run: Run) -> RunFacts:
    spec = read_spec(run.path / "model")
    weights = spec.base_hash or spec.base.revision
    return RunFacts(variant, str(run.path), run.record, name_fit(run.fit), weights)


def _open_predictions(
    run: RunFacts, *, data: PreparedData, rows: list[Row], num_reads: int
) -> tuple[StoredPredictions | None, list[Finding]]:
    """Return the test predictions of a run in the order of the rows; None if the rows differ."""
    path, texts = Path(run.path), [row["text"] for row in rows]
    source = name_source(run.record.model_hash, data.fingerprint)
    stored = path / "predictions" / "test.parquet"
    try:
        predictions = load_or_predict(path, rows, path=stored, source=source)
    except ChangedModelError as error:
        return None, [make_finding("changed_model", "invalid", str(error), run.variant)]
    try:
        predictions = predictions.align([row["id"] for row in rows])
    except UserError as error:
        return None, [make_finding("same_rows", "invalid", f"{path}: {error}", run.variant)]
    return predictions, [
        *check_inputs(run, predictions, texts),
        *check_oracle_view(run, predictions, texts, view=data.task.oracle_sees),
        *check_test_use(run, num_reads=num_reads),
    ]


def measure_variant(
    runs: Sequence[Run], rows: LabelledRows, *, valid: bool = True
) -> VariantResult:
    """Return the metrics of a variant, without gates.

    Metrics are means over the runs, confusion matrices sums. Calibration is that of the first run:
    the mean of several would be an ensemble, with a calibration that none of them has.

    Args:
        runs: One for each seed.
        rows: The rows to measure.
        valid: False if the audit excluded the variant; then it gets no metrics.
    """
    results = [
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
        runs=results,
        train_seconds=float(np.mean([run.record.train_seconds for run in runs])),
        peak_memory_gib=max(run.record.peak_memory_gib for run in runs),
        num_test_reads=max(run.num_test_reads for run in results),
    )
    if not valid:
        return result
    labels, names, config, groups = rows.labels, rows.names, rows.config, rows.groups
    label_type = find_label_type(labels)
    is_scores = label_type == "scores"
    outputs, probabilities = [run.decision_scores for run in runs], runs[0].probabilities
    measured = rows.measure(outputs)
    return result.replace(
        metrics=average_metrics([m.metrics for m in measured]),
        per_dimension=average_parts([m.per_dimension for m in measured]),
        per_class=average_parts([m.per_class for m in measured]),
        metrics_per_run=[m.metrics for m in measured],
        intervals=rows.estimate_intervals(outputs),
        part_intervals=estimate_part_intervals(
            labels, outputs, names=names, groups=groups, config=config
        ),
        confusion_matrix=count_confusions(labels, outputs, num_classes=len(names))
        if label_type == "class"
        else None,
        label_confusions=count_label_confusions(labels, outputs, names=names)
        if label_type == "multilabel"
        else {},
        tiers=count_tier_confusions(labels, outputs, config),
        calibration=measure_score_calibration(labels, probabilities, names=names)
        if is_scores
        else {},
        reliability=None
        if is_scores
        else measure_reliability(labels, probabilities, groups=groups),
        fit=measure_fit_effect(
            runs[0].fit, labels, [run.raw_outputs for run in runs], names=names, config=config
        ),
    )


class Criteria(NamedTuple):
    """Inputs of the decision on a variant, apart from its metrics."""

    gates: Mapping[str, GateConfig]
    metric: str
    """The leading metric."""
    findings: Sequence[Finding]
    """Findings of the audit, for any variant."""
    baselines: Mapping[str, float | None]
    """Baseline -> its leading metric."""
    coverage: float = 1.0
    """Fraction of the rows that could be used."""


def decide_variant(
    name: str,
    variant: VariantResult,
    runs: Sequence[Run],
    rows: LabelledRows,
    *,
    criteria: Criteria,
    splits: Mapping[Split, MetricValue],
    few_seeds: Sequence[str] = (),
) -> VariantResult:
    """Apply the gates; return the variant with `gates`, `decision` and `reasons`.

    Args:
        name: Its name in findings.
        variant: Its metrics, and its gains over baselines.
        runs: Its runs.
        rows: The rows that it was measured on.
        criteria: Gates and findings.
        splits: The metric on `train` and `val`; empty if no gap between splits is a gate.
        few_seeds: Variants of a comparison that is about trained models only because of them.
    """
    assert variant.part_intervals is not None, "only a measured variant has gates"
    metric, labels, groups = criteria.metric, rows.labels, rows.groups
    on_splits: dict[str, MetricValue] = {name: found for name, found in splits.items()}
    if on_splits:
        raw = [run.raw_outputs for run in runs]
        on_splits["test"] = estimate_metric(metric, labels, raw, config=rows.config, groups=groups)
    facts = GateFacts(
        shortages=rows.find_shortages(criteria.gates, metric=metric),
        rare=list_rare(labels, groups, rows.names),
        metric=metric,
        metrics=variant.metrics,
        intervals=variant.intervals,
        parts=estimate_parts(
            labels,
            [run.decision_scores for run in runs],
            names=rows.names,
            intervals=variant.part_intervals.intervals,
            groups=groups,
        ),
        splits=on_splits,
        histories=[run.curve for run in variant.runs if not run.record.is_frozen],
        latency=variant.latency,
        edge_cases=variant.edge_cases,
        gains=variant.gains,
        baselines=criteria.baselines,
    )
    wanted = dict(criteria.gates)
    if variant.record.is_frozen:
        wanted.pop("beats_probe", None)  # it is a probe itself
    gates = apply_gates(wanted, facts)
    outcome = decide(
        gates,
        findings=[f for f in criteria.findings if not f.variants or name in f.variants],
        shortage=rows.shortage,
        coverage=criteria.coverage,
        few_seeds=few_seeds,
    )
    return variant.replace(gates=gates, decision=outcome.decision, reasons=outcome.reasons)
