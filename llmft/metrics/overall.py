"""Metrics under scikit-learn's names, overall and per dimension, class or label."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.config.labels import LabelsConfig, ScoresConfig
from llmft.config.metrics import METRICS, list_metrics
from llmft.data.labels import LABEL_THRESHOLD, assign_tiers, compute_overall
from llmft.metrics.parts import (
    CLASS_PARTS,
    SCORE_PARTS,
    compute_class_parts,
    compute_score_parts,
)
from llmft.results.variant import LabelType, Measurement

Floats = NDArray[np.floating[Any]]
_PARTS = {"f1_macro": "f1", "balanced_accuracy": "recall"}
"""Overall metric -> the metric per class that it is the mean of, where the names differ."""


def find_label_type(labels: NDArray[Any]) -> LabelType:
    """Return the label type: scores (float [N, D]), class (int [N]), multilabel (bool [N, L])."""
    if labels.dtype == np.bool_:
        return "multilabel"
    return "scores" if labels.ndim == 2 else "class"


def is_better(metric: str, one: float | None, other: float | None) -> bool:
    """Return whether one value of a metric beats another; an undefined value beats nothing."""
    if one is None or other is None:
        return one is not None
    return one > other if METRICS[metric].higher_is_better else one < other


def average(values: Sequence[float | None]) -> float | None:
    """Return the mean over several runs; None if one of them has no value."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def measure(
    labels: NDArray[Any],
    outputs_NC: Floats,
    *,
    names: list[str],
    config: LabelsConfig | None = None,
) -> Measurement:
    """Measure outputs against labels, overall and per dimension, class or label.

    Args:
        labels: Scores float [N, D], classes int [N], or labels bool [N, L].
        outputs_NC: Scores, or decision scores of classes or labels.
        names: Of the dimensions, classes or labels.
        config: The task's labels: weights, tiers and order have metrics of their own.

    Raises:
        ValueError: If there are no rows or the shapes disagree.
    """
    if len(labels) == 0 or len(labels) != len(outputs_NC):
        raise ValueError(f"{len(labels)} labels and {len(outputs_NC)} outputs")
    label_type = find_label_type(labels)
    metrics = list_metrics(label_type, config, num_outputs=len(names))
    keys = SCORE_PARTS if label_type == "scores" else CLASS_PARTS
    by_key = {key: compute_parts(key, labels, outputs_NC) for key in keys}
    parts = {
        name: {key: _drop_nan(found_C[i]) for key, found_C in by_key.items()}
        for i, name in enumerate(names)
    }
    return Measurement(
        metrics={m: compute_metric(m, labels, outputs_NC, config=config) for m in metrics},
        per_dimension=parts if label_type == "scores" else {},
        per_class={} if label_type == "scores" else parts,
    )


def compute_metric(
    metric: str, labels: NDArray[Any], outputs_NC: Floats, *, config: LabelsConfig | None = None
) -> float | None:
    """Return one overall metric; None where it is not defined.

    Metrics of scores are unweighted means over the dimensions. `f1_macro` and `balanced_accuracy`
    leave out classes that never occur; `roc_auc` and `average_precision` are means over the classes
    with positive and negative rows, or that of the last of two classes.

    Raises:
        ValueError: If the labels have no such metric.
    """
    label_type, num_outputs = find_label_type(labels), outputs_NC.shape[1]
    if metric not in METRICS or label_type not in METRICS[metric].labels:
        raise ValueError(f"unknown metric {metric} for labels of type {label_type}")
    if metric not in list_metrics(label_type, config, num_outputs=num_outputs):
        return None
    values = compute_row_values(metric, labels, outputs_NC, config=config)
    if values is not None:
        return float(values.mean())
    if metric == "quadratic_kappa":
        return _compute_kappa(labels, outputs_NC.argmax(axis=1))
    if metric == "f1_micro":
        return _compute_f1_micro(labels, decide_labels(outputs_NC))
    parts_C = compute_parts(_PARTS.get(metric, metric), labels, outputs_NC)
    if label_type == "scores":
        return _drop_nan(parts_C.mean())
    if label_type == "class" and num_outputs == 2 and metric in ("roc_auc", "average_precision"):
        parts_C = parts_C[1:]
    known = parts_C[~np.isnan(parts_C)]
    return float(known.mean()) if len(known) else None


def compute_row_values(
    metric: str, labels: NDArray[Any], outputs_NC: Floats, *, config: LabelsConfig | None = None
) -> NDArray[Any] | None:
    """Return the values per row that the metric is the mean of, [N]; bool for a fraction of rows.

    None if the metric is not a mean over rows.
    """
    match metric:
        case "mae":
            values = np.abs(labels - outputs_NC).mean(axis=1, dtype=np.float64)
        case "overall_mae" if isinstance(config, ScoresConfig):
            values = np.abs(compute_overall(labels, config) - compute_overall(outputs_NC, config))
        case "tier_accuracy" if isinstance(config, ScoresConfig):
            values = find_tiers(labels, config) == find_tiers(outputs_NC, config)
        case "accuracy" if find_label_type(labels) == "multilabel":
            values = (labels == decide_labels(outputs_NC)).all(axis=1)
        case "accuracy":
            values = labels == outputs_NC.argmax(axis=1)
        case "hamming_loss":
            values = (labels != decide_labels(outputs_NC)).mean(axis=1)
        case "top_3_accuracy":
            best_N3 = np.argsort(-outputs_NC, axis=1, kind="stable")[:, :3]
            values = (best_N3 == labels[:, None]).any(axis=1)
        case _:
            return None
    return np.asarray(values)


def compute_parts(metric: str, labels: NDArray[Any], outputs_NC: Floats) -> Floats:
    """Return a metric of `SCORE_PARTS` or `CLASS_PARTS` per dimension, class or label, [C]."""
    num_outputs = outputs_NC.shape[1]
    match find_label_type(labels):
        case "scores":
            return compute_score_parts(metric, labels, outputs_NC)
        case "class":
            true_NC = np.eye(num_outputs, dtype=bool)[labels]
            predicted_NC = np.eye(num_outputs, dtype=bool)[outputs_NC.argmax(axis=1)]
        case "multilabel":
            true_NC, predicted_NC = labels, decide_labels(outputs_NC)
    return compute_class_parts(metric, true_NC, outputs_NC, predicted_NC=predicted_NC)


def decide_labels(outputs_NL: Floats) -> NDArray[np.bool_]:
    """Return which labels apply, [N, L]."""
    return np.asarray(outputs_NL >= LABEL_THRESHOLD)


def find_tiers(scores_ND: Floats, config: ScoresConfig) -> NDArray[np.int64]:
    """Return the index of each row's tier, [N]."""
    return assign_tiers(compute_overall(scores_ND, config), config)


def _compute_kappa(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float | None:
    """Return Cohen's kappa with quadratic weights; None if all are of one class."""
    by_chance = (labels_N**2 + predicted_N**2).mean() - 2 * labels_N.mean() * predicted_N.mean()
    if by_chance <= 0:
        return None
    return float(1 - ((labels_N - predicted_N) ** 2).mean() / by_chance)


def _compute_f1_micro(
    labels_NL: NDArray[np.bool_], predicted_NL: NDArray[np.bool_]
) -> float | None:
    num_marked = int(labels_NL.sum() + predicted_NL.sum())
    return 2 * int((labels_NL & predicted_NL).sum()) / num_marked if num_marked else None


def _drop_nan(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)
