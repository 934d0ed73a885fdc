"""Intervals by the bootstrap, and what they say about a difference."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from llmft.config.labels import LabelsConfig
from llmft.config.metrics import METRICS
from llmft.evaluation.metrics import (
    compute_metric,
    compute_parts,
    compute_row_values,
    find_label_type,
)

Floats = NDArray[np.floating[Any]]
MIN_ROWS = 20
"""On fewer rows no interval is believed: nothing is better and nothing is deployed."""
_CONFIDENCE = 0.95
_MAX_ROWS_FOR_BCA = 2_000
_NUM_RESAMPLES = 4_000


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much a challenger is better than the reference; negative if it is worse."""

    estimate: float
    interval: Interval
    """95 %, over rows."""
    finding: Literal["better", "not better", "unresolved"]
    """Better: the whole interval is above the margin. Not better: none of it is."""


class PartIntervals(NamedTuple):
    """Intervals of one metric per dimension, class or label."""

    metric: str
    intervals: dict[str, Interval | None]


def estimate_interval(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval over rows of a metric, the mean over the runs.

    By the bootstrap; for a share of the rows of one run the exact one of Clopper and Pearson
    (1934), which is also taken where no run made an error (D14).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        config: What the task says of its labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined, be it for more than half of the resampled rows.
    """
    value = _average_metric(metric, labels, runs, config=config)
    if value is None:
        return None
    if _is_flawless(metric, value):
        low, high = bound_flawless(_count_evidence(metric, labels))
        return Interval(low, high) if METRICS[metric].higher_is_better else Interval(0.0, 1 - low)
    values_N = _average_rows(metric, labels, runs, config=config)
    if values_N is None:
        return bootstrap_rows(
            lambda rows: _average_metric(metric, labels, runs, config=config, rows=rows),
            len(labels),
            seed=seed,
        )[0]
    if values_N.dtype == np.bool_:
        return _bound_share(int(values_N.sum()), len(values_N))
    return bootstrap_mean(values_N, seed=seed)


def estimate_part_intervals(
    labels: NDArray[Any], outputs_NC: Floats, *, names: list[str], seed: int = 0
) -> PartIntervals:
    """Return the 95 % intervals of each dimension's mae, or each class's or label's f1."""
    if find_label_type(labels) == "scores":
        errors_ND = np.abs(labels - outputs_NC)
        means = [bootstrap_mean(errors_ND[:, i], seed=seed) for i in range(len(names))]
        return PartIntervals("mae", dict(zip(names, means, strict=True)))
    found = bootstrap_rows(
        lambda rows: compute_parts("f1", labels[rows], outputs_NC[rows]), len(labels), seed=seed
    )
    support_C = compute_parts("support", labels, outputs_NC)
    for i, f1 in enumerate(compute_parts("f1", labels, outputs_NC)):
        if f1 == 1:
            found[i] = bound_flawless(int(support_C[i]))
    return PartIntervals("f1", dict(zip(names, found, strict=True)))


def compare_runs(
    metric: str,
    labels: NDArray[Any],
    *,
    reference: list[Floats],
    challenger: list[Floats],
    margin: float,
    config: LabelsConfig | None = None,
    seed: int = 0,
) -> Difference | None:
    """Compare two arms on the same rows, each the mean over its runs.

    The rows are resampled in pairs, so what makes a row hard for both arms cancels out.

    Args:
        metric: Name of the metric that decides.
        labels: Scores [N, D], classes [N], or labels [N, L].
        reference: Outputs [N, C] of each run (seed) of the reference.
        challenger: The same of the challenger.
        margin: What the challenger has to gain.
        config: What the task says of its labels.
        seed: Seed of the resampling.

    Returns:
        None if the metric is undefined for one of them, be it for more than half of the resampled
        rows.
    """
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0

    def compute_gain(rows: NDArray[np.int64] | None = None) -> float | None:
        ours = _average_metric(metric, labels, challenger, config=config, rows=rows)
        theirs = _average_metric(metric, labels, reference, config=config, rows=rows)
        return None if ours is None or theirs is None else sign * (ours - theirs)

    estimate = compute_gain()
    if estimate is None:
        return None
    ours_N, theirs_N = (
        _average_rows(metric, labels, runs, config=config) for runs in (challenger, reference)
    )
    interval: Interval | None
    if ours_N is not None and theirs_N is not None:
        interval = bootstrap_mean(sign * ours_N - sign * theirs_N, seed=seed)
    else:
        interval = bootstrap_rows(compute_gain, len(labels), seed=seed)[0]
    if interval is None:
        return None
    finding = judge_gain(interval, margin=margin)
    return Difference(estimate, interval, finding if len(labels) >= MIN_ROWS else "unresolved")


def judge_gain(
    interval: Interval, *, margin: float
) -> Literal["better", "not better", "unresolved"]:
    """Say what an interval of a gain means for a margin."""
    if interval.low > margin:
        return "better"
    if interval.high <= margin:
        return "not better"
    return "unresolved"


def bootstrap_mean(values_N: Floats, *, seed: int) -> Interval:
    """Return the interval of a mean: BCa (Efron 1987) up to 2,000 rows, else percentiles."""
    if np.ptp(values_N) <= 1e-9 * np.abs(values_N).max():  # nothing varies: BCa is not defined
        return Interval(float(values_N[0]), float(values_N[0]))
    methods = ["BCa", "percentile"] if len(values_N) <= _MAX_ROWS_FOR_BCA else ["percentile"]
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            found = bootstrap(
                (values_N,),
                np.mean,
                n_resamples=_NUM_RESAMPLES,
                batch=max(1, 2_000_000 // len(values_N)),
                confidence_level=_CONFIDENCE,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return Interval(float(found.low), float(found.high))


def bootstrap_rows(
    statistic: Callable[[NDArray[np.int64]], float | Floats | None], num_rows: int, *, seed: int
) -> list[Interval | None]:
    """Return the percentile intervals of any statistics [K] of row positions, or of a single one.

    They are shifted so that the median of the draws is the statistic itself: that rows stand twice
    in a draw is enough to raise an average precision. Draws in which a statistic is undefined
    (None, NaN) are left out; if more than half of them are, it has no interval.
    """
    generator = np.random.default_rng(seed)
    num_resamples = 1_000 if num_rows <= _MAX_ROWS_FOR_BCA else 200
    draws = [statistic(generator.integers(num_rows, size=num_rows)) for _ in range(num_resamples)]
    values_RK = np.array(draws, dtype=np.float64).reshape(num_resamples, -1)
    wanted_K = np.array(statistic(np.arange(num_rows)), dtype=np.float64).ravel()
    return [_take_quantiles(*pair) for pair in zip(values_RK.T, wanted_K, strict=True)]


def _take_quantiles(values_R: Floats, wanted: float) -> Interval | None:
    known = values_R[~np.isnan(values_R)]
    if np.isnan(wanted) or 2 * len(known) < len(values_R):
        return None
    tail = (1 - _CONFIDENCE) / 2
    low, middle, high = np.quantile(known, [tail, 0.5, 1 - tail]).tolist()
    shift = float(wanted) - middle
    # No draw below 0 or above 1 means that the scale ends there.
    return Interval(
        max(low + shift, min(0.0, float(known.min()))),
        min(high + shift, max(1.0, float(known.max()))),
    )


def bound_flawless(num_rows: int) -> Interval:
    """Return the exact interval of a share of 1: what some rows without an error prove (D14)."""
    return _bound_share(num_rows, num_rows)


def _bound_share(num_hits: int, num_rows: int) -> Interval:
    found = binomtest(num_hits, num_rows).proportion_ci(_CONFIDENCE, method="exact")
    return Interval(float(found.low), float(found.high))


def _is_flawless(metric: str, value: float) -> bool:
    """Return whether a metric on a scale from 0 to 1 cannot be any better."""
    if METRICS[metric].higher_is_better:
        return value >= 1 - 1e-9
    return metric == "hamming_loss" and value == 0


def _count_evidence(metric: str, labels: NDArray[Any]) -> int:
    """Return on how many rows a flawless value rests: for an order those of the rarer side."""
    if metric not in ("roc_auc", "average_precision"):
        return len(labels)
    counts_C = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    if labels.ndim == 1 and len(counts_C) == 2:  # one order, seen from both ends
        counts_C = counts_C[1:]
    return min(len(labels), int(np.minimum(counts_C, len(labels) - counts_C).sum()))


def _average_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    config: LabelsConfig | None,
    rows: NDArray[np.int64] | None = None,
) -> float | None:
    """Return the mean of a metric over the runs, on some rows or all; None if undefined for one."""
    if rows is not None:
        labels, runs = labels[rows], [outputs[rows] for outputs in runs]
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if len(known) == len(found) else None


def _average_rows(
    metric: str, labels: NDArray[Any], runs: Sequence[Floats], *, config: LabelsConfig | None
) -> NDArray[Any] | None:
    """Return what the metric is the mean of, over the runs, [N]; of one run a share stays bool."""
    found = [compute_row_values(metric, labels, outputs, config=config) for outputs in runs]
    known = [values for values in found if values is not None]
    if len(known) < len(found):
        return None
    return known[0] if len(known) == 1 else np.asarray(np.mean(known, axis=0))
