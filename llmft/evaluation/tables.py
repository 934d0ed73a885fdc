"""The tables of a results file: baselines, rows, and the rows that went worst."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.config.labels import LabelsConfig, ScoresConfig
from llmft.config.task import TaskConfig
from llmft.data.batches import make_targets
from llmft.data.fields import Row, join_pair
from llmft.evaluation.baselines import predict_constant, predict_tfidf
from llmft.evaluation.metrics import (
    decide_labels,
    find_tiers,
    measure,
)
from llmft.results.variant import Measurement, RowResult, TierConfusion

Floats = NDArray[np.floating[Any]]
_NUM_WORST = 15
_MAX_TEXT = 2_000


def measure_baselines(
    train_rows: list[Row], rows: list[Row], *, names: list[str], task: TaskConfig
) -> dict[str, Measurement]:
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
) -> list[RowResult]:
    """Return for each row its id, labels, text, slices, and every arm's outputs and error.

    Outputs are the mean over the runs of an arm; errors are so too, and larger than that of the
    mean outputs, as the arm's `mae` is.
    """
    outputs = {arm: _to_list(np.mean(runs, axis=0)) for arm, runs in arms.items()}
    errors = {
        arm: _to_list(np.mean([compute_row_errors(labels, found) for found in runs], axis=0))
        for arm, runs in arms.items()
    }
    return [
        RowResult(
            id=row["id"],
            labels=row["labels"],
            outputs={arm: [round(v, 4) for v in o[i]] for arm, o in outputs.items()},
            errors={arm: round(e[i], 4) for arm, e in errors.items()},
            text=row["text"][:_MAX_TEXT],
            slices=slices[i] if slices is not None else {},
        )
        for i, row in enumerate(rows)
    ]


def _to_list(values: NDArray[Any]) -> list[Any]:
    found: list[Any] = values.astype(np.float64).tolist()
    return found


def pick_worst(rows: Sequence[RowResult]) -> list[RowResult]:
    """Return the rows with the largest mean error over the arms; none if no arm was measured."""
    if not rows or not rows[0].errors:
        return []
    errors_N = np.array([list(row.errors.values()) for row in rows]).mean(axis=1)
    worst = np.argsort(-errors_N, kind="stable")[:_NUM_WORST]
    return [rows[i] for i in worst]


def count_confusions(
    labels: NDArray[Any], runs: Sequence[Floats], *, num_classes: int
) -> list[list[int]]:
    """Return which classes were taken for which, summed over runs with outputs [N, C]."""
    predicted = [outputs.argmax(axis=1) for outputs in runs]
    return _sum_confusions(labels, predicted, num_classes=num_classes)


def count_label_confusions(
    labels_NL: NDArray[Any], runs: Sequence[Floats], *, names: list[str]
) -> dict[str, list[list[int]]]:
    """Return per label whether it applies against whether it was predicted, summed over runs."""
    decided = [decide_labels(outputs) for outputs in runs]
    return {
        name: _sum_confusions(labels_NL[:, i], [d[:, i] for d in decided], num_classes=2)
        for i, name in enumerate(names)
    }


def count_tier_confusions(
    labels_ND: Floats, runs: Sequence[Floats], config: LabelsConfig
) -> TierConfusion | None:
    """Return which tiers were taken for which, summed over runs; None where there are no tiers."""
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
