"""Assign rows to train, val and test, stratified, with groups in one split; balance train."""

import json
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from llmft.config.task import (
    SPLITS,
    BalanceConfig,
    ClassConfig,
    MultilabelConfig,
    ScoresConfig,
    Split,
    SplitConfig,
    Task,
    rank_given,
)
from llmft.data.duplicates import cluster_texts
from llmft.data.fields import Row, join_pair
from llmft.data.labels import assign_tiers, compute_overall, find_alike, list_scores
from llmft.errors import UserError
from llmft.wording import shorten_list

_NUM_SCORE_BINS = 5


def cluster_rows(rows: Sequence[Row], task: Task) -> tuple[list[int], list[int]]:
    """Return which rows repeat each other, and which have to stay in one split.

    Args:
        rows: N rows with text and, if the task has such fields, pair and group.
        task: Its fields, and the similarity from which on texts are near-duplicates.

    Returns:
        For each row the first row of its cluster of near-duplicates, and the first of its unit:
        near-duplicates, pairs of one article, and rows of one group.
    """
    threshold = task.clean.near_duplicates
    texts = [join_pair(row, task.fields) for row in rows]
    clusters = alike = cluster_texts(texts, threshold=threshold)
    if task.fields.text_pair is not None:
        alike = cluster_texts([row["text"] for row in rows], threshold=threshold)
    return clusters, merge_units(clusters, alike, [row.get("group") for row in rows])


def mark_clusters(rows: Sequence[Row], units: Sequence[int]) -> None:
    """Note the id of a unit's first row as `cluster` in its rows if it has several, in place (D15).

    They are not independent, so intervals and tests draw them together.
    """
    sizes = Counter(units)
    first: dict[int, str] = {}
    for row, unit in zip(rows, units, strict=True):
        if sizes[unit] > 1:
            row["cluster"] = first.setdefault(unit, row["id"])


def merge_units(*keys_per_row: Sequence[Hashable | None]) -> list[int]:
    """Join rows with any key in common (a cluster, a group) into units that stay in one split.

    Args:
        keys_per_row: One or more sequences of N keys; None is no key.

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
    """Return the split of each row; rows of one unit are in the same one.

    Units are assigned stratum by stratum, large ones first, each to the split that is furthest
    behind its fraction of the stratum, and of all rows. Within a stratum a split is off by less
    than about two of the largest units; none is left empty if there are enough units; the time is
    linear in the rows.

    Args:
        units: For each row the unit that it belongs to, length N.
        strata: For each row its class or score bin, length N; a unit counts as the one that
            most of its rows have.
        config: Fractions and seed.
        splits: Splits to fill, in proportion to their fractions.
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

    fractions = _normalise_fractions(config, splits)
    overall, within = dict.fromkeys(splits, 0.0), dict.fromkeys(splits, 0.0)
    split_of: dict[int, Split] = {}
    for position, unit in enumerate(order):
        if config.stratify and stratum_of[unit] != stratum_of[order[position - 1]]:
            within = dict.fromkeys(splits, 0.0)
        size = len(members[unit])
        for owed in (overall, within):
            for name in splits:
                owed[name] += fractions[name] * size
        # A huge unit must not distort the following strata, so the overall debt is at most one row.
        chosen = max(splits, key=lambda name: within[name] + min(max(overall[name], -1.0), 1.0))
        split_of[unit] = chosen
        for owed in (overall, within):
            owed[chosen] -= size
    _fill_empty(split_of, members, splits)
    return [split_of[unit] for unit in units]


def _fill_empty(
    split_of: dict[int, Split], members: dict[int, list[int]], splits: Sequence[Split]
) -> None:
    """Give each empty split the smallest unit of the split with the most units, in place."""
    for name in splits:
        sizes = Counter(split_of.values())
        if not sizes[name] and sizes and sizes.most_common(1)[0][1] > 1:
            largest = sizes.most_common(1)[0][0]
            spare = [unit for unit, split in split_of.items() if split == largest]
            split_of[min(spare, key=lambda unit: len(members[unit]))] = name


