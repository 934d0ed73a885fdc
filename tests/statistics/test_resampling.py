"""Resampled metrics and their intervals, by closed forms and by scipy."""

import numpy as np
import pytest
from scipy import stats

from llmft.evaluation.verdict import (
    compute_margin_p_value,
)
from llmft.metrics.definitions import compute_metric
from llmft.metrics.moments import Moments, find_moments
from llmft.statistics.estimates import Estimate, bound_by_betting, estimate_contrasts, find_interval
from llmft.statistics.resampling import (
    Clusters,
    find_clusters,
    jackknife_moments,
    jackknife_rows,
)
from tests.statistics.test_intervals import EVERY, make_variants

RNG = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def _draw_again() -> None:
    """No test may depend on what others drew before it."""
    global RNG
    RNG = np.random.default_rng(2)


def make_mean(values) -> Moments:
    return Moments(np.asarray(values, dtype=float)[:, None], lambda means: means)


def estimate_mean(runs, *, groups=None) -> Estimate:
    clusters = find_clusters(len(runs[0]), groups)
    variant = jackknife_moments([make_mean(run) for run in runs], clusters=clusters)
    (found,) = estimate_contrasts([variant], [1], seed=0)
    return found


def make_estimate(value: float, *, rows: float, seeds: float = 0.0) -> Estimate:
    """Return a normal estimate by its variances, known well."""
    pivots = stats.norm.ppf(np.arange(0.5, 4000) / 4000)
    draws = value + np.sqrt(rows + seeds) * pivots
    return Estimate(value, draws, np.zeros(2), pivots, rows, seeds, 1e6, 1e6)


# The bootstrap.
@pytest.mark.parametrize("num_rows", [12, 40, 200])
def test_the_interval_is_the_wider_of_students_and_the_bootstrap_t(num_rows: int) -> None:
    values = RNG.exponential(size=num_rows)
    low, high = find_interval(estimate_mean([values]))
    drawn = RNG.choice(values, size=(40_000, num_rows))
    pivots = (drawn.mean(axis=1) - values.mean()) / stats.sem(drawn, axis=1)
    half = stats.sem(values) * stats.t.ppf(0.975, num_rows - 1)
    of_pivots = stats.sem(values) * np.quantile(pivots, [0.975, 0.025])
    assert values.mean() - low == pytest.approx(max(half, of_pivots[0]), rel=0.06)
    assert high - values.mean() == pytest.approx(max(half, -of_pivots[1]), rel=0.1)


def test_a_draw_in_which_nothing_varies_is_not_sure_of_itself() -> None:
    """One row of 40 differs: 36 % of the draws are without it."""
    low, high = find_interval(estimate_mean([np.eye(40)[0]]))
    assert low < 0
    assert 3 / 40 <= high < 1 / 4
    same = estimate_mean([np.full(40, 0.3)])
    assert find_interval(same) == (same.value, same.value)


def test_clusters_of_equal_size_count_as_their_means() -> None:
    means = RNG.normal(size=40)
    found = estimate_mean([np.repeat(means, 5)], groups=np.repeat(np.arange(40), 5))
    assert found.error == pytest.approx(means.std(ddof=1) / np.sqrt(40))
    assert found.draws_R.std() == pytest.approx(means.std() / np.sqrt(40), rel=0.03)
    shuffled = RNG.permutation(200)
    same = estimate_mean(
        [np.repeat(means, 5)[shuffled]], groups=np.repeat(np.arange(40) * 7, 5)[shuffled]
    )
    assert find_interval(same) == pytest.approx(find_interval(found))


def test_clusters_of_unequal_size_are_a_ratio() -> None:
    sizes = RNG.integers(1, 9, size=60)
    groups = np.repeat(np.arange(60), sizes)
    values = RNG.normal(size=60)[groups] + RNG.normal(size=len(groups))
    found = estimate_mean([values], groups=groups)
    assert found.value == pytest.approx(values.mean())
    totals = np.bincount(groups, values - values.mean())  # Cochran 1977, eq. 2.39, of a ratio
    expected = np.sqrt(60 / 59 * (totals**2).sum()) / len(groups)
    assert found.error == pytest.approx(expected, rel=0.05)


def test_many_rows_are_put_together_without_another_error() -> None:
    values = RNG.exponential(size=9_000)
    found = estimate_mean([values])
    assert 1_900 < found.row_degrees < 2_000  # blocks of 4 or 5 rows
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(9_000), rel=0.05)


@pytest.mark.parametrize("seed_deviation", [0.0, 0.5, 3.0])
def test_noise_of_single_rows_is_not_counted_as_that_of_seeds(seed_deviation: float) -> None:
    """By the mean squares of rows crossed with seeds."""
    num_seeds, num_rows = 4, 30
    values_SN = RNG.normal(size=num_rows) + RNG.normal(size=(num_seeds, num_rows))
    values_SN += RNG.normal(0, seed_deviation, size=(num_seeds, 1))
    found = estimate_mean(list(values_SN))
    by_row, by_seed, mean = values_SN.mean(axis=0), values_SN.mean(axis=1), values_SN.mean()
    left_SN = values_SN - by_row - by_seed[:, None] + mean
    degrees = (num_seeds - 1) * (num_rows - 1)
    of_cells = (left_SN**2).sum() / degrees / values_SN.size
    of_means = by_seed.var(ddof=1) / num_seeds
    of_rows = by_row.var(ddof=1) / num_rows
    assert found.row_variance == pytest.approx(of_rows)
    assert found.seed_variance == pytest.approx(max(0, of_means - of_cells))
    below = of_rows**2 / (num_rows - 1) + of_means**2 / (num_seeds - 1) + of_cells**2 / degrees
    assert found.degrees == pytest.approx(found.error**4 / below)
    assert found.draws_R.std() == pytest.approx(found.error, rel=0.05)


