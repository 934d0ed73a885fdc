"""`llmft compare SUITE`: judge the variants of a suite on the same rows, and name the winner."""

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llmft import __version__
from llmft.config.recipe import load_recipe
from llmft.config.suite import Suite, SuiteConfig, load_suite
from llmft.data.batches import make_targets
from llmft.data.files import write_json
from llmft.data.preparation import prepare_task
from llmft.data.prepared import PreparedData, Row, is_prepared, open_prepared
from llmft.evaluation.arms import Arms, describe_pair, measure_arms, open_arms
from llmft.evaluation.audit import check_baselines
from llmft.evaluation.edge_cases import check_cases, read_edge_cases, summarise_cases
from llmft.evaluation.latency import measure_latency
from llmft.evaluation.statistics import Difference, compare_runs
from llmft.evaluation.verdict import find_valid_arms, reach_verdict
from llmft.prediction.inference import Predictor
from llmft.reports.comparison import write_comparison_report
from llmft.train import train_recipe

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
    if args.train:
        _train_arms(suite)
    compare_arms(suite, suite_path=args.suite)
    return 0


def compare_arms(suite: Suite, *, suite_path: Path) -> dict[str, Any]:
    """Audit, measure and compare the arms of a suite; write `comparison.json` and the reports.

    Returns:
        The results, as written.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    config = suite.config
    data = open_prepared(suite.task, task_file=config.task)
    rows = data.read_split("test")
    paths = {arm: _list_runs(suite, arm) for arm in config.variants}
    arms, audit = open_arms(paths, data=data, rows=rows, reference=config.reference)
    valid = find_valid_arms(list(arms), audit)
    labels = make_targets(rows, label_names=data.label_names).numpy()
    differences = _compare_with_reference(arms, valid, labels, config)
    verdict = reach_verdict(
        differences,
        valid_arms=valid,
        findings=audit,
        reference=config.reference,
        metric=config.metric,
        margin=config.margin,
    )
    measured = measure_arms(arms, valid, data, rows, labels, metric=config.metric)
    audit += check_baselines(
        config.metric,
        {arm: measured["variants"][arm]["metrics"][config.metric] for arm in valid},
        {name: found[config.metric] for name, found in measured["baselines"].items()},
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
        **_probe_arms(arms, valid, suite, data, rows),
    }
    folder = Path(config.output_dir)
    write_json(folder / "comparison.json", results)
    report = write_comparison_report(results, folder=folder)
    _log_summary(results)
    logger.info("report: %s", report.resolve())
    return results


def _compare_with_reference(
    arms: Arms, valid: Sequence[str], labels: NDArray[Any], config: SuiteConfig
) -> dict[str, Difference]:
    if config.reference not in valid:
        return {}
    reference = [run.outputs for run in arms[config.reference]]
    return {
        arm: compare_runs(
            config.metric,
            labels,
            reference=reference,
            challenger=[run.outputs for run in arms[arm]],
            margin=config.margin,
        )
        for arm in valid
        if arm != config.reference
    }


def _train_arms(suite: Suite) -> None:
    if not is_prepared(suite.task):
        prepare_task(suite.task, report=logger.info)
    for arm, path in suite.recipe_paths.items():
        for run_dir, seed in zip(
            _list_runs(suite, arm), suite.config.variants[arm].seeds or [], strict=True
        ):
            logger.info("\n%s, seed %d", arm, seed)
            train_recipe(path, overrides=[f"train.seed={seed}", f"output_dir={run_dir}"])
    logger.info("")


def _list_runs(suite: Suite, arm: str) -> list[Path]:
    variant = suite.config.variants[arm]
    if variant.runs is not None:
        return [Path(run) for run in variant.runs]
    output_dir = Path(load_recipe(suite.recipe_paths[arm]).config.output_dir)
    return [output_dir / f"seed-{seed}" for seed in variant.seeds or []]


def _probe_arms(
    arms: Arms, valid: Sequence[str], suite: Suite, data: PreparedData, rows: list[Row]
) -> dict[str, Any]:
    """Return `edge_cases` and `latency`, for which the models are run."""
    cases = None
    if suite.edge_cases_path is not None:
        head = "regression" if data.manifest["classes"] is None else "multiclass"
        cases = read_edge_cases(suite.edge_cases_path, label_names=data.label_names, head=head)
    edge_cases, latency = {}, {}
    for arm in valid:
        predictor = Predictor.open(arms[arm][0].path)
        predict = partial(predictor.predict, show_progress=False)
        latency[arm] = measure_latency(predict, rows)._asdict()
        if cases is not None:
            outputs = predictor.predict([case.row for case in cases]).outputs
            found = check_cases(cases, outputs.tolist(), label_names=data.label_names)
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
        numbers = " ".join("        -" if found[k] is None else f"{found[k]:9.3f}" for k in shown)
        logger.info("  %-14s %s", arm, numbers)
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
