"""The steps of `prepare`: from sources to splits on disk, with every row accounted for."""

import datetime
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmft.config.task import (
    SPLITS,
    BalanceConfig,
    ClassConfig,
    MultilabelConfig,
    ScoresConfig,
    Split,
    Task,
)
from llmft.data.fields import Row, join_pair
from llmft.data.labels import assign_tiers, compute_overall, list_scores
from llmft.data.reading import (
    Rejection,
    UsableRow,
    read_task_rows,
    refuse_systematic_faults,
)
from llmft.data.sources import Source, find_sources
from llmft.data.splitting import (
    assign_splits,
    assign_splits_by_date,
    cluster_rows,
    find_gaps,
    find_leaks,
    list_strata,
    mark_clusters,
    plan_balance,
    refuse_constant_labels,
)
from llmft.data.token_cache import TOKENS_FOLDER, remove_tokens
from llmft.errors import UserError
from llmft.files import find_staged, hash_file, hash_text, stage_files, write_jsonl
from llmft.results.files import write_result
from llmft.results.manifest import LabelStats, Manifest, NearDuplicates, ScoreStats, SplitSummary
from llmft.wording import count

logger = logging.getLogger(__name__)

Splits = dict[Split, list[UsableRow]]


def make_manifest(
    task: Task,
    sources: Sequence[Source],
    by_split: Mapping[Split, Sequence[UsableRow]],
    rejected: Sequence[Rejection],
    *,
    num_repeated: int,
    near_duplicates: NearDuplicates,
    warnings: list[str],
    folder: Path,
) -> Manifest:
    """Return the manifest of splits that are on disk already.

    Args:
        task: The task.
        sources: Where the rows came from.
        by_split: The rows of each split.
        rejected: The rows that are in no split.
        num_repeated: Number of rows of train that are copies of others.
        near_duplicates: Counts of near-duplicates.
        warnings: Problems of the data that a person should look at.
        folder: Folder of the splits.
    """
    hashes = {name: hash_file(folder / f"{name}.jsonl") for name in SPLITS}
    records = {name: [row.record for row in rows] for name, rows in by_split.items()}
    label_names = _name_outputs(task, records)
    counts: dict[str, int] = {name: len(rows) for name, rows in records.items()}
    kinds = Counter(r.kind for r in rejected)
    return Manifest(
        fingerprint=hash_text("\n".join([*hashes.values(), *label_names])),
        files=hashes,
        task=task,
        sources={source.name: source.compute_hash() for source in sources},
        counts={
            "input": sum(counts.values()) + len(rejected) - num_repeated,
            "repeated": num_repeated,
            **counts,
            "rejected": len(rejected),
        },
        rejected=dict(kinds.most_common()),
        label_names=label_names,
        label_stats={
            name: compute_label_stats(rows, task, names=label_names)
            for name, rows in records.items()
        },
        split=SplitSummary(
            **dict(task.split),
            group=task.fields.group,
            strata=_describe_strata(task),
            ranges={
                name: _describe_range([row.date for row in rows]) for name, rows in by_split.items()
            },
        ),
        near_duplicates=near_duplicates,
        warnings=warnings,
    )


def compute_label_stats(rows: Sequence[Row], task: Task, *, names: Sequence[str]) -> LabelStats:
    """Return the number of rows per class, label or tier, or statistics of the scores."""
    labels = task.labels
    if not isinstance(labels, ScoresConfig):
        found = [row["labels"] for row in rows]
        counts = Counter(found if isinstance(labels, ClassConfig) else chain.from_iterable(found))
        return {name: counts[name] for name in names}
    scores = list_scores(rows, labels)
    described: LabelStats = {
        name: ScoreStats(
            mean=round(float(column.mean()), 4),
            sd=round(float(column.std()), 4),
            median=round(float(np.median(column)), 4),
            min=float(column.min()),
            max=float(column.max()),
        )
        for name, column in zip(labels.dimensions, scores.T, strict=True)
    }
    if labels.tiers is None:
        return described
    tiers = np.bincount(
        assign_tiers(compute_overall(scores, labels), labels), minlength=len(labels.tiers)
    )
    return {**described, "tiers": dict(zip(labels.tiers, map(int, tiers), strict=True))}


