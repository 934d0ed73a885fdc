"""The steps of `evaluate`: measure and audit one run, and decide whether to deploy it."""

import contextlib
import functools
import itertools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft.audit.collapsed_predictions import check_baselines, check_collapsed_predictions
from llmft.audit.comparability import check_run, check_test_use
from llmft.audit.contamination import check_contamination
from llmft.audit.findings import RunFacts, apply_waivers, make_finding
from llmft.audit.truncation import check_inputs, check_oracle_view
from llmft.config.loading import LocatedValues, Origin, validate
from llmft.config.suite import (
    GateConfig,
    LatencyConfig,
    ResolvedSuite,
    WaiverConfig,
    merge_with_defaults,
)
from llmft.config.task import (
    SEEN_SPLITS,
    LabelsConfig,
    SourceConfig,
    Split,
)
from llmft.data.fields import Row
from llmft.data.labels import has_unknown_label, list_named, list_unknown_labels
from llmft.data.prepared import PreparedData
from llmft.data.reading import is_asked_for, read_labelled
from llmft.data.sources import split_ending
from llmft.data.splitting import cluster_rows, mark_clusters
from llmft.errors import UserError
from llmft.evaluation.baselines import measure_baselines
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.gates import measure_train_and_val, predict_train_and_val
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.post_hoc_fitting import check_fit, choose_fit, name_fit, open_trained_data
from llmft.evaluation.probe_baseline import predict_probe
from llmft.evaluation.rows import describe_rows, open_rows, pick_worst
from llmft.evaluation.variants import (
    Criteria,
    Run,
    decide_variant,
    measure_variant,
)
from llmft.files import StrPath, hash_file
from llmft.metrics.definitions import find_label_type
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict, name_source
from llmft.processes import get_world_size, is_main, main_first
from llmft.results.evaluation import EdgeCases, EvaluationResult, Finding, Latency, MetricValue
from llmft.wording import shorten_list

if TYPE_CHECKING:
    import pandas as pd

    PathOrFrame = StrPath | pd.DataFrame


class EvaluationRows(NamedTuple):
    """The rows to evaluate a run on."""

    name: str
    """Name of the split, or `data-` and the name of the file or DataFrame: one for each file."""
    rows: list[Row]
    data: PreparedData
    """The prepared data that the run was trained on."""
    fingerprint: str
    """Of the prepared data, or of the file or DataFrame."""
    file: str | None = None
    """The file as the user named it; None for a split or a DataFrame."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Why rows of the file are not measured -> how many."""
    unknown: Sequence[str] = ()
    """Classes or labels of the rows that the model does not know."""

    @property
    def labels(self) -> LabelsConfig:
        """The task's labels."""
        return self.data.task.labels

    @property
    def coverage(self) -> float:
        """Fraction of the rows that the task asks for which could be used."""
        num_lost = sum(n for why, n in self.left_out.items() if not is_asked_for(why))
        return len(self.rows) / (len(self.rows) + num_lost)


def open_evaluation_rows(run: Run, *, split: Split, source: "PathOrFrame | None") -> EvaluationRows:
    """Return the rows of a split, or of a file or DataFrame in the format of the task's sources.

    Args:
        run: The run.
        split: Name of the split.
        source: Labelled rows to use instead of the split.

    Raises:
        UserError: If the data was prepared again since, or no row of the file can be used.
    """
    data = open_trained_data(run.record)
    subject = EvaluationRows(
        name=split,
        rows=data.read_split(split),
        data=data,
        fingerprint=data.fingerprint,
    )
    return subject if source is None else _read_labelled_rows(subject, source, run=run.path)


def _read_labelled_rows(
    subject: EvaluationRows, source: "PathOrFrame", *, run: Path
) -> EvaluationRows:
    located = LocatedValues({"path": source}, {(): Origin("data", 0)})
    task, config = subject.data.task, validate(located, schema=SourceConfig)
    path = Path(config.path)
    if config.frame is None:
        config = config.model_copy(update=_find_common_keys(task.sources, path))
    changes = {"name": config.path, "sources": [config]}
    rows, rejected = read_labelled(task.model_copy(update=changes))  # errors name the source
    mark_clusters(rows, cluster_rows(rows, task)[1])
    names = subject.data.label_names
    unknown = list_unknown_labels([row["labels"] for row in rows], names)
    if not list_named([row["labels"] for row in rows]) & {*names} and (unknown or not rows):
        first = f"; the first: line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        if rows:
            first = f"; found {shorten_list(unknown)}, known are {shorten_list(names)}"
        raise UserError(
            f"{path}: none of its rows has a label of the task {task.name}{first}; "
            "name a file of this task"
        )
    return subject._replace(
        name=_name_file(path, folder=run / "evaluation"),
        file=None if config.frame else config.path,
        rows=rows,
        fingerprint=config.path if config.frame else hash_file(path),
        left_out=dict(Counter(rejection.kind for rejection in rejected).most_common()),
        unknown=unknown,
    )