def assign_splits_by_date(
    units: Sequence[int],
    *,
    dates: Sequence[float],
    config: SplitConfig,
    splits: Sequence[Split] = SPLITS,
) -> list[Split]:
    """Return the split of each row: the earliest rows are train, the latest test.

    The date of a unit is that of its latest row, so that no training row is from the time of a
    later split. Units of the same date stay together, so a split may be off its fraction by the
    rows of one date.

    Args:
        units: For each row the unit that it belongs to, length N.
        dates: For each row its date, as any rising number, length N.
        config: Fractions.
        splits: Splits to fill, in proportion to their fractions.
    """
    date_of: dict[int, float] = {}
    for row, unit in enumerate(units):
        date_of[unit] = max(dates[row], date_of.get(unit, dates[row]))
    num_rows = Counter(date_of[unit] for unit in units)
    fractions = _normalise_fractions(config, splits)
    split_of: dict[float, Split] = {}
    num_done = 0
    for date in sorted(num_rows):
        middle = (num_done + num_rows[date] / 2) / len(units)
        ends = np.cumsum([fractions[name] for name in splits])
        split_of[date] = splits[min(int(np.searchsorted(ends, middle)), len(splits) - 1)]
        num_done += num_rows[date]
    return [split_of[date_of[unit]] for unit in units]


class Leak(NamedTuple):
    """A row that repeats, or is in a group with, a row of another, fixed split."""

    split: Split
    """Split of its twin."""
    twin: int
    """Position of the row that it repeats, or whose group it is in."""


def find_leaks(units: Sequence[int], given: Sequence[Split | None]) -> dict[int, Leak]:
    """Return position -> leak for rows in the same unit as a row of another, given split.

    A given test set is kept complete, then a given val set, then a given training set; rows of
    other splits, and rows without a fixed split, are left out if they repeat a row of it.

    Args:
        units: For each row the unit that it belongs to, length N.
        given: For each row the split that its source fixes, or None, length N.
    """
    leaks: dict[int, Leak] = {}
    for rows in _list_members(units).values():
        twin = max(rows, key=lambda row: rank_given(given[row]))
        split = given[twin]
        if split is not None:
            leaks |= {row: Leak(split, twin) for row in rows if given[row] != split}
    return leaks


def _list_members(units: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    return members


def _normalise_fractions(config: SplitConfig, splits: Sequence[Split]) -> dict[Split, float]:
    fractions: dict[Split, float] = {name: getattr(config, name) for name in splits}
    total = sum(fractions.values())
    return {name: fraction / total for name, fraction in fractions.items()}


def list_strata(records: Sequence[Row], task: Task) -> Sequence[Any]:
    """Return the stratum of each row: its class, rarest label, tier or score bin."""
    labels = task.labels
    match labels:
        case ClassConfig():
            return [record["labels"] for record in records]
        case MultilabelConfig():  # the rarest label of a row is the hardest to stratify
            counts = Counter(name for record in records for name in record["labels"])
            return [min(r["labels"], key=lambda n: (counts[n], n), default="") for r in records]
        case ScoresConfig():
            overall = compute_overall(list_scores(records, labels), labels)
            if labels.tiers is not None:
                return list(map(int, assign_tiers(overall, labels)))
            return bin_scores(overall)


def refuse_constant_labels(records: Sequence[Row], task: Task) -> None:
    """Raise if all labels are the same, or a class has fewer rows than there are splits.

    Raises:
        UserError: Naming the classes.
    """
    match task.labels:
        case ClassConfig():
            counts = Counter(record["labels"] for record in records)
            if len(counts) == 1:
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows are of the class "
                    f"{records[0]['labels']!r}; there is nothing to learn: add rows of others"
                )
            small = {n: c for n, c in counts.items() if c < len(SPLITS) - len(task.fixed_splits)}
            if small and task.split.stratify and task.split.by is None:
                named = shorten_list([f"{name!r} ({count})" for name, count in small.items()])
                raise UserError(
                    f"{task.name}: classes with too few rows to be in every split: {named}; add "
                    "rows, join classes in labels.map, leave them out with labels.exclude, or set "
                    "split.stratify: false"
                )
        case ScoresConfig():
            scores = list_scores(records, task.labels)
            if (scores == scores[0]).all():
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows have the same scores; there is "
                    "nothing to learn: add rows with others"
                )
        case MultilabelConfig():
            if all(record["labels"] == records[0]["labels"] for record in records):
                raise UserError(
                    f"{task.name}: all {len(records)} usable rows have the same labels; there is "
                    "nothing to learn: add rows with others"
                )


