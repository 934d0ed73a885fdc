"""Metrics as functions of means over rows, so that leaving rows out takes no new computation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import LabelsConfig
from llmft.metrics.definitions import (
    Floats,
    compute_placements,
    compute_row_values,
    decide_labels,
    find_label_type,
)


class Moments(NamedTuple):
    """Values per row from whose means a metric of one run is computed."""

    values_NM: Floats
    """Per row; the metric is a function of their means over the rows."""
    combine: Callable[[Floats], Floats]
    """Means [..., M] -> metric or its parts [..., P]; NaN where one is not defined."""


def find_moments(
    metric: str, labels: NDArray[Any], outputs_NC: Floats, *, config: LabelsConfig | None = None
) -> Moments | None:
    """Return the moments of an overall metric; None for metrics of the ranking of the rows."""
    values_N = compute_row_values(metric, labels, outputs_NC, config=config)
    if values_N is not None:
        return Moments(values_N[:, None].astype(np.float64), _keep)
    values_NM: Floats
    combine: Callable[[Floats], Floats]
    match metric:
        case "rmse":
            values_NM, combine = _square_errors(labels, outputs_NC), _compute_rmse
        case "r2":
            centred_ND = labels - labels.mean(axis=0, dtype=np.float64)
            errors_ND = _square_errors(labels, outputs_NC)
            values_NM, combine = np.hstack([errors_ND, centred_ND, centred_ND**2]), _compute_r2
        case "quadratic_kappa":
            pair_N2 = np.stack([labels, outputs_NC.argmax(axis=1)], axis=1).astype(np.float64)
            apart_N1 = np.diff(pair_N2, axis=1) ** 2
            values_NM, combine = np.hstack([apart_N1, pair_N2, pair_N2**2]), _compute_kappa
        case "f1_macro":
            values_NM, combine = _count_hits(labels, outputs_NC), _compute_f1_macro
        case "f1_micro":
            counts_N3L = _count_hits(labels, outputs_NC).reshape(len(labels), 3, -1)
            values_NM, combine = counts_N3L.sum(axis=2), _compute_f1
        case "balanced_accuracy":
            values_NM, combine = _count_hits(labels, outputs_NC), _compute_balanced_accuracy
        case _:
            return None
    return Moments(values_NM, combine)


def linearise_auc(labels: NDArray[Any], outputs_NC: Floats, units_N: NDArray[np.int64]) -> Moments:
    """Return values per row whose mean is `roc_auc`, and varies over rows as it does.

    Args:
        labels: Classes [N] or labels [N, L].
        outputs_NC: Outputs of the same rows.
        units_N: The cluster of each row.

    Source:
        Obuchowski 1997, Nonparametric Analysis of Clustered ROC Curve Data, doi:10.2307/2533958;
        with one row a cluster that of DeLong, DeLong and Clarke-Pearson 1988.
    """
    true_NC = labels
    if labels.ndim == 1:
        true_NC = labels[:, None] == np.arange(outputs_NC.shape[1])
        if outputs_NC.shape[1] == 2:
            true_NC, outputs_NC = true_NC[:, 1:], outputs_NC[:, 1:]
    placements_NC = compute_placements(true_NC, outputs_NC.astype(np.float64))
    known_C = ~np.isnan(placements_NC).any(axis=0)
    true_NC, placements_NC = true_NC[:, known_C], placements_NC[:, known_C]
    if not known_C.any():
        return Moments(np.full((len(labels), 1), np.nan), _keep)
    area_C = (placements_NC * true_NC).sum(axis=0) / true_NC.sum(axis=0)
    moved_NC = np.zeros(placements_NC.shape)
    for side_NC in (true_NC, ~true_NC):
        units_C = np.array([len(np.unique(units_N[side_N])) for side_N in side_NC.T])
        scale_C = np.sqrt(units_C / np.maximum(units_C - 1, 1))
        residuals_NC = np.where(units_C > 1, placements_NC - area_C, 0.0)
        # A single one shows no variance: it may have any, as much as a fraction can.
        residuals_NC += np.where(units_C > 1, 0.0, np.sqrt(area_C * (1 - area_C)))
        moved_NC += np.where(side_NC, scale_C * residuals_NC / side_NC.sum(axis=0), 0.0)
    moved_NC -= moved_NC.mean(axis=0)
    return Moments((area_C + len(labels) * moved_NC).mean(axis=1, keepdims=True), _keep)


def find_part_moments(labels: NDArray[Any], outputs_NC: Floats) -> Moments:
    """Return the moments of each dimension's mae, or of each class's or label's f1."""
    if find_label_type(labels) == "scores":
        return Moments(np.abs(labels - outputs_NC).astype(np.float64), _keep)
    return Moments(_count_hits(labels, outputs_NC), _compute_f1)


def _square_errors(labels_ND: Floats, outputs_ND: Floats) -> Floats:
    return np.asarray((labels_ND.astype(np.float64) - outputs_ND) ** 2)


def _count_hits(labels: NDArray[Any], outputs_NC: Floats) -> Floats:
    """Return per row which classes are true positives, true, and predicted, [N, 3 C]."""
    if find_label_type(labels) == "multilabel":
        true_NC, predicted_NC = labels, decide_labels(outputs_NC)
    else:
        one_hot = np.eye(outputs_NC.shape[1], dtype=bool)
        true_NC, predicted_NC = one_hot[labels], one_hot[outputs_NC.argmax(axis=1)]
    return np.hstack([true_NC & predicted_NC, true_NC, predicted_NC]).astype(np.float64)


def _keep(means: Floats) -> Floats:
    return means


def _compute_rmse(means: Floats) -> Floats:
    return np.asarray(np.sqrt(np.maximum(means, 0)).mean(axis=-1, keepdims=True))


def _compute_r2(means: Floats) -> Floats:
    error, label, square = np.split(means, 3, axis=-1)
    variance = square - label**2
    varies = variance > 1e-9 * np.abs(square)
    found = 1 - error / np.where(varies, variance, 1)
    return np.asarray(np.where(varies, found, error == 0).mean(axis=-1, keepdims=True))


def _compute_kappa(means: Floats) -> Floats:
    apart, label, predicted, label_square, predicted_square = np.split(means, 5, axis=-1)
    by_chance = label_square + predicted_square - 2 * label * predicted
    return 1 - _divide(apart, by_chance)


def _compute_f1(means: Floats) -> Floats:
    hits, true, predicted = np.split(means, 3, axis=-1)
    return _divide(2 * hits, true + predicted)


def _compute_f1_macro(means: Floats) -> Floats:
    return _average_known(_compute_f1(means))


def _compute_balanced_accuracy(means: Floats) -> Floats:
    hits, true, _ = np.split(means, 3, axis=-1)
    return _average_known(_divide(hits, true))


def _average_known(parts: Floats) -> Floats:
    """Return the mean over the last axis without NaN; NaN if all are NaN."""
    known = ~np.isnan(parts)
    total = np.where(known, parts, 0).sum(axis=-1, keepdims=True)
    return _divide(total, known.sum(axis=-1, keepdims=True))


def _divide(above: Floats, below: NDArray[Any]) -> Floats:
    """Return the ratio, NaN for a denominator of 0 up to the rounding error of a mean."""
    is_known = below > 1e-9
    return np.asarray(np.where(is_known, above / np.where(is_known, below, 1), np.nan))
