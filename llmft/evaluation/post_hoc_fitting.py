"""Fit calibrators or thresholds on validation, and report their effect on the measured rows."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import expit, logit
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import precision_recall_curve

from llmft.audit.findings import make_finding
from llmft.config.head import FITS, SELECTION_METRIC, FitConfig, FitMethod, Head
from llmft.config.recipe import Recipe
from llmft.config.task import SEEN_SPLITS, LabelsConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.labels import LABEL_THRESHOLD
from llmft.data.prepared import PreparedData, open_prepared
from llmft.errors import UserError
from llmft.metrics.definitions import Floats, average, compute_metric, is_better, measure
from llmft.models.saved import ModelSpec, read_spec
from llmft.prediction.post_hoc_fit import FIT_NAME, apply_fit, weigh_classes
from llmft.prediction.stored import load_or_predict, name_source
from llmft.processes import get_world_size, is_main, main_first
from llmft.results.evaluation import Finding, FitEffect, VariantResult
from llmft.results.files import write_result
from llmft.results.run import Calibrator, PostHocFit, RunRecord
from llmft.training.inputs import limit_rows
from llmft.training.run_folder import read_record
from llmft.wording import count

logger = logging.getLogger(__name__)
_ROUNDING = 1e-12
_MAX_SWEEPS = 10
_DRAWN_BY = 10
"""Rows of a label whose threshold is halfway, in log odds, between its own and that of all labels
(measured: docs/results.md)."""
_NO_ROW = "{name}: {what} of val has this label, so its threshold is not fitted to it"


class Thresholds(NamedTuple):
    """One threshold per class or label, and warnings."""

    values: dict[str, float]
    """In (0, 1); `LABEL_THRESHOLD` if no other threshold is better."""
    warnings: list[str]


def fit_calibrators(
    labels_ND: Floats, outputs_ND: Floats, *, names: list[str]
) -> dict[str, Calibrator]:
    """Fit an isotonic regression to the scores of each dimension.

    Calibrated scores are between the lowest and the highest label, so they stay in range.

    Source:
        Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass
        probability estimates"; scikit-learn's `IsotonicRegression`.
    """
    curves = {}
    for i, name in enumerate(names):
        regression = IsotonicRegression(out_of_bounds="clip").fit(
            outputs_ND[:, i].astype(np.float64), labels_ND[:, i].astype(np.float64)
        )
        curves[name] = Calibrator(
            x=regression.X_thresholds_.tolist(), y=regression.y_thresholds_.tolist()
        )
    return curves


def fit_label_thresholds(
    labels_NL: NDArray[np.bool_],
    probs_NL: Floats,
    *,
    names: list[str],
    min_recall: float | None = None,
) -> Thresholds:
    """Choose the probability from which on each label applies.

    Args:
        labels_NL: Which labels apply, [N, L].
        probs_NL: Their probabilities, [N, L].
        names: The labels.
        min_recall: Choose the highest precision among thresholds with this recall; by default the
            highest F1, each threshold drawn towards the one that is best for all labels together,
            the more so the fewer rows have the label.
    """
    found = Thresholds(dict.fromkeys(names, LABEL_THRESHOLD), [])
    for i, name in enumerate(names):
        _add(found, name, labels_NL[:, i], probs_NL[:, i], min_recall=min_recall)
    true_M = labels_NL.ravel()
    if min_recall is not None or true_M.all() or not true_M.any():
        return found
    of_all, _ = choose_threshold(true_M, probs_NL.ravel())
    num_true_L = labels_NL.sum(axis=0)
    is_known_L = (num_true_L > 0) & (num_true_L < len(labels_NL))
    weights_L = np.where(is_known_L, num_true_L / (num_true_L + _DRAWN_BY), 0.0)
    own_L = logit(list(found.values.values()))
    drawn_L = expit(weights_L * own_L + (1 - weights_L) * logit(of_all))
    return Thresholds(dict(zip(names, drawn_L.tolist(), strict=True)), found.warnings)


def fit_class_thresholds(
    labels_N: NDArray[np.int64],
    probs_NC: Floats,
    *,
    names: list[str],
    min_recall: float | None = None,
) -> Thresholds:
    """Choose a threshold per class on p / (p + q): its probability and its strongest rival's.

    With two classes only the last one gets a threshold, on its probability. With more, a row that
    one class gains another loses, so the thresholds are found by coordinate ascent on the macro F1,
    or on the macro precision once no recall can come closer to `min_recall`. On these
    rows the result is never worse than without thresholds.

    Args:
        labels_N: The classes, [N].
        probs_NC: Their probabilities, [N, C].
        names: The classes.
        min_recall: As in `fit_label_thresholds`.
    """
    found = Thresholds(dict.fromkeys(names, LABEL_THRESHOLD), [])
    if len(names) == 2:
        _add(found, names[1], labels_N == 1, probs_NC[:, 1], min_recall=min_recall)
        return found
    support_C = np.bincount(labels_N, minlength=len(names))
    for name, support in zip(names, support_C, strict=True):
        if support == 0:
            found.warnings.append(_NO_ROW.format(name=name, what="no row"))
    thresholds_C = _ascend(labels_N, probs_NC.astype(np.float64), min_recall=min_recall)
    found.values.update(zip(names, thresholds_C.tolist(), strict=True))
    if min_recall is not None:
        chosen_N = weigh_classes(probs_NC, thresholds_C).argmax(axis=1)
        hits_C = np.bincount(labels_N[chosen_N == labels_N], minlength=len(names))
        for name, hits, support in zip(names, hits_C, support_C, strict=True):
            if hits < min_recall * support - _ROUNDING:
                found.warnings.append(
                    f"{name}: a recall of {min_recall:g} on val is not possible together with that "
                    f"of the other classes; it has {hits / support:.2f}"
                )
    return found


def _ascend(labels_N: NDArray[np.int64], probs_NC: Floats, *, min_recall: float | None) -> Floats:
    """Return a threshold per class, by coordinate ascent from 0.5, [C]."""
    thresholds_C = np.full(probs_NC.shape[1], LABEL_THRESHOLD)
    for _ in range(_MAX_SWEEPS):
        before_C = thresholds_C.copy()
        for i in np.unique(labels_N):
            thresholds_C[i] = _choose_class_threshold(
                int(i), labels_N, probs_NC, thresholds_C, min_recall=min_recall
            )
        if (before_C == thresholds_C).all():
            break
    return thresholds_C


def _choose_class_threshold(
    own: int,
    labels_N: NDArray[np.int64],
    probs_NC: Floats,
    thresholds_C: Floats,
    *,
    min_recall: float | None,
) -> float:
    """Return the best threshold of one class, given those of the others."""
    weighed_NC = probs_NC * (1 - thresholds_C) / thresholds_C
    weighed_NC[:, own] = -1
    rival_N = weighed_NC.argmax(axis=1)
    strongest_N = weighed_NC.max(axis=1)
    ratio_N = probs_NC[:, own] / (probs_NC[:, own] + strongest_N)
    order_N = np.argsort(-ratio_N, kind="stable")
    ratio_N, rival_N, labels_N = ratio_N[order_N], rival_N[order_N], labels_N[order_N]
    # Position m: the class is predicted for the m rows with the highest ratios, rivals for others.
    marks_C = np.arange(probs_NC.shape[1])
    kept_NC = rival_N[:, None] == marks_C
    is_hit_NC = kept_NC & (labels_N == rival_N)[:, None]
    num_chosen_MC = _count_left(kept_NC)
    num_hits_MC = _count_left(is_hit_NC)
    num_chosen_MC[:, own] = np.arange(len(labels_N) + 1)
    num_hits_MC[1:, own] = np.cumsum(labels_N == own)
    ends = np.flatnonzero(np.append(ratio_N[:-1] != ratio_N[1:], True)) + 1
    ends = ends[ratio_N[ends - 1] > 0]
    thresholds_M = np.append((1 + ratio_N[0]) / 2, _place_thresholds(ratio_N[ends - 1][::-1])[::-1])
    usable_M = thresholds_M < 1
    positions_M = np.append(0, ends)[usable_M]
    goals = _list_goals(
        num_hits_MC[positions_M], num_chosen_MC[positions_M],
        np.bincount(labels_N, minlength=len(marks_C)), min_recall=min_recall,
    )  # fmt: skip
    return _pick(thresholds_M[usable_M], goals)


def _count_left(marks_NC: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of true entries from each position on, [N + 1, C]."""
    sums_NC = np.cumsum(marks_NC, axis=0)
    zeros_1C = np.zeros_like(sums_NC[:1])
    return np.asarray(sums_NC[-1] - np.concatenate([zeros_1C, sums_NC]))


