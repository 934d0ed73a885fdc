"""Two variants on the same rows, by closed forms, by libraries and by published cases."""

import numpy as np
import pytest
from scipy import stats

from llmft.evaluation.verdict import (
    Rules,
    bound_gain,
    compare_parts,
    compare_with_best,
    compute_margin_p_value,
    compute_p_value,
    find_level,
    jackknife_variants,
)
from llmft.statistics.estimates import Estimate, find_common_tail
from llmft.statistics.paired_tests import (
    adjust_by_holm,
)
from tests.evaluation.shortcuts import compare_all, compare_runs
from tests.statistics.test_intervals import EVERY, make_variants
from tests.statistics.test_resampling import estimate_mean

RNG = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def _draw_again() -> None:
    """No test may depend on what others drew before it."""
    global RNG
    RNG = np.random.default_rng(2)


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


def test_the_two_sided_p_value_agrees_with_both_bounds() -> None:
    for shift in (-0.6, -0.3, 0.0, 0.3, 0.6):
        found = estimate_mean([RNG.exponential(size=30) - 1 + shift])
        lower, upper = bound_gain(found, tail=0.025)
        assert (compute_p_value(found) < 0.05) == (lower > 0 or upper < 0)
        assert compute_p_value(found.negate()) == compute_p_value(found)
        assert bound_gain(found.negate(), tail=0.025) == pytest.approx((-upper, -lower))
    constant = estimate_mean([np.zeros(30)])
    assert compute_p_value(constant) == 1


def test_a_bound_is_not_above_students() -> None:
    values = RNG.exponential(size=30)
    half = stats.sem(values) * stats.t.ppf(1 - 0.05 / 1.1, 29)
    lower, upper = bound_gain(estimate_mean([values]), tail=0.05)
    assert lower <= values.mean() - half + 1e-9
    assert upper >= values.mean() + half - 1e-9


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
    assert (found.gain, found.finding) == (5.0, "unresolved")
    assert "too few for evidence" in str(found.shortage)
    assert found.needed.rows >= 20
    labels, groups = np.zeros((90, 1)), np.arange(90) // 10
    found = compare_runs(
        "mae", labels, reference=[labels + 5], challenger=[labels], margin=0, groups=groups
    )
    assert (found.finding, found.needed.rows) == ("unresolved", 100)


def test_d20_the_rows_that_are_advised_lift_the_shortage() -> None:
    labels = np.r_[np.ones(9, dtype=int), np.zeros(91, dtype=int)]
    good, bad = np.eye(2)[labels], np.eye(2)[np.where(RNG.random(100) < 0.4, 1 - labels, labels)]
    found = compare_runs("f1_macro", labels, reference=[bad], challenger=[good], margin=0)
    assert found.finding == "unresolved"
    assert found.needed.rows >= 112, "ten of so many are positive"


@pytest.mark.parametrize("num_different", [0, 3])
def test_d14_variants_that_hardly_differ_are_not_told_apart(num_different: int) -> None:
    labels = np.zeros(60, dtype=int)
    wrong = np.eye(2)[(np.arange(60) < 20).astype(int)]
    better = np.eye(2)[(np.arange(60) < 20 - num_different).astype(int)]
    runs = {"reference": [wrong], "challenger": [better]}
    pair = compare_runs("accuracy", labels, **runs, margin=0.0)
    assert pair.finding == "unresolved"
    assert f"differ in {num_different} of 60 rows only" in pair.shortage
    within = compare_runs("accuracy", labels, **runs, margin=0.25)
    assert (within.finding, within.shortage) == ("not better", None)
    scores = np.zeros((60, 1))
    far = compare_runs("mae", scores, reference=[scores], challenger=[scores], margin=0.2)
    assert far.finding == "not better", "no output is another one, so no error can be"


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
    found = compare_all(variants, labels, rules)
    assert list(found) == ["a0", "a1", "a2"]
    expected = adjust_by_holm([d.p_margin for d in found.values()])
    assert [d.p_margin_adjusted for d in found.values()] == expected
    alone = compare_all({"ref": variants["ref"], "a0": variants["a0"]}, labels, rules)
    assert alone["a0"].p_margin == found["a0"].p_margin
    assert alone["a0"].power.power > found["a0"].power.power
    assert found == compare_all(variants, labels, rules)
    assert (found["a0"].challenger, found["a0"].reference) == ("a0", "ref")
    assert found["a0"].power.effect == 0.05


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


