"""Metrics under scikit-learn's names, overall and per dimension, class or label."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.metrics import METRICS, list_metrics
from llmft.config.task import LabelsConfig, ScoresConfig
from llmft.data.labels import LABEL_THRESHOLD, assign_tiers, compute_overall
from llmft.results.evaluation import LabelType, Measurement

Floats = NDArray[np.floating[Any]]
_PARTS = {"f1_macro": "f1", "balanced_accuracy": "recall"}
"""Overall metric -> the metric per class that it is the mean of, where the names differ."""
Bools = NDArray[np.bool_]
SCORE_PARTS = ("mae", "rmse", "r2", "spearman", "skill")
CLASS_PARTS = ("precision", "recall", "f1", "support", "roc_auc", "average_precision")


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
    return _drop_nan(_average_parts(metric, parts_C[None], label_type)[0])


def weigh_rows(metric: str, labels: NDArray[Any]) -> Floats | None:
    """Return how much each row weighs in an overall metric, [N]; None if all weigh the same.

    Where every class or label counts the same, a row of a rare one weighs more.
    """
    match METRICS[metric].weighs:
        case "rows":
            return None
        case "order":
            return np.asarray((labels - labels.mean()) ** 2)
        case "positives":
            return np.asarray(labels.sum(axis=1, dtype=np.float64))
        case "classes" if labels.ndim == 1:
            return np.asarray(1 / np.bincount(labels)[labels])
        case "classes":
            return np.asarray(weigh_class_rows(labels, labels.shape[1]).sum(axis=1))


def weigh_class_rows(labels: NDArray[Any], num_outputs: int) -> Floats:
    """Return how much each row weighs in a metric of each class or label, [N, C].

    Its rows together weigh as much as all others together; 0 for those that never occur.
    """
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(num_outputs)
    num_true_C = true_NC.sum(axis=0)
    num_false_C = len(labels) - num_true_C
    weights_NC = true_NC / np.maximum(num_true_C, 1) + ~true_NC / np.maximum(num_false_C, 1)
    return np.where(num_true_C > 0, weights_NC, 0.0)


def _average_parts(metric: str, parts_RC: Floats, label_type: LabelType) -> Floats:
    """Return the overall metric for R sets of rows, [R]; NaN where it is not defined."""
    if label_type == "scores":
        return np.asarray(parts_RC.mean(axis=1))
    if label_type == "class" and parts_RC.shape[1] == 2 and metric in _OF_RANKINGS:
        parts_RC = parts_RC[:, 1:]
    num_known_R = (~np.isnan(parts_RC)).sum(axis=1)
    return divide(np.nansum(parts_RC, axis=1), num_known_R)


def compute_on_draws(
    metric: str,
    labels: NDArray[Any],
    outputs_NC: Floats,
    rows_RM: NDArray[np.int64],
    *,
    config: LabelsConfig | None = None,
    max_values: int = 2_000_000,
) -> Floats:
    """Return an overall metric on R draws of M rows each, [R]; NaN where it is not defined.

    The same as `compute_metric` on each draw, but for metrics of rankings many draws at once.

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        outputs_NC: Outputs of the same rows.
        rows_RM: Positions of the rows of each draw.
        config: The task's labels.
        max_values: Values that are sorted at once, 8 bytes each.
    """
    label_type, num_outputs = find_label_type(labels), outputs_NC.shape[1]
    compute = _OF_RANKINGS.get(metric)
    if compute is None:
        found = [compute_metric(metric, labels[r], outputs_NC[r], config=config) for r in rows_RM]
        return np.array(found, dtype=np.float64)
    outputs_NC = outputs_NC.astype(np.float64)
    match label_type:
        case "scores":
            labels = labels.astype(np.float64)
        case "class":
            labels = np.eye(num_outputs, dtype=bool)[labels]
    num_at_once = max(1, max_values // (rows_RM.shape[1] * num_outputs))
    parts_RC = np.empty((len(rows_RM), num_outputs))
    for start in range(0, len(rows_RM), num_at_once):
        # Each draw of each column becomes a column.
        rows_MR = rows_RM[start : start + num_at_once].T
        drawn = [values[rows_MR].reshape(len(rows_MR), -1) for values in (labels, outputs_NC)]
        parts_RC[start : start + num_at_once] = compute(*drawn).reshape(-1, num_outputs)
    return _average_parts(metric, parts_RC, label_type)


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


def compute_placements(true_NC: Bools, outputs_NC: Floats) -> Floats:
    """Return the fraction of the rows of the other side that a row is ranked rightly against.

    Per column, half of the ties counted, [N, C]; NaN for a column without positives or negatives.
    Their mean over the positives is the area under the ROC curve, and so is that over the
    negatives.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595.
    """
    num_rows, num_columns = true_NC.shape
    ties = _sort(outputs_NC)
    true_G = _count_true(true_NC, ties)
    false_G = ties.sizes_G - true_G
    num_true_C = np.count_nonzero(true_NC, axis=0)
    num_false_C = num_rows - num_true_C
    above_G = num_true_C.cumsum()[ties.columns_G] - true_G.cumsum() + true_G / 2
    before_C = num_false_C.cumsum() - num_false_C
    below_G = false_G.cumsum() - before_C[ties.columns_G] - false_G / 2
    of_true_G = divide(below_G, num_false_C[ties.columns_G])
    of_false_G = divide(above_G, num_true_C[ties.columns_G])
    true_M = true_NC.ravel(order="F")[ties.order_M]
    placements_M = np.empty(true_NC.size)
    placements_M[ties.order_M] = np.where(
        true_M, np.repeat(of_true_G, ties.sizes_G), np.repeat(of_false_G, ties.sizes_G)
    )
    placements_NC = placements_M.reshape(num_columns, num_rows).T
    return np.where((num_true_C > 0) & (num_false_C > 0), placements_NC, np.nan)


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


def compute_score_parts(metric: str, labels_ND: Floats, outputs_ND: Floats) -> Floats:
    """Return one of `SCORE_PARTS` for every dimension, [D].

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
            return compute_skill(labels_ND, outputs_ND)
    raise ValueError(f"unknown metric {metric}")


def compute_skill(labels_ND: Floats, outputs_ND: Floats) -> Floats:
    """Return scikit-learn's `d2_absolute_error_score` per column, [D].

    1 is perfect, 0 is as good as the best constant for these rows, below 0 is worse than that.
    """
    from_median_ND = labels_ND - np.median(labels_ND, axis=0)
    return _compare_with_constant(np.abs(outputs_ND - labels_ND), np.abs(from_median_ND))


def compute_class_parts(
    metric: str, true_NC: Bools, outputs_NC: Floats, *, predicted_NC: Bools
) -> Floats:
    """Return one of `CLASS_PARTS` for every class or label, [C].

    Precision is NaN without a prediction of the class, recall without a row of it, f1 without
    either; the areas under the curves are NaN without positive and negative rows.

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


_OF_RANKINGS: dict[str, Callable[[NDArray[Any], Floats], Floats]] = {
    "spearman": compute_spearman,
    "skill": compute_skill,
    "roc_auc": compute_roc_auc,
    "average_precision": compute_average_precision,
}
"""Metric by the order of the rows -> its function, by column; the others are found by moments."""
