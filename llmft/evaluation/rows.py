"""The labelled rows: metrics, errors and confusions on them, and their entries in results."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.audit.findings import make_finding
from llmft.config.metrics import METRICS
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData
from llmft.metrics.definitions import (
    Floats,
    average,
    decide_labels,
    find_label_type,
    find_tiers,
    measure,
)
from llmft.prediction.post_hoc_fit import FinalOutputs
from llmft.results.evaluation import (
    Finding,
    Interval,
    Measurement,
    Metrics,
    Parts,
    RowResult,
    TierConfusion,
)
from llmft.statistics.intervals import estimate_interval
from llmft.statistics.shortages import MIN_CLUSTERS, find_shortage, list_rare
from llmft.wording import shorten_list

_NUM_WORST = 15
_MAX_TEXT = 2_000


class LabelledRows(NamedTuple):
    """The measured rows, their labels and their clusters."""

    rows: list[Row]
    labels: NDArray[Any]
    """Scores [N, D], classes [N], or labels [N, L]."""
    groups: NDArray[np.int64] | None
    """The cluster of each row, [N]; None if all are independent."""
    names: list[str]
    """Dimensions, classes or labels; last those that the models do not know."""
    config: LabelsConfig

    @property
    def num_clusters(self) -> int:
        """Number of clusters; that of the rows if all are independent."""
        return len(self.rows) if self.groups is None else int(self.groups.max()) + 1

    @property
    def shortage(self) -> str | None:
        """Why they are too few for evidence, or tell nothing; None if they suffice."""
        if (self.labels == self.labels[0]).all():
            return "all rows have the same labels, so a model that has learned nothing is as good"
        found = find_shortage(len(self.rows), self.groups)
        return None if found is None else found.reason

    def find_shortages(self, gates: Collection[str], *, metric: str) -> dict[str, str | None]:
        """Return why the rows are too few for each gate; the gap between splits is in a metric."""
        of_metrics = {"val_test_gap": metric, **{name: name for name in METRICS}}
        return {
            name: self.find_shortage(of_metrics[name]) if name in of_metrics else self.shortage
            for name in gates
            if name != "train_val_gap"  # it is not about these rows
        }

    def find_shortage(self, metric: str) -> str | None:
        """Return why they are too few for a metric, which may weigh rare classes."""
        found = find_shortage(len(self.rows), self.groups, metric=metric, labels=self.labels)
        return self.shortage if found is None else found.reason

    def check_rare_classes(self) -> list[Finding]:
        """Name the classes or labels that are too rare to find anything by themselves (D20)."""
        if self.shortage is not None:
            return []
        rare = list_rare(self.labels, self.groups, self.names)
        if not rare:
            return []
        unit = "rows" if self.groups is None else "clusters of rows"
        message = (
            f"fewer than {MIN_CLUSTERS} {unit} of (or not of) {shorten_list(rare)}: nothing is "
            "found for these by themselves, and means over all classes depend on those few"
        )
        return [make_finding("rare_classes", "warning", message)]

    def measure(self, runs: Sequence[Floats]) -> list[Measurement]:
        """Return the metrics of the decision scores [N, C] of each run."""
        return [measure(self.labels, o, names=self.names, config=self.config) for o in runs]

    def estimate_intervals(self, runs: Sequence[Floats]) -> dict[str, Interval | None]:
        """Return the 95 % interval of every overall metric, the mean over the runs."""
        return {
            name: estimate_interval(name, self.labels, runs, groups=self.groups, config=self.config)
            for name in self.measure(runs[:1])[0].metrics
        }


def open_rows(rows: list[Row], data: PreparedData, *, unknown: Sequence[str] = ()) -> LabelledRows:
    """Return rows with labels and clusters; a row without `cluster` is one of its own.

    Args:
        rows: The rows.
        data: The prepared data that the models were trained on.
        unknown: Classes or labels of the rows that the models do not know.
    """
    groups = None
    named = [("cluster", r["cluster"]) if "cluster" in r else ("row", r["id"]) for r in rows]
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(named))}
    if len(places) < len(rows):
        groups = np.array([places[cluster] for cluster in named], dtype=np.int64)
    names, config = [*data.label_names, *unknown], data.task.labels
    if unknown and isinstance(config, ClassConfig):  # behind the others they are out of order
        config = config.model_copy(update={"order": None})
    labels = make_targets(rows, label_names=names).numpy()
    return LabelledRows(rows, labels, groups, names, config)


def average_metrics(found: Sequence[Metrics]) -> Metrics:
    """Return the mean over the runs of each metric; None if it is undefined for a run."""
    return {key: average([metrics[key] for metrics in found]) for key in found[0]}


def average_parts(found: Sequence[Parts]) -> Parts:
    """Return the mean over the runs of each metric, per dimension, class or label."""
    return {part: average_metrics([parts[part] for parts in found]) for part in found[0]}


def compute_row_errors(labels: NDArray[Any], outputs_NC: Floats) -> Floats:
    """Return per row the mean absolute error, or 1 minus the true class's probability, [N].

    For multilabel tasks the error is the mean distance of the probabilities from 0 or 1.
    """
    if labels.ndim == 2:
        return np.asarray(np.abs(labels - outputs_NC).mean(axis=1))
    return np.asarray(1 - outputs_NC[np.arange(len(labels)), labels])


def describe_rows(
    rows: list[Row],
    labels: NDArray[Any],
    variants: Mapping[str, Sequence[FinalOutputs]],
    *,
    names: Sequence[str],
    slices: Sequence[dict[str, str]] | None = None,
) -> list[RowResult]:
    """Return for each row its id, labels, text, slices, and every variant's outputs and error.

    Outputs and errors are means over the runs of a variant. The mean error is larger than the error
    of the mean output, as is the variant's `mae`. Predicted are the class or the labels that the
    mean of the decision scores gives (D10).

    Args:
        rows: The rows.
        labels: Scores [N, D], classes [N], or labels [N, L] of the same rows.
        variants: Variant -> outputs of each of its runs.
        names: Names of the dimensions, classes or labels.
        slices: Of each row: name of a slicing -> its slice.
    """
    outputs, errors, predicted = {}, {}, {}
    for variant, runs in variants.items():
        outputs[variant] = _to_list(np.mean([run.probabilities_NC for run in runs], axis=0))
        by_run = [compute_row_errors(labels, run.probabilities_NC) for run in runs]
        errors[variant] = _to_list(np.mean(by_run, axis=0))
        scores_NC = np.mean([run.decision_scores_NC for run in runs], axis=0)
        predicted[variant] = _name_predicted(labels, scores_NC, names)
    return [
        RowResult(
            id=row["id"],
            labels=row["labels"],
            outputs={variant: [round(v, 4) for v in o[i]] for variant, o in outputs.items()},
            errors={variant: round(e[i], 4) for variant, e in errors.items()},
            predicted={variant: p[i] for variant, p in predicted.items() if p is not None},
            text=row["text"][:_MAX_TEXT],
            slices=slices[i] if slices is not None else {},
        )
        for i, row in enumerate(rows)
    ]


def _name_predicted(
    labels: NDArray[Any], scores_NC: Floats, names: Sequence[str]
) -> list[str] | list[list[str]] | None:
    """Return the predicted class or labels of each row; None for scores."""
    match find_label_type(labels):
        case "scores":
            return None
        case "class":
            return [names[i] for i in scores_NC.argmax(axis=1)]
        case "multilabel":
            return [
                [name for name, applies in zip(names, row, strict=True) if applies]
                for row in decide_labels(scores_NC)
            ]


def _to_list(values: NDArray[Any]) -> list[Any]:
    found: list[Any] = values.astype(np.float64).tolist()
    return found


def pick_worst(rows: Sequence[RowResult]) -> list[RowResult]:
    """Return the 15 rows with the largest mean error over the variants."""
    if not rows or not rows[0].errors:
        return []
    errors_N = np.array([list(row.errors.values()) for row in rows]).mean(axis=1)
    worst = np.argsort(-errors_N, kind="stable")[:_NUM_WORST]
    return [rows[i] for i in worst]


def count_confusions(
    labels: NDArray[Any], runs: Sequence[Floats], *, num_classes: int
) -> list[list[int]]:
    """Return the confusion matrix of the classes [C, C], summed over runs with outputs [N, C]."""
    predicted = [outputs.argmax(axis=1) for outputs in runs]
    return _sum_confusions(labels, predicted, num_classes=num_classes)


def count_label_confusions(
    labels_NL: NDArray[Any], runs: Sequence[Floats], *, names: list[str]
) -> dict[str, list[list[int]]]:
    """Return a 2 x 2 confusion matrix per label, summed over runs."""
    decided = [decide_labels(outputs) for outputs in runs]
    return {
        name: _sum_confusions(labels_NL[:, i], [d[:, i] for d in decided], num_classes=2)
        for i, name in enumerate(names)
    }


def count_tier_confusions(
    labels_ND: Floats, runs: Sequence[Floats], config: LabelsConfig
) -> TierConfusion | None:
    """Return the confusion matrix of the tiers, summed over runs; None without tiers."""
    if not isinstance(config, ScoresConfig) or config.tiers is None:
        return None
    found = [find_tiers(outputs, config) for outputs in runs]
    matrix = _sum_confusions(find_tiers(labels_ND, config), found, num_classes=len(config.tiers))
    return TierConfusion(names=list(config.tiers), confusion_matrix=matrix)


def _sum_confusions(
    true_N: NDArray[Any], runs: Sequence[NDArray[Any]], *, num_classes: int
) -> list[list[int]]:
    """Return the confusion matrix summed over runs, rows true and columns predicted."""
    cells = np.concatenate([true_N * num_classes + predicted_N for predicted_N in runs])
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    matrix: list[list[int]] = counts.tolist()
    return matrix
