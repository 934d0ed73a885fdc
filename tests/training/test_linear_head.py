"""The solvers give scikit-learn's solutions, and the strength is the best on validation."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from llmft.training import linear_head
from llmft.training.linear_head import (
    STRENGTHS,
    Scale,
    TrainingRows,
    choose_by_logistic,
    choose_by_ridge,
    solve_ridge,
)

RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(90, 7)) @ RNG.normal(size=(7, 7)) + 3).astype(np.float32)
WEIGHTS = RNG.uniform(0.2, 3, size=90)
SCORES = VECTORS @ RNG.normal(size=(7, 2)) + RNG.normal(size=(90, 2))


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("rows_per_block", [1, 64, 1_000])
def test_ridge_is_that_of_scikit_learn(
    strength: float, rows_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_head, "ROWS_PER_BLOCK", rows_per_block)
    found = solve_ridge(VECTORS, SCORES, WEIGHTS)(strength)
    expected = Ridge(alpha=strength).fit(VECTORS.astype(float), SCORES, sample_weight=WEIGHTS)
    assert found.weight_CE == pytest.approx(expected.coef_, rel=1e-5, abs=1e-9)
    assert found.bias_C == pytest.approx(expected.intercept_, rel=1e-5)


@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_logistic_regression_is_that_of_scikit_learn(head: Any) -> None:
    num_classes = 2 if head == "binary" else 4
    labels_N = np.digitize(
        SCORES[:, 0], np.quantile(SCORES[:, 0], np.arange(1, num_classes) / num_classes)
    )
    train = TrainingRows(VECTORS.copy(), labels_N, WEIGHTS[:, None])
    scale = Scale.fit(train.vectors_NE)
    scale.apply(train.vectors_NE)

    def score(logits_NC: np.ndarray) -> float:
        predicted = logits_NC.argmax(axis=1) if num_classes > 2 else logits_NC[:, 0] > 0
        return float((predicted == labels_N).mean())

    choice = choose_by_logistic(head, train, train.vectors_NE, score=score, num_outputs=num_classes)
    expected = LogisticRegression(C=1 / choice.strength, tol=1e-6, max_iter=10_000).fit(
        train.vectors_NE, labels_N, sample_weight=WEIGHTS
    )
    found = scale.fold(choice.solution).apply(VECTORS)
    logits = expected.decision_function(train.vectors_NE).reshape(len(VECTORS), -1)
    assert found == pytest.approx(logits, abs=0.05 * float(np.abs(logits).max()))
    assert choice.score == max(choice.scores.values())


def test_the_strength_is_the_best_on_validation_and_an_edge_is_said() -> None:
    noise = RNG.normal(size=(90, 1))
    train = TrainingRows(VECTORS, noise, np.ones((90, 1)))

    def score(logits_NC: np.ndarray) -> float:
        return -float(np.abs(logits_NC - SCORES[:, :1]).mean())

    useless = choose_by_ridge("regression", train, VECTORS, score=score, num_outputs=1)
    assert useless.scores[useless.strength] == max(useless.scores.values())
    assert list(useless.scores) == STRENGTHS
    learned = train._replace(labels=SCORES[:, :1])
    assert (
        choose_by_ridge("regression", learned, VECTORS, score=score, num_outputs=1).strength
        == STRENGTHS[-1]
    )
    assert choose_by_ridge("regression", learned, VECTORS, score=score, num_outputs=1).is_at_edge


def test_a_constant_needs_no_vectors() -> None:
    constant = TrainingRows(VECTORS, np.full((90, 1), 4.0), np.ones((90, 1)))
    found = choose_by_ridge(
        "regression", constant, VECTORS, score=lambda logits: 0.0, num_outputs=1
    )
    assert found.solution.apply(VECTORS) == pytest.approx(np.full((90, 1), 4.0))
    assert not found.is_at_edge, "all are as good"


@pytest.mark.parametrize(
    ("head", "labels", "num_outputs", "expected"),
    [
        ("multiclass", [0, 2] * 45, 4, {0, 2}),
        ("multiclass", [2] * 90, 3, {2}),
        ("binary", [1] * 90, 2, {1}),
    ],
)
def test_classes_without_a_row_are_never_predicted(
    head: Any, labels: list[int], num_outputs: int, expected: set[int]
) -> None:
    train = TrainingRows(VECTORS, np.array(labels), np.ones((90, 1)))
    found = choose_by_logistic(
        head, train, VECTORS, score=lambda logits: 0.0, num_outputs=num_outputs
    ).solution.apply(VECTORS)
    predicted = found.argmax(axis=1) if head == "multiclass" else (found[:, 0] > 0).astype(int)
    assert set(predicted.tolist()) == expected
    ridge = choose_by_ridge(
        head, train, VECTORS, score=lambda logits: 0.0, num_outputs=num_outputs
    ).solution.apply(VECTORS)
    assert ridge.shape == found.shape
    assert found.shape[1] == (num_outputs if head == "multiclass" else 1)


def test_each_label_has_weights_of_its_own() -> None:
    labels_NL = np.stack([SCORES[:, 0] > 0, np.ones(90) > 0, np.zeros(90) > 0], axis=1)
    weights_NL = np.where(labels_NL, 3.0, 1.0)
    train = TrainingRows(VECTORS, labels_NL, weights_NL)
    found = choose_by_logistic(
        "multilabel", train, VECTORS, score=lambda logits: 0.0, num_outputs=3
    ).solution.apply(VECTORS)
    assert (found[:, 1] > 10).all()
    assert (found[:, 2] < -10).all()
    plain = choose_by_logistic(
        "multilabel", train._replace(weights_NC=np.ones_like(weights_NL)), VECTORS,
        score=lambda logits: 0.0, num_outputs=3,
    ).solution.apply(VECTORS)  # fmt: skip
    assert found[:, 0].mean() > plain[:, 0].mean()
