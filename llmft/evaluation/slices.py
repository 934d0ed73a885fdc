"""The leading metric by slice of the rows: by kept fields, length, and true tier or class."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.metrics import METRICS
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig, write_value
from llmft.data.fields import Row, is_missing
from llmft.metrics.definitions import (
    Floats,
    average,
    compute_metric,
    find_label_type,
    find_tiers,
)
from llmft.results.comparison import SliceTable, SliceValue
from llmft.results.evaluation import MetricValue
from llmft.statistics.intervals import estimate_interval
from llmft.statistics.resampling import Groups

_MAX_VALUES = 8


class Slicing(NamedTuple):
    """One way to slice the rows."""

    name: str
    """The kept field, or `length`, `true tier`, `true class`."""
    by_row: list[str]
    """The slice of each row, [N]."""
    values: list[str]
    """The slices, in the order of the report."""
    is_true_label: bool = False
    """Whether the rows are sliced by their labels."""


def slice_rows(
    rows: Sequence[Row],
    labels: NDArray[Any],
    *,
    fields: Sequence[str],
    names: list[str],
    config: LabelsConfig,
) -> list[Slicing]:
    """Slice the rows by each kept field, by length, and by true tier or class.

    The 8 most frequent values of a field are slices of their own, the rest are `other`; a row
    without a value is in `none` (`other values` and `no value` if the data use these words
    themselves). Length is counted in words, in thirds with round limits. Slicings other than by
    fields are left out if all rows would be in one slice.

    Args:
        rows: Prepared rows.
        labels: Scores [N, D], classes [N], or labels [N, L].
        fields: Kept fields to slice by.
        names: Of the dimensions, classes or labels.
        config: The task's labels.
    """
    sliced = [
        Slicing(field, *_fold([_write(row.get(field)) for row in rows]))
        for field in dict.fromkeys(fields)
    ]
    others = [Slicing("length", *_slice_lengths([len(row["text"].split()) for row in rows]))]
    match config:
        case ScoresConfig(tiers=dict() as tiers):
            found_N, kinds, name = find_tiers(labels, config), list(tiers), "true tier"
        case ClassConfig():
            found_N, kinds, name = labels, names, "true class"
        case _:
            found_N, kinds, name = np.zeros(0, dtype=np.int64), [], ""
    if kinds:
        by_row, values = _fold([kinds[i] for i in found_N])
        values.sort(key=lambda v: kinds.index(v) if v in kinds else len(kinds))
        others.append(Slicing(name, by_row, values, is_true_label=True))
    taken = {slicing.name for slicing in sliced}
    return sliced + [s for s in others if len(s.values) > 1 and s.name not in taken]


def list_row_slices(slicings: Sequence[Slicing], *, num_rows: int) -> list[dict[str, str]]:
    """Return for each row the name of every slicing -> the row's slice."""
    return [{s.name: s.by_row[i] for s in slicings} for i in range(num_rows)]


def measure_slices(
    slicings: Sequence[Slicing],
    labels: NDArray[Any],
    variants: dict[str, list[Floats]],
    *,
    metric: str,
    config: LabelsConfig,
    groups: Groups | None = None,
    seed: int = 0,
) -> list[SliceTable]:
    """Return a metric by slice and variant, with 95 % intervals.

    Among rows of one true tier or class, ranking metrics, correlations and balanced metrics are
    meaningless; for a metric that is not a mean over rows, such slices have `mae` or `accuracy`
    instead, as `metric` says. The mean over a single row or cluster has no interval.

    Args:
        slicings: Ways to slice the rows.
        labels: Scores [N, D], classes [N], or labels [N, L].
        variants: Variant -> outputs [N, C] of each of its runs.
        metric: Name of the leading metric.
        config: The task's labels.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling.
    """
    plain = "mae" if find_label_type(labels) == "scores" else "accuracy"
    is_mean = METRICS[metric].is_mean
    tables = []
    for slicing in slicings:
        shown = plain if slicing.is_true_label and not is_mean else metric
        by_row, values = np.array(slicing.by_row), []
        for value in slicing.values:
            rows_M = np.flatnonzero(by_row == value)
            estimate = partial(
                estimate_interval,
                shown,
                labels[rows_M],
                config=config,
                groups=None if groups is None else groups[rows_M],
                seed=seed,
            )
            measured = {}
            for variant, runs in variants.items():
                of_slice = [outputs[rows_M] for outputs in runs]
                value_of_variant = _average(shown, labels[rows_M], of_slice, config)
                measured[variant] = MetricValue(value=value_of_variant, interval=estimate(of_slice))
            values.append(SliceValue(value=value, num_rows=len(rows_M), metrics=measured))
        tables.append(SliceTable(name=slicing.name, metric=shown, values=values))
    return tables


def _average(
    metric: str, labels: NDArray[Any], runs: list[Floats], config: LabelsConfig
) -> float | None:
    """Return the mean of a metric over runs; None if it is undefined for one."""
    found = [compute_metric(metric, labels, outputs, config=config) for outputs in runs]
    return average(found)


def _write(value: Any) -> str:
    """Return a kept value as it is in the data; missing values are empty."""
    return "" if is_missing(value) else write_value(value)


def _fold(by_row: list[str]) -> tuple[list[str], list[str]]:
    """Group rare values; return the slice of each row, and the slices by their size."""
    counts = Counter(filter(None, by_row))
    frequent = sorted(counts, key=lambda value: (-counts[value], value))[:_MAX_VALUES]
    # The data may use these words themselves.
    other = "other" if "other" not in counts else "other values"
    none = "none" if "none" not in counts else "no value"
    folded = [(v if v in frequent else other) if v else none for v in by_row]
    return folded, frequent + [value for value in (other, none) if value in folded]


def _slice_lengths(num_words: list[int]) -> tuple[list[str], list[str]]:
    """Slice the rows into thirds by length; return the slice of each row, and the slices."""
    thirds = np.quantile(num_words, [1 / 3, 2 / 3]).tolist()
    limits = sorted({_round_limit(third) for third in thirds})
    names = [
        *(f"{low + 1} to {high} words" for low, high in zip([-1, *limits], limits, strict=False)),
        f"over {limits[-1]} words",
    ]
    names[0] = f"up to {limits[0]} words"
    by_row = [names[i] for i in np.searchsorted(limits, num_words)]
    return by_row, [name for name in names if name in by_row]


def _round_limit(num_words: float) -> int:
    """Round to halves of the leading digit's unit: 38 to 40, 141 to 150, 7 to 7."""
    step: int = max(1, 10 ** math.floor(math.log10(max(num_words, 1))) // 2)
    return round(num_words / step) * step