def test_no_dimension_is_found_by_skew_alone() -> None:
    """Errors that are seldom large, with equal means: by swapping signs 9 to 16 % find one of 8."""
    false_findings = 0
    for _ in range(200):
        ours = RNG.exponential(size=(60, 8)) ** 1.5
        theirs = np.full((60, 8), 1.3293)  # gamma(2.5), the mean of the others
        parts = compare_parts(
            np.zeros((60, 8)), names=list("abcdefgh"), min_difference=0.0,
            reference=[theirs], challenger=[ours],
        )  # fmt: skip
        false_findings += any(part.finding != "tie" for part in parts.values())
    assert false_findings <= 20, "5 % of 200, and two standard errors"


def test_one_of_many_classes_is_found() -> None:
    labels = np.repeat(np.arange(150), 20)
    good = np.eye(150)[labels]
    bad = good.copy()
    bad[:18] = np.eye(150)[7]
    parts = compare_parts(
        labels, names=[str(i) for i in range(150)], min_difference=0.05,
        reference=[bad], challenger=[good],
    )  # fmt: skip
    assert parts["0"].finding == "challenger"


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


def test_d20_a_rare_class_finds_nothing_by_itself() -> None:
    labels = np.r_[np.full(9, 2), np.arange(191) % 2]
    good, bad = labels.copy(), labels.copy()
    bad[RNG.random(200) < 0.5] = 0
    variants = {"reference": [np.eye(3)[bad]], "challenger": [np.eye(3)[good]]}
    found = compare_parts(labels, names=["a", "b", "rare"], min_difference=0.05, **variants)
    assert {name: part.finding for name, part in found.items()} == {
        "a": "challenger", "b": "challenger", "rare": "tie",
    }  # fmt: skip
    twice = {name: [np.tile(runs[0], (2, 1))] for name, runs in variants.items()}
    found = compare_parts(
        np.tile(labels, 2), names=["a", "b", "rare"], min_difference=0.05, **twice
    )
    assert found["rare"].finding == "challenger", "18 rows"


# Selection.
def draw_variants(num_variants: int, num_rows: int, *better: float) -> dict[str, list[np.ndarray]]:
    """Return errors that are large on the same hard rows; the first variants are better."""
    hard = RNG.exponential(size=(num_rows, 1))
    errors = [hard + RNG.exponential(size=(num_rows, 1)) + 2 for _ in range(num_variants)]
    gains = [*better, *[0.0] * (num_variants - len(better))]
    return {f"v{i}": [e - gain] for i, (e, gain) in enumerate(zip(errors, gains, strict=True))}


def test_d22_the_interval_of_the_named_winner_covers_the_choice() -> None:
    labels, rules = np.zeros((100, 1)), Rules("mae", "v0", 0.0, 0.05)
    covered, by_themselves = 0, 0
    for _ in range(100):
        pairs = compare_all(draw_variants(11, 100), labels, rules)
        chosen = max(pairs.values(), key=lambda pair: pair.gain)
        covered += chosen.simultaneous.low <= 0 <= chosen.simultaneous.high
        by_themselves += chosen.interval.low <= 0 <= chosen.interval.high
    assert covered >= 91
    assert by_themselves < covered


def test_d22_several_bounds_hold_together_by_what_they_have_in_common() -> None:
    shared, own = RNG.normal(size=4_000), RNG.normal(size=(8, 4_000))

    def find(weight: float) -> float:
        draws = np.sqrt(weight) * shared + np.sqrt(1 - weight) * own
        return find_common_tail([make_estimate_of(joint_R) for joint_R in draws], tail=0.05)

    assert find(1.0) == pytest.approx(0.05, rel=0.15)
    assert find(0.0) == pytest.approx(1 - 0.95 ** (1 / 8), rel=0.25)
    assert find(0.0) < find(0.5) < find(1.0)
    assert find_common_tail([make_estimate_of(shared)], tail=0.05) == 0.05


