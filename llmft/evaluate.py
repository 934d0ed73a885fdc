"""`llmft evaluate RUN`: measure a trained run and decide whether it may be deployed."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from llmft import __version__
from llmft.config.head import SELECTION_METRIC, Head
from llmft.config.suite import GateConfig, Suite, get_default_gates, load_suite
from llmft.config.task import SourceConfig, TaskConfig
from llmft.console import run_verb
from llmft.data.batches import make_targets
from llmft.data.files import hash_file, write_json
from llmft.data.prepared import Row, open_prepared
from llmft.data.reading import read_labelled
from llmft.data.splitting import SPLITS
from llmft.errors import UserError
from llmft.evaluation.audit import (
    Finding,
    RunFacts,
    check_baselines,
    check_inputs,
    check_overlap,
    check_run,
)
from llmft.evaluation.gates import apply_gates, decide
from llmft.evaluation.metrics import find_label_type, is_better, measure
from llmft.evaluation.statistics import estimate_interval, estimate_part_intervals
from llmft.evaluation.tables import (
    describe_measured,
    describe_outputs,
    describe_rows,
    measure_baselines,
    name_parts,
    pick_worst,
)
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.processes import get_world_size, is_main, main_first
from llmft.reports.evaluation import write_evaluation_report
from llmft.training.run_folder import read_history, read_metadata

logger = logging.getLogger("llmft.evaluate")  # `python -m` calls this module __main__


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=SPLITS, default="test", help="split to measure (test)")
    what.add_argument("--data", type=Path, metavar="FILE", help="labelled rows from elsewhere")
    parser.add_argument("--suite", type=Path, help="suite whose gates decide")
    parser.add_argument(
        "--require", choices=["deploy", "review"], help="exit with 1 if the decision is worse"
    )
    args = parser.parse_args(arguments)
    suite = load_suite(args.suite) if args.suite else None
    results = evaluate_run(args.run, split=args.split, data_file=args.data, suite=suite)
    if results is None:
        return 0
    accepted = {"deploy": ["DEPLOY"], "review": ["DEPLOY", "REVIEW"]}
    return int(bool(args.require) and results["decision"] not in accepted[args.require])


class _Subject(NamedTuple):
    """The rows to be measured."""

    name: str
    rows: list[Row]
    train_rows: list[Row]
    known_texts: list[str]
    """Texts that the model was trained or selected on."""
    label_names: list[str]
    task: TaskConfig
    fingerprint: str
    """Of the prepared data, or the hash of the file."""
    num_rejected: int = 0
    num_strange: int = 0
    """Rows left out since the model does not know their class or labels."""


def evaluate_run(
    run: Path, *, split: str = "test", data_file: Path | None = None, suite: Suite | None = None
) -> dict[str, Any] | None:
    """Measure a run, decide, and write results and report.

    All processes of a launch share the prediction; the main one does the rest.

    Returns:
        The results, as written; None in the other processes.

    Raises:
        UserError: If the run is not finished or the rows cannot be read.
    """
    with main_first():  # where something is wrong, one process says so
        metadata = read_metadata(run)
        task = TaskConfig.model_validate(metadata["task"])
        gates: dict[Any, GateConfig] = get_default_gates(task.labels)
        if suite is not None:
            if suite.task.labels != task.labels:
                raise UserError(f"--suite: its task {suite.task.name} has other labels than {run}")
            gates = suite.config.gates or gates
        subject = _open_subject(task, split, data_file, metadata)
    seen = load_or_predict(
        run,
        subject.rows,
        path=run / "predictions" / f"{subject.name}.parquet",
        source={"model": metadata["model_hash"], "data": subject.fingerprint},
        across_processes=get_world_size() > 1,
    ).align([row["id"] for row in subject.rows])
    if not is_main():
        return None
    results = _judge(run, metadata, subject, seen, gates)
    folder = run / "evaluation"
    write_json(folder / f"{subject.name}.json", results)
    report = write_evaluation_report(results, folder=folder)
    _log_summary(results)
    logger.info("report: %s", report.resolve())
    return results


def _open_subject(
    task: TaskConfig, split: str, data_file: Path | None, metadata: dict[str, Any]
) -> _Subject:
    data = open_prepared(
        task, mend=f"train again, or restore what {metadata['recipe']['task']} said at that time"
    )
    if data.fingerprint != metadata["data_fingerprint"]:
        raise UserError(
            f"{task.output}: prepared anew since this run was trained, so rows may have moved "
            "between the splits; train again, or prepare from the same sources and seed"
        )
    train_rows = data.read_split("train")
    subject = _Subject(
        name=split,
        rows=data.read_split(split),
        train_rows=train_rows,
        known_texts=[row["text"] for row in (*train_rows, *data.read_split("val"))],
        label_names=data.label_names,
        task=task,
        fingerprint=data.fingerprint,
    )
    if data_file is None:
        return subject
    task = task.model_copy(update={"sources": [SourceConfig(path=str(data_file))]})
    rows, rejected = read_labelled(task)
    known = [row for row in rows if not _is_strange(row["labels"], data.label_names)]
    if not known:
        first = f"; the first: line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise UserError(f"{data_file}: none of its rows has a label that {task.name} knows{first}")
    return subject._replace(
        name=f"data-{data_file.stem}",
        rows=known,
        fingerprint=hash_file(data_file),
        num_rejected=len(rejected),
        num_strange=len(rows) - len(known),
    )


def _judge(
    run: Path,
    metadata: dict[str, Any],
    subject: _Subject,
    seen: StoredPredictions,
    gates: dict[Any, GateConfig],
) -> dict[str, Any]:
    """Audit, measure and decide; return the results file."""
    names, config = subject.label_names, subject.task.labels
    labels = make_targets(subject.rows, label_names=names).numpy()
    outputs, name = seen.outputs, metadata["name"]
    audit = _audit(RunFacts(name, str(run), metadata), seen, subject)
    measured = measure(labels, outputs, names=names, config=config)
    intervals = {
        metric: estimate_interval(metric, labels, [outputs], config=config)
        for metric in measured.overall
    }
    gate_results = apply_gates(
        gates, metrics=measured.overall, intervals=intervals, num_rows=len(labels)
    )
    baselines = measure_baselines(subject.train_rows, subject.rows, names=names, task=subject.task)
    metric = _find_leading_metric(metadata["recipe"])
    value = measured.overall.get(metric)
    others = {key: found.overall.get(metric) for key, found in baselines.items()}
    audit += check_baselines(metric, {name: value}, others)
    beats_constant = is_better(metric, value, others["constant"])
    described = describe_rows(subject.rows, labels, {name: outputs})
    return {
        "schema_version": 1,
        "llmft_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run": str(run),
        "name": name,
        "task": metadata["task"]["name"],
        "data": subject.name,
        "label_type": find_label_type(labels),
        "label_names": names,
        "metric": metric,
        "num_rows": len(subject.rows),
        "num_rejected": subject.num_rejected,
        "decision": decide(gate_results, findings=audit, beats_constant=beats_constant),
        "gates": [g._asdict() for g in gate_results],
        "metrics": measured.overall,
        "intervals": intervals,
        name_parts(labels): measured.parts,
        "part_intervals": estimate_part_intervals(labels, outputs, names=names)._asdict(),
        **describe_outputs(labels, [outputs], names=names, config=config),
        "baselines": {key: describe_measured(m, labels) for key, m in baselines.items()},
        "audit": [finding._asdict() for finding in audit],
        "history": read_history(run),
        "training": {key: value for key, value in metadata.items() if key != "task"},
        "rows": described,
        "worst_rows": pick_worst(described, subject.rows),
    }


def _find_leading_metric(recipe: dict[str, Any]) -> str:
    """Return the metric that chose the checkpoint, or the head's own if that was the loss."""
    metric: str | None = recipe["train"]["metric"]
    head: Head = recipe["head"]["type"]
    return SELECTION_METRIC[head] if metric in (None, "loss") else metric


