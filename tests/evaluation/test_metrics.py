"""Metrics equal scikit-learn's, or a value worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from llmft.evaluation.metrics import (
    compute_skill,
    f1_from_confusion,
    measure,
    measure_classes,
    measure_scores,
)

RNG = np.random.default_rng(0)


def test_scores_by_hand() -> None:
    labels = np.array([[0.0], [2.0], [4.0]])
    outputs = np.array([[1.0], [2.0], [2.0]])
    overall = measure_scores(labels, outputs, names=["risk"]).overall
    assert overall["mae"] == pytest.approx(1.0)
    assert overall["rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert overall["r2"] == pytest.approx(1 - 5 / 8)
    assert overall["skill"] == pytest.approx(1 - 3 / 4)  # the best constant, 2, is off by 4 in all


def test_d9_the_best_constant_has_no_skill() -> None:
    labels = RNG.integers(0, 11, size=(50, 3)).astype(float)
    constant = np.tile(np.median(labels, axis=0), (50, 1))
    assert measure_scores(labels, constant, names=list("abc")).overall["skill"] == pytest.approx(0)


def test_overall_is_the_plain_mean_over_dimensions() -> None:
    labels, outputs = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))
    found = measure_scores(labels, outputs, names=list("abc"))
    assert found.overall["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, outputs))
    assert found.overall["r2"] == pytest.approx(sk.r2_score(labels, outputs))
    assert found.overall["skill"] == pytest.approx(sk.d2_absolute_error_score(labels, outputs))
    assert list(found.parts) == ["a", "b", "c"]


def test_the_fast_skill_equals_scikit_learns() -> None:
    labels, outputs = RNG.integers(0, 4, size=(30, 3)).astype(float), RNG.normal(size=(30, 3))
    labels[:, 2] = 1.0  # constant and missed: scikit-learn says 0
    assert compute_skill(labels, outputs) == pytest.approx(
        sk.d2_absolute_error_score(labels, outputs)
    )


def test_a_constant_dimension_has_no_rank_correlation() -> None:
    labels, outputs = np.ones((4, 1)), RNG.normal(size=(4, 1))
    assert measure_scores(labels, outputs, names=["risk"]).overall["spearman"] is None


def test_classes_equal_scikit_learn() -> None:
    labels, predicted = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200)
    found = measure_classes(labels, predicted, names=list("abcd"))
    assert found.overall["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found.overall["f1_macro"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro")
    )
    assert found.overall["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert found.parts["b"]["recall"] == pytest.approx(
        sk.recall_score(labels, predicted, labels=[1], average="macro")
    )


def test_a_class_that_never_occurs_does_not_count() -> None:
    confusion = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert f1_from_confusion(confusion) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="0 labels"):
        measure(np.empty((0, 2)), np.empty((0, 2)), names=["a", "b"])
    with pytest.raises(ValueError, match="3 labels and 2 outputs"):
        measure(np.zeros(3, dtype=int), np.zeros((2, 4)), names=list("abcd"))
