"""Turn a task's sources into splits in which nothing leaks, and account for every row."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.task import BalanceConfig, Split, TaskConfig
from llmft.data.balancing import plan_balance
from llmft.data.duplicates import cluster_texts
from llmft.data.fields import Row, join_pair
from llmft.data.manifest import make_manifest
from llmft.data.reading import Accepted, Rejection, read_task
from llmft.data.sources import Source, find_sources
from llmft.data.splitting import (
    SPLITS,
    assign_splits,
    assign_splits_by_date,
    find_leaks,
    merge_units,
)
from llmft.data.strata import find_gaps, list_strata, refuse_constant_labels
from llmft.data.tokenised import TOKENS_FOLDER, remove_tokens
from llmft.errors import UserError
from llmft.files import find_staged, stage_files, write_jsonl
from llmft.results.files import write_result
from llmft.results.manifest import Manifest, NearDuplicates

Splits = dict[Split, list[Accepted]]


class _Rows(NamedTuple):
    """Rows with what ties them together, all of length N."""

    accepted: list[Accepted]
    clusters: list[int]
    """Near-duplicates share a number."""
    units: list[int]
    """Near-duplicates and groups, which must not be parted, share a number."""

    def drop(self, positions: set[int] | dict[int, Any]) -> "_Rows":
        """Return the rows without some of them."""
        kept = [i for i in range(len(self.accepted)) if i not in positions]
        return _Rows(
            [self.accepted[i] for i in kept],
            [self.clusters[i] for i in kept],
            [self.units[i] for i in kept],
        )


def prepare_task(task: TaskConfig, *, report: Callable[[str], None]) -> Manifest:
    """Read, check, clean, split, balance and write a task's data.

    Args:
        task: The task.
        report: Called with a line of text after each step.

    Returns:
        The manifest, as written.

    Raises:
        UserError: If no usable row is left, or a split or class would be empty.
    """
    sources = find_sources(task.sources)
    _check_output(Path(task.output), sources)
    accepted, rejected, warnings = read_task(sources, task, date=task.split.by)
    num_input = len(accepted) + len(rejected)
    report(f"read {num_input} rows from {len(sources)} sources, {len(rejected)} of them unusable")
    if not accepted:
        raise UserError(
            f"{task.name}: none of {num_input} rows can be used; " + _summarise(rejected)
        )

    rows, near = _clean(accepted, task, rejected)
    report(
        f"{near.num_rows} rows repeat each other; dropped {near.num_dropped}"
        + (f", and {near.num_leaks} that repeat a given split" if near.num_leaks else "")
    )
    try:
        refuse_constant_labels([a.record for a in rows.accepted], task)
        by_split = _share_out(rows, task)
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
    report(", ".join(f"{name} {len(found)}" for name, found in by_split.items()) + " rows")
    for warning in warnings:
        report(f"warning: {warning}")
    return manifest


def _check_output(output: Path, sources: list[Source]) -> None:
    try:
        nearest = next(path for path in (output, *output.parents) if path.exists())
    except OSError as error:
        raise UserError(f"output: {output} cannot be used: {error.strerror}") from error
    if not nearest.is_dir():
        raise UserError(f"output: {nearest} is a file; name a folder")
    names = [f"{name}.jsonl" for name in (*SPLITS, "rejected")]
    strange = [name for name in names if (output / name).exists()]
    if strange and not (output / "manifest.json").exists() and not find_staged(output):
        raise UserError(
            f"output: {output / strange[0]} is there, but was not written by `llmft prepare`; name "
            "another folder, or move the file away"
        )
    for path in (Path(source.path) for source in sources if not source.is_hub):
        if path.resolve().parent == output.resolve() and path.stem in (*SPLITS, "rejected"):
            raise UserError(
                f"sources: {path} is what `llmft prepare` writes; choose another folder for "
                "`output`, or a glob that leaves it out"
            )


def _clean(
    accepted: list[Accepted], task: TaskConfig, rejected: list[Rejection]
) -> tuple[_Rows, NearDuplicates]:
    """Drop repeats and what would leak into a given split; return what was found."""
    texts = [join_pair(a.record, task.fields) for a in accepted]
    clusters = alike = cluster_texts(texts, threshold=task.clean.near_duplicates)
    if task.fields.text_pair is not None:  # an article with several pairs stays in one split
        articles = [a.record["text"] for a in accepted]
        alike = cluster_texts(articles, threshold=task.clean.near_duplicates)
    units = merge_units(clusters, alike, [a.record.get("group") for a in accepted])
    rows = _Rows(accepted, clusters, units)
    leaks = find_leaks(units, [a.source.split for a in accepted])
    for position, leak in leaks.items():
        twin = accepted[leak.twin].record["id"]
        reason = f"leak: repeats row {twin!r} of the given {leak.split} split, or shares its group"
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


def _find_repeats(rows: _Rows, task: TaskConfig) -> dict[int, Rejection]:
    """Return for each row to drop why it repeats an earlier one."""
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


def _share_out(rows: _Rows, task: TaskConfig) -> Splits:
    """Return the rows of each split; what a source fixes stays as it is."""
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
            f"{task.name}: {len(rows.accepted)} usable rows, of which "
            f"{len(set(rows.units))} can be parted from each other, are too few: "
            f"{' and '.join(empty)} would be empty; add rows, change the shares under `split`, "
            "look for a `group` that joins too many rows, or leave `split` away at a source"
        )
    return by_split


def _list_dates(accepted: list[Accepted], task: TaskConfig) -> list[float]:
    found = [a.date for a in accepted if a.date is not None]
    kinds = Counter(kind for kind, _ in found)
    if len(kinds) > 1:
        raise UserError(
            f"{task.name}: split.by: {task.split.by} holds {kinds['date']} dates and "
            f"{kinds['number']} plain numbers, which cannot be put in one order; mend the data"
        )
    return [value for _, value in found]


def _balance(by_split: Splits, task: TaskConfig, rejected: list[Rejection]) -> int:
    """Balance train in place; return how many rows stand in it once more."""
    train = by_split["train"]
    if task.balance == BalanceConfig():
        return 0
    classes = list_strata([a.record for a in train], task)
    plan = plan_balance(classes, config=task.balance, seed=task.split.seed)
    rejected += [
        train[i].reject("balanced: left out of the majority") for i in sorted(plan.left_out)
    ]
    ids = {a.record["id"] for found in by_split.values() for a in found}
    numbers: defaultdict[int, Iterator[int]] = defaultdict(lambda: itertools.count(2))
    repeated = []
    for position in plan.repeated:
        row = train[position]
        names = (f"{row.record['id']}+{number}" for number in numbers[position])
        row_id = next(name for name in names if name not in ids)
        repeated.append(row._replace(record={**row.record, "id": row_id}))
    kept = [row for i, row in enumerate(train) if i not in plan.left_out]
    by_split["train"] = kept + repeated
    return len(repeated)


def _put_in_place(staged: Path, output: Path) -> None:
    """Move the files over older ones; in between there is no manifest, so no prepared data."""
    place = output
    try:
        (output / "manifest.json").unlink(missing_ok=True)
        remove_tokens(output / TOKENS_FOLDER)
        for name in (*SPLITS, "rejected"):
            place = output / f"{name}.jsonl"
            (staged / place.name).replace(place)
        (staged / "manifest.json").replace(output / "manifest.json")
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror}") from error


def _take_records(by_split: Splits) -> dict[Split, list[Row]]:
    return {name: [a.record for a in found] for name, found in by_split.items()}


def _summarise(rejected: list[Rejection]) -> str:
    if not rejected:
        return "the sources are empty"
    kinds = Counter(r.reason.partition(":")[0] for r in rejected)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    first = rejected[0]
    return f"reasons: {counted}; the first: {first.source}:{first.line}: {first.reason}"
