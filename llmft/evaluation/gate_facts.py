"""What gates look at: metrics, dimensions or classes, other splits, and the learning curve."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from llmft.config.labels import LabelsConfig
from llmft.config.metrics import METRICS
from llmft.config.task import Split
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.evaluation.intervals import bound_share, estimate_interval
from llmft.evaluation.metrics import average, compute_metric, compute_parts, find_label_type
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions, load_or_predict
from llmft.results.run import LearningCurve, RunRecord
from llmft.results.variant import EdgeCases, Interval, Latency, MetricValue
from llmft.training.inputs import describe_limit, limit_rows

Floats = NDArray[np.floating[Any]]
_MAX_TRAIN_ROWS = 500
_Z = float(norm.ppf(0.975))


class GateFacts(NamedTuple):
    """What gates look at: of one run, or the mean over the runs (seeds) of an arm."""

    num_rows: int
    metric: str
    """The leading metric, which the gaps compare."""
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    parts: Mapping[str, Mapping[str, MetricValue]]
    """`mae`, or `f1` and `recall` -> dimension, class or label -> its value (`estimate_parts`)."""
    splits: Mapping[str, MetricValue]
    """The leading metric on `train`, `val` and `test`, without any fit, which knows `val` (D7);
    empty where the gaps mean nothing."""
    histories: Sequence[LearningCurve]
    """Learning curve of each run."""
    latency: Latency | None = None
    edge_cases: EdgeCases | None = None


def estimate_parts(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    intervals: Mapping[str, Interval | None],
    groups: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, MetricValue]]:
    """Return the mae of each dimension, or f1 and recall of each class or label.

    A class without rows has none. The interval of a recall is the exact one of a share, of the
    class's rows, or of its clusters of rows; the hits are the mean over the runs, rounded down,
    since other seeds are no more rows.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: Outputs [N, C] of each run (seed).
        names: Of the dimensions, classes or labels.
        intervals: Of each mae or f1.
        groups: The cluster of each row, [N]; None if rows are independent.
    """

    def average(metric: str) -> Floats:
        return np.asarray(np.mean([compute_parts(metric, labels, o) for o in runs], axis=0))

    if find_label_type(labels) == "scores":
        means = zip(names, average("mae").tolist(), strict=True)
        return {
            "mae": {name: MetricValue(value=mae, interval=intervals[name]) for name, mae in means}
        }
    support_C, f1_C, recall_C = average("support"), average("f1"), average("recall")
    units_N = np.arange(len(labels)) if groups is None else groups
    found: dict[str, dict[str, MetricValue]] = {"f1": {}, "recall": {}}
    for i, name in enumerate(names):
        if support_C[i] == 0:
            found["f1"][name] = found["recall"][name] = MetricValue(value=None, interval=None)
            continue
        has_it_N = labels[:, i] if labels.ndim == 2 else labels == i
        num_units = len(np.unique(units_N[has_it_N]))
        num_hits = int(recall_C[i] * num_units + 1e-9)
        found["f1"][name] = MetricValue(value=float(f1_C[i]), interval=intervals[name])
        found["recall"][name] = MetricValue(
            value=float(recall_C[i]), interval=bound_share(num_hits, num_units)
        )
    return found


def predict_earlier(
    run: Path,
    record: RunRecord,
    data: PreparedData,
    *,
    open_predictor: Callable[[], Predictor] | None = None,
    across_processes: bool = False,
) -> dict[Split, StoredPredictions]:
    """Return predictions for the validation rows and a sample of the train rows of a run.

    Those for validation were left by the training, so that only the sample has to be predicted,
    once: it depends on the ids of the rows alone.

    Args:
        run: Run folder.
        record: What it says of itself.
        data: The prepared data that it was trained on.
        open_predictor: Opens its model, where that is open already.
        across_processes: Whether all processes of the launch call this and share the work.

    Raises:
        UserError: If the model changed since, or a row cannot be predicted.
    """
    limit = record.recipe.train.limit_rows
    source = {
        "model": record.model_hash,
        "data": data.fingerprint,
        **describe_limit(limit),
    }
    found: dict[Split, StoredPredictions] = {}
    files: dict[Split, str] = {"val": "val", "train": "train-sample"}
    for split, file in files.items():
        rows = pick_earlier(data, split, limit=limit)
        found[split] = load_or_predict(
            run,
            rows,
            path=run / "predictions" / f"{file}.parquet",
            source=source,
            across_processes=across_processes,
            open_predictor=open_predictor,
        ).align([row["id"] for row in rows])
    return found


def pick_earlier(data: PreparedData, split: Split, *, limit: int | None) -> list[Row]:
    """Return the rows of `val`, or at most 500 of `train`, that a run with this limit saw."""
    rows = limit_rows(data.read_split(split), limit)
    return limit_rows(rows, _MAX_TRAIN_ROWS) if split == "train" else rows


def measure_earlier(
    runs: Sequence[Mapping[Split, StoredPredictions]],
    data: PreparedData,
    *,
    metric: str,
    limit: int | None,
) -> dict[Split, MetricValue]:
    """Return a metric on `val` and `train`, the mean over runs, from what they predicted there."""
    found: dict[Split, MetricValue] = {}
    splits: tuple[Split, ...] = ("val", "train")
    for split in splits:
        rows = pick_earlier(data, split, limit=limit)
        labels = make_targets(rows, label_names=data.label_names).numpy()
        outputs = [run[split].outputs for run in runs]
        found[split] = estimate_metric(metric, labels, outputs, config=data.task.labels)
    return found


def estimate_metric(
    metric: str,
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    config: LabelsConfig | None,
    groups: NDArray[np.int64] | None = None,
) -> MetricValue:
    """Return an overall metric, the mean over runs with outputs [N, C], and its interval."""
    values = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    value = average(values)
    interval = estimate_interval(metric, labels, runs, groups=groups, config=config)
    return MetricValue(value=value, interval=interval)


def estimate_gap(before: MetricValue, after: MetricValue, *, higher_is_better: bool) -> MetricValue:
    """Return by how much a value is worse on the later of two splits of other rows.

    The interval is the normal one, from the standard errors that the intervals of the two show.
    """
    if before.value is None or after.value is None:
        return MetricValue(value=None, interval=None)
    gap = before.value - after.value if higher_is_better else after.value - before.value
    if before.interval is None or after.interval is None:
        return MetricValue(value=gap, interval=None)
    error = math.hypot(find_standard_error(before.interval), find_standard_error(after.interval))
    return MetricValue(value=gap, interval=Interval(gap - _Z * error, gap + _Z * error))


def find_standard_error(interval: Interval | None) -> float:
    """Return the standard error that a 95 % interval shows; 0 where there is none to widen by."""
    return 0.0 if interval is None else (interval.high - interval.low) / (2 * _Z)


def find_last_improvement(curve: LearningCurve) -> float | None:
    """Return by what part the last epoch bettered the validation metric; 0 where it did not.

    Compared with the best evaluation that lies an epoch or more before the last one.

    Args:
        curve: Of a run.

    Returns:
        None if there is no such evaluation.
    """
    metric = curve.metric
    sign = 1.0 if metric in METRICS and METRICS[metric].higher_is_better else -1.0
    points = [(p.epoch, sign * p.val[metric]) for p in curve.epochs if metric in p.val]
    if not points:
        return None
    last = points[-1][0]
    before = [value for epoch, value in points if epoch <= last - 1 + 1e-6]
    if not before:
        return None
    best = max(before)
    gained = max(value for _, value in points) - best
    return gained / abs(best) if best else float(gained > 0)
