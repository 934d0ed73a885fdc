"""`llmft compare SUITE`: judge the variants of a suite on the same rows, and name the winner."""

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft import __version__
from llmft.config.recipe import load_recipe
from llmft.config.suite import Suite, load_suite
from llmft.data.batches import make_targets
from llmft.data.files import write_json
from llmft.data.preparation import prepare_task
from llmft.data.prepared import PreparedData, Row, is_prepared, open_prepared
from llmft.errors import UserError
from llmft.evaluation.audit import (
    Finding,
    RunFacts,
    check_data,
    check_inputs,
    check_overlap,
    check_run,
    check_treatment,
)
from llmft.evaluation.edge_cases import check_cases, read_edge_cases, summarise_cases
from llmft.evaluation.latency import measure_latency
from llmft.evaluation.metrics import measure
from llmft.evaluation.statistics import Difference, compare_runs, estimate_interval
from llmft.evaluation.tables import (
    describe_confusion,
    describe_measured,
    describe_rows,
    measure_baselines,
    name_parts,
    pick_worst,
)
from llmft.evaluation.verdict import find_valid_arms, reach_verdict
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.reports.comparison import write_comparison_report
from llmft.train import train_recipe
from llmft.training.run_folder import read_history, read_metadata

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


class _Run(NamedTuple):
    """One finished run of an arm."""

    path: Path
    metadata: dict[str, Any]
    seen: StoredPredictions | None
    """Test predictions in the order of the test rows; None if the run is invalid."""

    @property
    def outputs(self) -> NDArray[np.float32]:
        """Shape [N, C]."""
        assert self.seen is not None
        return self.seen.outputs


Arms = dict[str, list[_Run]]


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
    arms, audit = _open_arms(suite, data, rows)
    valid = find_valid_arms(list(arms), audit)
    labels = make_targets(rows, label_names=data.label_names).numpy()
    differences = {
        arm: compare_runs(
            config.metric,
            labels,
            reference=[run.outputs for run in arms[config.reference]],
            challenger=[run.outputs for run in arms[arm]],
            margin=config.margin,
        )
        for arm in valid
        if arm != config.reference and config.reference in valid
    }
    verdict = reach_verdict(
        differences,
        valid_arms=valid,
        findings=audit,
        reference=config.reference,
        metric=config.metric,
        margin=config.margin,
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
        "pairs": [_describe_pair(arm, config.reference, d) for arm, d in differences.items()],
        **_measure_arms(arms, valid, data, rows, labels, metric=config.metric),
        **_probe_arms(arms, valid, suite, data, rows),
    }
    folder = Path(config.output_dir)
    write_json(folder / "comparison.json", results)
    report = write_comparison_report(results, folder=folder)
    _log_summary(results)
    logger.info("report: %s", report.resolve())
    return results


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


def _open_arms(suite: Suite, data: PreparedData, rows: list[Row]) -> tuple[Arms, list[Finding]]:
    """Open every run and audit it; a run on other rows is struck out, an unreadable one stops."""
    ids, texts = [row["id"] for row in rows], [row["text"] for row in rows]
    opened = {
        arm: [(path, read_metadata(path)) for path in _list_runs(suite, arm)]
        for arm in suite.config.variants
    }
    facts = [
        RunFacts(arm, str(path), metadata)
        for arm, runs in opened.items()
        for path, metadata in runs
    ]
    audit = check_data(facts, fingerprint=data.fingerprint)
    audit += check_treatment(facts, reference=suite.config.reference)
    audit += check_overlap(texts, [row["text"] for row in data.read_split("train")])
    valid = find_valid_arms(list(opened), audit)
    arms: Arms = {}
    for arm, runs in opened.items():
        arms[arm] = []
        for path, metadata in runs:
            seen = None
            if arm in valid:
                source = {"model": metadata["model_hash"], "data": data.fingerprint}
                stored = path / "predictions" / "test.parquet"
                seen = load_or_predict(path, rows, path=stored, source=source)
                try:
                    seen = seen.align(ids)
                    audit += check_inputs(arm, seen, texts)
                except UserError as error:
                    audit.append(Finding("same rows", "invalid", [arm], f"{path}: {error}"))
                    seen = None
            arms[arm].append(_Run(path, metadata, seen))
        audit += check_run(RunFacts(arm, str(runs[0][0]), runs[0][1]))
    return arms, audit


