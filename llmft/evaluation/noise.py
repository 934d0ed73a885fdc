"""Label noise: the error of second labels, below which no model can be expected to get.

It is reported next to the models' errors on the same rows; nothing is subtracted (D13).
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.suite import NoiseKind
from llmft.config.task import LabelsConfig, SourceConfig, Task
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.labels import has_unknown_label
from llmft.data.reading import read_labelled
from llmft.errors import UserError
from llmft.metrics.definitions import Floats, compute_metric, find_label_type
from llmft.results.comparison import NoiseResult
from llmft.results.evaluation import Interval, MetricValue
from llmft.statistics.intervals import estimate_interval
from llmft.statistics.resampling import Groups


class SecondLabels(NamedTuple):
    """Second labels of some of the rows."""

    positions_M: NDArray[np.int64]
    """Positions of these rows."""
    labels: NDArray[Any]
    """Scores [M, D], classes [M], or labels [M, L]."""
    num_left_out: int
    """Rows of the file that match none of these rows, or cannot be used."""

    def take(self, kept: list[int]) -> "SecondLabels":
        """Return the second labels of a subset of the rows, with positions in that subset."""
        places = {position: i for i, position in enumerate(kept)}
        has_M = np.array([position in places for position in self.positions_M.tolist()])
        return SecondLabels(
            np.array([places[p] for p in self.positions_M[has_M].tolist()], dtype=np.int64),
            self.labels[has_M],
            self.num_left_out + int((~has_M).sum()),
        )


def read_second_labels(
    path: Path, *, task: Task, rows: list[Row], names: list[str]
) -> SecondLabels:
    """Read a file of second labels, in the format of the task's sources, and join it by id (D11).

    Without a field for the id in the task, the id is a hash of the text. A row with a known id but
    another text is left out.

    Args:
        path: The file.
        task: The task of the rows.
        rows: Prepared rows of test.
        names: Of the dimensions, classes or labels.

    Raises:
        UserError: If the file cannot be read, or no row of it matches a test row.
    """
    # The task's filters have selected the test rows; here they would select second labels.
    changes = {
        "name": str(path),  # errors name the file
        "sources": [SourceConfig(path=str(path))],
        "filters": [],
    }
    read, rejected = read_labelled(task.model_copy(update=changes))
    places = {(row["id"], row["text"]): i for i, row in enumerate(rows)}
    found = {
        places[key]: row
        for row in read
        if (key := (row["id"], row["text"])) in places
        and not has_unknown_label(row["labels"], names)
    }
    if not found:
        raise UserError(_explain_no_match(path, read, rejected, task=task, rows=rows))
    positions = sorted(found)
    return SecondLabels(
        np.array(positions),
        make_targets([found[i] for i in positions], label_names=names).numpy(),
        len(read) + len(rejected) - len(found),
    )


def measure_noise(
    second: SecondLabels,
    labels: NDArray[Any],
    variants: dict[str, list[Floats]],
    *,
    kind: NoiseKind,
    path: Path,
    names: list[str],
    groups: Groups | None = None,
    config: LabelsConfig | None = None,
) -> NoiseResult:
    """Return the error of second labels against the first ones, and of variants on the same rows.

    Args:
        second: The second labels.
        labels: Scores [N, D], classes [N], or labels [N, L] of all rows.
        variants: Variant -> outputs [N, C] of each of its runs.
        kind: Origin of the second labels.
        path: File of the second labels.
        names: Of the dimensions, classes or labels.
        groups: The cluster of each row, [N]; None if rows are independent.
        config: The task's labels.
    """
    first = labels[second.positions_M]
    if find_label_type(labels) == "class":
        outputs_MC = np.eye(len(names))[second.labels]
    else:
        outputs_MC = second.labels.astype(np.float64)
    by_part = {} if labels.ndim == 1 else dict(zip(names, range(len(names)), strict=True))
    of_rows = None if groups is None else groups[second.positions_M]
    measure = partial(_measure, groups=of_rows, config=config)
    return NoiseResult(
        kind=kind,
        file=str(path),
        num_rows=len(first),
        num_left_out=second.num_left_out,
        metric="mae" if find_label_type(labels) == "scores" else "disagreement",
        oracle=measure(first, [outputs_MC]),
        parts={
            name: measure(first[:, i : i + 1], [outputs_MC[:, i : i + 1]])
            for name, i in by_part.items()
        },
        variants={
            variant: measure(first, [outputs[second.positions_M] for outputs in runs])
            for variant, runs in variants.items()
        },
    )


def _measure(
    labels: NDArray[Any],
    runs: list[Floats],
    *,
    groups: Groups | None,
    config: LabelsConfig | None,
) -> MetricValue:
    """Return the `mae` of scores, or the fraction of rows with other classes or labels."""
    is_error = find_label_type(labels) == "scores"
    metric = "mae" if is_error else "accuracy"
    values = [compute_metric(metric, labels, outputs) for outputs in runs]
    value = float(np.mean([v for v in values if v is not None]))
    interval = estimate_interval(metric, labels, runs, groups=groups, config=config)
    if is_error:
        return MetricValue(value=value, interval=interval)
    flipped = interval and Interval(1 - interval.high, 1 - interval.low)
    return MetricValue(value=1 - value, interval=flipped)


def _explain_no_match(
    path: Path, read: list[Row], rejected: list[Any], *, task: Task, rows: list[Row]
) -> str:
    if not read:
        first = f"; the first: line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        return f"{path}: none of its rows can be used{first}; fix the rows, or remove the file"
    known = {row["id"]: row for row in rows}
    same = [row for row in read if row["id"] in known]
    if same and not any(row["text"] == known[row["id"]]["text"] for row in same):
        found = f"its {len(same)} rows with ids of test rows have other texts"
        fix = "label the articles of the test split as they are there"
    elif same:
        found = "its rows of the test split have classes or labels that the task does not have"
        fix = "rename them to the task's, in the file or with labels.map"
    else:
        found = f"none of its {len(read)} rows is in the test split of {task.output}"
        field = task.fields.id
        fix = (
            f"give rows the ids of test rows in the field {field!r}"
            if field is not None
            else "rows are joined by a hash of the text, so give them the texts of test rows"
        )
    return f"{path}: {found}; {fix}, or remove the file from the suite's noise"