def test_d21_clusters_that_dominate_count_for_less() -> None:
    def count(*sizes: int) -> float:
        groups = np.repeat(np.arange(len(sizes)), sizes)
        return find_clusters(sum(sizes), groups).count_effective()

    assert count(*[1] * 40) == count(*[5] * 40) == 40
    assert count(80, 80, 80, *[2] * 30) == pytest.approx(3, abs=0.1), "three hold 80 % of the rows"
    # Carter, Schnepel and Steigerwald: G / (1 + CV^2) of the squared sizes.
    squares = np.array([9.0, 4, 1, 1, 25])
    known = 5 / (1 + squares.var() / squares.mean() ** 2)
    assert count(3, 2, 1, 1, 5) == pytest.approx(known)
    of_rare = find_clusters(100).count_effective(np.r_[np.full(5, 19.0), np.ones(95)])
    assert of_rare == pytest.approx(5.5, abs=0.1), "five rows that weigh as much as all others"


def test_d21_a_few_large_clusters_have_few_degrees_of_freedom() -> None:
    sizes = [80, 80, 80, *[2] * 30]
    groups = np.repeat(np.arange(33), sizes)
    found = estimate_mean([RNG.normal(size=33)[groups]], groups=groups)
    assert found.degrees == pytest.approx(2, abs=0.1)
    equal = estimate_mean([RNG.normal(size=33)[np.arange(330) % 33]], groups=np.arange(330) % 33)
    assert equal.degrees == pytest.approx(32)


@pytest.mark.parametrize("num_apart", [0, 1])
def test_variants_that_are_alike_seed_by_seed_have_finite_bounds(num_apart: int) -> None:
    runs = [RNG.normal(size=40) + shift for shift in (0.0, 1.0, 3.0)]
    others = [run.copy() for run in runs]
    others[0][:num_apart] += 0.5
    clusters = find_clusters(40)
    variants = [
        jackknife_moments([make_mean(run) for run in found], clusters=clusters)
        for found in (runs, others)
    ]
    (found,) = estimate_contrasts(variants, [1, -1], seed=0)
    assert found.degrees >= 1
    assert np.isfinite(find_interval(found)).all()


def test_a_run_without_the_metric_leaves_no_estimate() -> None:
    runs = [RNG.normal(size=40), np.full(40, np.nan)]
    assert estimate_mean(runs) is None


def test_seeds_alone_give_welchs_interval() -> None:
    ours, theirs = np.array([1.0, 1.4, 1.1, 1.9]), np.array([2.0, 2.2, 3.1])
    clusters = find_clusters(50)
    variants = [
        jackknife_moments([make_mean(np.full(50, s)) for s in variant], clusters=clusters)
        for variant in (theirs, ours)
    ]
    (found,) = estimate_contrasts(variants, [1, -1], seed=0)
    known = stats.ttest_ind(theirs, ours, equal_var=False)
    assert found.value / found.error == pytest.approx(known.statistic)
    assert found.degrees == pytest.approx(known.df)
    assert find_interval(found) == pytest.approx(tuple(known.confidence_interval()), abs=0.15)
    assert compute_margin_p_value(found, 0.0) == pytest.approx(1.1 * known.pvalue / 2, rel=0.15)


def test_a_metric_by_order_has_the_same_error_by_draws_and_by_blocks() -> None:
    values = RNG.normal(size=4_000)

    def average(rows: np.ndarray) -> np.ndarray:
        return values[rows].mean(axis=1)[:, None, None]

    few = Clusters(np.arange(1_500), np.ones(1_500))
    many = find_clusters(4_000)
    for clusters, num_rows in ((few, 1_500), (many, 4_000)):
        (found,) = estimate_contrasts(
            [jackknife_rows(average, clusters=clusters, seed=0)], [1], seed=0
        )
        assert found.error == pytest.approx(1 / np.sqrt(num_rows), rel=0.25)
        assert found.draws_R.std() == pytest.approx(found.error, rel=0.05)


@pytest.mark.parametrize(("metric", "label_type"), EVERY)
def test_moments_give_the_metric_itself(metric: str, label_type: str) -> None:
    labels, good, bad, config = make_variants(label_type)
    for outputs in (good, bad):
        for rows in (np.arange(120), np.arange(0, 120, 7)):
            moments = find_moments(metric, labels, outputs, config=config)
            if moments is None:
                assert metric in ("skill", "spearman", "roc_auc", "average_precision")
                return
            known = compute_metric(metric, labels[rows], outputs[rows], config=config)
            found = moments.combine(moments.values_NM[rows].mean(axis=0))
            assert found == pytest.approx([known])


@pytest.mark.parametrize("order", ["as drawn", "sorted"])
def test_the_betting_bound_holds_whatever_the_errors(order: str) -> None:
    """Errors that are seldom large, in any order of the rows: the true mean is 0."""
    above = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = np.where(rng.random(60) < 0.02, -4.9, 0.1)
        estimate = estimate_mean([np.sort(values)[::-1] if order == "sorted" else values])
        above += bound_by_betting(estimate, largest=5.0, tail=0.05) > 0
    assert above <= 10 + 6
    sure = estimate_mean([np.full(200, 0.4) + 0.01 * RNG.normal(size=200)])
    assert 0.3 < bound_by_betting(sure, largest=1.0, tail=0.05) < 0.4
    assert bound_by_betting(sure, largest=10.0, tail=0.05) < 0.3
