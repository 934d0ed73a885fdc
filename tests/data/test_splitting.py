"""Rows are shared out by their shares, and what belongs together stays together (D5, D6)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.config.task import SPLITS, Split, SplitConfig
from llmft.data.splitting import (
    Leak,
    assign_splits,
    assign_splits_by_date,
    bin_scores,
    find_leaks,
    merge_units,
)

keys = st.one_of(st.none(), st.integers(0, 30))


@st.composite
def shares(draw: st.DrawFn) -> SplitConfig:
    train = draw(st.floats(0.4, 0.9))
    val = (1 - train) * draw(st.floats(0.1, 0.9))
    return SplitConfig(train=train, val=val, test=1 - train - val, seed=draw(st.integers(0, 9)))


def test_rows_that_share_a_cluster_or_a_group_are_one_unit() -> None:
    clusters = [0, 1, 1, 3, 4, 5]
    groups = ["act", None, "law", "act", "law", None]
    assert merge_units(clusters, groups) == [0, 1, 1, 0, 1, 5]


def test_rows_without_a_group_belong_to_nobody() -> None:
    assert merge_units([0, 1, 2], [None, None, None]) == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(keys, keys, st.integers(0, 4)), min_size=3, max_size=80), shares())
def test_d5_d6_random_groups_and_clusters_are_never_split(
    rows: list[tuple[int | None, int | None, int]], config: SplitConfig
) -> None:
    clusters, groups, strata = zip(*rows, strict=True)
    splits = assign_splits(merge_units(clusters, groups), strata=strata, config=config)
    for keys_per_row in (clusters, groups):
        places: dict[int, set[str]] = {}
        for key, split in zip(keys_per_row, splits, strict=True):
            if key is not None:
                places.setdefault(key, set()).add(split)
        assert all(len(found) == 1 for found in places.values())
    assert set(splits) <= set(SPLITS)


def measure_misses(
    sizes_and_strata: list[tuple[int, int]], config: SplitConfig
) -> tuple[float, float]:
    """Return by how many rows the splits miss their shares at most, overall and in a stratum."""
    units = [u for u, (size, _) in enumerate(sizes_and_strata) for _ in range(size)]
    strata = [stratum for size, stratum in sizes_and_strata for _ in range(size)]
    splits = assign_splits(units, strata=strata, config=config)
    within = Counter(zip(splits, strata, strict=True))
    return (
        max(abs(splits.count(n) - getattr(config, n) * len(units)) for n in SPLITS),
        max(
            abs(within[n, stratum] - getattr(config, n) * size)
            for n in SPLITS
            for stratum, size in Counter(strata).items()
        ),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=20, max_size=80), shares())
def test_single_rows_miss_no_share_by_two(strata: list[int], config: SplitConfig) -> None:
    overall, within = measure_misses([(1, stratum) for stratum in strata], config)
    assert overall < 2
    assert within < 2


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=10, max_size=60), shares()
)
def test_d6_groups_miss_the_share_of_a_stratum_by_less_than_two_of_them(
    sizes_and_strata: list[tuple[int, int]], config: SplitConfig
) -> None:
    _, within = measure_misses(sizes_and_strata, config)
    assert within < 2 * max(size for size, _ in sizes_and_strata) + 1


def test_d6_a_huge_group_does_not_make_other_classes_pay() -> None:
    units = [0] * 200 + list(range(1, 41))
    strata = ["a"] * 200 + ["b"] * 40
    found = Counter(
        zip(assign_splits(units, strata=strata, config=SplitConfig()), strata, strict=True)
    )
    assert [found[split, "b"] for split in SPLITS] == pytest.approx([32, 4, 4], abs=1)


@pytest.mark.parametrize("num_groups", [3, 4, 6])
def test_d6_as_many_groups_as_splits_are_enough(num_groups: int) -> None:
    units = [row % num_groups for row in range(90)]
    splits = assign_splits(units, strata=["a"] * 90, config=SplitConfig())
    assert set(splits) == set(SPLITS)


def test_every_split_has_the_same_classes() -> None:
    strata = ["rare"] * 100 + ["common"] * 900
    splits = assign_splits(range(1000), strata=strata, config=SplitConfig())
    assert Counter(zip(splits, strata, strict=True)) == {
        ("train", "rare"): 80, ("val", "rare"): 10, ("test", "rare"): 10,
        ("train", "common"): 720, ("val", "common"): 90, ("test", "common"): 90,
    }  # fmt: skip


def test_without_stratification_only_the_sizes_are_kept() -> None:
    strata = ["rare"] * 100 + ["common"] * 900
    config = SplitConfig(stratify=False)
    splits = assign_splits(range(1000), strata=strata, config=config)
    assert Counter(splits) == {"train": 800, "val": 100, "test": 100}
    assert Counter(splits[:100]) != {"train": 80, "val": 10, "test": 10}


def test_the_seed_decides_and_nothing_else() -> None:
    first, again, other = (
        assign_splits(range(200), strata=[0] * 200, config=SplitConfig(seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(10))
def test_large_groups_go_first_so_that_small_ones_even_the_sizes_out(seed: int) -> None:
    units = [0] * 40 + list(range(40, 100))
    splits = assign_splits(units, strata=[0] * 100, config=SplitConfig(seed=seed))
    assert Counter(splits) == {"train": 80, "val": 10, "test": 10}


@pytest.mark.parametrize("means", [[5.0] * 10, [1.0], [float(i) for i in range(50)]])
def test_score_bins_are_quantiles(means: list[float]) -> None:
    bins = bin_scores(np.array(means))
    assert all(0 <= b <= 4 for b in bins)
    if len(means) == 50:
        assert Counter(bins) == {0: 10, 1: 10, 2: 10, 3: 10, 4: 10}
        assert bins == sorted(bins)


# by date


def split_by_date(units: list[int], dates: list[float], **settings: object) -> list[Split]:
    return assign_splits_by_date(units, dates=dates, config=SplitConfig(), **settings)  # type: ignore[arg-type]


def test_the_earliest_are_train_and_the_latest_test_in_any_order() -> None:
    dates = [float(d) for d in range(10)]
    wanted = ["train"] * 8 + ["val", "test"]
    assert split_by_date(list(range(10)), dates) == wanted
    assert split_by_date(list(range(10)), dates[::-1]) == wanted[::-1]


def test_splits_that_are_given_elsewhere_get_nothing() -> None:
    dates = [float(d) for d in range(9)]
    found = split_by_date(list(range(9)), dates, splits=["train", "val"])
    assert found == ["train"] * 8 + ["val"]
    assert set(split_by_date(list(range(9)), dates, splits=["test"])) == {"test"}


def test_a_unit_is_as_new_as_its_newest_row() -> None:
    units = [0, *range(1, 19), 0]
    splits = split_by_date(units, [float(d) for d in range(20)])
    assert splits[0] == splits[19] == "test"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=60), shares()
)
def test_d6_nothing_is_learned_from_the_time_of_a_later_split(
    rows: list[tuple[int, int]], config: SplitConfig
) -> None:
    units = merge_units([unit for unit, _ in rows])
    dates = [float(date) for _, date in rows]
    splits = assign_splits_by_date(units, dates=dates, config=config)
    newest = {u: max(d for v, d in zip(units, dates, strict=True) if v == u) for u in units}
    by_date = sorted((newest[unit], SPLITS.index(s)) for unit, s in zip(units, splits, strict=True))
    assert [rank for _, rank in by_date] == sorted(rank for _, rank in by_date)
    assert len({(newest[u], s) for u, s in zip(units, splits, strict=True)}) == len(
        set(newest.values())
    ), "neither a unit nor a date is parted"
    largest = max(list(newest[u] for u in units).count(d) for d in newest.values())
    for name in SPLITS:
        assert abs(splits.count(name) - getattr(config, name) * len(rows)) <= largest + 1e-6


# given splits


def test_a_row_that_is_tied_to_a_given_test_row_is_a_leak() -> None:
    units = [0, 0, 2, 2, 2, 5]
    given: list[Split | None] = ["test", None, "train", "val", None, None]
    assert find_leaks(units, given) == {
        1: Leak("test", 0), 2: Leak("val", 3), 4: Leak("val", 3),
    }  # fmt: skip


def test_d5_a_row_that_is_tied_to_a_given_training_row_is_not_shared_out() -> None:
    assert find_leaks([0, 0], ["train", None]) == {1: Leak("train", 0)}


given_splits = st.sampled_from([None, *SPLITS])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), given_splits), min_size=1, max_size=40))
def test_d5_what_stays_shares_no_unit_with_another_given_split(
    rows: list[tuple[int, Split | None]],
) -> None:
    units, given = [unit for unit, _ in rows], [split for _, split in rows]
    leaks = find_leaks(units, given)
    kept = [i for i in range(len(rows)) if i not in leaks]
    places: dict[int, set[Split | None]] = {}
    for i in kept:
        places.setdefault(units[i], set()).add(given[i])
    assert all(len(found) == 1 for found in places.values())
    assert set(units) == set(places), "of every unit something stays"
    assert not any(given[i] == "test" for i in leaks), "the given test set stays as it is"
    assert all(units[i] == units[leak.twin] and given[leak.twin] == leak.split
               for i, leak in leaks.items())  # fmt: skip
