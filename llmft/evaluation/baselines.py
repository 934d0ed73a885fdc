"""Baselines: the best constant, and a linear model on TF-IDF features (D9)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from llmft.metrics.definitions import find_label_type

Outputs = NDArray[np.float64]


def predict_constant(train_labels: NDArray[Any], *, num_rows: int, num_outputs: int) -> Outputs:
    """Return each dimension's training median, or the classes' or labels' frequencies, [N, C]."""
    match find_label_type(train_labels):
        case "scores":
            constant = np.median(train_labels, axis=0)
        case "class":
            constant = np.bincount(train_labels, minlength=num_outputs) / len(train_labels)
        case "multilabel":
            constant = train_labels.mean(axis=0)
    return np.tile(constant, (num_rows, 1))


def predict_tfidf(
    train_texts: list[str], train_labels: NDArray[Any], *, texts: list[str], num_outputs: int
) -> Outputs:
    """Fit ridge or logistic regression on TF-IDF of words and bigrams; return outputs [N, C].

    Multilabel tasks get one logistic regression per label.
    """
    words = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=2,
        max_features=50_000,
        strip_accents="unicode",
    )
    try:
        train = words.fit_transform(train_texts)
    except ValueError:  # no word is in two texts
        train = words.set_params(min_df=1, analyzer="char").fit_transform(train_texts)
    features = words.transform(texts)
    match find_label_type(train_labels):
        case "scores":
            ridge = Ridge(alpha=1.0).fit(train, train_labels)
            return np.asarray(ridge.predict(features), dtype=np.float64).reshape(len(texts), -1)
        case "class":
            return _predict_classes(train, train_labels, features, num_outputs)
        case "multilabel":
            columns = [
                _predict_classes(train, column_N * 1, features, 2) for column_N in train_labels.T
            ]
            return np.stack([probs_N2[:, 1] for probs_N2 in columns], axis=1)


def _predict_classes(
    train: csr_matrix, labels_N: NDArray[np.int64], features: csr_matrix, num_classes: int
) -> Outputs:
    """Return probabilities [N, C]; 0 for classes without a training row."""
    present = np.unique(labels_N)
    outputs_NC = np.zeros((features.shape[0], num_classes))
    if len(present) == 1:
        outputs_NC[:, present] = 1.0
        return outputs_NC
    model = LogisticRegression(C=10.0, max_iter=1_000).fit(train, labels_N)
    outputs_NC[:, present] = model.predict_proba(features)
    return outputs_NC
