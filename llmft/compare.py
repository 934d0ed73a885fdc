"""`llmft compare SUITE`: judge the variants of a suite on the same rows, and name the winner."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft import __version__
from llmft.config.gates import lay_over_defaults
from llmft.config.suite import Suite, load_suite
from llmft.data.preparation import prepare_task
from llmft.data.prepared import PreparedData, is_prepared, open_prepared
from llmft.evaluation.arms import Arms, open_arms
from llmft.evaluation.audit import TREATMENT, Finding, check_baselines
from llmft.evaluation.closer import look_closer
from llmft.evaluation.differences import Rules, compare_with_reference
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.fitting import check_fit
from llmft.evaluation.gate_facts import measure_earlier, predict_earlier
from llmft.evaluation.gates import meets
from llmft.evaluation.judgement import (
    Judged,
    Outputs,
    Probed,
    decide_comparison,
    describe_pairs,
    find_cost,
    find_deciding_arms,
    judge_arm,
    judge_mixed,
)
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.noise import SecondLabels, read_second_labels
from llmft.evaluation.plan import Plan, plan_runs, refuse_other_recipes
from llmft.evaluation.scored import Scored, open_scored
from llmft.evaluation.slices import slice_rows
from llmft.evaluation.variants import describe_arms
from llmft.evaluation.verdict import find_valid_arms, is_provisional, reach_verdict
from llmft.files import write_json
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions
from llmft.reports.comparison import write_comparison_report
from llmft.reports.terminal import describe_comparison
from llmft.train import train

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="llmft compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("suite", type=Path, help="suite file (YAML)")
    parser.add_argument(
        "--train",
        action="store_true",
        help="prepare the data and train the arms first, as far as that is not done",
    )
    parser.add_argument(
        "--require", choices=["deploy", "review"], help="exit with 1 if the decision is worse"
    )
    args = parser.parse_args(arguments)
    suite = load_suite(args.suite)
    plan = plan_runs(suite)
    if args.train:
        _train_arms(suite, plan)
    results = compare_arms(suite, plan, suite_path=args.suite)
    return int(not meets(results["decision"], args.require))


def compare_arms(suite: Suite, plan: Plan, *, suite_path: Path) -> dict[str, Any]:
    """Audit, measure and compare the arms of a suite; write `comparison.json` and the reports.

    Returns:
        The results, as written.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    config, folder = suite.config, Path(suite.config.output_dir)
    data = open_prepared(suite.task, task_file=config.task)
    data.refuse_metric(config.metric, key="metric")
    test_rows = data.read_split("test")
    cases = read_suite_cases(suite, label_names=data.label_names)
    second = {
        kind: read_second_labels(path, task=suite.task, rows=test_rows, names=data.label_names)
        for kind, path in suite.noise_paths.items()
    }
    refuse_other_recipes(plan, data)
    opened = open_arms(
        {arm: [run.path for run in runs] for arm, runs in plan.items()},
        data=data,
        rows=test_rows,
        reference=config.reference,
        report=str(folder / "comparison.json"),
        treatment=config.treatment,
        waivers=config.waive,
    )
    scored_ids = {row["id"] for row in opened.rows}
    kept = [i for i, row in enumerate(test_rows) if row["id"] in scored_ids]
    it = _Comparison(
        suite,
        data,
        opened.arms,
        open_scored(opened.rows, data),
        {kind: labels.take(kept) for kind, labels in second.items()},
    )
    results = {
        **_describe_suite(it, suite_path=suite_path, num_test_rows=len(test_rows)),
        **_judge(it, opened.audit, cases),
    }
    write_json(folder / "comparison.json", results)
    report = write_comparison_report(results, folder=folder)
    for line in describe_comparison(results):
        logger.info("%s", line)
    logger.info("report: %s", report.resolve())
    return results


class _Comparison(NamedTuple):
    """What is compared."""

    suite: Suite
    data: PreparedData
    arms: Arms
    scored: Scored
    second: dict[str, SecondLabels]
    """`repeated`, `second_oracle` -> labels that scored rows were given a second time."""

    @property
    def rules(self) -> Rules:
        """By what arms are compared."""
        config = self.suite.config
        return Rules(config.metric, config.reference, config.margin, config.min_difference)


def _describe_suite(it: _Comparison, *, suite_path: Path, num_test_rows: int) -> dict[str, Any]:
    """Return what was asked for, and of which data."""
    config = it.suite.config
    return {
        "schema_version": 2,
        "llmft_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "suite": str(suite_path),
        "task": it.suite.task.name,
        "reference": config.reference,
        "metric": config.metric,
        "margin": config.margin,
        "min_difference": config.min_difference,
        "treatment": config.treatment or list(TREATMENT),
        "waivers": [waiver.model_dump() for waiver in config.waive],
        "num_test_rows": num_test_rows,
        "num_dropped": num_test_rows - len(it.scored.rows),
        "label_names": it.data.label_names,
        "data": {
            "fingerprint": it.data.fingerprint,
            **{k: it.data.manifest[k] for k in ("counts", "rejected", "near_duplicates", "split")},
        },
    }


