"""The manifest of prepared data: what it is made of, and what became of every row."""

import datetime
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmft import __version__
from llmft.config.labels import ClassConfig, MultilabelConfig, ScoresConfig
from llmft.config.task import Split, TaskConfig
from llmft.data.labels import assign_tiers, compute_overall, list_scores
from llmft.data.reading import Rejection
from llmft.data.sources import Source
from llmft.data.splitting import SPLITS
from llmft.files import hash_file, hash_text

Record = dict[str, Any]
Dates = dict[Split, list[tuple[str, float] | None]]


def make_manifest(
    task: TaskConfig,
    sources: Sequence[Source],
    by_split: dict[Split, list[Record]],
    rejected: Sequence[Rejection],
    dates: Dates,
    num_repeated: int,
    folder: Path,
) -> dict[str, Any]:
    """Describe splits that are on disk.

    Args:
        task: The task.
        sources: Where the rows came from.
        by_split: The rows of each split.
        rejected: The rows that went into none.
        dates: Per split the dates of its rows, if the split goes by date.
        num_repeated: How many rows of train are copies of others.
        folder: Where the splits are.
    """
    hashes = {name: hash_file(folder / f"{name}.jsonl") for name in SPLITS}
    label_names = _name_outputs(task, by_split)
    counts = {name: len(rows) for name, rows in by_split.items()}
    kinds = Counter(r.reason.partition(":")[0] for r in rejected)
    return {
        "llmft_version": __version__,
        "fingerprint": hash_text("\n".join([*hashes.values(), *label_names])),
        "files": hashes,
        "task": task.model_dump(mode="json", by_alias=True),
        "sources": {source.name: source.compute_hash() for source in sources},
        "counts": {
            "input": sum(counts.values()) + len(rejected) - num_repeated,
            "repeated": num_repeated,
            **counts,
            "rejected": len(rejected),
        },
        "rejected": dict(kinds.most_common()),
        "label_names": label_names,
        "label_stats": {
            name: describe_labels(rows, task, names=label_names) for name, rows in by_split.items()
        },
        "split": {
            **task.split.model_dump(),
            "group": task.fields.group,
            "strata": _describe_strata(task),
            "ranges": {name: _describe_range(found) for name, found in dates.items()},
        },
    }


def describe_labels(
    rows: Sequence[Record], task: TaskConfig, *, names: Sequence[str]
) -> dict[str, Any]:
    """Return how often each class, label or tier occurs, or how the scores are spread."""
    labels = task.labels
    if not isinstance(labels, ScoresConfig):
        found = [row["labels"] for row in rows]
        counts = Counter(found if isinstance(labels, ClassConfig) else chain.from_iterable(found))
        return {name: counts[name] for name in names}
    scores = list_scores(rows, labels)
    described = {
        name: {
            "mean": round(float(column.mean()), 4),
            "sd": round(float(column.std()), 4),
            "median": round(float(np.median(column)), 4),
            "min": float(column.min()),
            "max": float(column.max()),
        }
        for name, column in zip(labels.dimensions, scores.T, strict=True)
    }
    if labels.tiers is None:
        return described
    tiers = np.bincount(
        assign_tiers(compute_overall(scores, labels), labels), minlength=len(labels.tiers)
    )
    return {**described, "tiers": dict(zip(labels.tiers, map(int, tiers), strict=True))}


def _name_outputs(task: TaskConfig, by_split: dict[Split, list[Record]]) -> list[str]:
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
