"""Make frequent classes rarer and rare ones more frequent, in train only (D5)."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from llmft.config.task import BalanceConfig


class Balance(NamedTuple):
    """What becomes of the training rows."""

    left_out: set[int]
    """Positions of rows that are not trained on."""
    repeated: list[int]
    """Positions of rows to add once more, as often as they are listed."""


def plan_balance(classes: Sequence[Hashable], *, config: BalanceConfig, seed: int) -> Balance:
    """Choose rows to leave out and rows to repeat.

    Args:
        classes: Class or tier of each training row, length N.
        config: How far to go.
        seed: Seed of the choice.
    """
    rows_by_class: dict[Hashable, list[int]] = {}
    for row, name in enumerate(classes):
        rows_by_class.setdefault(name, []).append(row)
    for name in sorted(rows_by_class, key=str):
        random.Random(f"{seed} {name}").shuffle(rows_by_class[name])
    left_out: set[int] = set()
    ranked = Counter(classes).most_common(2)
    if config.reduce_majority_to is not None and len(ranked) == 2:
        (majority, _), (_, second) = ranked
        num_kept = round(config.reduce_majority_to * second)
        left_out = set(rows_by_class[majority][num_kept:])
        rows_by_class[majority] = rows_by_class[majority][:num_kept]
    repeated: list[int] = []
    if config.oversample is not None:
        largest = max(map(len, rows_by_class.values()))
        for rows in rows_by_class.values():
            num_missing = round(config.oversample * largest) - len(rows)
            repeated += [rows[i % len(rows)] for i in range(num_missing)]
    return Balance(left_out, repeated)
