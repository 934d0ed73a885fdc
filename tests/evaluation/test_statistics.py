"""Intervals against closed forms, and differences on paired rows."""

import numpy as np
import pytest

from llmft.evaluation.metrics import f1_from_confusion
from llmft.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_rows,
    compare_runs,
    compute_metric,
    estimate_interval,
    judge_gain,
)

RNG = np.random.default_rng(1)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = RNG.normal(3.0, 2.0, size=400)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    found = bootstrap_mean(values, seed=0)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_any_statistic_of_rows_gets_the_same_interval_as_a_mean() -> None:
    values = RNG.normal(size=300)
    mean = bootstrap_mean(values, seed=0)
    rows = bootstrap_rows(lambda index: float(values[index].mean()), 300, seed=0)
    assert rows == pytest.approx(mean, abs=0.02)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean(np.full(5, 2.0), seed=0) == Interval(2.0, 2.0)


def test_values_that_hardly_vary_still_have_an_interval() -> None:
    found = bootstrap_mean(np.array([1.0] * 54 + [1.0 + 1e-6]), seed=0)
    assert 1.0 <= found.low <= found.high <= 1.0 + 1e-6


def test_the_same_seed_gives_the_same_interval() -> None:
    labels, outputs = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2))
    for metric in ("mae", "rmse", "skill"):
        found = [estimate_interval(metric, labels, [outputs]) for _ in range(2)]
        assert found[0] == found[1]


def test_pairing_cancels_what_makes_a_row_hard() -> None:
    labels = np.zeros((100, 1))
    hard = RNG.normal(0, 5, size=(100, 1))
    found = compare_runs("mae", labels, reference=[np.abs(hard) + 0.5], challenger=[np.abs(hard)],
                         margin=0.2)  # fmt: skip
    assert found.estimate == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))
    assert found.finding == "better"


@pytest.mark.parametrize("metric", ["mae", "rmse", "skill"])
def test_a_gain_is_positive_when_the_challenger_is_better(metric: str) -> None:
    labels = RNG.normal(size=(80, 2))
    good, bad = labels + 0.1, labels + RNG.normal(size=(80, 2))
    assert compare_runs(metric, labels, reference=[bad], challenger=[good], margin=0).estimate > 0
    worse = compare_runs(metric, labels, reference=[good], challenger=[bad], margin=0)
    assert worse.estimate < 0
    assert worse.finding == "not better"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_a_gain_in_classes_is_positive_when_the_challenger_is_better(metric: str) -> None:
    labels = RNG.integers(0, 3, size=90)
    good, bad = np.eye(3)[labels], np.eye(3)[RNG.integers(0, 3, size=90)]
    found = compare_runs(metric, labels, reference=[bad], challenger=[good], margin=0.1)
    assert found.finding == "better"


def test_d14_few_rows_resolve_nothing() -> None:
    labels = np.zeros((19, 1))
    found = compare_runs("mae", labels, reference=[labels + 5], challenger=[labels], margin=0)
    assert (found.estimate, found.finding) == (5.0, "unresolved")


def test_several_runs_count_by_their_mean() -> None:
    labels = np.zeros((10, 1))
    one, two = np.full((10, 1), 1.0), np.full((10, 1), 3.0)
    found = compare_runs("mae", labels, reference=[two], challenger=[one, two], margin=0)
    assert found.estimate == pytest.approx(1.0)  # 3 against the mean of 1 and 3


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_the_interval_of_several_runs_is_around_their_mean(metric: str) -> None:
    labels = np.zeros((50, 1))
    runs = [RNG.normal(0, 1, size=(50, 1)), RNG.normal(0, 3, size=(50, 1))]
    mean = np.mean([compute_metric(metric, labels, outputs) for outputs in runs])
    found = estimate_interval(metric, labels, runs)
    assert found.low < mean < found.high
    alone = estimate_interval(metric, labels, runs[:1])
    assert alone.high < mean


def test_equal_arms_are_seldom_told_apart() -> None:
    wrong = 0
    for draw in range(200):
        rng = np.random.default_rng(draw)
        labels = rng.integers(0, 11, size=(40, 1)).astype(float)
        one, other = (labels + rng.normal(0, 2, size=(40, 1)) for _ in range(2))
        found = compare_runs("mae", labels, reference=[one], challenger=[other], margin=0)
        wrong += found.finding == "better"
    assert wrong <= 16  # about 4 % are expected of BCa at 40 rows; 16 is three deviations above


def test_the_margin_lies_below_within_or_above() -> None:
    assert judge_gain(Interval(0.3, 0.5), margin=0.2) == "better"
    assert judge_gain(Interval(0.1, 0.5), margin=0.2) == "unresolved"
    assert judge_gain(Interval(-0.1, 0.2), margin=0.2) == "not better"
    assert judge_gain(Interval(0.2, 0.4), margin=0.2) == "unresolved"


def test_metrics_by_name() -> None:
    labels = np.array([0, 1, 1])
    probs = np.eye(2)[[0, 1, 0]]
    assert compute_metric("accuracy", labels, probs) == pytest.approx(2 / 3)
    assert compute_metric("f1_macro", labels, probs) == pytest.approx(
        f1_from_confusion(np.array([[1, 0], [1, 1]]))
    )
    with pytest.raises(ValueError, match="unknown metric"):
        compute_metric("bleu", labels, probs)
