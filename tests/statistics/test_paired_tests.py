"""Tests of two variants on the same rows, by libraries and by published cases."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from llmft.metrics.definitions import compute_metric
from llmft.statistics.paired_tests import (
    adjust_by_holm,
    compute_mcnemar,
    estimate_power,
    find_sample_size,
    permute_moments,
    permute_outputs,
)
from llmft.statistics.resampling import (
    find_clusters,
)
from tests.statistics.test_resampling import make_estimate, make_mean

RNG = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def _draw_again() -> None:
    """No test may depend on what others drew before it."""
    global RNG
    RNG = np.random.default_rng(2)


def test_holm_is_statsmodels() -> None:
    known = adjust_by_holm([0.01, 0.04, 0.03, 0.005])
    assert known == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for size in (1, 2, 5, 9):
        p_values = RNG.random(size) ** 3
        expected = multipletests(p_values, method="holm")[1]
        assert adjust_by_holm(p_values) == pytest.approx(expected)
    assert adjust_by_holm([]) == []


# Permutation and McNemar.
def test_fishers_test_of_darwins_maize() -> None:
    """Fisher 1935, The Design of Experiments, section 21: 1,726 of 32,768 swaps, 5.267 %."""
    crossed_less_selfed = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    (found,) = permute_moments(
        [make_mean(np.zeros(15))], [make_mean(crossed_less_selfed)], clusters=find_clusters(15)
    )
    assert found == 1_726 / 32_768


def test_swaps_of_many_clusters_agree_with_scipy() -> None:
    sums = RNG.normal(0.3, 1, size=30)
    groups = np.repeat(np.arange(30), 2)
    (found,) = permute_moments(
        [make_mean(np.zeros(60))],
        [make_mean(np.repeat(sums, 2))],
        clusters=find_clusters(60, groups),
    )
    known = stats.permutation_test((sums,), np.mean, permutation_type="samples", rng=1)
    assert found == pytest.approx(known.pvalue, abs=0.015)


def test_a_metric_by_order_is_swapped_too() -> None:
    labels = np.arange(40) % 2 == 0
    outputs = [RNG.random((40, 1)) + strength * labels[:, None] for strength in (0.0, 0.2, 2.0)]

    def compute(probs: np.ndarray) -> float | None:
        return compute_metric("roc_auc", labels[:, None], probs)

    clusters = find_clusters(40)
    assert permute_outputs(compute, outputs[:1], outputs[2:], clusters=clusters) == 0.001
    assert permute_outputs(compute, outputs[:1], outputs[:1], clusters=clusters) == 1
    assert 0.01 < permute_outputs(compute, outputs[:1], outputs[1:2] * 2, clusters=clusters) < 1


@pytest.mark.parametrize("num_clusters", [10, 11, 12, 15, 16, 40])
def test_a_ranking_is_tested_with_every_cluster_swapped(num_clusters: int) -> None:
    labels = np.arange(2 * num_clusters) % 2 == 0
    groups = np.arange(2 * num_clusters) // 2
    worse, better = RNG.random((2 * num_clusters, 1)), RNG.random((2 * num_clusters, 1))
    seen: list[np.ndarray] = []

    def compute(outputs: np.ndarray) -> float | None:
        seen.append((outputs == better)[:, 0])
        return compute_metric("roc_auc", labels[:, None], outputs)

    permute_outputs(compute, [worse], [better], clusters=find_clusters(len(labels), groups))
    fractions = np.mean(seen, axis=0)
    assert np.all(np.abs(fractions - 0.5) < 0.1), "each row in half of the swaps"


def test_mcnemar_is_the_exact_binomial() -> None:
    labels = np.zeros(40, dtype=int)
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    ours = np.array([right] * 20 + [right] * 9 + [wrong] * 1 + [wrong] * 10)
    theirs = np.array([right] * 20 + [wrong] * 9 + [right] * 1 + [wrong] * 10)
    found = compute_mcnemar(labels, reference=[theirs], challenger=[ours])
    counts = (found.both_right, found.only_challenger, found.only_reference, found.both_wrong)
    assert counts == (20, 9, 1, 10)
    assert found.p_value == pytest.approx(22 / 1024)  # 2 (1 + 10) / 2^10
    right_often = np.tile([0.9, 0.1], (40, 1))  # averaged with another run it would be right
    same = compute_mcnemar(labels, reference=[ours], challenger=[ours, right_often])
    assert (same.only_challenger, same.p_value) == (0, 1)
    apart = np.flatnonzero(ours[:, 0] != theirs[:, 0])
    groups = np.arange(40)
    groups[:20] = 0  # both are right there
    clustered = compute_mcnemar(labels, reference=[theirs], challenger=[ours], groups=groups)
    assert clustered.p_value == found.p_value
    groups[apart[1]] = groups[apart[0]]
    clustered = compute_mcnemar(labels, reference=[theirs], challenger=[ours], groups=groups)
    assert clustered.p_value is None


@pytest.mark.parametrize(
    ("only_ours", "only_theirs"), [(0, 0), (0, 1), (0, 6), (1, 9), (7, 7), (30, 12), (500, 430)]
)
def test_mcnemar_is_statsmodels(only_ours: int, only_theirs: int) -> None:
    num_rows = only_ours + only_theirs + 5
    ours_right = np.arange(num_rows) < only_ours
    theirs_right = np.arange(num_rows) >= only_ours + 5
    found = compute_mcnemar(
        np.ones(num_rows, dtype=int),
        reference=[np.stack([~theirs_right, theirs_right], axis=1).astype(float)],
        challenger=[np.stack([~ours_right, ours_right], axis=1).astype(float)],
    )
    assert (found.only_challenger, found.only_reference) == (only_ours, only_theirs)
    assert (found.both_right, found.both_wrong) == (0, 5)
    known = mcnemar([[0, only_ours], [only_theirs, 5]], exact=True).pvalue
    assert found.p_value == pytest.approx(known, rel=1e-12)


# Power, and what is needed.
def test_power_is_the_normal_one_for_many_degrees_of_freedom() -> None:
    found = estimate_power(make_estimate(0.0, rows=0.01), effect=0.2, tail=0.05)
    assert found.power == pytest.approx(stats.norm.cdf(2 - 1.6449), abs=1e-3)
    assert found.interval == pytest.approx((found.power, found.power), abs=0.01)
    assert estimate_power(make_estimate(0.0, rows=0.01), effect=0.0, tail=0.05) is None


def test_power_is_that_of_a_t_test_with_its_uncertainty() -> None:
    estimate = make_estimate(0.0, rows=0.01)._replace(degrees=19.0, row_degrees=19.0)
    found = estimate_power(estimate, effect=0.2, tail=0.05)
    known = TTestPower().power(2 / np.sqrt(20), nobs=20, alpha=0.05, alternative="larger")
    assert found.power == pytest.approx(known, abs=1e-6)
    assert found.interval.low < found.power - 0.1 < found.power + 0.1 < found.interval.high


def test_what_dominates_the_error_is_asked_for_with_80_percent_power() -> None:
    ask = {"margin": 0.0, "tail": 0.05, "num_rows": 100, "num_seeds": 3}

    def find(value: float, **variances: float) -> tuple[int | None, int | None]:
        found = find_sample_size(make_estimate(value, **variances), **ask)
        return found.rows, found.seeds

    # A gain of one standard error needs (1.645 + 0.842)^2 = 6.18 times the rows.
    assert find(0.1, rows=0.01) == find(-0.1, rows=0.01) == (619, None)
    assert find(0.1, rows=1e-9, seeds=0.01) == (None, 19)
    assert find(0.1, rows=0.006, seeds=0.004) == (619, 19)
    assert find(0.001, rows=0.01) == (None, None)
    assert find(0.0, rows=0.01) == (None, None)


def test_few_degrees_of_freedom_need_more_rows_and_get_more_with_them() -> None:
    few = make_estimate(0.1, rows=0.01)._replace(degrees=9.0, row_degrees=9.0)
    found = find_sample_size(few, margin=0.0, tail=0.05, num_rows=10, num_seeds=1)
    known = TTestPower().solve_power(1 / np.sqrt(10), power=0.8, alpha=0.05, alternative="larger")
    assert found.rows == pytest.approx(known, abs=1)