def _audit(facts: RunFacts, seen: StoredPredictions, subject: _Subject) -> list[Finding]:
    texts = [row["text"] for row in subject.rows]
    audit = [*check_run(facts), *check_inputs(facts.arm, seen, texts)]
    if subject.name in ("train", "val"):
        message = f"{subject.name} took part in the training, so it proves nothing"
        return [*audit, Finding("unseen rows", "invalid", [], message)]
    threshold = facts.metadata["task"]["clean"]["near_duplicates"]
    audit += check_overlap(texts, subject.known_texts, threshold=threshold)
    if subject.num_strange:
        message = f"{subject.num_strange} rows were left out: the model does not know their labels"
        audit.append(Finding("known classes", "warning", [], message))
    return audit


def _is_strange(labels: Any, label_names: list[str]) -> bool:
    named = {labels} if isinstance(labels, str) else set(labels)
    return not named <= set(label_names)


def _log_summary(results: dict[str, Any]) -> None:
    shown = {"model": results["metrics"], **results["baselines"]}
    logger.info("%s on %d rows of %s", results["name"], results["num_rows"], results["data"])
    for arm, metrics in shown.items():
        numbers = ", ".join(
            f"{key} {value:z.3f}" for key, value in metrics.items() if isinstance(value, float)
        )
        logger.info("  %-9s %s", arm, numbers)
    for gate in results["gates"]:
        logger.info(
            "  gate %s: %s (value %s, bound %s, deploy %g, review %g)",
            gate["metric"], gate["result"], _show(gate["value"]), _show(gate["bound"]),
            gate["deploy"], gate["review"],
        )  # fmt: skip
    for finding in results["audit"]:
        if finding["status"] != "ok":
            logger.info("  %s: %s", finding["status"], finding["message"])
    logger.info("decision: %s", results["decision"])


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
