"""Share rows out to train, val and test, keeping what belongs together in one split."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from llmft.config.task import SplitConfig

SPLITS = ("train", "val", "test")
_NUM_SCORE_BINS = 5


def merge_units(*keys_per_row: Sequence[Hashable | None]) -> list[int]:
    """Join rows that share any key (a cluster, a group) into units that must not be split.

    Args:
        keys_per_row: One or more sequences of N keys; None belongs to nobody.

    Returns:
        For each row the index of the first row of its unit, length N.
    """
    rows = range(len(keys_per_row[0]))
    joined = DisjointSet(rows)
    for keys in keys_per_row:
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                joined.merge(first.setdefault(key, row), row)
    first_of_root: dict[int, int] = {}
    return [first_of_root.setdefault(joined[row], row) for row in rows]


def bin_scores(means_N: NDArray[np.float64]) -> list[int]:
    """Return for each mean score its quantile bin, 0 (lowest) to 4."""
    edges = np.quantile(means_N, np.linspace(0, 1, _NUM_SCORE_BINS + 1)[1:-1])
    return [int(b) for b in np.searchsorted(edges, means_N, side="right")]


def assign_splits(
    units: Sequence[int], *, strata: Sequence[Hashable], config: SplitConfig
) -> list[str]:
    """Return the split of each row; rows of one unit share it.

    Units are walked stratum by stratum, large ones first, and each goes to the split that is
    furthest behind its share. So a split's size is off by less than the largest unit overall,
    and by less than twice that within a stratum; the time is linear in the rows.

    Args:
        units: For each row the unit that it belongs to, length N.
        strata: For each row its class or score bin, length N; a unit counts as the one that
            most of its rows have.
        config: Shares and seed.
    """
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
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

    shares = {name: getattr(config, name) for name in SPLITS}
    owed = dict.fromkeys(SPLITS, 0.0)
    splits = [""] * len(units)
    for unit in order:
        size = len(members[unit])
        for name in SPLITS:
            owed[name] += shares[name] * size
        chosen = max(SPLITS, key=lambda name: owed[name])
        owed[chosen] -= size
        for row in members[unit]:
            splits[row] = chosen
    return splits
