"""`llmft evaluate RUN`: measure a trained run and decide whether it may be deployed."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from llmft.config.head import FITS, FitMethod
from llmft.config.suite import Suite, load_suite
from llmft.config.task import Split
from llmft.console import run_verb
from llmft.errors import UserError
from llmft.files import StrPath
from llmft.processes import ask_main
from llmft.results.evaluation import EvaluationResult, meets
from llmft.results.files import write_result

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("llmft.evaluate")  # `python -m` calls this module __main__


def main(arguments: list[str]) -> int:
    """Evaluate the run; return 1 if the decision is worse than `--require`, else 0."""
    parser = argparse.ArgumentParser(prog="llmft evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--split", choices=get_args(Split), default="test", help="split to measure (test)"
    )
    what.add_argument("--data", type=Path, metavar="FILE", help="labelled rows to measure instead")
    parser.add_argument("--suite", type=Path, help="suite with gates, edge cases and waivers")
    parser.add_argument(
        "--require", choices=["deploy", "review"], help="exit with 1 if the decision is worse"
    )
    parser.add_argument(
        "--fit", choices=[*FITS, "none"],
        help="fit calibrators (isotonic) or thresholds (f1, precision) on val first, and keep them "
        "for all later predictions; none removes them",
    )  # fmt: skip
    parser.add_argument("--min-recall", type=float, help="lowest recall for --fit precision (0.90)")
    args = parser.parse_args(arguments)
    result = evaluate(
        args.run, split=args.split, data=args.data, suite=args.suite, fit=args.fit,
        min_recall=args.min_recall,
    )  # fmt: skip
    return int(not meets(result.decision, args.require))


def evaluate(
    run: StrPath,
    *,
    split: Split = "test",
    data: "StrPath | pd.DataFrame | None" = None,
    suite: StrPath | Suite | None = None,
    fit: FitMethod | Literal["none"] | None = None,
    min_recall: float | None = None,
) -> EvaluationResult:
    """Measure a run, decide whether to deploy it, and write results and report.

    Fits the baseline `probe` first, if that is cheap or the suite asks for it.

    Args:
        run: Run folder, or the run that `llmft.train` returned.
        split: The split to measure it on.
        data: Labelled rows to use instead of the split: a file or a DataFrame.
        suite: Suite with gates, edge cases and waivers; None: the default gates.
        fit: Method to fit calibrators or thresholds on validation first; `none` removes them, None
            changes nothing.
        min_recall: Lowest recall for the method `precision`.

    Returns:
        The result, as written to the run's `evaluation/`.

    Raises:
        UserError: If the run is not finished, fitting fails, the rows cannot be read, or the base
            of a baseline that the suite asks for is not there.
    """
    folder, resolved = Path(run), None if suite is None else load_suite(suite)
    if data is not None and split != "test":
        raise UserError(f"split: found {split}, but `data` takes its place; give one of them")
    # After the suite is read, so that its errors are reported before torch is loaded.
    from llmft.isolation import isolated

    with isolated():
        from llmft.evaluation.post_hoc_fitting import change_fit
        from llmft.evaluation.single_run import evaluate_run, open_evaluation
        from llmft.train import train_baseline

        change_fit(folder, fit, min_recall=min_recall, split=split)
        evaluation = open_evaluation(folder, split=split, source=data, suite=resolved)
        probe = train_baseline(
            folder, wanted="auto" if resolved is None else resolved.config.wants_probe,
            folder=folder / "evaluation" / "baselines" / "probe",
        )  # fmt: skip
        result = evaluate_run(evaluation, probe=probe)
        return ask_main(lambda: _write(folder, result))


def _write(run: Path, result: EvaluationResult | None) -> EvaluationResult:
    """Write the result of an evaluation and its report, in the main process."""
    from llmft.evaluation.variants import record_test_read
    from llmft.reports.evaluation import write_evaluation_report
    from llmft.reports.terminal import describe_evaluation

    assert result is not None, "the main process has measured it"
    folder = run / "evaluation"
    path = folder / f"{result.data}.json"
    write_result(path, result)
    if result.data == "test":
        record_test_read(run, by="evaluate", report=str(path))
    report = write_evaluation_report(result, folder=folder)
    for line in describe_evaluation(result):
        logger.info("%s", line)
    logger.info("report: %s", report.resolve())
    return result


if __name__ == "__main__":
    sys.exit(run_verb(main, sys.argv[1:]))
