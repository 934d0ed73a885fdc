"""`llmft compare SUITE`: judge the variants of a suite on the same rows, and name the winner."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from llmft import __version__
from llmft.config.recipe import Recipe, load_recipe
from llmft.config.suite import Suite, load_suite
from llmft.data.batches import make_targets
from llmft.data.fields import RowFaultError
from llmft.data.files import write_json
from llmft.data.preparation import prepare_task
from llmft.data.prepared import PreparedData, Row, is_prepared, open_prepared
from llmft.data.prompts import read_prompt
from llmft.errors import UserError
from llmft.evaluation.arms import Arms, describe_pair, measure_arms, open_arms
from llmft.evaluation.audit import check_baselines
from llmft.evaluation.edge_cases import EdgeCase, check_cases, read_edge_cases, summarise_cases
from llmft.evaluation.latency import measure_latency
from llmft.evaluation.statistics import Difference, compare_runs
from llmft.evaluation.verdict import find_valid_arms, reach_verdict
from llmft.prediction.inference import Predictor
from llmft.reports.comparison import write_comparison_report
from llmft.train import train
from llmft.training.run_folder import RunIdentity, list_differences, read_metadata

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
    args = parser.parse_args(arguments)
    suite = load_suite(args.suite)
    plan = _plan_runs(suite)
    if args.train:
        _train_arms(suite, plan)
    compare_arms(suite, plan, suite_path=args.suite)
    return 0


class _PlannedRun(NamedTuple):
    """A run that the suite names."""

    path: Path
    recipe: Recipe | None
    """What it is to be trained from; None if the suite names the folder itself."""


Plan = dict[str, list[_PlannedRun]]


def compare_arms(suite: Suite, plan: Plan, *, suite_path: Path) -> dict[str, Any]:
    """Audit, measure and compare the arms of a suite; write `comparison.json` and the reports.

    Returns:
        The results, as written.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    config = suite.config
    data = open_prepared(suite.task, task_file=config.task)
    data.refuse_metric(config.metric, key="metric")
    rows = data.read_split("test")
    cases = _read_cases(suite, data)
    _refuse_other_recipes(plan, data)
    paths = {arm: [run.path for run in runs] for arm, runs in plan.items()}
    arms, audit = open_arms(paths, data=data, rows=rows, reference=config.reference)
    valid = find_valid_arms(list(arms), audit)
    labels = make_targets(rows, label_names=data.label_names).numpy()
    differences = _compare_with_reference(arms, valid, labels, suite)
    verdict = reach_verdict(
        differences, valid_arms=valid, findings=audit, reference=config.reference,
        metric=config.metric, margin=config.margin,
    )  # fmt: skip
    measured = measure_arms(arms, valid, data, rows, labels, metric=config.metric)
    audit += check_baselines(
        config.metric,
        {arm: measured["variants"][arm]["metrics"].get(config.metric) for arm in valid},
        {name: found.get(config.metric) for name, found in measured["baselines"].items()},
    )
    results = {
        "schema_version": 1,
        "llmft_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "suite": str(suite_path),
        "task": suite.task.name,
        "verdict": verdict.name,
        "winner": verdict.winner,
        "why": verdict.why,
        "reference": config.reference,
        "metric": config.metric,
        "margin": config.margin,
        "num_rows": len(rows),
        "label_names": data.label_names,
        "data": {
            "fingerprint": data.fingerprint,
            **{k: data.manifest[k] for k in ("counts", "rejected", "near_duplicates", "split")},
        },
        "audit": [finding._asdict() for finding in audit],
        "pairs": [describe_pair(arm, config.reference, d) for arm, d in differences.items()],
        **measured,
        **_probe_arms(arms, valid, cases, rows),
    }
    folder = Path(config.output_dir)
    write_json(folder / "comparison.json", results)
    report = write_comparison_report(results, folder=folder)
    _log_summary(results)
    logger.info("report: %s", report.resolve())
    return results


def _compare_with_reference(
    arms: Arms, valid: Sequence[str], labels: NDArray[Any], suite: Suite
) -> dict[str, Difference]:
    """Return challenger -> its gain, as far as the metric is defined for the rows."""
    config = suite.config
    if config.reference not in valid:
        return {}
    found = {
        arm: compare_runs(
            config.metric,
            labels,
            reference=[run.outputs for run in arms[config.reference]],
            challenger=[run.outputs for run in arms[arm]],
            margin=config.margin,
            config=suite.task.labels,
        )
        for arm in valid
        if arm != config.reference
    }
    return {arm: difference for arm, difference in found.items() if difference is not None}


