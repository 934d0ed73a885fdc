"""What costs nothing is fitted on train only, and copes with what train lacks (D9)."""

import warnings

import numpy as np

from llmft.evaluation.baselines import predict_constant, predict_tfidf


def test_d9_baselines_are_fitted_on_train_only() -> None:
    train = np.array([[1.0, 9.0], [2.0, 9.0], [9.0, 9.0]])
    assert predict_constant(train, num_rows=2, num_outputs=2).tolist() == [[2, 9], [2, 9]]
    classes = np.array([0, 2, 2, 2])
    assert predict_constant(classes, num_rows=1, num_outputs=3).tolist() == [[0.25, 0, 0.75]]


def test_d9_tfidf_learns_words() -> None:
    texts = ["bad crisis loss", "calm profit growth"] * 10
    scores = np.array([[9.0], [1.0]] * 10)
    found = predict_tfidf(texts, scores, texts=["crisis and loss", "growth"], num_outputs=1)
    assert found[0, 0] > 6 > 4 > found[1, 0]
    classes = np.array([2, 0] * 10)
    probs = predict_tfidf(texts, classes, texts=["crisis and loss"], num_outputs=3)
    assert probs.argmax() == 2
    assert probs[0, 1] == 0.0  # a class that train never shows


def test_tfidf_copes_with_texts_that_share_no_word() -> None:
    found = predict_tfidf(["a", "b"], np.array([0, 0]), texts=["c"], num_outputs=2)
    assert found.tolist() == [[1.0, 0.0]]


LABELS = np.array([[True, False, True, False], [False, True, True, False]] * 10)
"""Of bad and of good texts; the third applies to every row and the fourth to none."""


def test_d9_labels_have_their_frequencies_for_a_baseline() -> None:
    found = predict_constant(LABELS, num_rows=2, num_outputs=4)
    assert found.tolist() == [[0.5, 0.5, 1, 0]] * 2


def test_d9_tfidf_learns_every_label_for_itself() -> None:
    texts = ["bad crisis loss", "calm profit growth"] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probs = predict_tfidf(texts, LABELS, texts=["crisis loss", "growth"], num_outputs=4)
    assert ((probs >= 0.5) == [[True, False, True, False], [False, True, True, False]]).all()
    assert probs[:, 2:].tolist() == [[1, 0], [1, 0]]  # always and never
    both = predict_tfidf(["a b", "c d"] * 9, np.ones((18, 2), bool), texts=["a"], num_outputs=2)
    assert both.tolist() == [[1, 1]]
