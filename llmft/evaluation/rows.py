"""The rows that count, and how arms are measured on them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.labels import LabelsConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.evaluation.intervals import estimate_interval
from llmft.evaluation.metrics import average, measure
from llmft.results.variant import Interval, Measurement, Metrics, Parts

Floats = NDArray[np.floating[Any]]


class Rows(NamedTuple):
    """The rows that count, and what is true of them."""

    rows: list[Row]
    labels: NDArray[Any]
    """Scores [N, D], classes [N], or labels [N, L]."""
    groups: NDArray[np.int64] | None
    """The cluster of each row, [N]; None where the task names no field `group`."""
    names: list[str]
    """Dimensions, classes or labels."""
    config: LabelsConfig

    def measure(self, runs: Sequence[Floats]) -> list[Measurement]:
        """Measure outputs [N, C] of each run."""
        return [measure(self.labels, o, names=self.names, config=self.config) for o in runs]

    def estimate_intervals(self, runs: Sequence[Floats]) -> dict[str, Interval | None]:
        """Return the 95 % interval of every overall metric, the mean over the runs."""
        return {
            name: estimate_interval(name, self.labels, runs, groups=self.groups, config=self.config)
            for name in self.measure(runs[:1])[0].metrics
        }


def open_rows(rows: list[Row], data: PreparedData) -> Rows:
    """Return rows with their labels and groups; a row without a group is one of its own."""
    groups = None
    if data.task.fields.group is not None:
        named = [("group", str(r["group"])) if r.get("group") else ("row", r["id"]) for r in rows]
        places = {group: i for i, group in enumerate(dict.fromkeys(named))}
        groups = np.array([places[group] for group in named], dtype=np.int64)
    labels = make_targets(rows, label_names=data.label_names).numpy()
    return Rows(rows, labels, groups, data.label_names, data.task.labels)


def average_metrics(found: Sequence[Metrics]) -> Metrics:
    """Return the mean over the runs of each metric; None where one of them has none."""
    return {key: average([metrics[key] for metrics in found]) for key in found[0]}


def average_parts(found: Sequence[Parts]) -> Parts:
    """Return the same by dimension, class or label."""
    return {part: average_metrics([parts[part] for parts in found]) for part in found[0]}
