"""Rows are shared out by their shares, and what belongs together stays together (D5, D6)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.config.task import SplitConfig
from llmft.data.splitting import SPLITS, assign_splits, bin_scores, merge_units

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


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=60), shares())
def test_sizes_are_off_by_less_than_a_unit_overall_and_two_per_stratum(
    sizes_and_strata: list[tuple[int, int]], config: SplitConfig
) -> None:
    units = [u for u, (size, _) in enumerate(sizes_and_strata) for _ in range(size)]
    strata = [stratum for size, stratum in sizes_and_strata for _ in range(size)]
    largest = max(size for size, _ in sizes_and_strata)
    splits = assign_splits(units, strata=strata, config=config)
    for name in SPLITS:
        share = getattr(config, name)
        assert abs(splits.count(name) - share * len(units)) < largest
        for stratum, size in Counter(strata).items():
            found = sum(s == name and t == stratum for s, t in zip(splits, strata, strict=True))
            assert abs(found - share * size) < 2 * largest


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
