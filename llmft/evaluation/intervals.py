"""Confidence intervals of the metrics of one arm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from llmft.config.labels import LabelsConfig
from llmft.config.metrics import METRICS
from llmft.evaluation.estimates import find_interval, weigh_arms
from llmft.evaluation.metrics import compute_metric, find_label_type
from llmft.evaluation.moments import Moments, find_moments, find_part_moments
from llmft.evaluation.resampling import (
    Clusters,
    Groups,
    Resampled,
    find_clusters,
    resample_moments,
    resample_rows,
)
from llmft.results.variant import Interval, PartIntervals

Floats = NDArray[np.floating[Any]]
MIN_ROWS = 20
"""On fewer rows no interval is believed: nothing is better and nothing is deployed."""


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

    By the bootstrap over rows and, of several runs, over seeds; for a share of independent rows of
    one run the exact one of Clopper and Pearson (1934), which is also taken where no run made an
    error (D14).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        groups: The cluster of each row, [N]; None if rows are independent.
        config: What the task says of its labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined, be it for more than half of the resampled rows, or if all
        rows are one cluster.
    """
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return None
    if _is_flawless(metric, float(np.mean(values))):
        low, high = bound_flawless(_count_evidence(metric, labels, groups))
        return Interval(low, high) if METRICS[metric].higher_is_better else Interval(0.0, 1 - low)
    is_share = metric in ("accuracy", "tier_accuracy", "top_3_accuracy")
    if is_share and len(runs) == 1 and groups is None:
        return bound_share(round(values[0] * len(labels)), len(labels))
    clusters = find_clusters(len(labels), groups, seed=seed)
    arm = resample_metric(metric, labels, runs, clusters=clusters, config=config, seed=seed)
    return _bound_mean(arm, seed=seed)[0]


def estimate_part_intervals(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    groups: Groups | None = None,
    seed: int = 0,
) -> PartIntervals:
    """Return the 95 % intervals of each dimension's mae, or each class's or label's f1."""
    clusters = find_clusters(len(labels), groups, seed=seed)
    arm = resample_parts(labels, runs, clusters=clusters, seed=seed)
    found = _bound_mean(arm, seed=seed)
    is_scores = find_label_type(labels) == "scores"
    if not is_scores:
        support_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
        for i, f1 in enumerate(arm.values_KP.mean(axis=0)):
            if f1 == 1:
                found[i] = bound_flawless(count_clusters(support_NC[:, i], groups))
    metric = "mae" if is_scores else "f1"
    return PartIntervals(metric=metric, intervals=dict(zip(names, found, strict=True)))


def resample_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    clusters: Clusters,
    config: LabelsConfig | None,
    seed: int,
) -> Resampled:
    """Resample an overall metric of the runs of an arm; it is the only part."""
    found = [find_moments(metric, labels, outputs, config=config) for outputs in runs]
    moments = [m for m in found if m is not None]
    if moments:
        return resample_moments(moments, clusters=clusters, seed=seed)

    def compute(rows: NDArray[np.int64]) -> Floats:
        values = [compute_metric(metric, labels[rows], o[rows], config=config) for o in runs]
        return np.array(values, dtype=np.float64)[:, None]

    return resample_rows(compute, clusters=clusters, seed=seed)


def resample_parts(
    labels: NDArray[Any], runs: Sequence[Floats], *, clusters: Clusters, seed: int
) -> Resampled:
    """Resample each dimension's mae, or each class's or label's f1, of the runs of an arm."""
    moments = [find_part_moments(labels, outputs) for outputs in runs]
    return resample_moments(moments, clusters=clusters, seed=seed)


def bootstrap_mean(
    values_N: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of a mean over rows; None if all of them are one cluster."""
    clusters = find_clusters(len(values_N), groups, seed=seed)
    mean = Moments(np.asarray(values_N, dtype=np.float64)[:, None], lambda means: means)
    return _bound_mean(resample_moments([mean], clusters=clusters, seed=seed), seed=seed)[0]


def bound_flawless(num_rows: int) -> Interval:
    """Return the exact interval of a share of 1: what some rows without an error prove (D14)."""
    return bound_share(num_rows, num_rows)


def bound_share(num_hits: int, num_rows: int) -> Interval:
    """Return the exact 95 % interval of a share, of Clopper and Pearson (1934)."""
    found = binomtest(num_hits, num_rows).proportion_ci(0.95, method="exact")
    return Interval(float(found.low), float(found.high))


def count_clusters(chosen_N: NDArray[np.bool_], groups: Groups | None) -> int:
    """Return how many independent rows some rows count as: their clusters."""
    return int(chosen_N.sum()) if groups is None else len(np.unique(groups[chosen_N]))


def _bound_mean(arm: Resampled, *, seed: int) -> list[Interval | None]:
    """Return the interval of the mean over the runs, per part."""
    found: list[Interval | None] = []
    for part, estimate in enumerate(weigh_arms([arm], [1], seed=seed)):
        if estimate is None:
            found.append(None)
            continue
        # No draw of a single run below 0 or above 1 means that the scale ends there.
        drawn_RK = arm.draws_RKP[:, :, part]
        least, most = float(np.nanmin(drawn_RK)), float(np.nanmax(drawn_RK))
        low, high = find_interval(estimate)
        found.append(Interval(max(low, min(0.0, least)), min(high, max(1.0, most))))
    return found


def _is_flawless(metric: str, value: float) -> bool:
    """Return whether a metric on a scale from 0 to 1 cannot be any better."""
    if METRICS[metric].higher_is_better:
        return value >= 1 - 1e-9
    return metric == "hamming_loss" and value == 0


def _count_evidence(metric: str, labels: NDArray[Any], groups: Groups | None) -> int:
    """Return on how many rows a flawless value rests: for an order those of the rarer side."""
    if metric not in ("roc_auc", "average_precision"):
        return count_clusters(np.ones(len(labels), dtype=bool), groups)
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    if labels.ndim == 1 and true_NC.shape[1] == 2:  # one order, seen from both ends
        true_NC = true_NC[:, 1:]
    rarer = [
        min(count_clusters(true_N, groups), count_clusters(~true_N, groups)) for true_N in true_NC.T
    ]
    return min(count_clusters(np.ones(len(labels), dtype=bool), groups), sum(rarer))
