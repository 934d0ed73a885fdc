"""The facts behind the gates: the exact recall of a class, and means over runs."""

import numpy as np
import pytest
from scipy.stats import binomtest

from llmft.evaluation.gates import estimate_metric, estimate_parts
from llmft.results.evaluation import Interval, MetricValue

NAMES = ["a", "b", "c"]
WIDE = dict.fromkeys(NAMES, Interval(0.0, 1.0))


def exact(hits: int, rows: int) -> Interval:
    found = binomtest(hits, rows).proportion_ci(0.95, method="exact")
    return Interval(found.low, found.high)


def test_recall_has_the_exact_interval_of_the_rows_of_its_class() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    predicted = np.array([0] * 7 + [1] * 3 + [1] * 20)
    found = estimate_parts(labels, [np.eye(3)[predicted]], names=NAMES, intervals=WIDE)
    assert (found["recall"]["a"].value, found["recall"]["a"].interval) == (
        pytest.approx(0.7),
        pytest.approx(exact(7, 10)),
    )
    assert (found["recall"]["b"].value, found["recall"]["b"].interval) == (
        1.0,
        pytest.approx(exact(20, 20)),
    )
    assert found["f1"]["a"].value == pytest.approx(14 / 17)
    assert found["f1"]["c"] == found["recall"]["c"] == MetricValue(value=None, interval=None)


def test_more_seeds_are_no_more_rows() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    runs = [np.eye(2)[[0] * hits + [1] * (30 - hits)] for hits in (7, 8)]
    found = estimate_parts(labels, runs, names=NAMES[:2], intervals=WIDE)
    assert (found["recall"]["a"].value, found["recall"]["a"].interval) == (
        pytest.approx(0.75),
        pytest.approx(exact(7, 10)),
    )


def test_rows_of_one_cluster_count_once() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    groups = np.arange(30) // 2
    found = estimate_parts(
        labels, [np.eye(2)[labels]], names=NAMES[:2], intervals=WIDE, groups=groups
    )
    assert found["recall"]["a"].interval == pytest.approx(exact(5, 5))


def test_labels_and_scores_have_parts_too() -> None:
    labels = np.array([[True, False], [True, True], [False, False]])
    outputs = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    found = estimate_parts(labels, [outputs], names=NAMES[:2], intervals=WIDE)
    assert (found["recall"]["a"].value, found["recall"]["a"].interval) == (
        0.5,
        pytest.approx(exact(1, 2)),
    )
    assert (found["recall"]["b"].value, found["recall"]["b"].interval) == (
        1.0,
        pytest.approx(exact(1, 1)),
    )
    scores = np.zeros((4, 2))
    errors = estimate_parts(
        scores,
        [scores + np.array([1, 2]), scores + np.array([3, 2])],
        names=NAMES[:2],
        intervals=WIDE,
    )
    assert errors == {
        "mae": {
            "a": MetricValue(value=2.0, interval=WIDE["a"]),
            "b": MetricValue(value=2.0, interval=WIDE["b"]),
        }
    }


def test_a_metric_is_the_mean_over_runs_or_undefined() -> None:
    labels = np.zeros((30, 1))
    found = estimate_metric("mae", labels, [labels + 1, labels + 3], config=None)
    assert found.value == pytest.approx(2.0)
    one_class = np.zeros(30, dtype=int)
    undefined = estimate_metric("roc_auc", one_class, [np.eye(2)[one_class]], config=None)
    assert undefined == MetricValue(value=None, interval=None)
