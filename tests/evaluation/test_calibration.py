"""Compressed scores (D12) and probabilities that promise too much, against closed forms."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from llmft.evaluation.calibration import measure_reliability, measure_score_calibration

RNG = np.random.default_rng(3)


def test_d12_a_compressed_range_shows_in_slope_bias_and_strata() -> None:
    true = np.repeat(np.arange(11.0), 3)[:, None]
    predicted = 0.5 * true + 2
    found = measure_score_calibration(true, predicted, names=["risk"])["risk"]
    assert found.slope == pytest.approx(0.5)
    assert found.intercept == pytest.approx(2)
    assert found.bias == pytest.approx(2 - 0.5 * 5)
    strata = found.strata
    assert [(s.low, s.high, s.num_rows) for s in strata] == [
        (0, 2, 6), (2, 4, 6), (4, 6, 6), (6, 8, 6), (8, 10, 9),
    ]  # fmt: skip
    for stratum in strata:
        assert stratum.mean_predicted == pytest.approx(0.5 * stratum.mean_true + 2)
    assert strata[0].mean_true == pytest.approx(0.5)


def test_the_line_is_the_least_squares_one_of_predicted_on_true() -> None:
    true, predicted = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    found = measure_score_calibration(true, predicted, names=["a", "b"])
    for i, name in enumerate("ab"):
        slope, intercept = np.polyfit(true[:, i], predicted[:, i], 1)
        assert found[name].slope == pytest.approx(slope)
        assert found[name].intercept == pytest.approx(intercept)


def test_equal_true_scores_have_no_slope_and_one_stratum() -> None:
    found = measure_score_calibration(np.full((4, 1), 3.0), np.arange(4.0)[:, None], names=["a"])[
        "a"
    ]
    assert (found.slope, found.intercept, found.bias) == (None, None, -1.5)
    assert [s.num_rows for s in found.strata] == [4]


def test_of_two_classes_the_last_ones_probability_is_judged() -> None:
    last = np.array([0.05] * 10 + [0.85] * 10)
    labels = np.array([0] * 9 + [1] + [1] * 6 + [0] * 4)
    found = measure_reliability(labels, np.stack([1 - last, last], axis=1))
    assert found.ece == pytest.approx((0.05 + 0.25) / 2)
    low, high = found.bins  # the other eight are empty
    assert dict(low) == pytest.approx(
        {"low": 0, "high": 0.1, "num_rows": 10, "mean_predicted": 0.05, "fraction_true": 0.1}
    )
    assert dict(high) == pytest.approx(
        {"low": 0.8, "high": 0.9, "num_rows": 10, "mean_predicted": 0.85, "fraction_true": 0.6}
    )


def test_of_several_classes_the_confidence_is_judged() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.75, 0.05]])
    found = measure_reliability(np.array([0, 0, 1]), probs)
    assert [(b.num_rows, b.fraction_true) for b in found.bins] == [(2, 1), (1, 0)]
    assert found.ece == pytest.approx((2 * 0.275 + 0.8) / 3)


def test_all_labels_are_judged_together() -> None:
    labels = np.array([[True, False], [True, True]])
    found = measure_reliability(labels, np.array([[1.0, 0.0], [0.95, 0.32]]))
    assert [(b.low, b.num_rows) for b in found.bins] == [(0, 1), (0.3, 1), (0.9, 2)]
    assert found.ece == pytest.approx((0 + 0.68 + 0.05) / 4)


def test_probabilities_that_mean_what_they_say_have_hardly_an_error() -> None:
    last = RNG.random(20_000).astype(np.float32)
    labels = (RNG.random(20_000) < last).astype(int)
    found = measure_reliability(labels, np.stack([1 - last, last], axis=1))
    assert found.ece < 0.02
    assert sum(b.num_rows for b in found.bins) == 20_000


def make_last(last: np.ndarray) -> np.ndarray:
    return np.stack([1 - last, last], axis=1)


def test_the_brier_score_is_that_of_scikit_learn() -> None:
    last, true = RNG.random(80).astype(np.float32), RNG.integers(0, 2, size=80)
    found = measure_reliability(true, make_last(last))
    assert found.brier == pytest.approx(brier_score_loss(true, last), rel=1e-6)

    probs, classes = RNG.dirichlet(np.ones(4), size=80), RNG.integers(0, 4, size=80)
    of_each = [brier_score_loss(classes == c, probs[:, c]) for c in range(4)]
    found = measure_reliability(classes, probs)
    assert found.brier == pytest.approx(sum(of_each))

    marks, outputs = RNG.random((80, 3)) < 0.4, RNG.random((80, 3))
    of_each = [brier_score_loss(marks[:, c], outputs[:, c]) for c in range(3)]
    found = measure_reliability(marks, outputs)
    assert found.brier == pytest.approx(np.mean(of_each))


def test_the_brier_score_of_eggs_and_spam() -> None:
    """The example in scikit-learn's documentation, where it is cut to 0.146."""
    probs = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])
    found = measure_reliability(np.array([0, 1, 2]), probs)
    assert found.brier == pytest.approx((0.06 + 0.14 + 0.24) / 3)
    low, high = found.brier_interval
    assert low < found.brier < high


