"""Metrics per dimension, class or label, shape [C]; NaN where one is not defined."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class _Ties(NamedTuple):
    """Rows of every column from the lowest value to the highest, in groups of equal value."""

    order_M: NDArray[np.int64]
    """Positions in the flat [C, N], column by column; M is C times N."""
    starts_G: NDArray[np.int64]
    """Where each group begins."""
    sizes_G: NDArray[np.int64]
    columns_G: NDArray[np.int64]
    """Column of each group."""
    places_G: NDArray[np.int64]
    """Number of rows of its column before a group."""


def compute_roc_auc(true_NC: NDArray[np.bool_], outputs_NC: Floats) -> Floats:
    """Return the area under the ROC curve per column, NaN without positives or negatives, [C]."""
    num_rows, num_columns = true_NC.shape
    ties = _sort(outputs_NC)
    true_G = _count_true(true_NC, ties)
    mean_places_G = ties.places_G + (ties.sizes_G - 1) / 2
    places_C = np.bincount(ties.columns_G, true_G * mean_places_G, minlength=num_columns)
    num_true_C = np.count_nonzero(true_NC, axis=0)
    # Pairs (Mann and Whitney 1947) in which the positive row is ranked higher; half of the ties.
    won_C = places_C - num_true_C * (num_true_C - 1) / 2
    return divide(won_C, num_true_C * (num_rows - num_true_C))


def compute_average_precision(true_NC: NDArray[np.bool_], outputs_NC: Floats) -> Floats:
    """Return the average precision per column, NaN without positives or negatives, [C]."""
    num_rows, num_columns = true_NC.shape
    ties = _sort(-outputs_NC)
    true_G = _count_true(true_NC, ties)
    num_true_C = np.count_nonzero(true_NC, axis=0)
    before_C = num_true_C.cumsum() - num_true_C
    hits_G = true_G.cumsum() - before_C[ties.columns_G]
    precision_G = hits_G / (ties.places_G + ties.sizes_G)
    sums_C = np.bincount(ties.columns_G, true_G * precision_G, minlength=num_columns)
    return divide(sums_C, np.where(num_true_C < num_rows, num_true_C, 0))


def compute_spearman(labels_ND: Floats, outputs_ND: Floats) -> Floats:
    """Return the rank correlation per column, NaN where one side is constant, [D]."""
    one_DN, other_DN = _rank(labels_ND), _rank(outputs_ND)
    variances_D = (one_DN**2).sum(axis=1) * (other_DN**2).sum(axis=1)
    return divide((one_DN * other_DN).sum(axis=1), np.sqrt(variances_D))


def divide(values_C: NDArray[Any], divisors_C: NDArray[Any]) -> Floats:
    """Return the quotients, NaN where the divisor is 0."""
    found = np.full(len(values_C), np.nan)
    return np.asarray(np.divide(values_C, divisors_C, out=found, where=divisors_C > 0))


def _rank(values_ND: Floats) -> Floats:
    """Return the rank of every row in its column, less the mean rank, [D, N]."""
    num_rows, num_columns = values_ND.shape
    ties = _sort(values_ND)
    ranks_M = np.empty(values_ND.size)
    ranks_M[ties.order_M] = np.repeat(ties.places_G + (ties.sizes_G - 1) / 2, ties.sizes_G)
    return np.asarray(ranks_M.reshape(num_columns, num_rows) - (num_rows - 1) / 2)


def _count_true(true_NC: NDArray[np.bool_], ties: _Ties) -> NDArray[np.int64]:
    true_M = true_NC.ravel(order="F")[ties.order_M]
    return np.asarray(np.add.reduceat(true_M, ties.starts_G, dtype=np.int64))


def _sort(values_NC: Floats) -> _Ties:
    num_rows, num_columns = values_NC.shape
    values_CN = np.ascontiguousarray(values_NC.T)
    firsts_C1 = num_rows * np.arange(num_columns)[:, None]
    order_M = (values_CN.argsort(axis=1) + firsts_C1).ravel()
    sorted_M = values_CN.ravel()[order_M]
    begins_M = np.empty(values_NC.size, dtype=bool)
    np.not_equal(sorted_M[1:], sorted_M[:-1], out=begins_M[1:])
    begins_M[::num_rows] = True
    starts_G = np.flatnonzero(begins_M)
    columns_G, places_G = np.divmod(starts_G, num_rows)
    return _Ties(order_M, starts_G, np.diff(starts_G, append=len(order_M)), columns_G, places_G)


Bools = NDArray[np.bool_]
SCORE_PARTS = ("mae", "rmse", "r2", "spearman", "skill")
CLASS_PARTS = ("precision", "recall", "f1", "support", "roc_auc", "average_precision")


def compute_score_parts(metric: str, labels_ND: Floats, outputs_ND: Floats) -> Floats:
    """Return one of `SCORE_PARTS` for every dimension, [D].

    `skill` is scikit-learn's `d2_absolute_error_score`: 1 is perfect, 0 is as good as the best
    constant for these rows, and below 0 is worse than that.

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
    """Return 1 - error / constant's error; as in scikit-learn 1 or 0 if the constant has none."""
    error_D, constant_D = errors_ND.sum(axis=0), constant_errors_ND.sum(axis=0)
    if len(errors_ND) < 2:
        return np.full(len(error_D), np.nan)
    varies_D = constant_D > 0
    found_D = 1 - error_D / np.where(varies_D, constant_D, 1)
    return np.asarray(np.where(varies_D, found_D, error_D == 0))
