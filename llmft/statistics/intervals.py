"""Confidence intervals of metrics over rows and seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import stdtrit
from scipy.stats import binomtest

from llmft.config.metrics import METRICS
from llmft.config.task import LabelsConfig, ScoresConfig
from llmft.metrics.definitions import (
    Floats,
    compute_metric,
    compute_row_values,
    find_label_type,
)
from llmft.metrics.moments import Moments
from llmft.results.evaluation import Interval, PartIntervals
from llmft.statistics.estimates import (
    Estimate,
    estimate_contrasts,
    find_interval,
    find_logit_interval,
)
from llmft.statistics.resampling import (
    Clusters,
    Groups,
    Jackknife,
    find_clusters,
    jackknife_metric,
    jackknife_moments,
    jackknife_parts,
)
from llmft.statistics.shortages import FEWEST_DIFFERENT, count_clusters

_ALMOST = 1e-9


def estimate_interval(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval of a metric, the mean over the runs.

    By the bootstrap-t over rows and, with several runs, over seeds; areas under curves by Student's
    t on the logit scale, and balanced accuracy from proportions (D20). For a proportion of
    independent rows of one run the exact one of Clopper and Pearson (1934), which is also used if
    no run has an error, or hardly any (D14).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        groups: The cluster of each row, [N]; None if rows are independent.
        config: The task's labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined, or is so without one of the clusters, or if all rows are
        one cluster.
    """
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return None
    groups = _drop_single_rows(groups)
    exact = _find_exact_interval(metric, labels, float(np.mean(values)), len(runs), groups)
    if exact is None:
        exact = _bound_rare_errors(metric, labels, runs, groups=groups, config=config)
    if exact is not None:
        return exact
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = jackknife_metric(metric, labels, runs, clusters=clusters, config=config, seed=seed)
    estimate = estimate_contrasts([variant], [1], seed=seed)[0]
    if estimate is None:
        return None
    match metric:
        case "balanced_accuracy":
            return bound_mean_recall(labels, runs, clusters=clusters, estimate=estimate)
        case "roc_auc" | "average_precision":
            return find_logit_interval(estimate)
    return _clip(find_interval(estimate), METRICS[metric].lowest, METRICS[metric].highest)


def _find_exact_interval(
    metric: str, labels: NDArray[Any], value: float, num_runs: int, groups: Groups | None
) -> Interval | None:
    """Return the interval where it is exact: of a metric at its end, or of a fraction of rows."""
    flawless, is_higher_better = METRICS[metric].flawless, METRICS[metric].higher_is_better
    is_at_end = flawless is not None and abs(value - flawless) < 1e-9
    if is_at_end or (METRICS[metric].is_area and value <= 0):  # 0: every pair is ranked wrongly
        low, high = bound_flawless(*_count_evidence(metric, labels, groups))
        return Interval(low, high) if is_at_end and is_higher_better else Interval(0.0, 1 - low)
    if METRICS[metric].is_row_fraction and num_runs == 1 and groups is None:
        return bound_proportion(round(value * len(labels)), len(labels))
    return None


def _bound_rare_errors(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    groups: Groups | None,
    config: LabelsConfig | None,
) -> Interval | None:
    """Return the interval of a mean over rows where hardly any row is wrong (D14); else None.

    Then more than 1.8 % of all bootstrap draws are without an error. The error is at most the upper
    bound of the fraction of wrong rows, times the largest possible error of a row.
    """
    best = METRICS[metric].flawless or 0.0
    values = [
        np.abs(labels - outputs).max(axis=1) if metric == "rmse"
        else compute_row_values(metric, labels, outputs, config=config)
        for outputs in runs
    ]  # fmt: skip
    known = [np.abs(values_N - best) for values_N in values if values_N is not None]
    if not known:
        return None
    rate = _bound_rare_fraction(np.max(known, axis=0) > _ALMOST, groups)
    if rate is None:
        return None
    error = find_largest_error(metric, labels, runs, config=config)
    error *= math.sqrt(rate) if metric == "rmse" else rate
    error = max(error, float(np.mean([values_N.mean() for values_N in known])))
    return Interval(best - error, best) if METRICS[metric].higher_is_better else Interval(0, error)


def find_largest_error(
    metric: str, labels: NDArray[Any], runs: Sequence[Floats], *, config: LabelsConfig | None
) -> float:
    """Return the largest possible error of a row, in the units of the metric."""
    if find_label_type(labels) != "scores" or METRICS[metric].is_row_fraction:
        return 1.0
    if isinstance(config, ScoresConfig):
        return config.range[1] - config.range[0]
    return float(max(np.ptp([labels, outputs_ND]) for outputs_ND in runs))