def test_the_brier_interval_is_the_normal_one_of_a_mean() -> None:
    last, true = RNG.random(500), RNG.integers(0, 2, size=500)
    squares = (last - true) ** 2
    half = 1.96 * squares.std(ddof=1) / np.sqrt(500)
    found = measure_reliability(true, make_last(last))
    expected = (squares.mean() - half, squares.mean() + half)
    assert found.brier_interval == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("num_rows", [55, 200])
def test_true_probabilities_stay_below_what_chance_gives(num_rows: int) -> None:
    """Simulated labels exceed the bound in 5 % of the draws: 5 of 100 (sd 2.2)."""
    last = RNG.uniform(0.05, 0.95, size=num_rows)
    above = 0
    for _ in range(100):
        true = (RNG.random(num_rows) < last).astype(int)
        found = measure_reliability(true, make_last(last))
        above += found.ece > found.ece_by_chance
    assert 1 <= above <= 12


def test_what_chance_gives_one_bin_is_the_quantile_of_a_normal() -> None:
    true = np.array([0, 1] * 50)
    found = measure_reliability(true, make_last(np.full(100, 0.5)))
    assert found.ece == 0
    assert found.ece_by_chance == pytest.approx(1.96 * 0.5 / 10, rel=0.03)


def test_d15_rows_that_repeat_each_other_stray_as_one() -> None:
    last, true = RNG.uniform(size=60), RNG.integers(0, 2, size=60)
    once = measure_reliability(true, make_last(last))
    thrice = measure_reliability(
        np.repeat(true, 3), make_last(np.repeat(last, 3)), groups=np.repeat(np.arange(60), 3)
    )
    assert (thrice.ece, thrice.ece_by_chance) == pytest.approx((once.ece, once.ece_by_chance))


def test_promises_that_are_too_high_stand_out_from_chance() -> None:
    true = (RNG.random(500) < 0.6).astype(int)
    found = measure_reliability(true, make_last(np.full(500, 0.95)))
    assert found.ece == pytest.approx(0.95 - true.mean())
    assert found.ece > 10 * found.ece_by_chance


def test_certain_and_right_probabilities_have_no_error_at_all() -> None:
    found = measure_reliability(np.array([0, 1, 1]), np.eye(2)[[0, 1, 1]])
    assert (found.ece, found.ece_by_chance, found.brier) == (0, 0, 0)


def test_rows_of_one_group_count_as_one_in_the_brier_interval() -> None:
    last = np.repeat(RNG.random(40), 4)
    true = np.repeat(RNG.integers(0, 2, size=40), 4)
    widths = []
    for groups in (None, np.arange(160) // 4):
        found = measure_reliability(true, make_last(last), groups=groups)
        widths.append(found.brier_interval.high - found.brier_interval.low)
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.2)
