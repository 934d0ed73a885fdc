"""`llmft evaluate RUN`: measure a trained run and decide whether it may be deployed."""

import argparse
import functools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llmft import __version__
from llmft.config.audit import WaiverConfig
from llmft.config.fits import FITS
from llmft.config.gates import GateConfig, lay_over_defaults
from llmft.config.head import SELECTION_METRIC, Head
from llmft.config.suite import LatencyConfig, Suite, load_suite
from llmft.console import run_verb
from llmft.data.splitting import SPLITS
from llmft.errors import UserError
from llmft.evaluation.arms import Run
from llmft.evaluation.audit import (
    Finding,
    RunFacts,
    apply_waivers,
    audit_run,
    check_baselines,
    check_variation,
)
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.fitting import change_fit, check_fit, choose_fit, name_fit
from llmft.evaluation.gate_facts import measure_earlier, predict_earlier
from llmft.evaluation.gates import meets
from llmft.evaluation.judgement import Judged, Probed, judge_arm
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.metrics import find_label_type
from llmft.evaluation.reads import count_test_reads
from llmft.evaluation.scored import Scored, open_scored
from llmft.evaluation.subject import Subject, open_subject
from llmft.evaluation.tables import (
    describe_measured,
    describe_rows,
    measure_baselines,
    name_parts,
    pick_worst,
)
from llmft.evaluation.variants import describe_runs
from llmft.files import write_json
from llmft.prediction.fits import Fit, read_fit
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.processes import get_world_size, is_main, main_first
from llmft.reports.evaluation import write_evaluation_report
from llmft.reports.terminal import describe_evaluation
from llmft.training.run_folder import read_history, read_metadata

logger = logging.getLogger("llmft.evaluate")  # `python -m` calls this module __main__


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=SPLITS, default="test", help="split to measure (test)")
    what.add_argument("--data", type=Path, metavar="FILE", help="labelled rows from elsewhere")
    parser.add_argument("--suite", type=Path, help="suite whose gates, cases and waivers count")
    parser.add_argument(
        "--require", choices=["deploy", "review"], help="exit with 1 if the decision is worse"
    )
    parser.add_argument(
        "--fit", choices=[*FITS, "none"],
        help="fit the outputs on val before they are measured, and from then on; none removes it",
    )  # fmt: skip
    parser.add_argument("--min-recall", type=float, help="recall that --fit precision keeps (0.90)")
    args = parser.parse_args(arguments)
    suite = load_suite(args.suite) if args.suite else None
    change_fit(args.run, args.fit, min_recall=args.min_recall, split=args.split)
    results = evaluate_run(args.run, split=args.split, data_file=args.data, suite=suite)
    if results is None:
        return 0
    return int(not meets(results["decision"], args.require))


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
        subject = open_subject(metadata, split=split, data_file=data_file)
        fit = read_fit(run, model_hash=metadata["model_hash"])
        judging = _open_judging(suite, subject, run)._replace(fit=fit)
    open_predictor = functools.cache(lambda: Predictor.open(run))
    across = get_world_size() > 1
    seen = load_or_predict(
        run,
        subject.rows,
        path=run / "predictions" / f"{subject.name}.parquet",
        source={"model": metadata["model_hash"], "data": subject.fingerprint},
        across_processes=across,
        open_predictor=open_predictor,
    )
    earlier: dict[str, StoredPredictions] = {}
    if subject.name == "test" and judging.gates.keys() & {"val_test_gap", "train_val_gap"}:
        earlier = predict_earlier(
            run, metadata, subject.data, across_processes=across, open_predictor=open_predictor
        )
    if not is_main():
        return None
    seen = seen.align([row["id"] for row in subject.rows])
    probed = _probe(judging, subject, metadata["name"], open_predictor)
    opened = Run(run, metadata, seen, judging.fit)
    results = _judge(opened, subject, earlier, probed, judging)
    folder = run / "evaluation"
    write_json(folder / f"{subject.name}.json", results)
    report = write_evaluation_report(results, folder=folder)
    for line in describe_evaluation(results):
        logger.info("%s", line)
    logger.info("report: %s", report.resolve())
    return results


class _Judging(NamedTuple):
    """What a run is judged by."""

    gates: dict[str, GateConfig]
    cases: list[EdgeCase]
    latency: LatencyConfig
    waivers: list[WaiverConfig]
    """Those of the suite that are for all arms."""
    fit: Fit | None = None


def _open_judging(suite: Suite | None, subject: Subject, run: Path) -> _Judging:
    if suite is None:
        return _Judging(lay_over_defaults({}, labels=subject.labels), [], LatencyConfig(), [])
    if suite.task.labels != subject.labels:
        raise UserError(f"--suite: its task {suite.task.name} has other labels than {run}")
    return _Judging(
        lay_over_defaults(suite.config.gates, labels=subject.labels),
        read_suite_cases(suite, label_names=subject.label_names),
        suite.config.latency,
        [waiver for waiver in suite.config.waive if not waiver.arms],
    )


