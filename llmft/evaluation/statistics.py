"""Intervals by the bootstrap, and what they say about a difference."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from llmft.evaluation.metrics import HIGHER_IS_BETTER, compute_skill, count_confusion
from llmft.evaluation.metrics import f1_from_confusion as compute_f1

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


def compute_row_values(metric: str, labels: NDArray[Any], outputs_NC: Floats) -> Floats | None:
    """Return per row what the metric is the mean of, shape [N]; None if it is no mean."""
    match metric:
        case "mae":
            return np.asarray(np.abs(labels - outputs_NC).mean(axis=1))
        case "accuracy":
            return np.asarray(labels == outputs_NC.argmax(axis=1), dtype=np.float64)
        case _:
            return None


def compute_metric(metric: str, labels: NDArray[Any], outputs_NC: Floats) -> float:
    """Return one metric of a set of rows.

    Raises:
        ValueError: If the metric is not known.
    """
    values = compute_row_values(metric, labels, outputs_NC)
    if values is not None:
        return float(values.mean())
    match metric:
        case "rmse":
            return float(np.sqrt(((labels - outputs_NC) ** 2).mean(axis=0)).mean())
        case "skill":
            return compute_skill(labels, outputs_NC)
        case "f1_macro":
            num_classes = outputs_NC.shape[1]
            predicted = outputs_NC.argmax(axis=1)
            return compute_f1(count_confusion(labels, predicted, num_classes=num_classes))
    raise ValueError(f"unknown metric {metric}")


def estimate_interval(
    metric: str, labels: NDArray[Any], runs: Sequence[Floats], *, seed: int = 0
) -> Interval:
    """Return the 95 % interval over rows of a metric, the mean over the runs.

    By the bootstrap; for the accuracy of one run the exact one of Clopper and Pearson (1934).

    Args:
        metric: Name of the metric.
        labels: Scores [N, D] or classes [N].
        runs: Outputs [N, C] of each run (seed).
        seed: Seed of the resampling.
    """
    values = compute_row_values(metric, labels, runs[0])
    if metric in ("accuracy", "f1_macro") and len(runs) == 1:
        correct = labels == runs[0].argmax(axis=1)
        if metric == "accuracy" or correct.all():  # no error was seen, which proves little (D14)
            found = binomtest(int(correct.sum()), len(correct)).proportion_ci(_CONFIDENCE)
            return Interval(float(found.low), float(found.high))
    if values is not None:
        every = [compute_row_values(metric, labels, outputs) for outputs in runs]
        return bootstrap_mean(np.mean(every, axis=0), seed=seed)  # type: ignore[arg-type]
    return bootstrap_rows(
        lambda rows: _average_metric(metric, labels, runs, rows), len(labels), seed=seed
    )


def compare_runs(
    metric: str,
    labels: NDArray[Any],
    *,
    reference: list[Floats],
    challenger: list[Floats],
    margin: float,
    seed: int = 0,
) -> Difference:
    """Compare two arms on the same rows, each the mean over its runs.

    The rows are resampled in pairs, so what makes a row hard for both arms cancels out.

    Args:
        metric: Name of the metric that decides.
        labels: Scores [N, D] or classes [N].
        reference: Outputs [N, C] of each run (seed) of the reference.
        challenger: The same of the challenger.
        margin: What the challenger has to gain.
        seed: Seed of the resampling.
    """
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    ours = [compute_row_values(metric, labels, outputs) for outputs in challenger]
    theirs = [compute_row_values(metric, labels, outputs) for outputs in reference]
    if ours[0] is not None:
        gains = sign * (np.mean(ours, axis=0) - np.mean(theirs, axis=0))  # type: ignore[arg-type]
        estimate, interval = float(gains.mean()), bootstrap_mean(gains, seed=seed)
    else:

        def compute_gain(rows: NDArray[np.int64]) -> float:
            ours = _average_metric(metric, labels, challenger, rows)
            return sign * (ours - _average_metric(metric, labels, reference, rows))

        estimate = compute_gain(np.arange(len(labels)))
        interval = bootstrap_rows(compute_gain, len(labels), seed=seed)
    finding = judge_gain(interval, margin=margin)
    return Difference(estimate, interval, finding if len(labels) >= MIN_ROWS else "unresolved")


def _average_metric(
    metric: str, labels: NDArray[Any], runs: Sequence[Floats], rows: NDArray[np.int64]
) -> float:
    return float(np.mean([compute_metric(metric, labels[rows], o[rows]) for o in runs]))


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
    statistic: Callable[[NDArray[np.int64]], float], num_rows: int, *, seed: int
) -> Interval:
    """Return the percentile interval of any statistic of row positions."""
    generator = np.random.default_rng(seed)
    num_resamples = 1_000 if num_rows <= _MAX_ROWS_FOR_BCA else 200
    values = [statistic(generator.integers(num_rows, size=num_rows)) for _ in range(num_resamples)]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))