def _list_goals(
    num_hits_MC: NDArray[np.int64],
    num_chosen_MC: NDArray[np.int64],
    support_C: NDArray[np.int64],
    *,
    min_recall: float | None,
) -> list[Floats]:
    """Return the objectives to maximise, [M] each, the most important first."""
    occurs_C = support_C > 0
    num_hits_MC, num_chosen_MC = num_hits_MC[:, occurs_C], num_chosen_MC[:, occurs_C]
    support_C = support_C[occurs_C]
    if min_recall is None:
        return [(2 * num_hits_MC / (num_chosen_MC + support_C)).mean(axis=1)]
    recall_MC = num_hits_MC / support_C
    precision_MC = num_hits_MC / np.maximum(num_chosen_MC, 1)
    return [np.minimum(recall_MC, min_recall).mean(axis=1), precision_MC.mean(axis=1)]


def _add(
    found: Thresholds,
    name: str,
    true_N: NDArray[np.bool_],
    scores_N: Floats,
    *,
    min_recall: float | None,
) -> None:
    num_true = int(true_N.sum())
    if num_true in (0, len(true_N)):
        found.values[name] = LABEL_THRESHOLD
        what = "no row" if num_true == 0 else "every row"
        found.warnings.append(_NO_ROW.format(name=name, what=what))
        return
    found.values[name], is_kept = choose_threshold(true_N, scores_N, min_recall=min_recall)
    if not is_kept:
        found.warnings.append(
            f"{name}: no threshold has a recall of {min_recall:g} on val; using the one with the "
            "highest recall"
        )