def _name_outputs(task: Task, by_split: dict[Split, list[Row]]) -> list[str]:
    """Return the dimensions, classes or labels, in the order of a model's outputs."""
    match task.labels:
        case ScoresConfig(dimensions=names):
            return list(names)
        case MultilabelConfig(known_names=known):
            rows = chain.from_iterable(by_split.values())
            return known or sorted({name for row in rows for name in row["labels"]})
        case ClassConfig(order=order, map=mapped):
            found = {row["labels"] for rows in by_split.values() for row in rows}
            named = order or [*dict.fromkeys((mapped or {}).values()), *sorted(found)]
            return [name for name in dict.fromkeys(named) if name in found]


def _describe_strata(task: Task) -> str:
    if task.split.by is not None:
        return f"none, since rows are split by {task.split.by}"
    if not task.split.stratify:
        return "none"
    match task.labels:
        case ClassConfig():
            return "class"
        case MultilabelConfig():
            return "rarest label of the row"
        case ScoresConfig(tiers=tiers):
            return "tier" if tiers else "quantile of the overall score"


def _describe_range(dates: Sequence[tuple[str, float] | None]) -> list[str] | None:
    """Return the first and the last date; None unless rows are split by date."""
    known = sorted(date for date in dates if date is not None)
    if not known:
        return None
    return [_write_date(*known[0]), _write_date(*known[-1])]


def _write_date(kind: str, value: float) -> str:
    if kind == "number":
        return f"{value:g}"
    return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat()


class _ClusteredRows(NamedTuple):
    """Rows with their clusters and units, all of length N."""

    accepted: list[UsableRow]
    clusters: list[int]
    """Id of each row's cluster of near-duplicates."""
    units: list[int]
    """Id of each row's unit: rows that must stay in one split, as near-duplicates or as a group."""

    def drop(self, positions: set[int] | dict[int, Any]) -> "_ClusteredRows":
        """Return the rows without those at these positions."""
        kept = [i for i in range(len(self.accepted)) if i not in positions]
        return _ClusteredRows(
            [self.accepted[i] for i in kept],
            [self.clusters[i] for i in kept],
            [self.units[i] for i in kept],
        )


def prepare_task(task: Task) -> Manifest:
    """Read, check, clean, split, balance and write a task's data, with a log line for each step.

    Returns:
        The manifest, as written.

    Raises:
        UserError: If no usable row is left, or a split or class would be empty.
    """
    sources = find_sources(task.sources)
    _check_output(Path(task.output), sources)
    accepted, rejected, warnings = read_task_rows(sources, task)
    num_input = len(accepted) + len(rejected)
    logger.info(
        "read %s from %s, %d of them unusable",
        count(num_input, "row"),
        count(len(sources), "source"),
        len(rejected),
    )
    if not accepted:
        raise UserError(
            f"{task.name}: none of {count(num_input, 'row')} can be used; " + _summarise(rejected)
        )
    refuse_systematic_faults(accepted, rejected, most=task.max_rejected)

    rows, near = _clean(accepted, task, rejected)
    mark_clusters([a.record for a in rows.accepted], rows.units)
    leaks = f", and {near.num_leaks} that repeat a given split" if near.num_leaks else ""
    logger.info(
        "near-duplicates: %s, each kept in one split with those alike; %d dropped%s",
        count(near.num_rows, "row"), near.num_dropped, leaks,
    )  # fmt: skip
    try:
        refuse_constant_labels([a.record for a in rows.accepted], task)
        by_split = _assign_to_splits(rows, task)
        warnings += find_gaps(_take_records(by_split), task)
    except UserError as error:
        raise UserError(f"{error}" + (f"; {_summarise(rejected)}" if rejected else "")) from error
    num_repeated = _balance(by_split, task, rejected)
    with stage_files(Path(task.output)) as staged:
        for name, found in by_split.items():
            write_jsonl(staged / f"{name}.jsonl", (row.record for row in found))
        write_jsonl(staged / "rejected.jsonl", (r._asdict() for r in rejected))
        manifest = make_manifest(
            task, sources, by_split, rejected,
            num_repeated=num_repeated, near_duplicates=near, warnings=warnings, folder=staged,
        )  # fmt: skip
        write_result(staged / "manifest.json", manifest)
        _put_in_place(staged, Path(task.output))
    logger.info("%s rows", ", ".join(f"{name} {len(found):,}" for name, found in by_split.items()))
    for warning in warnings:
        logger.warning("%s", warning)
    return manifest