def _name_file(path: Path, *, folder: Path) -> str:
    """Return `data-STEM`, with a number behind it where that is the name of another file's rows."""
    stem = f"data-{path.stem.replace(':', '-')}"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    names = itertools.chain([stem], numbered)
    return next(name for name in names if not _is_of_another(path, folder / f"{name}.json"))


def _is_of_another(path: Path, result: Path) -> bool:
    """Return whether the result, if there is one, is of the rows of another file."""
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        return Path(json.loads(result.read_bytes())["file"]).resolve() != path.resolve()
    return False


def _find_common_keys(sources: Sequence[SourceConfig], path: Path) -> dict[str, Any]:
    """Return how all files of a task are written: another file is most likely written alike."""
    ending = split_ending(path)[0]
    names = {".parquet": [], ".jsonl": ["encoding"], ".json": ["encoding"]}
    found = {}
    for name in names.get(ending, ["encoding", "delimiter", "columns"]):
        first, *others = [getattr(source, name) for source in sources]
        if all(other == first for other in others):
            found[name] = first
    return found


class _EvaluationSettings(NamedTuple):
    """Settings of an evaluation: from the suite, or defaults."""

    gates: Mapping[str, GateConfig]
    cases: list[EdgeCase]
    latency: LatencyConfig
    waivers: list[WaiverConfig]
    """Those of the suite that are for all variants."""


class Evaluation(NamedTuple):
    """A run, the rows to evaluate it on, and the settings."""

    run: Run
    rows: EvaluationRows
    settings: _EvaluationSettings


def open_evaluation(
    folder: Path,
    *,
    split: Split = "test",
    source: "PathOrFrame | None" = None,
    suite: ResolvedSuite | None = None,
) -> Evaluation:
    """Open a run and the rows to evaluate it on.

    Args:
        folder: Its folder.
        split: The split to measure it on.
        source: Labelled rows to use instead of the split.
        suite: Gates, edge cases and waivers.

    Raises:
        UserError: If the run is not finished or the rows cannot be read.
    """
    with main_first():  # so that one process reports an error, not all
        run = Run.open(folder)
        rows = open_evaluation_rows(run, split=split, source=source)
        return Evaluation(run, rows, _open_settings(suite, rows, folder))


def evaluate_run(evaluation: Evaluation, *, probe: Path | None) -> EvaluationResult | None:
    """Predict, audit and measure a run, and decide whether to deploy it.

    Prediction is distributed over all processes of a launch; the main one does the rest.

    Args:
        evaluation: The run, the rows and the settings.
        probe: The finished run of the baseline `probe`; None to leave it out.

    Returns:
        The result; None in the other processes.

    Raises:
        UserError: If the model changed since, or a row cannot be predicted.
    """
    run, subject, settings = evaluation
    record, folder = run.record, run.path
    open_predictor = functools.cache(lambda: Predictor.open(folder))
    across = get_world_size() > 1
    predictions = load_or_predict(
        folder,
        subject.rows,
        path=folder / "predictions" / f"{subject.name}.parquet",
        source=name_source(record.model_hash, subject.fingerprint),
        across_processes=across,
        open_predictor=open_predictor,
    )
    train_val_predictions: Mapping[Split, StoredPredictions] = {}
    if subject.name == "test" and settings.gates.keys() & {"val_test_gap", "train_val_gap"}:
        train_val_predictions = predict_train_and_val(
            folder, record, subject.data,
            names=settings.gates, across_processes=across, open_predictor=open_predictor,
        )  # fmt: skip
    if not is_main():
        return None
    edge_cases = latency = None
    if settings.cases:
        edge_cases = run_cases(open_predictor(), settings.cases, name=record.name)
    if "p95_ms" in settings.gates:
        latency = measure_latencies({"": open_predictor()}, subject.rows, settings.latency)[""]
    run = run._replace(
        predictions=predictions.align([row["id"] for row in subject.rows]),
        num_test_reads=run.num_test_reads + (subject.name == "test"),
        num_unknown=len(subject.unknown),
    )
    return _measure(
        run, subject, settings,
        edge_cases=edge_cases, latency=latency, train_val_predictions=train_val_predictions,
        probe=probe,
    )  # fmt: skip


