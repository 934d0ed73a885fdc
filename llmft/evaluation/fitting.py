"""Fit a run's outputs on validation, and say what that did to the rows that are judged."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from llmft.config.fits import FITS, FitConfig, FitMethod
from llmft.config.labels import LabelsConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.evaluation.metrics import Floats, average, is_better, measure
from llmft.evaluation.thresholds import fit_class_thresholds, fit_curves, fit_label_thresholds
from llmft.models.saved import ModelCard, read_card
from llmft.prediction.fits import FIT_NAME
from llmft.prediction.stored import load_or_predict
from llmft.processes import get_world_size, is_main, main_first
from llmft.results.files import write_result
from llmft.results.fit import Fit
from llmft.results.run import RunRecord
from llmft.results.variant import Finding, FitEffect, VariantResult
from llmft.training.inputs import describe_limit, limit_rows
from llmft.training.run_folder import read_record

logger = logging.getLogger(__name__)

SEEN_SPLITS = ("train", "val")
"""Splits that took part in the training, and in fits."""


def change_fit(
    run: Path,
    method: FitMethod | Literal["none"] | None,
    *,
    min_recall: float | None = None,
    split: str = "test",
) -> None:
    """Fit a run's outputs on its validation rows and write `fit.json`.

    All processes of a launch share the prediction; the main one writes.

    Args:
        run: Run folder.
        method: What to fit; `none` to remove the fit, None to leave all as it is.
        min_recall: Recall that `precision` has to keep.
        split: What is to be measured afterwards.

    Raises:
        UserError: If the fit would be measured on rows that the training has seen (D7), the method
            does not suit the head, the model or the data changed since the training, or a row
            cannot be predicted.
    """
    if method is None:
        if min_recall is not None:
            raise UserError("--min-recall: goes with --fit precision only")
        return
    with main_first():
        record, card = read_record(run), read_card(run / "model")
        if method == "none":
            (run / FIT_NAME).unlink(missing_ok=True)
            return
        if split in SEEN_SPLITS:
            raise UserError(
                f"--fit: is made on val, and what it does is measured on test (D7); leave --split "
                f"{split} away"
            )
        config = _check_method(method, min_recall, card)
        data = open_trained_data(record)
        rows = limit_rows(data.read_split("val"), record.recipe.train.limit_rows)
    outputs_NC = _load_outputs(run, rows, record)
    if not is_main():
        return
    labels = make_targets(rows, label_names=card.label_names).numpy()
    fit = Fit(
        method=method,
        head=card.head,
        num_rows=len(rows),
        model_hash=record.model_hash,
        data_fingerprint=data.fingerprint,
        min_recall=config.min_recall,
        **_fit_outputs(config, card, labels, outputs_NC),
    )
    write_result(run / FIT_NAME, fit)
    logger.info("%s: %s, fitted on %d rows of val", run / FIT_NAME, method, len(rows))


def open_trained_data(record: RunRecord) -> PreparedData:
    """Open the prepared data that a run was trained on.

    Args:
        record: That of the run.

    Raises:
        UserError: If it is not there any more, or was prepared anew.
    """
    task = record.task
    data = open_prepared(
        task, mend=f"train again, or restore what {record.recipe.task} said at that time"
    )
    if data.fingerprint != record.data_fingerprint:
        raise UserError(
            f"{task.output}: prepared anew since this run was trained, so rows may have moved "
            "between the splits; train again, or prepare from the same sources and seed"
        )
    return data


def _load_outputs(run: Path, rows: list[Row], record: RunRecord) -> Floats:
    """Return what the model says of the validation rows, as the training left it, [N, C]."""
    source = {
        "model": record.model_hash,
        "data": record.data_fingerprint,
        **describe_limit(record.recipe.train.limit_rows),
    }
    path, across = run / "predictions" / "val.parquet", get_world_size() > 1
    stored = load_or_predict(run, rows, path=path, source=source, across_processes=across)
    return stored.align([row["id"] for row in rows]).outputs


def _check_method(method: FitMethod, min_recall: float | None, card: ModelCard) -> FitConfig:
    suited = [name for name, heads in FITS.items() if card.head in heads]
    if method not in suited:
        raise UserError(
            f"--fit: {method} is not for the {card.head} head of {card.name}; choose "
            f"{' or '.join(suited)}"
        )
    try:
        return FitConfig(method=method, min_recall=min_recall)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--min-recall: {message}") from error


def _fit_outputs(
    config: FitConfig, card: ModelCard, labels: Any, outputs_NC: Floats
) -> dict[str, Any]:
    if config.method == "isotonic":
        return {"curves": fit_curves(labels, outputs_NC, names=card.label_names)}
    choose = fit_label_thresholds if card.head == "multilabel" else fit_class_thresholds
    found = choose(labels, outputs_NC, names=card.label_names, min_recall=config.min_recall)
    for warning in found.warnings:
        logger.warning("warning: %s", warning)
    return {"thresholds": found.values}


def describe_fit(
    fit: Fit | None,
    labels: Any,
    runs: Sequence[Floats],
    *,
    names: list[str],
    config: LabelsConfig,
) -> FitEffect | None:
    """Return what an arm's fit does to its metrics; None if it has none.

    Args:
        fit: The fit of its first run; those of the others are by the same method.
        labels: Scores [N, D], classes [N], or labels [N, L] of the rows that are judged.
        runs: What each run's model says of them without the fit, [N, C].
        names: Of the dimensions, classes or labels.
        config: What the task says of its labels.
    """
    if fit is None:
        return None
    before = [measure(labels, outputs, names=names, config=config).metrics for outputs in runs]
    return FitEffect(
        method=fit.method,
        split=fit.split,
        num_rows=fit.num_rows,
        metrics_before={name: average([m[name] for m in before]) for name in before[0]},
    )


def check_fit(arm: str, variant: VariantResult, metric: str) -> list[Finding]:
    """Say so where a fit makes worse what it was to better (D12).

    Args:
        arm: Whose fit it is.
        variant: What was measured of it.
        metric: The metric that decides.
    """
    fit = variant.fit
    if fit is None:
        return []
    before, after = fit.metrics_before.get(metric), variant.metrics.get(metric)
    if before is None or after is None or not is_better(metric, before, after):
        return []
    message = (
        f"the post-hoc fit of {arm} ({fit.method}, on {fit.num_rows} rows of {fit.split}) "
        f"makes {metric} worse on test, {before:.3f} before and {after:.3f} after; `llmft evaluate "
        "RUN --fit none` removes it"
    )
    return [Finding(check="post-hoc fit", status="warning", variants=[arm], message=message)]


def choose_fit(fit: Fit | None, *, split: str) -> tuple[Fit | None, list[Finding]]:
    """Return the fit that a split is judged with, and what the audit says of it.

    Rows that the training has seen are judged without it, as some of them are its own (D7).
    """
    if fit is None or split not in SEEN_SPLITS:
        return fit, []
    message = (
        f"the post-hoc fit ({fit.method}) was made on {fit.split}, so on {split} the model's own "
        "outputs are measured; what the fit does shows on test"
    )
    return None, [Finding(check="post-hoc fit", status="note", variants=[], message=message)]


def name_fit(fit: Fit | None) -> str | None:
    """Return what tells a fit from others: its method, and the recall that it keeps."""
    if fit is None:
        return None
    recall = "" if fit.min_recall is None else f" at a recall of {fit.min_recall:g}"
    return fit.method + recall
