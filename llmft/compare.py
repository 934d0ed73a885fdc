"""`llmft compare SUITE`: compare the variants of a suite on the same rows, and name the winner."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llmft.config.suite import ResolvedSuite, Suite, describe_gates, load_suite
from llmft.files import StrPath
from llmft.results.comparison import ComparisonResult
from llmft.results.evaluation import meets
from llmft.results.files import write_result

if TYPE_CHECKING:
    from llmft.evaluation.comparison import RunsByVariant

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Compare the variants; return 1 if the decision is worse than `--require`, else 0."""
    parser = argparse.ArgumentParser(prog="llmft compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("suite", type=Path, help="suite file (YAML)")
    parser.add_argument(
        "--train",
        action="store_true",
        help="first prepare the data and train the variants, unless already done",
    )
    parser.add_argument(
        "--require", choices=["deploy", "review"], help="exit with 1 if the decision is worse"
    )
    args = parser.parse_args(arguments)
    result = compare(args.suite, train=args.train)
    return int(not meets(result.decision, args.require))


def compare(suite: StrPath | Suite, *, train: bool = False) -> ComparisonResult:
    """Audit, measure and compare the variants of a suite; write `comparison.json` and the reports.

    Args:
        suite: Suite file, or a suite made in Python.
        train: Whether to prepare the data and train the variants first, unless that is done.

    Returns:
        The result, as written to the suite's `output_dir`.

    Raises:
        UserError: If the suite is faulty, or a run is missing or unreadable.
    """
    resolved = load_suite(suite)
    # After the suite is read, so that its errors are reported before torch is loaded.
    from llmft.isolation import isolated

    with isolated():
        return _compare(resolved, train_first=train)


def _compare(suite: ResolvedSuite, *, train_first: bool) -> ComparisonResult:
    from llmft.evaluation.comparison import (
        compare_variants,
        complete_result,
        find_look,
        open_comparison,
        plan_runs,
        record_test_reads,
    )
    from llmft.reports.comparison import write_comparison_report
    from llmft.reports.terminal import describe_comparison
    from llmft.train import train_baseline

    plan, cases = plan_runs(suite), suite.edge_cases_path
    gates = describe_gates(suite.config.gates, has_cases=cases is not None)
    logger.info("gates: %s; 95 %% bounds have to reach them", gates)
    if train_first:
        _train_variants(suite, plan)
    folder, probe = Path(suite.config.output_dir), None
    comparison = open_comparison(suite, plan)
    look = find_look(folder / "comparison.json", comparison)
    comparison = comparison._replace(look=look)
    if suite.config.reference in comparison.valid:
        probe = train_baseline(
            comparison.variants[suite.config.reference][0].path,
            wanted=suite.config.wants_probe, folder=folder / "baselines" / "probe",
        )  # fmt: skip
    result = compare_variants(comparison, probe=probe)
    if result.verdict != "INVALID":
        logger.info("%s: %s", result.verdict, result.why)
        result = complete_result(comparison, result)
    write_result(folder / "comparison.json", result)
    record_test_reads(comparison, report=folder / "comparison.json")
    report = write_comparison_report(result, folder=folder)
    for line in describe_comparison(result):
        logger.info("%s", line)
    logger.info("report: %s", report.resolve())
    return result


def _train_variants(suite: ResolvedSuite, plan: "RunsByVariant") -> None:
    from llmft.data.prepared import is_prepared, open_prepared
    from llmft.evaluation.comparison import check_before_training
    from llmft.isolation import isolated
    from llmft.models.bases import read_config
    from llmft.prepare import prepare
    from llmft.train import train
    from llmft.training.run_folder import is_finished

    unfinished = [
        run.recipe.config for runs in plan.values() for run in runs
        if run.recipe is not None and not is_finished(run.path)
    ]  # fmt: skip
    with isolated():
        for config in unfinished:  # a base that is missing is told before the data is prepared
            read_config(config.base)
    if not is_prepared(suite.task):
        prepare(suite.task)
    data = open_prepared(suite.task, named=suite.config.task)
    check_before_training(suite, plan, data)
    for variant, runs in plan.items():
        for run in runs:
            if run.recipe is not None:
                logger.info("\n%s: %s", variant, run.path)
                train(run.recipe.config)
    logger.info("")
