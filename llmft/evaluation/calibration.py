"""Calibration: slope and bias of scores, expected calibration error of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.metrics.definitions import Floats, find_label_type
from llmft.results.evaluation import Reliability, ReliabilityBin, ScoreCalibration, Stratum
from llmft.statistics.intervals import bootstrap_mean
from llmft.statistics.resampling import Groups

_NUM_STRATA = 5
_NUM_BINS = 10
_NUM_DRAWS = 4_000


def measure_score_calibration(
    labels_ND: Floats, outputs_ND: Floats, *, names: list[str]
) -> dict[str, ScoreCalibration]:
    """Return slope, bias and strata of predicted against true scores [N, D], by dimension (D12)."""
    return {
        name: _describe_scores(labels_ND[:, i], outputs_ND[:, i]) for i, name in enumerate(names)
    }


def measure_reliability(
    labels: NDArray[Any], outputs_NC: Floats, *, groups: Groups | None = None, seed: int = 0
) -> Reliability:
    """Measure the calibration of the probabilities of classes or labels.

    The expected calibration error is that of the last class's probability for two classes, of the
    most probable class's for more, and of all labels together. The Brier score is in [0, 1] for two
    classes and for labels; for more classes it is summed over them, in [0, 2], as scikit-learn's
    `brier_score_loss` does.

    On few rows even calibrated probabilities have an `ece` far above 0, and bootstrap intervals of
    it do not have their nominal coverage. `ece_by_chance` is its 95th percentile if these
    probabilities were perfectly calibrated, and rows of a cluster all alike: only an `ece` above it
    is evidence of miscalibration.

    Args:
        labels: Classes int [N], or labels bool [N, L].
        outputs_NC: Probabilities of the classes or labels.
        groups: The cluster of each row, [N]; None if rows are independent.
        seed: Seed of the resampling.

    Source:
        Guo et al. 2017, arXiv:1706.04599, eq. 3, for the expected calibration error; Broecker and
        Smith 2007, Weather and Forecasting 22, for the ece by chance; Brier 1950, Monthly
        Weather Review 78, for the Brier score.
    """
    num_classes = outputs_NC.shape[1]
    if find_label_type(labels) == "multilabel":
        true_NM, predicted_NM = labels, outputs_NC
        squares_N = ((outputs_NC - labels) ** 2).mean(axis=1, dtype=np.float64)
    elif num_classes == 2:
        true_NM, predicted_NM = labels[:, None] == 1, outputs_NC[:, 1:]
        squares_N = ((predicted_NM - true_NM) ** 2)[:, 0]
    else:
        true_NM = (labels == outputs_NC.argmax(axis=1))[:, None]
        predicted_NM = outputs_NC.max(axis=1, keepdims=True)
        all_true_NC = np.eye(num_classes, dtype=bool)[labels]
        squares_N = ((outputs_NC - all_true_NC) ** 2).sum(axis=1, dtype=np.float64)
    true_M, predicted_M = true_NM.ravel(), predicted_NM.ravel().astype(np.float64)
    filled = _list_bins(predicted_M, np.arange(_NUM_BINS + 1) / _NUM_BINS)
    bins = [
        ReliabilityBin(
            low=float(low),
            high=float(high),
            num_rows=int(inside_M.sum()),
            mean_predicted=float(predicted_M[inside_M].mean()),
            fraction_true=float(true_M[inside_M].mean()),
        )
        for low, high, inside_M in filled
    ]
    gaps = [b.num_rows * abs(b.mean_predicted - b.fraction_true) for b in bins]
    # If calibrated, the gaps are sums of independent errors of clusters, so nearly normal.
    errors_M = np.sqrt(np.maximum(predicted_M * (1 - predicted_M), 0))
    cluster_N = np.arange(len(labels)) if groups is None else groups
    num_columns = true_NM.shape[1]
    cluster_M = (cluster_N[:, None] * num_columns + np.arange(num_columns)).ravel()
    variances = [
        (np.bincount(cluster_M[inside_M], errors_M[inside_M]) ** 2).sum() for *_, inside_M in filled
    ]
    drawn_RB = np.random.default_rng(seed).normal(size=(_NUM_DRAWS, len(bins)))
    chance_R = np.abs(drawn_RB * np.sqrt(variances)).sum(axis=1)
    return Reliability(
        ece=float(sum(gaps) / len(true_M)),
        ece_by_chance=float(np.quantile(chance_R, 0.95) / len(true_M)),
        bins=bins,
        brier=float(squares_N.mean(dtype=np.float64)),
        brier_interval=bootstrap_mean(squares_N, groups=groups, seed=seed),
    )


def _describe_scores(true_N: Floats, predicted_N: Floats) -> ScoreCalibration:
    true_N, predicted_N = true_N.astype(np.float64), predicted_N.astype(np.float64)
    variance = true_N.var()
    slope = intercept = None
    if variance > 0:
        covariance = ((true_N - true_N.mean()) * (predicted_N - predicted_N.mean())).mean()
        slope = float(covariance / variance)
        intercept = float(predicted_N.mean() - slope * true_N.mean())
    edges = np.linspace(true_N.min(), true_N.max(), _NUM_STRATA + 1)
    return ScoreCalibration(
        slope=slope,
        intercept=intercept,
        bias=float((predicted_N - true_N).mean()),
        strata=[
            Stratum(
                low=float(low),
                high=float(high),
                num_rows=int(inside_N.sum()),
                mean_true=float(true_N[inside_N].mean()),
                mean_predicted=float(predicted_N[inside_N].mean()),
            )
            for low, high, inside_N in _list_bins(true_N, edges)
        ],
    )


def _list_bins(values_M: Floats, edges: Floats) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Return low, high and a mask of the values, per non-empty bin; only the last includes high."""
    last = len(edges) - 2
    place_M = np.clip(np.searchsorted(edges, values_M, side="right") - 1, 0, last)
    return [(edges[i], edges[i + 1], place_M == i) for i in np.unique(place_M)]