def _judge(it: _Comparison, audit: list[Finding], cases: list[EdgeCase]) -> dict[str, Any]:
    """Return what is found out about the arms, from the verdict to the decision."""
    config, scored = it.suite.config, it.scored
    valid = find_valid_arms(list(it.arms), audit)
    outputs: Outputs = {arm: [run.outputs for run in it.arms[arm]] for arm in valid}
    differences, rules = {}, it.rules
    if config.reference in valid:
        differences = compare_with_reference(
            outputs, scored.labels, rules=rules, groups=scored.groups, config=scored.config
        )
    verdict = reach_verdict(
        differences, valid_arms=valid, findings=audit, reference=config.reference,
        metric=config.metric, margin=config.margin,
    )  # fmt: skip
    slicings = slice_rows(
        scored.rows, scored.labels, fields=config.slices, names=scored.names, config=scored.config
    )
    found = describe_arms(
        it.arms, valid, scored, data=it.data, metric=config.metric, slicings=slicings
    )
    values = {arm: found["variants"][arm]["metrics"].get(config.metric) for arm in valid}
    baselines = {name: base.get(config.metric) for name, base in found["baselines"].items()}
    audit = [*audit, *check_baselines(config.metric, values, baselines)]
    audit += [f for arm in valid for f in check_fit(arm, found["variants"][arm], rules.metric)]
    probed: dict[str, Probed] = {}
    closer: dict[str, Any] = {"pairs": [], "mixed": {}, "slices": [], "rare": None, "noise": []}
    recommended = verdict.winner
    if verdict.name != "INVALID":
        probed = _probe_arms(it, valid, cases)
        earlier = _judge_gates(it, found["variants"], probed, audit, constant=baselines["constant"])
        mixed = judge_mixed(
            earlier, outputs, scored, rules=rules,
            val_rows=it.data.read_split("val"),
            costs={arm: find_cost(probed[arm], found["variants"][arm]) for arm in valid},
            may_recommend=verdict.name != "CONFOUNDED",
        )  # fmt: skip
        recommended = mixed.best or recommended
        closer = {
            "pairs": describe_pairs(differences, outputs, scored, rules=rules),
            "mixed": mixed.described,
            **look_closer(it.suite, scored, outputs, slicings=slicings, second=it.second),
        }
    deciding = find_deciding_arms(verdict, valid, reference=config.reference)
    provisional = [arm for arm in deciding if is_provisional(len(it.arms[arm]))]
    ruling = decide_comparison(verdict, found["variants"], provisional=provisional)
    if recommended == verdict.winner and ruling.decision == "FAIL":
        recommended = None
    return {
        "verdict": verdict.name,
        "winner": verdict.winner,
        "why": verdict.why,
        **ruling._asdict(),
        "provisional": bool(provisional),
        "recommended": recommended,
        "num_rows": len(scored.rows),
        "num_groups": None if scored.groups is None else int(scored.groups.max()) + 1,
        "audit": [finding._asdict() for finding in audit],
        **found,
        **closer,
        "edge_cases": {arm: p.edge_cases for arm, p in probed.items() if p.edge_cases},
        "latency": {arm: p.latency._asdict() for arm, p in probed.items() if p.latency},
    }


def _probe_arms(it: _Comparison, valid: Sequence[str], cases: list[EdgeCase]) -> dict[str, Probed]:
    """Run the model of each arm's first run over the edge cases, and time all of them in turns."""
    predictors = {arm: Predictor.open(it.arms[arm][0].path) for arm in valid}
    latencies = measure_latencies(predictors, it.scored.rows, it.suite.config.latency)
    return {
        arm: Probed(
            run_cases(predictor, cases, name=arm, fit=it.arms[arm][0].fit) if cases else None,
            latencies[arm],
        )
        for arm, predictor in predictors.items()
    }


def _judge_gates(
    it: _Comparison,
    variants: dict[str, Any],
    probed: dict[str, Probed],
    audit: Sequence[Finding],
    *,
    constant: float | None,
) -> dict[str, list[StoredPredictions]]:
    """Add gates and decision to each valid arm; return what its runs predicted for validation."""
    config = it.suite.config
    gates = lay_over_defaults(config.gates, labels=it.scored.config)
    predicted: dict[str, list[StoredPredictions]] = {}
    for arm in probed:
        runs = it.arms[arm]
        earlier = [predict_earlier(run.path, run.metadata, it.data) for run in runs]
        limit = runs[0].metadata["recipe"]["train"]["limit_rows"]
        splits = measure_earlier(earlier, it.data, metric=config.metric, limit=limit)
        variants[arm] |= judge_arm(
            Judged(arm, runs, variants[arm], splits, probed[arm], audit, constant),
            it.scored,
            gates=gates,
            metric=config.metric,
            provisional=is_provisional(len(runs)),
        )
        predicted[arm] = [splits["val"] for splits in earlier]
    return predicted


def _train_arms(suite: Suite, plan: Plan) -> None:
    if not is_prepared(suite.task):
        prepare_task(suite.task, report=logger.info)
    data = open_prepared(suite.task, task_file=suite.config.task)
    read_suite_cases(suite, label_names=data.label_names)
    for arm, runs in plan.items():
        for run in runs:
            if run.recipe is not None:
                logger.info("\n%s: %s", arm, run.path)
                train(run.recipe)
    logger.info("")
