"""Compressed scores (D12) and probabilities that promise too much, against closed forms."""

import numpy as np
import pytest

from llmft.evaluation.calibration import describe_calibration

RNG = np.random.default_rng(3)


def test_d12_a_compressed_range_shows_in_slope_bias_and_strata() -> None:
    true = np.repeat(np.arange(11.0), 3)[:, None]
    predicted = 0.5 * true + 2
    found = describe_calibration(true, predicted, names=["risk"])["risk"]
    assert found["slope"] == pytest.approx(0.5)
    assert found["intercept"] == pytest.approx(2)
    assert found["bias"] == pytest.approx(2 - 0.5 * 5)
    strata = found["strata"]
    assert [(s["low"], s["high"], s["num_rows"]) for s in strata] == [
        (0, 2, 6), (2, 4, 6), (4, 6, 6), (6, 8, 6), (8, 10, 9),
    ]  # fmt: skip
    for stratum in strata:
        assert stratum["mean_predicted"] == pytest.approx(0.5 * stratum["mean_true"] + 2)
    assert strata[0]["mean_true"] == pytest.approx(0.5)


def test_the_line_is_the_least_squares_one_of_predicted_on_true() -> None:
    true, predicted = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    found = describe_calibration(true, predicted, names=["a", "b"])
    for i, name in enumerate("ab"):
        slope, intercept = np.polyfit(true[:, i], predicted[:, i], 1)
        assert found[name]["slope"] == pytest.approx(slope)
        assert found[name]["intercept"] == pytest.approx(intercept)


def test_equal_true_scores_have_no_slope_and_one_stratum() -> None:
    found = describe_calibration(np.full((4, 1), 3.0), np.arange(4.0)[:, None], names=["a"])["a"]
    assert (found["slope"], found["intercept"], found["bias"]) == (None, None, -1.5)
    assert [s["num_rows"] for s in found["strata"]] == [4]


def test_of_two_classes_the_last_ones_probability_is_judged() -> None:
    last = np.array([0.05] * 10 + [0.85] * 10)
    labels = np.array([0] * 9 + [1] + [1] * 6 + [0] * 4)
    found = describe_calibration(labels, np.stack([1 - last, last], axis=1), names=["no", "yes"])
    assert found["ece"] == pytest.approx((0.05 + 0.25) / 2)
    low, high = found["bins"]  # the other eight are empty
    assert low == pytest.approx(
        {"low": 0, "high": 0.1, "num_rows": 10, "mean_predicted": 0.05, "share_true": 0.1}
    )
    assert high == pytest.approx(
        {"low": 0.8, "high": 0.9, "num_rows": 10, "mean_predicted": 0.85, "share_true": 0.6}
    )


def test_of_several_classes_the_confidence_is_judged() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.75, 0.05]])
    found = describe_calibration(np.array([0, 0, 1]), probs, names=list("abc"))
    assert [(b["num_rows"], b["share_true"]) for b in found["bins"]] == [(2, 1), (1, 0)]
    assert found["ece"] == pytest.approx((2 * 0.275 + 0.8) / 3)


def test_all_labels_are_judged_together() -> None:
    labels = np.array([[True, False], [True, True]])
    found = describe_calibration(labels, np.array([[1.0, 0.0], [0.95, 0.32]]), names=["a", "b"])
    assert [(b["low"], b["num_rows"]) for b in found["bins"]] == [(0, 1), (0.3, 1), (0.9, 2)]
    assert found["ece"] == pytest.approx((0 + 0.68 + 0.05) / 4)


def test_probabilities_that_mean_what_they_say_have_hardly_an_error() -> None:
    last = RNG.random(20_000).astype(np.float32)
    labels = (RNG.random(20_000) < last).astype(int)
    found = describe_calibration(labels, np.stack([1 - last, last], axis=1), names=["no", "yes"])
    assert found["ece"] < 0.02
    assert sum(b["num_rows"] for b in found["bins"]) == 20_000
