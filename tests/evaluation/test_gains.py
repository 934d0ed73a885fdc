"""Two variants on the same rows, by closed forms, by libraries and by published cases."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from llmft.evaluation.verdict import (
    Rules,
    adjust_by_holm,
    bound_gain,
    compare_parts,
    compare_with_reference,
    compute_margin_p_value,
)
from llmft.metrics.definitions import compute_metric
from llmft.metrics.moments import Moments, find_moments
from llmft.results.comparison import SampleSize
from llmft.statistics.intervals import Estimate, find_interval, weigh_variants
from llmft.statistics.paired_tests import (
    compute_mcnemar,
    estimate_power,
    find_sample_size,
    permute_moments,
    permute_outputs,
)
from llmft.statistics.resampling import (
    Clusters,
    find_clusters,
    resample_moments,
    resample_rows,
)
from tests.evaluation.shortcuts import compare_runs
from tests.statistics.test_intervals import EVERY, make_variants

RNG = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def _draw_again() -> None:
    """No test may depend on what others drew before it."""
    global RNG
    RNG = np.random.default_rng(2)


def make_mean(values) -> Moments:
    return Moments(np.asarray(values, dtype=float)[:, None], lambda means: means, is_mean=True)


def estimate_mean(runs, *, groups=None) -> Estimate:
    clusters = find_clusters(len(runs[0]), groups)
    variant = resample_moments([make_mean(run) for run in runs], clusters=clusters, seed=0)
    (found,) = weigh_variants([variant], [1], seed=0)
    return found


def make_estimate(value: float, *, rows: float, seeds: float = 0.0) -> Estimate:
    """Return a normal estimate by its variances, known well."""
    draws = value + np.sqrt(rows + seeds) * stats.norm.ppf(np.arange(0.5, 4000) / 4000)
    return Estimate(value, draws, 0.0, 0.0, rows, seeds, 1e6, 10**6)


# The bootstrap.


def test_without_expansion_the_interval_is_scipys_bca() -> None:
    values = RNG.exponential(size=60)
    found = estimate_mean([values])._replace(degrees=1e9, num_clusters=10**9)
    known = stats.bootstrap((values,), np.mean, n_resamples=40_000, rng=1).confidence_interval
    assert find_interval(found) == pytest.approx((known.low, known.high), abs=0.02)
    assert found.acceleration == pytest.approx(stats.skew(values) / 6 / np.sqrt(60), rel=0.02)


def test_few_rows_get_students_t() -> None:
    values = RNG.normal(size=12)
    low, high = find_interval(estimate_mean([values]))
    known = stats.ttest_1samp(values, 0).confidence_interval()
    assert high - low == pytest.approx(known.high - known.low, rel=0.25)
    plain = estimate_mean([values])._replace(degrees=1e9, num_clusters=10**9)
    assert high - low > 1.05 * (find_interval(plain).high - find_interval(plain).low)


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
    assert found.num_clusters == 2_000
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(9_000), rel=0.05)
    assert found.acceleration == 0


def test_seeds_alone_give_welchs_interval() -> None:
    ours, theirs = np.array([1.0, 1.4, 1.1, 1.9]), np.array([2.0, 2.2, 3.1])
    clusters = find_clusters(50)
    variants = [
        resample_moments([make_mean(np.full(50, s)) for s in variant], clusters=clusters, seed=0)
        for variant in (theirs, ours)
    ]
    (found,) = weigh_variants(variants, [1, -1], seed=0)
    known = stats.ttest_ind(theirs, ours, equal_var=False)
    assert found.value / found.error == pytest.approx(known.statistic)
    assert found.degrees == pytest.approx(known.df)
    assert find_interval(found) == pytest.approx(tuple(known.confidence_interval()), abs=0.15)
    assert compute_margin_p_value(found, 0.0) == pytest.approx(1.25 * known.pvalue / 2, rel=0.15)


def test_a_metric_by_order_has_the_same_error_by_draws_and_by_blocks() -> None:
    values = RNG.normal(size=4_000)

    def average(rows: np.ndarray) -> np.ndarray:
        return np.array([[values[rows].mean()]])

    few = Clusters(np.arange(1_500), np.ones(1_500))
    many = find_clusters(4_000)
    for clusters, num_rows in ((few, 1_500), (many, 4_000)):
        (found,) = weigh_variants([resample_rows(average, clusters=clusters, seed=0)], [1], seed=0)
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


# Bounds and margins.


def test_p_is_below_5_percent_just_where_the_bound_is_above_the_margin() -> None:
    for seed in range(30):
        values = np.random.default_rng(seed).exponential(size=25) ** (1 + seed % 3)
        found = estimate_mean([values])
        lower, upper = bound_gain(found, tail=0.05)
        assert lower < found.value < upper
        assert compute_margin_p_value(found, lower) == pytest.approx(0.05, rel=1e-6)
        assert (
            compute_margin_p_value(found, lower - 1e-6)
            < 0.05
            < compute_margin_p_value(found, lower + 1e-6)
        )
        assert compute_margin_p_value(found, 1e6) == 1
        interval = bound_gain(found, tail=0.025)
        assert interval[0] <= lower <= upper <= interval[1]


def test_a_bound_is_not_above_students() -> None:
    values = RNG.exponential(size=30)
    half = stats.sem(values) * stats.t.ppf(0.96, 29)
    lower, upper = bound_gain(estimate_mean([values]), tail=0.05)
    assert lower <= values.mean() - half + 1e-9
    assert upper >= values.mean() + half - 1e-9


def test_holm_is_statsmodels() -> None:
    known = adjust_by_holm([0.01, 0.04, 0.03, 0.005])
    assert known == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for size in (1, 2, 5, 9):
        p_values = RNG.random(size) ** 3
        expected = multipletests(p_values, method="holm")[1]
        assert adjust_by_holm(p_values) == pytest.approx(expected)
    assert adjust_by_holm([]) == []


# Variants.


def test_pairing_cancels_what_makes_a_row_hard() -> None:
    labels = np.zeros((100, 1))
    hard = np.abs(RNG.normal(0, 5, size=(100, 1)))
    found = compare_runs("mae", labels, reference=[hard + 0.5], challenger=[hard], margin=0.2)
    assert found.gain == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))
    assert found.finding == "better"


@pytest.mark.parametrize("is_clustered", [False, True])
@pytest.mark.parametrize(("metric", "label_type"), EVERY)
def test_every_metric_tells_the_better_variant(metric, label_type, is_clustered) -> None:
    labels, good, bad, config = make_variants(label_type)
    groups = np.arange(120) // 3 if is_clustered else None
    better = compare_runs(
        metric, labels, reference=[bad], challenger=[good], margin=0, groups=groups, config=config
    )
    assert better.finding == "better"
    assert better.interval.low < better.lower < better.gain < better.upper
    assert max(better.p_value, better.p_margin) < 0.05
    if is_clustered:
        return
    worse = compare_runs(
        metric, labels, reference=[good], challenger=[bad, bad], margin=0, config=config
    )
    assert worse.finding == "not better"
    assert worse.gain == pytest.approx(-better.gain)
    assert worse.p_value < 0.05 < worse.p_margin


def test_d14_few_rows_or_clusters_resolve_nothing() -> None:
    labels = np.zeros((19, 1))
    found = compare_runs("mae", labels, reference=[labels + 5], challenger=[labels], margin=0)
    assert (found.gain, found.finding, found.is_small) == (5.0, "unresolved", True)
    assert found.needed.rows >= 20
    labels, groups = np.zeros((90, 1)), np.arange(90) // 10
    found = compare_runs(
        "mae", labels, reference=[labels + 5], challenger=[labels], margin=0, groups=groups
    )
    assert (found.finding, found.needed.rows) == ("unresolved", 100)


def test_several_runs_count_by_their_mean() -> None:
    labels = np.zeros((10, 1))
    one, two = np.full((10, 1), 1.0), np.full((10, 1), 3.0)
    found = compare_runs("mae", labels, reference=[two], challenger=[one, two], margin=0)
    assert found.gain == pytest.approx(1.0)  # 3 against the mean of 1 and 3


@pytest.mark.parametrize("seed", [0, 2, 32, 36])
def test_a_gain_that_is_the_same_in_every_row_is_found(seed: int) -> None:
    """All that varies is rounding, which says nothing of bias or skewness."""
    rows, labels = np.random.default_rng(seed).exponential(size=(200, 1)), np.zeros((200, 1))
    for num_runs in (1, 3):
        variants = {"reference": [rows + 1.0] * num_runs, "challenger": [rows + 0.5] * num_runs}
        assert compare_runs("mae", labels, margin=0.1, **variants).finding == "better"


def test_seeds_that_scatter_take_a_winner_back() -> None:
    labels = np.zeros((200, 1))
    rows = np.random.default_rng(0).exponential(size=(200, 1))
    steady = {"reference": [rows + 1.0] * 3, "challenger": [rows + 0.5] * 3}
    lucky = {"reference": [rows + 1.0] * 3, "challenger": [rows, rows + 0.1, rows + 1.4]}
    assert compare_runs("mae", labels, margin=0.1, **steady).finding == "better"
    found = compare_runs("mae", labels, margin=0.1, **lucky)
    assert found.gain == pytest.approx(0.5)
    assert found.finding == "unresolved"
    assert found.needed.seeds > 3
    assert found.needed.rows is None


def test_several_challengers_are_adjusted_together() -> None:
    labels = np.zeros((60, 1))
    errors = RNG.exponential(size=(60, 1))
    variants = {"ref": [errors + 0.3]}
    for i, scale in enumerate((0.5, 0.7, 0.9)):
        variants[f"a{i}"] = [np.abs(errors + RNG.normal(0, scale, size=(60, 1)))]
    rules = Rules("mae", "ref", 0.1, 0.05)
    found = compare_with_reference(variants, labels, rules=rules)
    assert list(found) == ["a0", "a1", "a2"]
    expected = adjust_by_holm([d.p_margin for d in found.values()])
    assert [d.p_margin_adjusted for d in found.values()] == expected
    alone = compare_with_reference(
        {"ref": variants["ref"], "a0": variants["a0"]}, labels, rules=rules
    )
    assert alone["a0"].p_margin == found["a0"].p_margin
    assert alone["a0"].power.power > found["a0"].power.power
    assert found == compare_with_reference(variants, labels, rules=rules)
    assert (found["a0"].challenger, found["a0"].reference) == ("a0", "ref")
    assert found["a0"].power.effect == 0.05


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
    clustered = compute_mcnemar(labels, reference=[ours], challenger=[ours], is_clustered=True)
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


# Parts.


def test_a_part_is_won_by_a_difference_that_is_sure_and_matters() -> None:
    labels = np.zeros((200, 4))
    reference = np.abs(RNG.normal(1, 0.1, size=(200, 4)))
    gains = np.array([0.5, -0.5, 0.03, 0.0])
    challenger = reference - gains + RNG.normal(0, 0.05, size=(200, 4))
    found = compare_parts(
        labels, names=list("abcd"), reference=[reference], challenger=[challenger],
        min_difference=0.05,
    )  # fmt: skip
    assert [part.finding for part in found.values()] == ["challenger", "reference", "tie", "tie"]
    assert found["c"].p_adjusted < 0.05  # sure, but too small
    assert [part.gain for part in found.values()] == pytest.approx(gains, abs=0.02)
    expected = adjust_by_holm([part.p_value for part in found.values()])
    assert [part.p_adjusted for part in found.values()] == expected


def test_a_part_is_not_won_by_the_luck_of_seeds() -> None:
    labels, rows = np.zeros((300, 1)), RNG.exponential(size=(300, 1))
    variants = {"reference": [rows + 1.0, rows + 1.1], "challenger": [rows, rows + 1.6]}
    found = compare_parts(labels, names=["a"], min_difference=0.05, **variants)["a"]
    assert found.gain == pytest.approx(0.25)
    assert found.interval.low < 0 < found.interval.high
    assert found.finding == "tie"
    assert found.p_value > 0.05
    steady = {"reference": [rows + 1.0, rows + 1.1], "challenger": [rows, rows + 0.1]}
    found = compare_parts(labels, names=["a"], min_difference=0.05, **steady)["a"]
    assert found.finding == "challenger"


def test_parts_of_classes_leave_out_what_never_occurs() -> None:
    labels = RNG.integers(0, 2, size=120)
    good, bad = labels.copy(), np.where(RNG.random(120) < 0.4, 1 - labels, labels)
    variants = {"reference": [np.eye(3)[bad]] * 2, "challenger": [np.eye(3)[good]]}
    names = ["a", "b", "never"]
    found = compare_parts(labels, names=names, min_difference=0.05, **variants)
    assert {name: part.finding for name, part in found.items()} == {
        "a": "challenger",
        "b": "challenger",
    }
    groups = np.arange(120) // 30
    few = compare_parts(labels, names=names, min_difference=0.05, groups=groups, **variants)
    assert {part.finding for part in few.values()} == {"tie"}


# Power, and what is needed.


def test_power_is_the_normal_one() -> None:
    found = estimate_power(make_estimate(0.0, rows=0.01), effect=0.2, tail=0.05)
    assert found.power == pytest.approx(stats.norm.cdf(2 - 1.6449), abs=1e-3)
    assert estimate_power(make_estimate(0.0, rows=0.01), effect=0.0, tail=0.05) is None


def test_what_dominates_the_error_is_asked_for() -> None:
    ask = {"margin": 0.0, "tail": 0.05, "num_rows": 100, "num_seeds": 3}
    # The error 0.1 has to be 0.1 / 1.645 instead: 1.645^2 = 2.706 times the rows.
    assert find_sample_size(make_estimate(0.1, rows=0.01), **ask) == SampleSize(
        rows=271, seeds=None
    )
    assert find_sample_size(make_estimate(-0.1, rows=0.01), **ask) == SampleSize(
        rows=271, seeds=None
    )
    assert find_sample_size(make_estimate(0.1, rows=1e-9, seeds=0.01), **ask) == SampleSize(
        rows=None, seeds=9
    )
    assert find_sample_size(make_estimate(0.1, rows=0.006, seeds=0.004), **ask) == SampleSize(
        rows=271, seeds=9
    )
    assert find_sample_size(make_estimate(0.001, rows=0.01), **ask) == SampleSize(
        rows=None, seeds=None
    )
    assert find_sample_size(make_estimate(0.0, rows=0.01), **ask) == SampleSize(
        rows=None, seeds=None
    )
