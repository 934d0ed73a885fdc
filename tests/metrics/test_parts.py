"""The fast rankings equal scikit-learn's and scipy's, ties included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics as sk

from llmft.metrics.definitions import (
    compute_average_precision,
    compute_roc_auc,
    compute_spearman,
)

AREAS = {
    compute_roc_auc: sk.roc_auc_score,
    compute_average_precision: sk.average_precision_score,
}


@st.composite
def draw_columns(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return what is true [N, C] and outputs [N, C] of few different values, so that many tie."""
    num_rows, num_columns = draw(st.integers(2, 25)), draw(st.integers(1, 4))
    size = num_rows * num_columns
    true = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    levels = draw(st.integers(1, 12))
    outputs = draw(st.lists(st.integers(0, levels), min_size=size, max_size=size))
    shape = (num_rows, num_columns)
    return np.reshape(true, shape), np.reshape(outputs, shape).astype(np.float32) / 7


@pytest.mark.parametrize("compute", AREAS, ids=lambda f: f.__name__)
@given(columns=draw_columns())
def test_areas_equal_scikit_learns(compute, columns: tuple[np.ndarray, np.ndarray]) -> None:
    true, outputs = columns
    for i, found in enumerate(compute(true, outputs)):
        if 0 < true[:, i].sum() < len(true):
            assert found == pytest.approx(AREAS[compute](true[:, i], outputs[:, i]))
        else:
            assert np.isnan(found)


@given(columns=draw_columns())
def test_rank_correlations_equal_scipys(columns: tuple[np.ndarray, np.ndarray]) -> None:
    labels, outputs = columns[0].astype(float), columns[1]
    for i, found in enumerate(compute_spearman(labels, outputs)):
        if np.ptp(labels[:, i]) and np.ptp(outputs[:, i]):
            assert found == pytest.approx(spearmanr(labels[:, i], outputs[:, i]).statistic)
        else:
            assert np.isnan(found)


def test_areas_by_hand() -> None:
    true = np.array([[True], [False], [True], [False]])
    outputs = np.array([[0.9], [0.8], [0.7], [0.1]])
    assert compute_roc_auc(true, outputs) == pytest.approx([3 / 4])
    assert compute_average_precision(true, outputs) == pytest.approx([(1 + 2 / 3) / 2])
    tied = np.full((4, 1), 0.5)
    assert compute_roc_auc(true, tied) == pytest.approx([1 / 2])
    assert compute_average_precision(true, tied) == pytest.approx([1 / 2])  # the share of positives
