"""Metrics equal scikit-learn's, or a value worked out by hand."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from llmft.config.metrics import METRICS, list_metrics
from llmft.config.task import ClassConfig, ScoresConfig
from llmft.metrics.definitions import (
    compute_metric,
    compute_on_draws,
    find_label_type,
    is_better,
    measure,
)
from llmft.results.evaluation import Measurement

RNG = np.random.default_rng(0)
ORDERED = ClassConfig.model_validate({"type": "class", "from": "y", "order": list("abcde")})


def make_scores_config(**given: Any) -> ScoresConfig:
    values = {"type": "scores", "from": "x", "dimensions": ["a", "b"], **given}
    return ScoresConfig.model_validate(values)


def make_probabilities(num_rows: int, num_classes: int) -> np.ndarray:
    logits = np.exp(RNG.normal(size=(num_rows, num_classes)))
    return logits / logits.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_labels_are_reported_apart_by_dtype_and_shape() -> None:
    assert find_label_type(np.zeros((2, 1), dtype=np.float32)) == "scores"
    assert find_label_type(np.zeros(2, dtype=np.int64)) == "class"
    assert find_label_type(np.zeros((2, 1), dtype=bool)) == "multilabel"


def test_scores_by_hand() -> None:
    labels = np.array([[0.0], [2.0], [4.0]])
    outputs = np.array([[1.0], [2.0], [2.0]])
    overall = measure(labels, outputs, names=["risk"]).metrics
    assert overall["mae"] == pytest.approx(1.0)
    assert overall["rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert overall["r2"] == pytest.approx(1 - 5 / 8)
    assert overall["skill"] == pytest.approx(1 - 3 / 4)  # the best constant, 2, is off by 4 in all


def test_d9_the_best_constant_has_no_skill() -> None:
    labels = RNG.integers(0, 11, size=(50, 3)).astype(float)
    constant = np.tile(np.median(labels, axis=0), (50, 1))
    assert measure(labels, constant, names=list("abc")).metrics["skill"] == pytest.approx(0)


def test_overall_is_the_plain_mean_over_dimensions() -> None:
    labels, outputs = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))
    labels[:, 2] = 1.0  # constant and missed: scikit-learn says 0 for r2 and skill
    found = measure(labels, outputs, names=list("abc"))
    assert found.metrics["mae"] == pytest.approx(sk.mean_absolute_error(labels, outputs))
    assert found.metrics["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, outputs))
    assert found.metrics["r2"] == pytest.approx(sk.r2_score(labels, outputs))
    assert found.metrics["skill"] == pytest.approx(sk.d2_absolute_error_score(labels, outputs))
    assert list(found.parts) == ["a", "b", "c"]
    assert found.parts["b"]["r2"] == pytest.approx(sk.r2_score(labels[:, 1], outputs[:, 1]))


def test_a_constant_dimension_has_no_rank_correlation() -> None:
    labels = np.array([[1.0, 1.0], [1.0, 2.0]])
    found = measure(labels, np.array([[1.0, 3.0], [2.0, 4.0]]), names=["same", "risk"])
    assert found.parts["risk"]["spearman"] == pytest.approx(1)
    assert found.parts["same"]["spearman"] is None
    assert found.metrics["spearman"] is None


def test_one_row_has_an_error_but_explains_nothing() -> None:
    overall = measure(np.array([[1.0]]), np.array([[3.0]]), names=["risk"]).metrics
    assert overall == {"mae": 2.0, "rmse": 2.0, "r2": None, "spearman": None, "skill": None}


def test_the_overall_score_is_weighted_and_falls_into_tiers() -> None:
    config = make_scores_config(weights={"a": 3, "b": 1}, tiers={"low": 0, "high": 5})
    labels = np.array([[4.0, 8.0], [4.0, 0.0]], dtype=np.float32)  # overall 5, in high, and 3
    outputs = np.array([[4.0, 7.6], [2.0, -10.0]], dtype=np.float32)  # overall 4.9 and -1
    overall = measure(labels, outputs, names=["a", "b"], config=config).metrics
    assert overall["overall_mae"] == pytest.approx((0.1 + 4) / 2)
    assert overall["tier_accuracy"] == 0.5  # a score below the range is in the lowest tier


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, set()),
        ({"weights": {"a": 1}}, {"overall_mae"}),
        ({"tiers": {"low": 0, "high": 5}}, {"overall_mae", "tier_accuracy"}),
    ],
)
def test_tiers_and_weights_bring_their_metrics(given: dict[str, Any], expected: set[str]) -> None:
    config = make_scores_config(**given)
    found = set(list_metrics("scores", config, num_outputs=2))
    assert found - {"mae", "rmse", "r2", "spearman", "skill"} == expected
    assert found - expected == set(list_metrics("scores", None, num_outputs=2))


def test_classes_equal_scikit_learn() -> None:
    labels, probs = RNG.integers(0, 5, 200), make_probabilities(200, 5)
    predicted, one_hot = probs.argmax(axis=1), np.eye(5, dtype=int)[labels]
    found = measure(labels, probs, names=list("abcde"), config=ORDERED)
    assert found.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "f1_macro": sk.f1_score(labels, predicted, average="macro"),
            "roc_auc": sk.roc_auc_score(labels, probs, multi_class="ovr"),
            "average_precision": sk.average_precision_score(one_hot, probs, average="macro"),
            "top_3_accuracy": sk.top_k_accuracy_score(labels, probs, k=3),
            "quadratic_kappa": sk.cohen_kappa_score(labels, predicted, weights="quadratic"),
        }
    )
    one = {"labels": [1], "average": "macro"}
    assert found.parts["b"] == pytest.approx(
        {
            "precision": sk.precision_score(labels, predicted, **one),
            "recall": sk.recall_score(labels, predicted, **one),
            "f1": sk.f1_score(labels, predicted, **one),
            "support": (labels == 1).sum(),
            "roc_auc": sk.roc_auc_score(labels == 1, probs[:, 1]),
            "average_precision": sk.average_precision_score(labels == 1, probs[:, 1]),
        }
    )


def test_of_two_classes_the_last_one_is_ranked() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    last = np.array([0.1, 0.6, 0.2, 0.5, 0.9])
    found = measure(labels, np.stack([1 - last, last], axis=1), names=["no", "yes"])
    expected = sk.average_precision_score(labels, last)
    assert found.metrics["average_precision"] == pytest.approx(expected)
    assert found.parts["yes"]["average_precision"] == pytest.approx(expected)
    assert found.parts["no"]["average_precision"] != pytest.approx(expected)
    assert found.metrics["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, last))


def test_several_labels_equal_scikit_learn() -> None:
    labels, probs = RNG.random((150, 4)) < 0.3, RNG.random((150, 4))
    probs[0] = 0.5  # from 0.5 on a label applies
    applies = probs >= 0.5
    found = measure(labels, probs, names=list("abcd"))
    assert found.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, applies),
            "f1_macro": sk.f1_score(labels, applies, average="macro"),
            "f1_micro": sk.f1_score(labels, applies, average="micro"),
            "hamming_loss": sk.hamming_loss(labels, applies),
            "roc_auc": sk.roc_auc_score(labels, probs, average="macro"),
            "average_precision": sk.average_precision_score(labels, probs, average="macro"),
        }
    )
    assert found.parts["c"]["precision"] == pytest.approx(
        sk.precision_score(labels[:, 2], applies[:, 2])
    )
    assert set(found.parts["c"]) == {
        "precision", "recall", "f1", "support", "roc_auc", "average_precision",
    }  # fmt: skip


def test_a_class_that_never_occurs_does_not_count() -> None:
    labels, probs = np.array([0, 0, 1, 1]), np.eye(4)[[0, 0, 0, 1]]
    found = measure(labels, probs, names=list("abcd"))
    assert found.metrics["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found.metrics["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found.metrics["roc_auc"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert found.parts["d"] == {"support": 0.0} | dict.fromkeys(
        ("precision", "recall", "f1", "roc_auc", "average_precision")
    )


def list_values(found: Measurement) -> list[float | None]:
    return [*found.metrics.values(), *(v for part in found.parts.values() for v in part.values())]


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        (np.zeros(3, dtype=int), np.eye(2)[[0, 0, 0]]),  # one class only
        (np.zeros(3, dtype=int), np.eye(4)[[0, 0, 0]]),
        (np.zeros((3, 2), dtype=bool), np.zeros((3, 2))),  # no label ever
        (np.ones((3, 2), dtype=bool), np.ones((3, 2))),
        (np.ones((3, 2)), np.ones((3, 2))),
        (np.ones((1, 2)), np.zeros((1, 2))),
    ],
)
def test_what_is_undefined_is_none_and_never_nan(labels: np.ndarray, outputs: np.ndarray) -> None:
    values = list_values(measure(labels, outputs, names=list("abcd")[: outputs.shape[1]]))
    assert None in values
    assert all(value is None or np.isfinite(value) for value in values)


def test_kappa_of_one_class_only_is_undefined() -> None:
    labels = np.full(4, 2)
    assert compute_metric("quadratic_kappa", labels, np.eye(5)[labels], config=ORDERED) is None
    other = np.eye(5)[[2, 2, 2, 4]]
    assert compute_metric("quadratic_kappa", labels, other, config=ORDERED) == pytest.approx(0)


@pytest.mark.parametrize(
    ("metric", "labels", "outputs"),
    [
        ("tier_accuracy", np.zeros((2, 2)), np.zeros((2, 2))),
        ("quadratic_kappa", np.array([0, 1]), np.eye(2)),
        ("top_3_accuracy", np.array([0, 1, 2]), np.eye(3)),
    ],
)
def test_a_metric_that_the_task_gives_no_meaning_is_undefined(metric, labels, outputs) -> None:
    assert compute_metric(metric, labels, outputs) is None


@pytest.mark.parametrize("metric", ["bleu", "mae", "f1_micro"])
def test_a_metric_of_other_labels_is_refused(metric: str) -> None:
    with pytest.raises(ValueError, match=f"unknown metric {metric} for labels of type class"):
        compute_metric(metric, np.array([0, 1]), np.eye(2))


def test_every_metric_of_the_table_is_measured() -> None:
    config = make_scores_config(tiers={"low": 0, "high": 5})
    scores = measure(RNG.random((9, 2)), RNG.random((9, 2)), names=["a", "b"], config=config)
    classes = measure(
        RNG.integers(0, 5, 9), make_probabilities(9, 5), names=list("abcde"), config=ORDERED
    )
    several = measure(RNG.random((9, 2)) < 0.5, RNG.random((9, 2)), names=["a", "b"])
    assert list(scores.metrics) == list_metrics("scores", config)
    assert list(classes.metrics) == list_metrics("class", ORDERED)
    assert list(several.metrics) == list_metrics("multilabel", None)
    assert set(METRICS) == {*scores.metrics, *classes.metrics, *several.metrics}


def test_an_undefined_value_beats_nothing() -> None:
    assert is_better("mae", 1.0, 2.0)
    assert is_better("f1_macro", 2.0, 1.0)
    assert is_better("hamming_loss", 0.1, 0.2)
    assert is_better("mae", 9.0, None)
    assert not is_better("mae", None, 9.0)
    assert not is_better("mae", None, None)


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="0 labels"):
        measure(np.empty((0, 2)), np.empty((0, 2)), names=["a", "b"])
    with pytest.raises(ValueError, match="3 labels and 2 outputs"):
        measure(np.zeros(3, dtype=int), np.zeros((2, 4)), names=list("abcd"))


@pytest.mark.parametrize("metric", ["spearman", "skill", "roc_auc", "average_precision", "mae"])
@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_a_metric_on_draws_is_the_metric_of_each_draw(metric: str, num_outputs: int) -> None:
    generator = np.random.default_rng(4)
    outputs = generator.normal(size=(9, num_outputs)).astype(np.float32).round(1)
    kinds: dict[str, Any] = {
        "scores": outputs + generator.integers(3, size=outputs.shape),
        "class": generator.integers(num_outputs, size=9),
        "multilabel": generator.random(outputs.shape) < 0.2,
    }
    draws = np.concatenate([generator.integers(9, size=(40, 9)), np.zeros((1, 9), dtype=np.int64)])
    for label_type in METRICS[metric].labels:
        labels = kinds[label_type]
        found = compute_on_draws(metric, labels, outputs, draws, max_values=100)
        expected = [compute_metric(metric, labels[rows], outputs[rows]) for rows in draws]
        np.testing.assert_allclose(
            found, np.array(expected, dtype=np.float64), rtol=1e-12, err_msg=label_type
        )
