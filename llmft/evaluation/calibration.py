"""Do outputs mean what they say? Compressed scores, and probabilities that promise too much."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.evaluation.metrics import find_label_type

Floats = NDArray[np.floating[Any]]
_NUM_STRATA = 5
_NUM_BINS = 10


def describe_calibration(
    labels: NDArray[Any], outputs_NC: Floats, *, names: list[str]
) -> dict[str, Any]:
    """Return how outputs relate to what is true.

    Args:
        labels: Scores float [N, D], classes int [N], or labels bool [N, L].
        outputs_NC: Scores, probabilities of the classes, or of each label for itself.
        names: Of the dimensions, classes or labels.

    Returns:
        For scores per dimension (D12): `slope` and `intercept` of the line that gives the predicted
        from the true score by least squares (a slope below 1: the range is compressed; None if all
        true scores are equal), `bias` (mean of predicted minus true), and `strata` of equal width
        in the true score. For classes and labels: the expected calibration error `ece`, a fraction,
        and its `bins`: of the probability of the last of two classes, of the most probable class,
        or of all labels together. Strata and bins without rows are left out.

    Source:
        Guo et al. 2017, arXiv:1706.04599, eq. 3, for the expected calibration error.
    """
    match find_label_type(labels):
        case "scores":
            return {
                name: _describe_scores(labels[:, i], outputs_NC[:, i])
                for i, name in enumerate(names)
            }
        case "multilabel":
            return _describe_probabilities(labels.ravel(), outputs_NC.ravel())
        case "class" if len(names) == 2:
            return _describe_probabilities(labels == 1, outputs_NC[:, 1])
        case "class":
            is_right_N = labels == outputs_NC.argmax(axis=1)
            return _describe_probabilities(is_right_N, outputs_NC.max(axis=1))


def _describe_scores(true_N: Floats, predicted_N: Floats) -> dict[str, Any]:
    true_N, predicted_N = true_N.astype(np.float64), predicted_N.astype(np.float64)
    variance = true_N.var()
    slope = intercept = None
    if variance > 0:
        covariance = ((true_N - true_N.mean()) * (predicted_N - predicted_N.mean())).mean()
        slope = float(covariance / variance)
        intercept = float(predicted_N.mean() - slope * true_N.mean())
    edges = np.linspace(true_N.min(), true_N.max(), _NUM_STRATA + 1)
    return {
        "slope": slope,
        "intercept": intercept,
        "bias": float((predicted_N - true_N).mean()),
        "strata": [
            {
                "low": float(low),
                "high": float(high),
                "num_rows": int(inside_N.sum()),
                "mean_true": float(true_N[inside_N].mean()),
                "mean_predicted": float(predicted_N[inside_N].mean()),
            }
            for low, high, inside_N in _list_bins(true_N, edges)
        ],
    }


def _describe_probabilities(true_M: NDArray[np.bool_], predicted_M: Floats) -> dict[str, Any]:
    predicted_M = predicted_M.astype(np.float64)
    bins = [
        {
            "low": float(low),
            "high": float(high),
            "num_rows": int(inside_M.sum()),
            "mean_predicted": float(predicted_M[inside_M].mean()),
            "share_true": float(true_M[inside_M].mean()),
        }
        for low, high, inside_M in _list_bins(predicted_M, np.arange(_NUM_BINS + 1) / _NUM_BINS)
    ]
    gaps = [b["num_rows"] * abs(b["mean_predicted"] - b["share_true"]) for b in bins]
    return {"ece": float(sum(gaps) / len(true_M)), "bins": bins}


def _list_bins(values_M: Floats, edges: Floats) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Return low, high and which values lie within, for bins with any; only the last holds high."""
    last = len(edges) - 2
    place_M = np.clip(np.searchsorted(edges, values_M, side="right") - 1, 0, last)
    return [(edges[i], edges[i + 1], place_M == i) for i in np.unique(place_M)]