def _measure_arms(
    arms: Arms,
    valid: Sequence[str],
    data: PreparedData,
    rows: list[Row],
    labels: NDArray[Any],
    *,
    metric: str,
) -> dict[str, Any]:
    """Return `variants`, `baselines`, the table by dimension or class, and the rows."""
    names = data.label_names
    measured = {
        arm: [measure(labels, run.outputs, names=names) for run in arms[arm]] for arm in valid
    }
    mean_outputs = {arm: np.mean([r.outputs for r in arms[arm]], axis=0) for arm in valid}
    variants = {}
    for arm, runs in arms.items():
        variants[arm] = {"valid": arm in valid, **_describe_runs(runs)}
        if arm in valid:
            first = runs[0].outputs
            variants[arm] |= {
                "metrics": _average([m.overall for m in measured[arm]]),
                "metrics_per_run": [m.overall for m in measured[arm]],
                "interval": list(estimate_interval(metric, labels, first)),
                "confusion_matrix": describe_confusion(labels, first, num_classes=len(names)),
            }
    train_rows = data.read_split("train")
    baselines = measure_baselines(
        [row["text"] for row in train_rows],
        make_targets(train_rows, label_names=names).numpy(),
        texts=[row["text"] for row in rows],
        labels=labels,
        names=names,
    )
    by_part = {
        name: {arm: _average([m.parts[name] for m in found]) for arm, found in measured.items()}
        | {key: m.parts[name] for key, m in baselines.items()}
        for name in names
    }
    described = describe_rows(rows, labels, mean_outputs)
    return {
        "variants": variants,
        "baselines": {key: describe_measured(m, labels) for key, m in baselines.items()},
        "per_dimension": {},
        name_parts(labels): by_part,
        "rows": described,
        "worst_rows": pick_worst(described, rows) if valid else [],
    }


def _describe_runs(runs: list[_Run]) -> dict[str, Any]:
    first = runs[0].metadata
    recipe = first["recipe"]
    return {
        "runs": [str(run.path) for run in runs],
        "seeds": [run.metadata["recipe"]["train"]["seed"] for run in runs],
        "base": recipe["base"]["model"],
        "base_pretrained": first["base_pretrained"],
        "tuning": recipe["base"]["tuning"],
        "prompt_mode": recipe["prompt"]["mode"],
        "training_mode": first["training_mode"],
        "max_length": recipe["tokens"]["max_length"],
        "num_parameters": first["num_parameters"],
        "num_trainable": first["num_trainable"],
        "train_seconds": float(np.mean([run.metadata["train_seconds"] for run in runs])),
        "peak_memory_gib": max(run.metadata["peak_memory_gib"] for run in runs),
        "token_budget": first["token_budget"]["test"],
        "device": first["device"],
        "precision": first["precision"],
        "histories": [read_history(run.path) for run in runs],
    }


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


def _describe_pair(challenger: str, reference: str, found: Difference) -> dict[str, Any]:
    return {
        "challenger": challenger,
        "reference": reference,
        "gain": found.estimate,
        "interval": list(found.interval),
        "finding": found.finding,
    }


def _average(found: list[dict[str, float | None]]) -> dict[str, float | None]:
    averaged: dict[str, float | None] = {}
    for key in found[0]:
        values = [m[key] for m in found]
        known = [v for v in values if v is not None]
        averaged[key] = float(np.mean(known)) if len(known) == len(values) else None
    return averaged


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
