"""The tables of a results file: baselines, rows, and the rows that went worst."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.data.batches import make_targets
from llmft.data.prepared import Row
from llmft.evaluation.baselines import predict_constant, predict_tfidf
from llmft.evaluation.metrics import Measured, count_confusion, measure

Floats = NDArray[np.floating[Any]]
_NUM_WORST = 15
_MAX_TEXT = 2_000


def describe_measured(measured: Measured, labels: NDArray[Any]) -> dict[str, Any]:
    """Return the overall metrics, and those per dimension or class, as one JSON object."""
    return {**measured.overall, name_parts(labels): measured.parts}


def name_parts(labels: NDArray[Any]) -> str:
    """Return `per_dimension` for scores [N, D], `per_class` for classes [N]."""
    return "per_dimension" if labels.ndim == 2 else "per_class"


def measure_baselines(
    train_rows: list[Row], rows: list[Row], *, names: list[str]
) -> dict[str, Measured]:
    """Measure what a constant and a TF-IDF model, fitted on train, do on these rows."""
    texts = [row["text"] for row in rows]
    train = make_targets(train_rows, label_names=names).numpy()
    labels = make_targets(rows, label_names=names).numpy()
    outputs = {
        "constant": predict_constant(train, num_rows=len(rows), num_outputs=len(names)),
        "tfidf": predict_tfidf(
            [row["text"] for row in train_rows], train, texts=texts, num_outputs=len(names)
        ),
    }
    return {name: measure(labels, found, names=names) for name, found in outputs.items()}


def compute_row_errors(labels: NDArray[Any], outputs_NC: Floats) -> Floats:
    """Return per row the mean absolute error, or 1 minus the true class's probability, [N]."""
    if labels.ndim == 2:
        return np.asarray(np.abs(labels - outputs_NC).mean(axis=1))
    return np.asarray(1 - outputs_NC[np.arange(len(labels)), labels])


def describe_rows(
    rows: list[Row], labels: NDArray[Any], outputs: dict[str, Floats]
) -> list[dict[str, Any]]:
    """Return for each row its id, labels, and every arm's outputs and error."""
    errors = {arm: compute_row_errors(labels, found) for arm, found in outputs.items()}
    return [
        {
            "id": row["id"],
            "labels": row["labels"],
            "outputs": {arm: [round(float(v), 4) for v in o[i]] for arm, o in outputs.items()},
            "errors": {arm: round(float(e[i]), 4) for arm, e in errors.items()},
        }
        for i, row in enumerate(rows)
    ]


def pick_worst(described: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the largest mean error over the arms, with their text."""
    errors_N = np.array([np.mean(list(d["errors"].values())) for d in described])
    worst = np.argsort(-errors_N, kind="stable")[:_NUM_WORST]
    return [{**described[i], "text": rows[i]["text"][:_MAX_TEXT]} for i in worst]


def describe_confusion(
    labels: NDArray[Any], runs: Sequence[Floats], *, num_classes: int
) -> list[list[int]] | None:
    """Return the confusion matrix summed over runs, rows true, as lists; None for scores."""
    if labels.ndim == 2:
        return None
    counts = [
        count_confusion(labels, outputs.argmax(axis=1), num_classes=num_classes) for outputs in runs
    ]
    total: list[list[int]] = np.sum(counts, axis=0).tolist()
    return total
