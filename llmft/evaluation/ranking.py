"""How well outputs put rows in order, column by column; fast enough for the bootstrap.

Rows of equal output share their place, as in scikit-learn.
"""

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
    """How many rows of its column stand before a group."""


def compute_roc_auc(true_NC: NDArray[np.bool_], outputs_NC: Floats) -> Floats:
    """Return the area under the ROC curve per column, NaN without positives or negatives, [C]."""
    num_rows, num_columns = true_NC.shape
    ties = _sort(outputs_NC)
    true_G = _count_true(true_NC, ties)
    mean_places_G = ties.places_G + (ties.sizes_G - 1) / 2
    places_C = np.bincount(ties.columns_G, true_G * mean_places_G, minlength=num_columns)
    num_true_C = np.count_nonzero(true_NC, axis=0)
    # The pairs (Mann and Whitney 1947) in which the positive row stands higher; half of the ties.
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