def _plan_runs(suite: Suite) -> Plan:
    """List the runs of every arm, and find at once what would fail after hours.

    Raises:
        UserError: If a recipe learns another task, or two runs share a folder.
    """
    plan: Plan = {}
    for arm, variant in suite.config.variants.items():
        plan[arm] = [_PlannedRun(Path(run), None) for run in variant.runs or []]
        for seed in variant.seeds or []:
            path = suite.recipe_paths[arm]
            folder = Path(load_recipe(path).config.output_dir) / f"seed-{seed}"
            overrides = [f"train.seed={seed}", f"output_dir={json.dumps(str(folder))}"]
            recipe = load_recipe(path, overrides=overrides)
            if recipe.task != suite.task:
                raise UserError(
                    f"{path}: learns {recipe.config.task}, which is not the suite's task "
                    f"{suite.config.task}; arms can be compared on one task only"
                )
            plan[arm].append(_PlannedRun(folder, recipe))
    owners: dict[Path, str] = {}
    for arm, runs in plan.items():
        for run in runs:
            if run.path.resolve() in owners:
                raise UserError(
                    f"variants: {arm} and {owners[run.path.resolve()]} both use the run "
                    f"{run.path}; give each recipe its own output_dir"
                )
            owners[run.path.resolve()] = arm
    return plan


def _train_arms(suite: Suite, plan: Plan) -> None:
    if not is_prepared(suite.task):
        prepare_task(suite.task, report=logger.info)
    _read_cases(suite, open_prepared(suite.task, task_file=suite.config.task))
    for arm, runs in plan.items():
        for run in runs:
            if run.recipe is not None:
                logger.info("\n%s: %s", arm, run.path)
                train(run.recipe)
    logger.info("")


def _refuse_other_recipes(plan: Plan, data: PreparedData) -> None:
    """Stop if a run was not trained from the recipe that the suite names."""
    for runs in plan.values():
        for run in runs:
            if run.recipe is None:
                continue
            prompt = read_prompt(run.recipe.prompt_path, fields=run.recipe.task.fields)
            identity = RunIdentity.of(run.recipe, data, prompt)
            found = read_metadata(run.path)
            # Other data is for the audit to judge.
            same_data = identity._replace(data_fingerprint=found["data_fingerprint"])
            differing = list_differences({**found, "task": same_data.task}, same_data)
            if differing:
                raise UserError(
                    f"{run.path}: was not trained from the suite's recipe: it differs in "
                    f"{', '.join(differing)}; train it again, or name the run folder in the suite"
                )


def _read_cases(suite: Suite, data: PreparedData) -> list[EdgeCase]:
    if suite.edge_cases_path is None:
        return []
    return read_edge_cases(
        suite.edge_cases_path, label_names=data.label_names, label_type=suite.task.labels.type
    )


def _probe_arms(
    arms: Arms, valid: Sequence[str], cases: list[EdgeCase], rows: list[Row]
) -> dict[str, Any]:
    """Return `edge_cases` and `latency`, for which the models are run."""
    edge_cases, latency = {}, {}
    for arm in valid:
        predictor = Predictor.open(arms[arm][0].path)
        predict = partial(predictor.predict, show_progress=False)
        latency[arm] = measure_latency(predict, rows)._asdict()
        if cases:
            try:
                outputs = predict([case.row for case in cases]).outputs
            except RowFaultError as error:
                raise UserError(f"edge_cases: a case cannot be scored by {arm}: {error}") from error
            found = check_cases(cases, outputs.tolist(), label_names=predictor.card.label_names)
            edge_cases[arm] = summarise_cases(found)
    return {"edge_cases": edge_cases, "latency": latency}


def _log_summary(results: dict[str, Any]) -> None:
    metrics = {
        **{arm: v["metrics"] for arm, v in results["variants"].items() if v["valid"]},
        **results["baselines"],
    }
    shown = [
        key for key, value in next(iter(metrics.values())).items() if not isinstance(value, dict)
    ]
    logger.info("%d test rows of %s", results["num_rows"], results["task"])
    logger.info("  %-14s %s", "", " ".join(f"{key:>9}" for key in shown))
    for arm, found in metrics.items():
        numbers = ["-" if found[key] is None else f"{found[key]:z.3f}" for key in shown]
        aligned = [f"{n:>{max(9, len(key))}}" for n, key in zip(numbers, shown, strict=True)]
        logger.info("  %-14s %s", arm, " ".join(aligned))
    for pair in results["pairs"]:
        logger.info(
            "  %s against %s: gain %.3f %s, 95 %% interval %.3f to %.3f: %s",
            pair["challenger"], pair["reference"], pair["gain"], results["metric"],
            *pair["interval"], pair["finding"],
        )  # fmt: skip
    for finding in results["audit"]:
        if finding["status"] != "ok":
            logger.info("  %s: %s", finding["status"], finding["message"])
    logger.info("verdict: %s (%s)", results["verdict"], results["why"])
