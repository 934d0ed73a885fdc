"""Test rows that are too few for evidence."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.metrics.definitions import (
    find_label_type,
    weigh_rows,
)
from llmft.statistics.resampling import (
    Clusters,
    Groups,
    find_clusters,
)
from llmft.wording import count

_ALMOST = 1e-9
FEWEST_DIFFERENT = 4
"""Rows, or clusters, that a mean over mostly equal rows has to rest on. With fewer, more than
exp(-4) of the bootstrap draws have none of them."""
MIN_ROWS = 20
"""With fewer rows nothing is decided: no variant is better and none is deployed."""
MIN_CLUSTERS = 10
"""The same for clusters of rows: they, not the rows, are the sample size."""


class Shortage(NamedTuple):
    """Rows that are too few for evidence."""

    reason: str
    fraction: float
    """The rows there are, of those that are needed."""


def find_shortage(
    num_rows: int,
    groups: Groups | None = None,
    *,
    metric: str = "",
    labels: NDArray[Any] | None = None,
) -> Shortage | None:
    """Return why rows are too few for evidence; None if they suffice.

    Clusters count by their effective number, so large ones among small ones count for less (D21);
    in metrics that weigh classes rows of frequent ones count for less (D20).

    Args:
        num_rows: N.
        groups: The cluster of each row, [N]; None if rows are independent.
        metric: An overall metric.
        labels: Scores [N, D], classes [N], or labels [N, L]; needed for a metric.
    """
    if num_rows < MIN_ROWS:
        verb = "is" if num_rows == 1 else "are"
        reason = (
            f"{count(num_rows, 'row')} {verb} too few for evidence; at least {MIN_ROWS} are needed"
        )
        return Shortage(reason, num_rows / MIN_ROWS)
    clusters = find_clusters(num_rows, groups, most=None)
    num_clusters, effective = len(clusters.sizes_G), clusters.count_effective()
    counted = f"{count(num_rows, 'row')} in {count(num_clusters, 'cluster')}"
    if num_clusters >= MIN_CLUSTERS:
        counted += (
            f" tell as much as {effective:.1f} clusters of equal size, since the largest has "
            f"{clusters.sizes_G.max():.0f} rows; these"
        )
    if effective >= MIN_CLUSTERS - _ALMOST and labels is not None:
        counted, effective = _count_for_metric(metric, labels, clusters)
    if effective >= MIN_CLUSTERS - _ALMOST:
        return None
    reason = f"{counted} are too few for evidence; at least {MIN_CLUSTERS} are needed"
    return Shortage(reason, effective / MIN_CLUSTERS)


def _count_for_metric(metric: str, labels: NDArray[Any], clusters: Clusters) -> tuple[str, float]:
    """Return on how many rows, or clusters of rows, a metric rests, in words and as a number."""
    weights_N = weigh_rows(metric, labels)
    if weights_N is None:
        return "", math.inf
    unit = "rows" if len(clusters.sizes_G) == len(labels) else "clusters of rows"
    columns_NC = labels.reshape(len(labels), -1)
    if columns_NC.shape[1] == 1 and len(np.unique(columns_NC)) <= 2:
        effective = count_rarer(columns_NC[:, 0] == columns_NC.max(), clusters)
        return f"{metric} rests on the rarer class, and its {effective:.3g} {unit}", effective
    effective = clusters.count_effective(weights_N)
    return (
        f"{metric} rests mostly on rows of rare classes, so that all rows tell as much as "
        f"{effective:.3g} {unit} of equal weight; these",
        effective,
    )


def count_rarer(true_N: NDArray[np.bool_], clusters: Clusters) -> float:
    """Return the effective number of clusters of the rarer side of a class or label."""
    return min(clusters.count_effective(side_N.astype(float)) for side_N in (true_N, ~true_N))


def list_rare(labels: NDArray[Any], groups: Groups | None, names: Sequence[str]) -> list[str]:
    """Return the classes or labels with too few clusters to find anything by themselves (D20).

    Those that never occur are left out, and all if labels are scores.
    """
    if find_label_type(labels) == "scores":
        return []
    clusters = find_clusters(len(labels), groups, most=None)
    true_NC = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
    counts = [count_rarer(true_N, clusters) for true_N in true_NC.T]
    return [
        name
        for name, count, true_N in zip(names, counts, true_NC.T, strict=True)
        if true_N.any() and count < MIN_CLUSTERS - _ALMOST
    ]


def count_clusters(chosen_N: NDArray[np.bool_], groups: Groups | None) -> int:
    """Return the number of independent rows among the chosen ones: clusters count once."""
    return int(chosen_N.sum()) if groups is None else len(np.unique(groups[chosen_N]))