def make_estimate_of(joint_R: np.ndarray) -> Estimate:
    return Estimate(0.0, joint_R, np.zeros(2), np.sort(joint_R), 1.0, 0.0, 99, 99)


def test_d22_what_cannot_be_told_from_the_best_is_not_as_good_as_it() -> None:
    labels = np.zeros((60, 1))
    rules = Rules("mae", "v0", margin=0.2, min_difference=0.05)
    variants = draw_variants(3, 60, 0.2, 0.1)
    variants["copy"] = [variants["v0"][0] + RNG.normal(0, 0.05, size=(60, 1))]
    variants["bad"] = [variants["v0"][0] + 2 + RNG.normal(0, 0.05, size=(60, 1))]
    gaps = compare_with_best(jackknife_variants(variants, labels, rules=rules))
    assert min(gaps, key=lambda name: gaps[name].gap) == next(iter(gaps))
    assert (gaps["bad"].may_be_best, gaps["bad"].within_margin) == (False, False)
    assert gaps["bad"].upper > 2
    for name in ("v0", "copy", "v1"):
        assert gaps[name].may_be_best
    unsure = gaps["v1"]
    assert 0 < unsure.gap < unsure.upper
    assert not unsure.within_margin, "not told apart is not as good"
    only = {name: variants[name] for name in ("v0", "copy", "bad")}
    gaps = compare_with_best(jackknife_variants(only, labels, rules=rules))
    assert gaps["v0"].within_margin
    assert gaps["copy"].within_margin


def test_d22_the_true_best_is_seldom_ruled_out() -> None:
    labels, rules = np.zeros((60, 1)), Rules("mae", "v0", 0.2, 0.05)
    ruled_out = wrongly_equal = 0
    for _ in range(100):
        gaps = compare_with_best(jackknife_variants(draw_variants(5, 60, 0.3), labels, rules=rules))
        ruled_out += not gaps["v0"].may_be_best
        wrongly_equal += any(gaps[f"v{i}"].within_margin for i in range(1, 5))
    assert ruled_out <= 8
    assert wrongly_equal <= 8, "they are worse by 0.3, which is more than the margin"


def test_on_few_rows_nothing_is_as_good_as_the_best() -> None:
    variants = draw_variants(3, 12)
    assert (
        compare_with_best(
            jackknife_variants(variants, np.zeros((12, 1)), rules=Rules("mae", "v0", 9, 0.1))
        )
        == {}
    )


# Looks.
def test_d19_the_error_rates_of_all_looks_are_5_percent_together() -> None:
    levels = [find_level(look) for look in range(1, 10_000)]
    assert levels[0] == pytest.approx(0.0304, abs=1e-4)
    assert levels[:3] == sorted(levels[:3], reverse=True)
    assert 0.0499 < sum(levels) < 0.05


def test_d19_looking_again_until_it_is_significant_wins_no_more_often() -> None:
    """Rows are added until a look finds a winner; none is better by the margin."""
    gains, looks = RNG.normal(size=(400, 120)), range(1, 7)
    p_values = np.array(
        [
            [compute_margin_p_value(estimate_mean([drawn[: 20 * look]]), 0.0) for drawn in gains]
            for look in looks
        ]
    )
    at_once = (p_values < 0.05).any(axis=0).sum()
    spent = ([find_level(look) for look in looks] > p_values.T).any(axis=1).sum()
    assert spent <= 0.05 * 400 + 9
    assert at_once > 1.6 * spent


def test_d19_the_next_look_is_what_rows_are_advised_for() -> None:
    labels = np.zeros((60, 1))
    variants = {
        "ref": [RNG.normal(1.2, 1, size=(60, 1))], "a": [RNG.normal(1.0, 1, size=(60, 1))],
    }  # fmt: skip
    needed = []
    for next_level in (0.05, find_level(2)):
        rules = Rules("mae", "ref", 0.0, 0.05, level=find_level(1), next_level=next_level)
        pair = compare_all(variants, labels, rules)["a"]
        assert pair.finding == "unresolved"
        needed.append(pair.needed.rows)
    assert needed[1] > 1.3 * needed[0]