def _check_output(output: Path, sources: list[Source]) -> None:
    try:
        nearest = next(path for path in (output, *output.parents) if path.exists())
    except OSError as error:
        raise UserError(
            f"output: {output} cannot be used: {error.strerror}; name another folder"
        ) from error
    if not nearest.is_dir():
        raise UserError(f"output: {nearest} is a file; name a folder")
    names = [f"{name}.jsonl" for name in (*SPLITS, "rejected")]
    existing = [name for name in names if (output / name).exists()]
    if existing and not (output / "manifest.json").exists() and not find_staged(output):
        raise UserError(
            f"output: {output / existing[0]} exists, but was not written by `llmft prepare`; name "
            "another folder, or move the file away"
        )
    for path in (Path(source.path) for source in sources if source.is_file):
        if path.resolve().parent == output.resolve() and path.stem in (*SPLITS, "rejected"):
            raise UserError(
                f"sources: {path} would be overwritten by `llmft prepare`; choose another folder "
                "for `output`, or a glob that leaves the file out"
            )


def _clean(
    accepted: list[UsableRow], task: Task, rejected: list[Rejection]
) -> tuple[_ClusteredRows, NearDuplicates]:
    """Drop repeats and rows that would leak into a given split; return the rest and the counts."""
    clusters, units = cluster_rows([a.record for a in accepted], task)
    rows = _ClusteredRows(accepted, clusters, units)
    leaks = find_leaks(units, [a.source.split for a in accepted])
    for position, leak in leaks.items():
        twin = accepted[leak.twin].record["id"]
        reason = f"leak: repeats row {twin!r} of the given {leak.split} split, or is of its group"
        rejected.append(accepted[position].reject(reason))
    rows = rows.drop(leaks)
    repeats = _find_repeats(rows, task)
    rejected += repeats.values()
    sizes = Counter(clusters)
    near = NearDuplicates(
        threshold=task.clean.near_duplicates,
        num_clusters=sum(1 for n in sizes.values() if n > 1),
        num_rows=sum(n for n in sizes.values() if n > 1),
        num_dropped=len(repeats),
        num_leaks=len(leaks),
    )
    return rows.drop(repeats), near


def _find_repeats(rows: _ClusteredRows, task: Task) -> dict[int, Rejection]:
    """Return for each row to drop its rejection, which names the earlier row."""
    if task.clean.drop == "none":
        return {}
    texts = [join_pair(a.record, task.fields) for a in rows.accepted]
    keys: Sequence[Any] = rows.clusters if task.clean.drop == "near" else texts
    first: dict[Any, int] = {}
    repeats = {}
    for index, key in enumerate(keys):
        kept = first.setdefault(key, index)
        if kept != index:
            kind = "same text" if texts[kept] == texts[index] else "near-duplicate"
            one, other = rows.accepted[kept].record, rows.accepted[index].record
            kind += "" if one["labels"] == other["labels"] else " with other labels"
            reason = f"{kind}: as in row {one['id']!r}"
            repeats[index] = rows.accepted[index].reject(reason)
    return repeats