def choose_threshold(
    true_N: NDArray[np.bool_], scores_N: Floats, *, min_recall: float | None = None
) -> tuple[float, bool]:
    """Return the best threshold for a score, and whether it has the minimum recall.

    Among thresholds with the same decisions it is the one halfway between two scores, and among
    equally good ones the one that is nearest to 0.5.

    Args:
        true_N: Whether the label applies, with at least one row of each kind, [N].
        scores_N: Scores in [0, 1]; a score of 0 never counts as a hit, [N].
        min_recall: As in `fit_label_thresholds`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        precision_K, recall_K, scores_K = precision_recall_curve(
            true_N, scores_N.astype(np.float64)
        )
    precision_K, recall_K = precision_K[:-1], recall_K[:-1]  # the last is that of no hit at all
    thresholds_K = _place_thresholds(scores_K)
    usable_K = (scores_K > 0) & (thresholds_K < 1)
    if not usable_K.any():
        return LABEL_THRESHOLD, min_recall is None
    precision_K, recall_K = precision_K[usable_K], recall_K[usable_K]
    thresholds_K = thresholds_K[usable_K]
    is_kept = True
    if min_recall is None:
        both_K = precision_K + recall_K
        goals = [2 * precision_K * recall_K / np.where(both_K > 0, both_K, 1)]
    else:
        keeps_K = recall_K >= min_recall - _ROUNDING
        is_kept = bool(keeps_K.any())
        goals = [np.where(keeps_K, precision_K, -1), recall_K] if is_kept else [recall_K]
    return _pick(thresholds_K, goals), is_kept


def _pick(thresholds_K: Floats, goals: list[Floats]) -> float:
    """Return the threshold with the best objectives, in lexicographic order."""
    nearness_K = -np.abs(thresholds_K - LABEL_THRESHOLD)
    # The last key is the primary one; rounding makes equal ratios of counts equal.
    order_K = np.lexsort([nearness_K, *(goal.round(12) for goal in reversed(goals))])
    return float(thresholds_K[order_K[-1]])


def _place_thresholds(scores_K: Floats) -> Floats:
    """Return for each of the increasing scores a threshold between it and the score before.

    It is 0.5 if that is between them, else halfway.
    """
    before_K = np.concatenate([[0.0], scores_K[:-1]])
    holds_half_K = (before_K < LABEL_THRESHOLD) & (scores_K >= LABEL_THRESHOLD)
    return np.asarray(np.where(holds_half_K, LABEL_THRESHOLD, (before_K + scores_K) / 2))


def change_fit(
    run: Path,
    method: FitMethod | Literal["none"] | None,
    *,
    min_recall: float | None = None,
    split: str = "test",
) -> None:
    """Fit calibrators or thresholds on a run's validation rows and write `fit.json`.

    Prediction is distributed over all processes of a launch; the main one writes.

    Args:
        run: Run folder.
        method: What to fit; `none` removes the fit, None changes nothing.
        min_recall: Lowest recall that `precision` allows.
        split: The split to be evaluated afterwards.

    Raises:
        UserError: If the fit would be evaluated on train or val (D7), the method is not for the
            head, the model or the data changed since the training, or a row cannot be predicted.
    """
    if method is None:
        if min_recall is not None:
            raise UserError("min_recall: is for the fit `precision` only; leave it out")
        return
    with main_first():
        record, spec = read_record(run), read_spec(run / "model")
        if method == "none":
            (run / FIT_NAME).unlink(missing_ok=True)
            return
        if split in SEEN_SPLITS:
            raise UserError(
                "fit: is fitted on val, so its effect has to be measured on test, not on "
                f"{split} (D7); leave --split out"
            )
        config = _check_method(method, min_recall, spec)
        data = open_trained_data(record)
        rows = limit_rows(data.read_split("val"), record.recipe.train.limit_rows)
    outputs_NC = _load_outputs(run, rows, record)
    if not is_main():
        return
    write_fit(run, config, rows, outputs_NC, spec=spec, model_hash=record.model_hash)


def choose_default_fit(recipe: Recipe) -> FitConfig | None:
    """Return what a training fits by itself: thresholds for several labels judged by F1.

    Without them a label is predicted from a probability of 0.5 on, which a rare one seldom reaches.
    """
    judged_by_f1 = recipe.leading_metric in ("f1_micro", "f1_macro")
    return FitConfig(method="f1") if recipe.head.type == "multilabel" and judged_by_f1 else None


def write_fit(
    run: Path,
    config: FitConfig,
    rows: list[Row],
    outputs_NC: Floats,
    *,
    spec: ModelSpec,
    model_hash: str,
) -> None:
    """Fit calibrators or thresholds, write them into `fit.json`, and log what they change on val.

    Args:
        run: Run folder.
        config: The method.
        rows: The validation rows.
        outputs_NC: The model's outputs for them.
        spec: Of the model.
        model_hash: Its hash.
    """
    names = spec.label_names
    labels = make_targets(rows, label_names=names).numpy()
    found, warnings = _fit_outputs(config, labels, outputs_NC, head=spec.head, names=names)
    for warning in warnings:
        logger.warning("%s", warning)
    fit = PostHocFit(
        method=config.method,
        head=spec.head,
        num_rows=len(rows),
        model_hash=model_hash,
        data_fingerprint=spec.data_fingerprint,
        min_recall=config.min_recall,
        **found,
    )
    write_result(run / FIT_NAME, fit)
    metric = SELECTION_METRIC[spec.head]
    before, after = (
        compute_metric(metric, labels, found, config=spec.labels)
        for found in (outputs_NC, apply_fit(outputs_NC, fit).decision_scores_NC)
    )
    logger.info(
        "%s: %s, fitted on %s of val; there %s is %s without and %s with them (too good, "
        "since they were fitted there: `llmft evaluate` measures both on test); models in %s, "
        "opened by other tools, do not apply them; `llmft evaluate %s --fit none` removes them",
        run / FIT_NAME, _describe_method(config.method), count(len(rows), "row"), metric,
        _show(before), _show(after), run / "model", run,
    )  # fmt: skip


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def open_trained_data(record: RunRecord) -> PreparedData:
    """Open the prepared data that a run was trained on.

    Args:
        record: Record of the run.

    Raises:
        UserError: If it is gone, or was prepared again.
    """
    task = record.task
    data = open_prepared(task, fix=f"train again, or restore {record.recipe.task} as it was then")
    if data.fingerprint != record.data_fingerprint:
        raise UserError(
            f"{task.output}: prepared again since this run was trained, so rows may be in other "
            "splits; train again, or prepare from the same sources and seed"
        )
    return data


def _load_outputs(run: Path, rows: list[Row], record: RunRecord) -> Floats:
    """Return the model's outputs for the validation rows, which the training has stored, [N, C]."""
    source = name_source(
        record.model_hash, record.data_fingerprint, limit_rows=record.recipe.train.limit_rows
    )
    path, across = run / "predictions" / "val.parquet", get_world_size() > 1
    stored = load_or_predict(run, rows, path=path, source=source, across_processes=across)
    return stored.align([row["id"] for row in rows]).outputs


