"""The tables of a results file: baselines, rows, and the rows that went worst."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.config.labels import LabelsConfig, ScoresConfig
from llmft.config.task import TaskConfig
from llmft.data.batches import make_targets
from llmft.data.fields import join_pair
from llmft.data.prepared import Row
from llmft.evaluation.baselines import predict_constant, predict_tfidf
from llmft.evaluation.calibration import describe_calibration
from llmft.evaluation.metrics import (
    Measured,
    decide_labels,
    find_label_type,
    find_tiers,
    measure,
)

Floats = NDArray[np.floating[Any]]
_NUM_WORST = 15
_MAX_TEXT = 2_000


def describe_measured(measured: Measured, labels: NDArray[Any]) -> dict[str, Any]:
    """Return the overall metrics, and those per part, as one JSON object."""
    return {**measured.overall, name_parts(labels): measured.parts}


def name_parts(labels: NDArray[Any]) -> str:
    """Return `per_dimension` for scores, `per_class` for classes and for several labels."""
    return "per_dimension" if find_label_type(labels) == "scores" else "per_class"


def measure_baselines(
    train_rows: list[Row], rows: list[Row], *, names: list[str], task: TaskConfig
) -> dict[str, Measured]:
    """Measure what a constant and a TF-IDF model, fitted on train, do on these rows."""
    texts = [join_pair(row, task.fields) for row in rows]
    train_texts = [join_pair(row, task.fields) for row in train_rows]
    train = make_targets(train_rows, label_names=names).numpy()
    labels = make_targets(rows, label_names=names).numpy()
    outputs = {
        "constant": predict_constant(train, num_rows=len(rows), num_outputs=len(names)),
        "tfidf": predict_tfidf(train_texts, train, texts=texts, num_outputs=len(names)),
    }
    return {
        name: measure(labels, found, names=names, config=task.labels)
        for name, found in outputs.items()
    }


def compute_row_errors(labels: NDArray[Any], outputs_NC: Floats) -> Floats:
    """Return per row the mean absolute error, or 1 minus the true class's probability, [N].

    Of several labels the error is the mean probability given to what is not true.
    """
    if labels.ndim == 2:
        return np.asarray(np.abs(labels - outputs_NC).mean(axis=1))
    return np.asarray(1 - outputs_NC[np.arange(len(labels)), labels])


def describe_rows(
    rows: list[Row],
    labels: NDArray[Any],
    arms: dict[str, list[Floats]],
    *,
    slices: Sequence[dict[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Return for each row its id, labels, text, slices, and every arm's outputs and error.

    Outputs are the mean over the runs of an arm; errors are so too, and larger than that of the
    mean outputs, as the arm's `mae` is.
    """
    outputs = {arm: np.mean(runs, axis=0) for arm, runs in arms.items()}
    errors = {
        arm: np.mean([compute_row_errors(labels, found) for found in runs], axis=0)
        for arm, runs in arms.items()
    }
    return [
        {
            "id": row["id"],
            "labels": row["labels"],
            "outputs": {arm: [round(float(v), 4) for v in o[i]] for arm, o in outputs.items()},
            "errors": {arm: round(float(e[i]), 4) for arm, e in errors.items()},
            "text": row["text"][:_MAX_TEXT],
            "slices": slices[i] if slices is not None else {},
        }
        for i, row in enumerate(rows)
    ]


def pick_worst(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the largest mean error over the arms."""
    errors_N = np.array([np.mean(list(d["errors"].values())) for d in described])
    worst = np.argsort(-errors_N, kind="stable")[:_NUM_WORST]
    return [described[i] for i in worst]


def describe_outputs(
    labels: NDArray[Any],
    runs: Sequence[Floats],
    *,
    names: list[str],
    config: LabelsConfig,
    shown: Sequence[Floats] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Return what is confused with what, summed over runs, and the calibration of the first.

    The mean of several runs is an ensemble, with a calibration that none of them has.

    `confusion_matrix` is for classes, `label_confusions` for several labels, `tiers` for scores
    whose task has tiers; the others are None.

    Args:
        labels: Scores [N, D], classes [N], or labels [N, L].
        runs: What decides, of each run, [N, C].
        names: Of the dimensions, classes or labels.
        config: What the task says of its labels.
        shown: What is shown of each run, if that is something else, for the calibration.
        groups: The cluster of each row, [N]; None if rows are independent.
    """
    label_type = find_label_type(labels)
    matrix = confusions = None
    if label_type == "class":
        predicted = [outputs.argmax(axis=1) for outputs in runs]
        matrix = _sum_confusions(labels, predicted, num_classes=len(names))
    elif label_type == "multilabel":
        decided = [decide_labels(outputs) for outputs in runs]
        confusions = {
            name: _sum_confusions(labels[:, i], [d[:, i] for d in decided], num_classes=2)
            for i, name in enumerate(names)
        }
    return {
        "confusion_matrix": matrix,
        "label_confusions": confusions,
        "tiers": _describe_tiers(labels, runs, config)
        if isinstance(config, ScoresConfig)
        else None,
        "calibration": describe_calibration(labels, (shown or runs)[0], names=names, groups=groups),
    }


def _describe_tiers(
    labels_ND: Floats, runs: Sequence[Floats], config: ScoresConfig
) -> dict[str, Any] | None:
    if config.tiers is None:
        return None
    found = [find_tiers(outputs, config) for outputs in runs]
    matrix = _sum_confusions(find_tiers(labels_ND, config), found, num_classes=len(config.tiers))
    return {"names": list(config.tiers), "confusion_matrix": matrix}


def _sum_confusions(
    true_N: NDArray[Any], runs: Sequence[NDArray[Any]], *, num_classes: int
) -> list[list[int]]:
    """Return the confusion matrix summed over runs, rows true and columns predicted."""
    cells = np.concatenate([true_N * num_classes + predicted_N for predicted_N in runs])
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    matrix: list[list[int]] = counts.tolist()
    return matrix