def _assign_to_splits(rows: _ClusteredRows, task: Task) -> Splits:
    """Return the rows of each split; rows of sources with a fixed split stay there."""
    given = [a.source.split for a in rows.accepted]
    free = rows.drop({i for i, split in enumerate(given) if split is not None})
    by_split: Splits = {
        name: [a for a in rows.accepted if a.source.split == name] for name in SPLITS
    }
    if free.accepted:
        splits = [name for name in SPLITS if name not in task.fixed_splits]
        if task.split.by is not None:
            dates = _list_dates(free.accepted, task)
            found = assign_splits_by_date(free.units, dates=dates, config=task.split, splits=splits)
        else:
            strata = list_strata([a.record for a in free.accepted], task)
            found = assign_splits(free.units, strata=strata, config=task.split, splits=splits)
        for row, name in zip(free.accepted, found, strict=True):
            by_split[name].append(row)
    empty = [name for name, found_rows in by_split.items() if not found_rows]
    if empty:
        raise UserError(
            f"{task.name}: {len(rows.accepted)} usable rows, in {len(set(rows.units))} groups of "
            f"rows that have to stay in one split, are too few: {' and '.join(empty)} would be "
            "empty; add rows, change the fractions under `split`, look for a `group` that joins "
            "too many rows, or remove `split` from a source"
        )
    return by_split


def _list_dates(accepted: list[UsableRow], task: Task) -> list[float]:
    found = [a.date for a in accepted if a.date is not None]
    kinds = Counter(kind for kind, _ in found)
    if len(kinds) > 1:
        raise UserError(
            f"{task.name}: split.by: {task.split.by} holds {kinds['date']} dates and "
            f"{kinds['number']} plain numbers, which cannot be sorted together; fix the data"
        )
    return [value for _, value in found]


def _balance(by_split: Splits, task: Task, rejected: list[Rejection]) -> int:
    """Balance train in place; return the number of repeated rows."""
    train = by_split["train"]
    if task.balance == BalanceConfig():
        return 0
    classes = list_strata([a.record for a in train], task)
    plan = plan_balance(classes, config=task.balance, seed=task.split.seed)
    rejected += [
        train[i].reject("balanced: left out of the most frequent class")
        for i in sorted(plan.left_out)
    ]
    ids = {a.record["id"] for found in by_split.values() for a in found}
    numbers: defaultdict[int, Iterator[int]] = defaultdict(lambda: itertools.count(2))
    repeated = []
    for position in plan.repeated:
        row = train[position]
        names = (f"{row.record['id']}+{number}" for number in numbers[position])
        row_id = next(name for name in names if name not in ids)
        row.record.setdefault("cluster", row.record["id"])
        repeated.append(row._replace(record={**row.record, "id": row_id}))
    kept = [row for i, row in enumerate(train) if i not in plan.left_out]
    by_split["train"] = kept + repeated
    return len(repeated)


def _put_in_place(staged: Path, output: Path) -> None:
    """Replace older files; without its manifest, half-written data does not count as prepared."""
    place = output
    try:
        (output / "manifest.json").unlink(missing_ok=True)
        remove_tokens(output / TOKENS_FOLDER)
        for name in (*SPLITS, "rejected"):
            place = output / f"{name}.jsonl"
            (staged / place.name).replace(place)
        (staged / "manifest.json").replace(output / "manifest.json")
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written: {error.strerror}; name another folder as `output`"
        ) from error


def _take_records(by_split: Splits) -> dict[Split, list[Row]]:
    return {name: [a.record for a in found] for name, found in by_split.items()}


def _summarise(rejected: list[Rejection]) -> str:
    if not rejected:
        return "the sources are empty"
    kinds = Counter(r.kind for r in rejected)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    first = rejected[0]
    return f"reasons: {counted}; the first: {first.source}:{first.line}: {first.reason}"
