"""Metrics under scikit-learn's names, overall and per dimension or class."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn import metrics as sk

Floats = NDArray[np.floating[Any]]
HIGHER_IS_BETTER = {
    "mae": False,
    "rmse": False,
    "r2": True,
    "spearman": True,
    "skill": True,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1_macro": True,
}


def is_better(metric: str, one: float | None, other: float | None) -> bool:
    """Return whether one value of a metric beats another; an undefined value beats nothing."""
    if one is None or other is None:
        return one is not None
    return one > other if HIGHER_IS_BETTER[metric] else one < other


class Measured(NamedTuple):
    """Metrics of one set of predictions."""

    overall: dict[str, float | None]
    """None where a metric is not defined, such as the rank correlation of a constant."""
    parts: dict[str, dict[str, float | None]]
    """The same per dimension, or precision, recall, f1 and support per class."""


def measure(labels: NDArray[Any], outputs_NC: Floats, *, names: list[str]) -> Measured:
    """Measure scores against scores [N, C], or probabilities against classes [N].

    Raises:
        ValueError: If there are no rows or the shapes disagree.
    """
    if len(labels) == 0 or len(labels) != len(outputs_NC):
        raise ValueError(f"{len(labels)} labels and {len(outputs_NC)} outputs")
    if labels.ndim == 2:
        return measure_scores(labels, outputs_NC, names=names)
    return measure_classes(labels, outputs_NC.argmax(axis=1), names=names)


def measure_scores(labels_ND: Floats, outputs_ND: Floats, *, names: list[str]) -> Measured:
    """Return mae, rmse, r2, spearman and skill, per dimension and as their plain mean.

    `skill` is scikit-learn's `d2_absolute_error_score`: 1 is perfect, 0 is as good as the best
    constant for these very rows, and below 0 is worse than that.
    """
    parts = {
        name: _measure_dimension(labels_ND[:, i], outputs_ND[:, i]) for i, name in enumerate(names)
    }
    overall = {key: _mean([part[key] for part in parts.values()]) for key in parts[names[0]]}
    return Measured(overall, parts)


def measure_classes(
    labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], *, names: list[str]
) -> Measured:
    """Return accuracy, balanced_accuracy and f1_macro; precision, recall, f1, support per class.

    A class that is in neither labels nor predictions is left out of the macro mean.
    """
    ids = list(range(len(names)))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels_N, predicted_N, labels=ids, zero_division=0.0
    )
    parts: dict[str, dict[str, float | None]] = {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": float(support[i]),
        }
        for i, name in enumerate(names)
    }
    confusion = count_confusion(labels_N, predicted_N, num_classes=len(names))
    present = support > 0
    overall: dict[str, float | None] = {
        "accuracy": float((labels_N == predicted_N).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "f1_macro": f1_from_confusion(confusion),
    }
    return Measured(overall, parts)


def count_confusion(
    labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix [C, C], rows true and columns predicted."""
    flat = np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def f1_from_confusion(confusion_CC: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that occur in labels or predictions."""
    both = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1)
    f1 = 2 * np.diag(confusion_CC) / np.maximum(both, 1)
    return float(f1[both > 0].mean())


def compute_skill(labels_ND: Floats, outputs_ND: Floats) -> float:
    """Return scikit-learn's `d2_absolute_error_score`, fast enough for the bootstrap."""
    error_D = np.abs(labels_ND - outputs_ND).sum(axis=0)
    constant_D = np.abs(labels_ND - np.median(labels_ND, axis=0)).sum(axis=0)
    varies_D = constant_D > 0
    skill_D = np.where(varies_D, 1 - error_D / np.where(varies_D, constant_D, 1), error_D == 0)
    return float(skill_D.mean())


def _measure_dimension(labels_N: Floats, outputs_N: Floats) -> dict[str, float | None]:
    with np.errstate(invalid="ignore"):
        constant = np.ptp(labels_N) == 0 or np.ptp(outputs_N) == 0
        rank = None if constant else float(spearmanr(labels_N, outputs_N).statistic)
    enough = len(labels_N) > 1
    return {
        "mae": float(sk.mean_absolute_error(labels_N, outputs_N)),
        "rmse": float(sk.root_mean_squared_error(labels_N, outputs_N)),
        "r2": float(sk.r2_score(labels_N, outputs_N)) if enough else None,
        "spearman": rank,
        "skill": float(sk.d2_absolute_error_score(labels_N, outputs_N)) if enough else None,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
