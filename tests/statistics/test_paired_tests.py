"""Tests of two variants on the same rows, by libraries and by published cases."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from llmft.statistics.paired_tests import (
    adjust_by_holm,
    compute_mcnemar,
    estimate_power,
    find_sample_size,
)
from tests.statistics.test_resampling import make_estimate

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