def _probe(
    judging: _Judging, subject: Subject, name: str, open_predictor: Callable[[], Predictor]
) -> Probed:
    """Run the edge cases, and time the model where a gate asks for it."""
    edge_cases = latency = None
    if judging.cases:
        edge_cases = run_cases(open_predictor(), judging.cases, name=name, fit=judging.fit)
    if "p95_ms" in judging.gates:
        found = measure_latencies({name: open_predictor()}, subject.rows, judging.latency)
        latency = found[name]
    return Probed(edge_cases, latency)


def _judge(
    run: Run,
    subject: Subject,
    earlier: dict[str, StoredPredictions],
    probed: Probed,
    judging: _Judging,
) -> dict[str, Any]:
    """Audit, measure and decide; return the results file."""
    metadata = run.metadata
    name, metric = metadata["name"], _find_leading_metric(metadata["recipe"])
    run, audit, positions = _audit(run, subject)
    scored = open_scored([subject.rows[i] for i in positions], subject.data)
    audit += check_variation(
        name, scored.labels, {metadata["recipe"]["train"]["seed"]: run.outputs}
    )
    measured = scored.measure([run.outputs])
    described = describe_runs([run], measured, scored, metric=metric)
    baselines = measure_baselines(
        subject.train_rows, scored.rows, names=scored.names, task=subject.data.task
    )
    values = {key: found.overall.get(metric) for key, found in baselines.items()}
    audit += check_baselines(metric, {name: described["metrics"].get(metric)}, values)
    audit += check_fit(name, described, metric)
    audit = apply_waivers(audit, judging.waivers)
    limit = metadata["recipe"]["train"]["limit_rows"]
    history = read_history(run.path)
    splits = {}
    if earlier:
        splits = measure_earlier([earlier], subject.data, metric=metric, limit=limit)
    variant = {**described, "histories": [history]}
    judged = judge_arm(
        Judged(name, [run], variant, splits, probed, audit, values["constant"]),
        scored,
        gates=judging.gates,
        metric=metric,
        provisional=False,  # what is deployed is this very run, not another seed of its recipe
    )
    rows = describe_rows(scored.rows, scored.labels, {name: [run.shown]})
    return {
        **_describe_subject(run, subject, scored),
        "metric": metric,
        "test_reads": count_test_reads(run.path),
        **judged,
        **described,
        name_parts(scored.labels): measured[0].parts,
        "baselines": {k: describe_measured(m, scored.labels) for k, m in baselines.items()},
        "audit": [finding._asdict() for finding in audit],
        "history": history,
        "edge_cases": {} if probed.edge_cases is None else {name: probed.edge_cases},
        "latency": {} if probed.latency is None else {name: probed.latency._asdict()},
        "training": {key: value for key, value in metadata.items() if key != "task"},
        "rows": rows,
        "worst_rows": pick_worst(rows),
    }


def _describe_subject(run: Run, subject: Subject, scored: Scored) -> dict[str, Any]:
    """Return what was measured, and on which rows."""
    return {
        "schema_version": 2,
        "llmft_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run": str(run.path),
        "name": run.metadata["name"],
        "task": subject.data.task.name,
        "data": subject.name,
        "label_type": find_label_type(scored.labels),
        "label_names": scored.names,
        "num_rows": len(scored.rows),
        "num_test_rows": len(subject.rows),
        "num_dropped": len(subject.rows) - len(scored.rows),
        "num_rejected": subject.num_rejected,
    }


def _find_leading_metric(recipe: dict[str, Any]) -> str:
    """Return the metric that chose the checkpoint, or the head's own if that was the loss."""
    metric: str | None = recipe["train"]["metric"]
    head: Head = recipe["head"]["type"]
    return SELECTION_METRIC[head] if metric in (None, "loss") else metric


def _audit(run: Run, subject: Subject) -> tuple[Run, list[Finding], list[int]]:
    """Return the run on the rows to score, what the audit says, and the rows' positions."""
    assert run.seen is not None
    facts = RunFacts(run.metadata["name"], str(run.path), run.metadata, name_fit(run.fit))
    fit, findings = choose_fit(run.fit, split=subject.name)
    found = audit_run(facts, run.seen, subject.rows, data=subject.data, name=subject.name)
    findings += found.findings
    if subject.num_strange:
        message = f"{subject.num_strange} rows were left out: the model does not know their labels"
        findings.append(Finding("known classes", "warning", [], message))
    return run._replace(seen=run.seen.take(found.scored), fit=fit), findings, found.scored


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