def find_gaps(by_split: dict[Split, list[Row]], task: Task) -> list[str]:
    """Return warnings about classes and labels that a split lacks, and scores that never vary.

    Raises:
        UserError: If a class has no row in train.
    """
    labels = task.labels
    if isinstance(labels, ScoresConfig):
        scores = list_scores(by_split["train"], labels)
        return [
            f"{name} is {scores[0, i]:g} in every row of train, so it cannot be learned"
            for i, name in enumerate(labels.dimensions)
            if (scores[:, i] == scores[0, i]).all()
        ]
    found = {split: set(_iterate_names(rows)) for split, rows in by_split.items()}
    names = set().union(*found.values())
    if isinstance(labels, MultilabelConfig):
        names |= set(labels.known_names or [])
    absent = {split: sorted(names - found[split]) for split in SPLITS}
    if absent["train"] and isinstance(labels, ClassConfig):
        raise UserError(
            f"{task.name}: no row of train is of the class {', '.join(absent['train'])}; add rows, "
            "leave the class out with labels.exclude, or change `split`"
        )
    counts = Counter(chain.from_iterable(map(_iterate_names, by_split.values())))
    ordered = labels.order if isinstance(labels, ClassConfig) else None
    unused = [name for name in ordered or [] if name not in names]
    return [
        *(
            f"labels.order: no row is of the class {name}, so the model will not have it"
            for name in unused
        ),
        *_advise_to_join(counts, labels),
        *(f"{split} has no row with {', '.join(gone)}" for split, gone in absent.items() if gone),
    ]


def _advise_to_join(counts: Counter[str], labels: ClassConfig | MultilabelConfig) -> Iterator[str]:
    """Yield a warning about classes or labels that are likely one, with how to join them."""
    joined: dict[str, str] = {}
    listed = []
    for alike in find_alike(sorted(counts)):
        kept = max(alike, key=lambda name: counts[name])
        joined |= {name: kept for name in alike if name != kept}
        listed.append(" and ".join(f"{name!a} ({counts[name]} rows)" for name in alike))
    if not joined:
        return
    advice = "give those that are one the same name in `labels.map`, or in the data"
    if labels.map is None and isinstance(labels.from_, str):
        if isinstance(labels, ClassConfig):  # whose map lists all values
            rest = [*sorted(counts), *labels.exclude]
            joined |= {name: name for name in rest if name not in joined}
        written = ", ".join(f"{_quote(a)}: {_quote(b)}" for a, b in joined.items())
        advice = f"join them with `labels.map: {{{written}}}`"
    yield f"names that likely stand for one class: {'; '.join(listed)}; {advice}"


def _quote(name: str) -> str:
    """Return a name for YAML, with escapes for what nobody sees."""
    is_plain = all(c.isprintable() for c in name) or max(map(ord, name)) > 0xFFFF
    return json.dumps(name, ensure_ascii=not is_plain)


def _iterate_names(records: Sequence[Row]) -> Iterator[str]:
    for record in records:
        labels = record["labels"]
        yield from [labels] if isinstance(labels, str) else labels


class Balance(NamedTuple):
    """Training rows to leave out and to repeat."""

    left_out: set[int]
    """Positions of rows to leave out."""
    repeated: list[int]
    """Positions of rows to add again, once for each entry."""


def plan_balance(classes: Sequence[Hashable], *, config: BalanceConfig, seed: int) -> Balance:
    """Choose rows to leave out and rows to repeat.

    Args:
        classes: Class or tier of each training row, length N.
        config: The limits.
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
