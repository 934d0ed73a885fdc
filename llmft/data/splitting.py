"""Share rows out to train, val and test, keeping what belongs together in one split."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmft.config.task import Split, SplitConfig

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_NUM_SCORE_BINS = 5


def merge_units(*keys_per_row: Sequence[Hashable | None]) -> list[int]:
    """Join rows that share any key (a cluster, a group) into units that must not be split.

    Args:
        keys_per_row: One or more sequences of N keys; None belongs to nobody.

    Returns:
        For each row the index of the first row of its unit, length N.
    """
    from scipy.cluster.hierarchy import DisjointSet  # not for all who read rows

    rows = range(len(keys_per_row[0]))
    joined = DisjointSet(rows)
    for keys in keys_per_row:
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                joined.merge(first.setdefault(key, row), row)
    first_of_root: dict[int, int] = {}
    return [first_of_root.setdefault(joined[row], row) for row in rows]


def bin_scores(means_N: NDArray[np.floating[Any]]) -> list[int]:
    """Return for each mean score its quantile bin, 0 (lowest) to 4."""
    edges = np.quantile(means_N, np.linspace(0, 1, _NUM_SCORE_BINS + 1)[1:-1])
    return [int(b) for b in np.searchsorted(edges, means_N, side="right")]


def assign_splits(
    units: Sequence[int],
    *,
    strata: Sequence[Hashable],
    config: SplitConfig,
    splits: Sequence[Split] = SPLITS,
) -> list[Split]:
    """Return the split of each row; rows of one unit share it.

    Units are walked stratum by stratum, large ones first, and each goes to the split that is
    furthest behind its share of the stratum, and of all rows. Within a stratum a split is off by
    less than about two of the largest units; none is left empty where there are units enough; the
    time is linear in the rows.

    Args:
        units: For each row the unit that it belongs to, length N.
        strata: For each row its class or score bin, length N; a unit counts as the one that
            most of its rows have.
        config: Shares and seed.
        splits: Splits to fill, in proportion to their shares.
    """
    members = _list_members(units)
    stratum_of = {
        unit: Counter(strata[row] for row in rows).most_common(1)[0][0]
        for unit, rows in members.items()
    }
    ranks = {s: rank for rank, s in enumerate(sorted(set(stratum_of.values()), key=str))}
    order = sorted(members)
    random.Random(config.seed).shuffle(order)
    if config.stratify:
        order.sort(key=lambda unit: (ranks[stratum_of[unit]], -len(members[unit])))
    else:
        order.sort(key=lambda unit: -len(members[unit]))

    shares = _share(config, splits)
    overall, within = dict.fromkeys(splits, 0.0), dict.fromkeys(splits, 0.0)
    split_of: dict[int, Split] = {}
    for position, unit in enumerate(order):
        if config.stratify and stratum_of[unit] != stratum_of[order[position - 1]]:
            within = dict.fromkeys(splits, 0.0)
        size = len(members[unit])
        for owed in (overall, within):
            for name in splits:
                owed[name] += shares[name] * size
        # A huge unit must not make the strata behind it pay, so the overall debt weighs one row.
        chosen = max(splits, key=lambda name: within[name] + min(max(overall[name], -1.0), 1.0))
        split_of[unit] = chosen
        for owed in (overall, within):
            owed[chosen] -= size
    _fill_empty(split_of, members, splits)
    return [split_of[unit] for unit in units]


def _fill_empty(
    split_of: dict[int, Split], members: dict[int, list[int]], splits: Sequence[Split]
) -> None:
    """Give each split that got nothing the smallest unit of the split that has most, in place."""
    for name in splits:
        sizes = Counter(split_of.values())
        if not sizes[name] and sizes and sizes.most_common(1)[0][1] > 1:
            richest = sizes.most_common(1)[0][0]
            spare = [unit for unit, split in split_of.items() if split == richest]
            split_of[min(spare, key=lambda unit: len(members[unit]))] = name


def assign_splits_by_date(
    units: Sequence[int],
    *,
    dates: Sequence[float],
    config: SplitConfig,
    splits: Sequence[Split] = SPLITS,
) -> list[Split]:
    """Return the split of each row: the earliest rows are train, the latest test.

    A unit counts as new as its newest row, so that nothing is learned from the time of a later
    split. Units of the same date are not parted, so a split may be off its share by the rows of
    one date.

    Args:
        units: For each row the unit that it belongs to, length N.
        dates: For each row its date, as any rising number, length N.
        config: Shares.
        splits: Splits to fill, in proportion to their shares.
    """
    date_of: dict[int, float] = {}
    for row, unit in enumerate(units):
        date_of[unit] = max(dates[row], date_of.get(unit, dates[row]))
    num_rows = Counter(date_of[unit] for unit in units)
    shares = _share(config, splits)
    split_of: dict[float, Split] = {}
    num_done = 0
    for date in sorted(num_rows):
        middle = (num_done + num_rows[date] / 2) / len(units)
        ends = np.cumsum([shares[name] for name in splits])
        split_of[date] = splits[min(int(np.searchsorted(ends, middle)), len(splits) - 1)]
        num_done += num_rows[date]
    return [split_of[date_of[unit]] for unit in units]


def rank_given(split: Split | None) -> int:
    """Return how firmly a row stays in the split that its source fixes: in test most of all."""
    return -1 if split is None else SPLITS.index(split)


class Leak(NamedTuple):
    """A row that must not stay where its source put it, or be shared out."""

    split: Split
    """Split that holds its twin."""
    twin: int
    """Position of the row that it repeats or shares its group with."""


def find_leaks(units: Sequence[int], given: Sequence[Split | None]) -> dict[int, Leak]:
    """Return position -> leak for rows that share a unit with a row of another, given split.

    A given test set is kept as it is, then a given val set, then a given training set; what would
    leak into it, or out of it into a split that is shared out, is left out.

    Args:
        units: For each row the unit that it belongs to, length N.
        given: For each row the split that its source fixes, or None, length N.
    """
    leaks: dict[int, Leak] = {}
    for rows in _list_members(units).values():
        firmest = max(rows, key=lambda row: rank_given(given[row]))
        split = given[firmest]
        if split is not None:
            leaks |= {row: Leak(split, firmest) for row in rows if given[row] != split}
    return leaks


def _list_members(units: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    return members


def _share(config: SplitConfig, splits: Sequence[Split]) -> dict[Split, float]:
    shares: dict[Split, float] = {name: getattr(config, name) for name in splits}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}