def _check_method(method: FitMethod, min_recall: float | None, spec: ModelSpec) -> FitConfig:
    suited = [name for name, heads in FITS.items() if spec.head in heads]
    if method not in suited:
        raise UserError(
            f"fit: {method} is not for the {spec.head} head of {spec.name}; choose "
            f"{' or '.join(suited)}"
        )
    try:
        return FitConfig(method=method, min_recall=min_recall)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"min_recall: {message}") from error


def _fit_outputs(
    config: FitConfig, labels: Any, outputs_NC: Floats, *, head: Head, names: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the field of `PostHocFit` that the method fits, and warnings."""
    if config.method == "isotonic":
        return {"curves": fit_calibrators(labels, outputs_NC, names=names)}, []
    choose = fit_label_thresholds if head == "multilabel" else fit_class_thresholds
    found = choose(labels, outputs_NC, names=names, min_recall=config.min_recall)
    return {"thresholds": found.values}, found.warnings


def refit(
    fit: PostHocFit, labels: Any, outputs_NC: Floats, *, names: list[str], model: str
) -> PostHocFit:
    """Return calibrators or thresholds by the same method for another model.

    Args:
        fit: Those of a run.
        labels: Scores [N, D], classes [N], or labels [N, L] of the validation rows.
        outputs_NC: Outputs of the other model for these rows.
        names: Of the dimensions, classes or labels.
        model: Name of the other model, in place of a hash.
    """
    config = FitConfig(method=fit.method, min_recall=fit.min_recall)
    found, _ = _fit_outputs(config, labels, outputs_NC, head=fit.head, names=names)
    return fit.replace(num_rows=len(labels), model_hash=model, **found)


def measure_fit_effect(
    fit: PostHocFit | None,
    labels: Any,
    runs: Sequence[Floats],
    *,
    names: list[str],
    config: LabelsConfig,
) -> FitEffect | None:
    """Return the metrics of a variant without its fit; None if it has no fit.

    Args:
        fit: The fit of its first run; those of the others are by the same method.
        labels: Scores [N, D], classes [N], or labels [N, L] of the measured rows.
        runs: Outputs of each run's model without the fit, [N, C].
        names: Of the dimensions, classes or labels.
        config: The task's labels.
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


def check_fit(name: str, variant: VariantResult, metric: str) -> list[Finding]:
    """Warn if calibrators or thresholds make the leading metric worse (D12).

    Args:
        name: Name of the variant.
        variant: Its metrics.
        metric: The leading metric.
    """
    fit = variant.fit
    if fit is None:
        return []
    before, after = fit.metrics_before.get(metric), variant.metrics.get(metric)
    if before is None or after is None or not is_better(metric, before, after):
        return []
    message = (
        f"the {_describe_method(fit.method)} of {name} (fitted on {count(fit.num_rows, 'row')} of "
        f"{fit.split}) make {metric} worse on test, {before:.3f} before and {after:.3f} after; "
        "`llmft evaluate RUN --fit none` removes them"
    )
    return [make_finding("post_hoc_fit", "warning", message, name)]


def choose_fit(fit: PostHocFit | None, *, split: str) -> tuple[PostHocFit | None, list[Finding]]:
    """Return the fit to apply on a split, and findings of the audit.

    On train and val none is applied, since it was fitted on val (D7).
    """
    if fit is None or split not in SEEN_SPLITS:
        return fit, []
    message = (
        f"the {_describe_method(fit.method)} were fitted on {fit.split}, so {split} is measured "
        "without them; their effect is measured on test"
    )
    return None, [make_finding("post_hoc_fit", "note", message)]


def _describe_method(method: FitMethod) -> str:
    """Return what a method fits, in words."""
    return "isotonic calibrators" if method == "isotonic" else f"{method} thresholds"


def name_fit(fit: PostHocFit | None) -> str | None:
    """Return method and minimum recall as text, which are equal in comparable variants."""
    if fit is None:
        return None
    recall = "" if fit.min_recall is None else f" at a recall of {fit.min_recall:g}"
    return fit.method + recall