def audit_run(run: Run, subject: EvaluationRows) -> tuple[list[Finding], list[int]]:
    """Audit a run on the rows to evaluate.

    Args:
        run: The run, with its predictions in the order of the rows.
        subject: The rows.

    Returns:
        The findings, and the positions of the rows to measure: those that are not contaminated.

    Raises:
        UserError: If `llmft.json` is broken.
    """
    assert run.predictions is not None
    facts = RunFacts(run.record.name, str(run.path), run.record, name_fit(run.fit))
    texts = [row["text"] for row in subject.rows]
    findings = [
        *check_run(facts),
        *check_inputs(facts, run.predictions, texts),
        *check_oracle_view(facts, run.predictions, texts, view=subject.data.task.oracle_sees),
    ]
    positions = list(range(len(subject.rows)))
    if subject.name in SEEN_SPLITS:
        message = f"{subject.name} was used in the training, so the metrics are too optimistic"
        findings.append(make_finding("contamination", "invalid", message))
    else:
        contamination = check_contamination([facts], subject.rows, data=subject.data)
        findings += contamination.findings
        positions = contamination.drop(subject.rows)
    if subject.name == "test":
        findings += check_test_use(facts, num_reads=run.num_test_reads)
    num_unknown = sum(
        has_unknown_label(r["labels"], subject.data.label_names) for r in subject.rows
    )
    if num_unknown:
        message = (
            f"{num_unknown} of {len(subject.rows)} rows have a class or label that the model does "
            f"not know, so they count as wrong: {shorten_list(subject.unknown)}"
        )
        findings.append(make_finding("unknown_classes", "warning", message))
    return findings, positions


def _open_settings(
    suite: ResolvedSuite | None, subject: EvaluationRows, folder: Path
) -> _EvaluationSettings:
    if suite is None:
        return _EvaluationSettings(merge_with_defaults({}), [], LatencyConfig(), [])
    if suite.task.labels != subject.labels:
        raise UserError(
            f"suite: its task {suite.task.name} has other labels than {folder}; name a suite of "
            "its task"
        )
    return _EvaluationSettings(
        merge_with_defaults(suite.config.gates),
        read_suite_cases(suite, label_names=subject.data.label_names),
        suite.config.latency,
        [waiver for waiver in suite.config.waive if not waiver.variants],
    )


def _measure(
    run: Run,
    subject: EvaluationRows,
    settings: _EvaluationSettings,
    *,
    edge_cases: EdgeCases | None,
    latency: Latency | None,
    train_val_predictions: Mapping[Split, StoredPredictions],
    probe: Path | None,
) -> EvaluationResult:
    """Audit the run, measure it, and apply the gates."""
    record, data = run.record, subject.data
    name, metric = record.name, record.recipe.leading_metric
    assert run.predictions is not None
    findings, positions = audit_run(run, subject)
    fit, fit_findings = choose_fit(run.fit, split=subject.name)
    run = run._replace(predictions=run.predictions.take(positions), fit=fit)
    rows = open_rows([subject.rows[i] for i in positions], data, unknown=subject.unknown)
    outputs = [(record.recipe.train.seed, run.decision_scores)]
    findings += check_collapsed_predictions(name, rows.labels, outputs)
    audit = apply_waivers([*fit_findings, *findings], settings.waivers)
    variant = measure_variant([run], rows).replace(edge_cases=edge_cases, latency=latency)
    predicted = None
    if probe is not None and not record.is_frozen:
        predicted = predict_probe(
            probe, rows, name=subject.name, all_rows=subject.rows, data=subject.fingerprint
        )
    baselines = measure_baselines(
        {name: [run]}, rows, data=data, fit=fit, metric=metric, probe=predicted
    )
    values = baselines.get_values(metric)
    audit += check_baselines(metric, {name: variant.metrics.get(metric)}, values)
    variant = variant.replace(gains=baselines.gains[name])
    audit += [*check_fit(name, variant, metric), *rows.check_rare_classes()]
    splits: Mapping[Split, MetricValue] = {}
    if train_val_predictions:
        limit = record.recipe.train.limit_rows
        splits = measure_train_and_val([train_val_predictions], data, metric=metric, limit=limit)
    variant = decide_variant(
        name,
        variant,
        [run],
        rows,
        criteria=Criteria(settings.gates, metric, audit, values, subject.coverage),
        splits=splits,
    )
    described = describe_rows(rows.rows, rows.labels, {name: [run.final_outputs]}, names=rows.names)
    return EvaluationResult(
        **dict(variant),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        name=name,
        task=data.task.name,
        data=subject.name,
        file=subject.file,
        metric=metric,
        label_type=find_label_type(rows.labels),
        label_names=rows.names,
        num_rows=len(rows.rows),
        num_clusters=rows.num_clusters,
        num_test_rows=len(subject.rows),
        num_dropped=len(subject.rows) - len(rows.rows),
        left_out=dict(subject.left_out),
        coverage=subject.coverage,
        audit=audit,
        baselines=baselines.measurements,
        probe=baselines.probe,
        rows=described,
        worst_rows=pick_worst(described),
    )
