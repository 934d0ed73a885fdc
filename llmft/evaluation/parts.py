"""Metrics per dimension, class or label, shape [C]; NaN where one is not defined."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.evaluation.ranking import (
    compute_average_precision,
    compute_roc_auc,
    compute_spearman,
    divide,
)

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
SCORE_PARTS = ("mae", "rmse", "r2", "spearman", "skill")
CLASS_PARTS = ("precision", "recall", "f1", "support", "roc_auc", "average_precision")


def compute_score_parts(metric: str, labels_ND: Floats, outputs_ND: Floats) -> Floats:
    """Return one of `SCORE_PARTS` for every dimension, [D].

    `skill` is scikit-learn's `d2_absolute_error_score`: 1 is perfect, 0 is as good as the best
    constant for these very rows, and below 0 is worse than that.

    Raises:
        ValueError: If the metric is not known.
    """
    labels_ND, outputs_ND = labels_ND.astype(np.float64), outputs_ND.astype(np.float64)
    errors_ND = outputs_ND - labels_ND
    match metric:
        case "mae":
            return np.asarray(np.abs(errors_ND).mean(axis=0))
        case "rmse":
            return np.asarray(np.sqrt((errors_ND**2).mean(axis=0)))
        case "r2":
            from_mean_ND = labels_ND - labels_ND.mean(axis=0)
            return _compare_with_constant(errors_ND**2, from_mean_ND**2)
        case "spearman":
            return compute_spearman(labels_ND, outputs_ND)
        case "skill":
            from_median_ND = labels_ND - np.median(labels_ND, axis=0)
            return _compare_with_constant(np.abs(errors_ND), np.abs(from_median_ND))
    raise ValueError(f"unknown metric {metric}")


def compute_class_parts(
    metric: str, true_NC: Bools, outputs_NC: Floats, *, predicted_NC: Bools
) -> Floats:
    """Return one of `CLASS_PARTS` for every class or label, [C].

    Precision needs a prediction, recall a row with the class, f1 either of them; the areas under
    the curves need rows with it and without it.

    Raises:
        ValueError: If the metric is not known.
    """
    match metric:
        case "roc_auc":
            return compute_roc_auc(true_NC, outputs_NC)
        case "average_precision":
            return compute_average_precision(true_NC, outputs_NC)
    support_C, num_predicted_C = (np.count_nonzero(a, axis=0) for a in (true_NC, predicted_NC))
    num_hits_C = np.count_nonzero(true_NC & predicted_NC, axis=0)
    match metric:
        case "support":
            return np.asarray(support_C, dtype=np.float64)
        case "precision":
            return divide(num_hits_C, num_predicted_C)
        case "recall":
            return divide(num_hits_C, support_C)
        case "f1":
            return divide(2 * num_hits_C, support_C + num_predicted_C)
    raise ValueError(f"unknown metric {metric}")


def _compare_with_constant(errors_ND: Floats, constant_errors_ND: Floats) -> Floats:
    """Return 1 for no error, 0 for the constant's; as in scikit-learn 1 or 0 if that has none."""
    error_D, constant_D = errors_ND.sum(axis=0), constant_errors_ND.sum(axis=0)
    if len(errors_ND) < 2:
        return np.full(len(error_D), np.nan)
    varies_D = constant_D > 0
    found_D = 1 - error_D / np.where(varies_D, constant_D, 1)
    return np.asarray(np.where(varies_D, found_D, error_D == 0))
