"""The story of `evaluate`: one run, measured, audited and judged by itself."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from llmft.config.audit import WaiverConfig
from llmft.config.gates import GateConfig, lay_over_defaults
from llmft.config.head import SELECTION_METRIC
from llmft.config.recipe import RecipeConfig
from llmft.config.suite import LatencyConfig, Suite
from llmft.config.task import Split
from llmft.errors import UserError
from llmft.evaluation.arms import Run
from llmft.evaluation.audit import (
    RunFacts,
    apply_waivers,
    audit_run,
    check_baselines,
    check_variation,
)
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.fitting import check_fit, choose_fit, name_fit
from llmft.evaluation.gate_facts import measure_earlier, predict_earlier
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.metrics import find_label_type
from llmft.evaluation.reads import record_test_read
from llmft.evaluation.rows import open_rows
from llmft.evaluation.subject import Subject, open_subject
from llmft.evaluation.tables import describe_rows, measure_baselines, pick_worst
from llmft.evaluation.variants import Criteria, judge_variant, measure_variant
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.processes import get_world_size, is_main, main_first
from llmft.results.evaluation import EvaluationResult
from llmft.results.variant import EdgeCases, Finding, Latency, MetricValue


class _Standard(NamedTuple):
    """What a run is held against."""

    gates: Mapping[str, GateConfig]
    cases: list[EdgeCase]
    latency: LatencyConfig
    waivers: list[WaiverConfig]
    """Those of the suite that are for all variants."""


class _Trials(NamedTuple):
    """What a model was run for apart from the rows."""

    edge_cases: EdgeCases | None
    latency: Latency | None
    splits: Mapping[Split, StoredPredictions]
    """Predictions for `train` and `val`; empty where the gaps mean nothing."""


def evaluate_run(
    folder: Path,
    *,
    split: Split = "test",
    data_file: Path | None = None,
    suite: Suite | None = None,
) -> EvaluationResult | None:
    """Measure a run and decide.

    All processes of a launch share the prediction; the main one does the rest.

    Returns:
        The result; None in the other processes.

    Raises:
        UserError: If the run is not finished or the rows cannot be read.
    """
    with main_first():  # where something is wrong, one process says so
        run = Run.open(folder)
        record = run.record
        subject = open_subject(record, split=split, data_file=data_file)
        standard = _open_standard(suite, subject, folder)
    open_predictor = functools.cache(lambda: Predictor.open(folder))
    across = get_world_size() > 1
    seen = load_or_predict(
        folder,
        subject.rows,
        path=folder / "predictions" / f"{subject.name}.parquet",
        source={"model": record.model_hash, "data": subject.fingerprint},
        across_processes=across,
        open_predictor=open_predictor,
    )
    earlier: Mapping[Split, StoredPredictions] = {}
    if subject.name == "test" and standard.gates.keys() & {"val_test_gap", "train_val_gap"}:
        earlier = predict_earlier(
            folder, record, subject.data, across_processes=across, open_predictor=open_predictor
        )
    if not is_main():
        return None
    run = run._replace(
        seen=seen.align([row["id"] for row in subject.rows]),
        num_test_reads=run.num_test_reads + (subject.name == "test"),
    )
    trials = _Trials(*_try_model(run, standard, subject, open_predictor), earlier)
    result = _judge(run, subject, standard, trials)
    if subject.name == "test":
        report = folder / "evaluation" / "test.json"
        record_test_read(folder, by="evaluate", report=str(report))
    return result


def _open_standard(suite: Suite | None, subject: Subject, folder: Path) -> _Standard:
    if suite is None:
        return _Standard(lay_over_defaults({}, labels=subject.labels), [], LatencyConfig(), [])
    if suite.task.labels != subject.labels:
        raise UserError(f"--suite: its task {suite.task.name} has other labels than {folder}")
    return _Standard(
        lay_over_defaults(suite.config.gates, labels=subject.labels),
        read_suite_cases(suite, label_names=subject.label_names),
        suite.config.latency,
        [waiver for waiver in suite.config.waive if not waiver.arms],
    )


def _try_model(
    run: Run, standard: _Standard, subject: Subject, open_predictor: Callable[[], Predictor]
) -> tuple[EdgeCases | None, Latency | None]:
    """Run the edge cases, and time the model where a gate asks for it."""
    edge_cases = latency = None
    if standard.cases:
        edge_cases = run_cases(open_predictor(), standard.cases, name=run.record.name, fit=run.fit)
    if "p95_ms" in standard.gates:
        found = measure_latencies({"": open_predictor()}, subject.rows, standard.latency)
        latency = found[""]
    return edge_cases, latency


def _judge(run: Run, subject: Subject, standard: _Standard, trials: _Trials) -> EvaluationResult:
    """Audit, measure and decide."""
    record, data = run.record, subject.data
    name, metric = record.name, _find_leading_metric(record.recipe)
    run, audit, positions = _audit(run, subject)
    rows = open_rows([subject.rows[i] for i in positions], data)
    audit += check_variation(name, rows.labels, {record.recipe.train.seed: run.outputs})
    variant = measure_variant([run], rows).replace(
        edge_cases=trials.edge_cases, latency=trials.latency
    )
    baselines = measure_baselines(subject.train_rows, rows.rows, names=rows.names, task=data.task)
    values = {key: found.metrics.get(metric) for key, found in baselines.items()}
    audit += check_baselines(metric, {name: variant.metrics.get(metric)}, values)
    audit = apply_waivers(audit + check_fit(name, variant, metric), standard.waivers)
    splits: Mapping[Split, MetricValue] = {}
    if trials.splits:
        limit = record.recipe.train.limit_rows
        splits = measure_earlier([trials.splits], data, metric=metric, limit=limit)
    variant = judge_variant(
        name,
        variant,
        [run],
        rows,
        criteria=Criteria(standard.gates, metric, audit, values["constant"]),
        splits=splits,
        provisional=False,  # what is deployed is this very run, not another seed of its recipe
    )
    described = describe_rows(rows.rows, rows.labels, {name: [run.shown]})
    return EvaluationResult(
        **dict(variant),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        name=name,
        task=data.task.name,
        data=subject.name,
        metric=metric,
        label_type=find_label_type(rows.labels),
        label_names=rows.names,
        num_rows=len(rows.rows),
        num_test_rows=len(subject.rows),
        num_dropped=len(subject.rows) - len(rows.rows),
        num_rejected=subject.num_rejected,
        audit=audit,
        baselines=baselines,
        rows=described,
        worst_rows=pick_worst(described),
    )


def _find_leading_metric(recipe: RecipeConfig) -> str:
    """Return the metric that chose the checkpoint, or the head's own if that was the loss."""
    metric = recipe.train.metric
    return SELECTION_METRIC[recipe.head.type] if metric in (None, "loss") else metric


def _audit(run: Run, subject: Subject) -> tuple[Run, list[Finding], list[int]]:
    """Return the run on the rows to score, what the audit says, and the rows' positions."""
    assert run.seen is not None
    facts = RunFacts(run.record.name, str(run.path), run.record, name_fit(run.fit))
    fit, findings = choose_fit(run.fit, split=subject.name)
    found = audit_run(
        facts, run.seen, subject.rows,
        data=subject.data, name=subject.name, num_reads=run.num_test_reads,
    )  # fmt: skip
    findings += found.findings
    if subject.num_strange:
        message = f"{subject.num_strange} rows were left out: the model does not know their labels"
        findings.append(
            Finding(check="known classes", status="warning", variants=[], message=message)
        )
    return run._replace(seen=run.seen.take(found.scored), fit=fit), findings, found.scored