def _bound_rare_fraction(wrong_N: NDArray[np.bool_], groups: Groups | None) -> float | None:
    """Return the upper bound of the fraction of wrong rows; None unless hardly any is wrong.

    All wrong clusters are taken to be as large as the largest.
    """
    sizes_G = find_clusters(len(wrong_N), groups, most=None).sizes_G
    num_wrong = count_clusters(wrong_N, groups)
    if num_wrong >= min(FEWEST_DIFFERENT, len(sizes_G) / 2):
        return None
    weight = float(sizes_G.max() / sizes_G.mean())
    return min(1.0, weight * bound_proportion(num_wrong, len(sizes_G)).high)


def estimate_part_intervals(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> PartIntervals:
    """Return the 95 % intervals of each dimension's mae, or each class's or label's f1."""
    clusters = find_clusters(len(labels), groups, seed=seed)
    variant = jackknife_parts(labels, runs, clusters=clusters)
    is_scores = find_label_type(labels) == "scores"
    found = [
        interval and _clip(interval, 0.0, math.inf if is_scores else 1.0)
        for interval in _bound_mean(variant, seed=seed)
    ]
    if is_scores:
        errors_ND = np.max([np.abs(labels - outputs) for outputs in runs], axis=0)
        span = find_largest_error("mae", labels, runs, config=config)
        for i, errors_N in enumerate(errors_ND.T):
            rate = _bound_rare_fraction(errors_N > _ALMOST, groups)
            found[i] = found[i] if rate is None else Interval(0.0, rate * span)
    else:
        support_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
        for i, f1 in enumerate(variant.values_KP.mean(axis=0)):
            if f1 == 1:
                found[i] = bound_flawless(count_clusters(support_NC[:, i], groups))
    metric = "mae" if is_scores else "f1"
    return PartIntervals(metric=metric, intervals=dict(zip(names, found, strict=True)))


def bootstrap_mean(
    values_N: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of a mean over rows; None if all of them are one cluster.

    If no value is below 0 or above 1, the mean is taken to be bounded there.
    """
    clusters = find_clusters(len(values_N), groups, seed=seed)
    mean = Moments(np.asarray(values_N, dtype=np.float64)[:, None], lambda means: means)
    interval = _bound_mean(jackknife_moments([mean], clusters=clusters), seed=seed)[0]
    ends = float(np.min(values_N, initial=0.0)), float(np.max(values_N, initial=1.0))
    return interval and _clip(interval, *ends)


def bound_flawless(*counts: float) -> Interval:
    """Return the exact 95 % interval of a mean of proportions that are all 1 (D14).

    The lower bound is the lowest mean with which rows without any error are as probable as 2.5 %;
    for a single proportion that of Clopper and Pearson (1934).

    Args:
        counts: Number of rows of each proportion, such as the rows of each class.
    """
    counts_C = np.array(counts, dtype=np.float64)

    def log_probability(log_rate: float) -> float:
        """Return that of no error where each class is right with probability rate times count."""
        return float((counts_C * np.minimum(0.0, log_rate + np.log(counts_C))).sum())

    # By Lagrange: the mean is lowest where the probability of a class grows with its rows.
    end = -math.log(counts_C.min())
    start = end + math.log(0.025) / counts_C.min() - 1
    log_rate = optimize.brentq(lambda x: log_probability(x) - math.log(0.025), start, end)
    return Interval(float(np.minimum(1.0, np.exp(log_rate) * counts_C).mean()), 1.0)


def bound_mean_recall(
    labels_N: NDArray[np.int64], runs: Sequence[Floats], *, clusters: Clusters, estimate: Estimate
) -> Interval:
    """Return the 95 % interval of the mean recall over classes, the mean over the runs.

    That of each recall is Wilson's, for as many independent rows as its variance over clusters
    says. They are combined by the distances of their ends from the recalls (MOVER), together with
    the variance over seeds.

    Args:
        labels_N: Classes.
        runs: Outputs [N, C] of each run.
        clusters: Rows that are drawn together.
        estimate: The mean recall.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953; Zou and Donner 2008, Construction of
        Confidence Limits about Effect Measures, doi:10.1002/sim.3095 (MOVER).
    """
    is_clustered = len(clusters.sizes_G) < len(labels_N)
    z = float(stdtrit(estimate.row_degrees if is_clustered else np.inf, 0.975))
    hits_N = np.mean([outputs.argmax(axis=1) == labels_N for outputs in runs], axis=0)
    below, above, moved = [], [], []
    for label in np.unique(labels_N):
        rows_N = labels_N == label
        recall, num_rows = float(hits_N[rows_N].mean()), int(rows_N.sum())
        num_units = len(np.unique(clusters.index_N[rows_N]))
        residuals_N1 = np.where(rows_N, hits_N - recall, 0.0)[:, None] / num_rows
        moved_G = clusters.add_up(residuals_N1)[:, 0]
        variance = float((moved_G**2).sum()) * num_units / max(1, num_units - 1)
        spread, count = recall * (1 - recall), float(num_units)
        if is_clustered and spread > 0:
            count = min(float(num_rows), spread / max(variance, spread / num_rows))
        middle = (recall + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * math.sqrt(spread / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
        below.append(recall - (middle - half))
        above.append(middle + half - recall)
        moved.append(moved_G)
    # Classes vary together where a cluster has rows of several.
    together = float((np.sum(moved, axis=0) ** 2).sum())
    apart = float((np.array(moved) ** 2).sum())
    ratio = max(1.0, together / apart) if apart > 0 else 1.0
    of_seeds = float(stdtrit(estimate.degrees, 0.975)) * math.sqrt(estimate.seed_variance)
    low, high = (
        math.hypot(math.sqrt(ratio * float((np.array(ends) ** 2).sum())) / len(ends), of_seeds)
        for ends in (below, above)
    )
    return Interval(max(0.0, estimate.value - low), min(1.0, estimate.value + high))


def bound_proportion(num_hits: int, num_rows: int) -> Interval:
    """Return the exact 95 % interval of a proportion, of Clopper and Pearson (1934)."""
    found = binomtest(num_hits, num_rows).proportion_ci(0.95, method="exact")
    return Interval(float(found.low), float(found.high))


def bound_fraction(
    hits_N: NDArray[np.bool_], *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of the fraction of rows that are hits.

    Exact for independent rows; of clusters by the bootstrap, and exact for their number if all
    rows are hits, or none is.

    Args:
        hits_N: Whether each row is one.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling.

    Returns:
        None without rows.
    """
    if len(hits_N) == 0:
        return None
    groups = _drop_single_rows(groups)
    if groups is not None and 0 < hits_N.sum() < len(hits_N):
        return bootstrap_mean(hits_N.astype(np.float64), groups=groups, seed=seed)
    num_units = count_clusters(np.ones(len(hits_N), dtype=bool), groups)
    return bound_proportion(round(float(hits_N.mean()) * num_units), num_units)


def _drop_single_rows(groups: Groups | None) -> Groups | None:
    """Return None for clusters of one row each, such as those of a slice."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def _bound_mean(variant: Jackknife, *, seed: int) -> list[Interval | None]:
    """Return the interval of the mean over the runs, per part."""
    return [
        estimate and find_interval(estimate)
        for estimate in estimate_contrasts([variant], [1], seed=seed)
    ]


def _clip(interval: Interval, low: float, high: float) -> Interval:
    return Interval(max(interval.low, low), min(interval.high, high))


def _count_evidence(metric: str, labels: NDArray[Any], groups: Groups | None) -> list[float]:
    """Return the independent rows behind a flawless value, of each class or label that it weighs.

    For areas under curves and for labels those of the rarer side.
    """
    num_units = count_clusters(np.ones(len(labels), dtype=bool), groups)
    if METRICS[metric].weighs != "classes":
        return [num_units]
    is_area = METRICS[metric].is_area
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    if labels.ndim == 1 and true_NC.shape[1] == 2 and is_area:
        true_NC = true_NC[:, 1:]  # the ranking of one class reverses the other's
    counted_NC = true_NC.copy()
    if labels.ndim == 2 or is_area:
        for i, true_N in enumerate(true_NC.T):
            if count_clusters(true_N, groups) > count_clusters(~true_N, groups):
                counted_NC[:, i] = ~true_N
    known = [n for counted_N in counted_NC.T if (n := count_clusters(counted_N, groups)) > 0]
    # The labels of a row are not independent of each other.
    num_units = count_clusters(np.asarray(counted_NC.any(axis=1)), groups)
    return [count * min(1.0, num_units / sum(known)) for count in known] or [1.0]
