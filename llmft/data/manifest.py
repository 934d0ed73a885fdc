"""The manifest of prepared data: what it is made of, and what became of every row."""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from llmft.config.labels import ClassConfig, MultilabelConfig, ScoresConfig
from llmft.config.task import Split, TaskConfig
from llmft.data.fields import Row
from llmft.data.labels import assign_tiers, compute_overall, list_scores
from llmft.data.reading import Accepted, Rejection
from llmft.data.sources import Source
from llmft.data.splitting import SPLITS
from llmft.files import hash_file, hash_text
from llmft.results.manifest import LabelStats, Manifest, NearDuplicates, ScoreStats, SplitSummary


def make_manifest(
    task: TaskConfig,
    sources: Sequence[Source],
    by_split: Mapping[Split, Sequence[Accepted]],
    rejected: Sequence[Rejection],
    *,
    num_repeated: int,
    near_duplicates: NearDuplicates,
    warnings: list[str],
    folder: Path,
) -> Manifest:
    """Describe splits that are on disk.

    Args:
        task: The task.
        sources: Where the rows came from.
        by_split: The rows of each split.
        rejected: The rows that went into none.
        num_repeated: How many rows of train are copies of others.
        near_duplicates: What was found of them.
        warnings: What a person ought to look at.
        folder: Where the splits are.
    """
    hashes = {name: hash_file(folder / f"{name}.jsonl") for name in SPLITS}
    records = {name: [row.record for row in rows] for name, rows in by_split.items()}
    label_names = _name_outputs(task, records)
    counts: dict[str, int] = {name: len(rows) for name, rows in records.items()}
    kinds = Counter(r.reason.partition(":")[0] for r in rejected)
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
            name: describe_labels(rows, task, names=label_names) for name, rows in records.items()
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


def describe_labels(rows: Sequence[Row], task: TaskConfig, *, names: Sequence[str]) -> LabelStats:
    """Return how often each class, label or tier occurs, or how the scores are spread."""
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


def _name_outputs(task: TaskConfig, by_split: dict[Split, list[Row]]) -> list[str]:
    """Return what a model's outputs stand for, in order: part of what the data is."""
    match task.labels:
        case ScoresConfig(dimensions=names):
            return list(names)
        case MultilabelConfig(names=names):
            return list(names)
        case ClassConfig(order=order, map=mapped):
            found = {row["labels"] for rows in by_split.values() for row in rows}
            named = order or [*dict.fromkeys((mapped or {}).values()), *sorted(found)]
            return [name for name in dict.fromkeys(named) if name in found]


def _describe_strata(task: TaskConfig) -> str:
    if task.split.by is not None:
        return f"none, since the split goes by {task.split.by}"
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
    """Return the first and the last date; None if the split does not go by date."""
    known = sorted(date for date in dates if date is not None)
    if not known:
        return None
    return [_write_date(*known[0]), _write_date(*known[-1])]


def _write_date(kind: str, value: float) -> str:
    if kind == "number":
        return f"{value:g}"
    return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat()
