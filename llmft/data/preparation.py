"""Turn a task's sources into splits in which nothing leaks, and account for every row."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmft import __version__
from llmft.config.task import ClassConfig, ScoresConfig, TaskConfig
from llmft.data.duplicates import cluster_texts
from llmft.data.files import hash_file, hash_text, write_json, write_jsonl
from llmft.data.labels import parse_class, parse_scores
from llmft.data.sources import (
    RowFaultError,
    SourceRow,
    as_text,
    assemble_text,
    find_files,
    read_rows,
    refuse_absent_fields,
)
from llmft.data.splitting import SPLITS, assign_splits, bin_scores, merge_units
from llmft.errors import UserError

Labels = dict[str, float] | str


class Rejection(NamedTuple):
    """An input row that went into no split."""

    source: str
    line: int
    id: str | None
    reason: str
    """`kind: detail`."""


class _Accepted(NamedTuple):
    row: SourceRow
    record: dict[str, Any]


def prepare_task(task: TaskConfig, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Read, check, clean, split and write a task's data.

    Args:
        task: The task.
        report: Called with a line of text after each step.

    Returns:
        The manifest, as written.

    Raises:
        UserError: If no usable row is left, or a split would be empty.
    """
    files = find_files(task.sources)
    _check_output(Path(task.output), files)
    accepted, rejected = _read(files, task)
    num_input = len(accepted) + len(rejected)
    report(f"read {num_input} rows from {len(files)} files, {len(rejected)} of them unusable")
    if not accepted:
        raise UserError(
            f"{task.name}: none of {num_input} rows can be used; " + _summarise(rejected)
        )

    refuse_absent_fields(task.fields, (a.row.values for a in accepted), where=task.name)
    texts = [a.record["text"] for a in accepted]
    clusters = cluster_texts(texts, threshold=task.clean.near_duplicates)
    repeats = _find_repeats(accepted, clusters, task.clean.drop)
    near = {
        "threshold": task.clean.near_duplicates,
        "num_clusters": sum(1 for n in Counter(clusters).values() if n > 1),
        "num_rows": sum(n for n in Counter(clusters).values() if n > 1),
        "num_dropped": len(repeats),
    }
    rejected += repeats.values()
    clusters = [c for i, c in enumerate(clusters) if i not in repeats]
    accepted = [a for i, a in enumerate(accepted) if i not in repeats]
    report(f"{near['num_rows']} rows repeat each other; dropped {len(repeats)}")

    if isinstance(task.labels, ClassConfig) and len({a.record["labels"] for a in accepted}) == 1:
        raise UserError(
            f"{task.name}: all {len(accepted)} usable rows are of the class "
            f"{accepted[0].record['labels']!r}; there is nothing to learn"
        )
    splits = _split([a.record for a in accepted], clusters, task)
    by_split = {
        name: [a.record for a, s in zip(accepted, splits, strict=True) if s == name]
        for name in SPLITS
    }
    empty = [name for name, rows in by_split.items() if not rows]
    if empty:
        raise UserError(
            f"{task.name}: {len(accepted)} usable rows are too few, {' and '.join(empty)} would be "
            "empty; add rows, change the shares under `split`, or look for a `group` that joins "
            "too many rows"
        )
    manifest = _write(Path(task.output), task, files, by_split, rejected)
    manifest["near_duplicates"] = near
    write_json(Path(task.output) / "manifest.json", manifest)
    report(", ".join(f"{name} {len(rows)}" for name, rows in by_split.items()) + " rows")
    return manifest


def _check_output(output: Path, files: list[Path]) -> None:
    try:
        nearest = next(path for path in (output, *output.parents) if path.exists())
    except OSError as error:
        raise UserError(f"output: {output} cannot be used: {error.strerror}") from error
    if not nearest.is_dir():
        raise UserError(f"output: {nearest} is a file; name a folder")
    for path in files:
        if path.resolve().parent == output.resolve() and path.stem in (*SPLITS, "rejected"):
            raise UserError(
                f"sources: {path} is what `llmft prepare` writes; choose another folder for "
                "`output`, or a glob that leaves it out"
            )


def read_labelled(task: TaskConfig) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Read a task's sources as prepared rows, without cleaning or splitting them."""
    accepted, rejected = _read(find_files(task.sources), task)
    return [a.record for a in accepted], rejected


def _read(files: Iterable[Path], task: TaskConfig) -> tuple[list[_Accepted], list[Rejection]]:
    accepted: list[_Accepted] = []
    rejected: list[Rejection] = []
    seen: Counter[str] = Counter()
    for path in files:
        for row in read_rows(path):
            row_id = None
            try:
                row_id = _read_id(row, task)
                record = _make_record(row, task)
            except RowFaultError as fault:
                rejected.append(Rejection(row.source, row.line, row_id, str(fault)))
                continue
            row_id = row_id or hash_text(record["text"])[:16]
            seen[row_id] += 1
            if seen[row_id] > 1:
                if task.fields.id is not None:
                    reason = f"repeated id: {row_id!r} stands in an earlier row"
                    rejected.append(Rejection(row.source, row.line, row_id, reason))
                    continue
                row_id = f"{row_id}-{seen[row_id]}"
            accepted.append(_Accepted(row, {"id": row_id, **record}))
    return accepted, rejected


def _read_id(row: SourceRow, task: TaskConfig) -> str | None:
    if row.fault is not None:
        raise RowFaultError(row.fault)
    if task.fields.id is None:
        return None
    row_id = as_text(row.values.get(task.fields.id), name=task.fields.id)
    if not row_id:
        raise RowFaultError(f"id missing: {task.fields.id}")
    return row_id


def _make_record(row: SourceRow, task: TaskConfig) -> dict[str, Any]:
    fields, labels = task.fields, task.labels
    record: dict[str, Any] = {"text": assemble_text(row.values, fields)}
    match labels:
        case ScoresConfig():
            record["labels"] = parse_scores(row.values, labels)
        case ClassConfig():
            record["labels"] = parse_class(row.values, labels)
    for name in (*fields.text, *fields.keep):
        if name not in ("id", "text", "labels", "group"):
            record[name] = as_text(row.values.get(name), name=name)
    if fields.group is not None:
        record["group"] = as_text(row.values.get(fields.group), name=fields.group) or None
    return record


def _find_repeats(
    accepted: list[_Accepted], clusters: list[int], drop: str
) -> dict[int, Rejection]:
    """Return for each row to drop why it repeats an earlier one."""
    if drop == "none":
        return {}
    texts = [a.record["text"] for a in accepted]
    keys: list[Any] = clusters if drop == "near" else texts
    first: dict[Any, int] = {}
    repeats = {}
    for index, key in enumerate(keys):
        kept = first.setdefault(key, index)
        if kept != index:
            kind = "same text" if texts[kept] == texts[index] else "near-duplicate"
            row, record = accepted[index]
            reason = f"{kind}: as in row {accepted[kept].record['id']!r}"
            repeats[index] = Rejection(row.source, row.line, record["id"], reason)
    return repeats


def _split(records: list[dict[str, Any]], clusters: list[int], task: TaskConfig) -> list[str]:
    units = merge_units(clusters, [r.get("group") for r in records])
    labels = [r["labels"] for r in records]
    strata: list[Any] = labels
    if isinstance(task.labels, ScoresConfig):
        strata = list(bin_scores(np.array([np.mean(list(v.values())) for v in labels])))
    return assign_splits(units, strata=strata, config=task.split)


def _write(
    output: Path,
    task: TaskConfig,
    files: list[Path],
    by_split: dict[str, list[dict[str, Any]]],
    rejected: list[Rejection],
) -> dict[str, Any]:
    """Write rows and rejections; return the manifest, which is to be written last."""
    try:
        (output / "manifest.json").unlink(missing_ok=True)  # no manifest, no prepared data
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error
    for name, rows in by_split.items():
        write_jsonl(output / f"{name}.jsonl", rows)
    write_jsonl(output / "rejected.jsonl", (r._asdict() for r in rejected))
    hashes = {name: hash_file(output / f"{name}.jsonl") for name in SPLITS}
    counts = {name: len(rows) for name, rows in by_split.items()}
    kinds = Counter(r.reason.partition(":")[0] for r in rejected)
    classes = None
    if isinstance(task.labels, ClassConfig):
        found = {row["labels"] for rows in by_split.values() for row in rows}
        named = list(dict.fromkeys(task.labels.map.values())) if task.labels.map else sorted(found)
        classes = [name for name in named if name in found]
    return {
        "llmft_version": __version__,
        "fingerprint": hash_text("\n".join([*hashes.values(), *_name_outputs(task, classes)])),
        "files": hashes,
        "task": task.model_dump(mode="json", by_alias=True),
        "sources": {str(path): hash_file(path) for path in files},
        "counts": {"input": sum(counts.values()) + len(rejected), **counts}
        | {"rejected": len(rejected)},
        "rejected": dict(kinds.most_common()),
        "classes": classes,
        "label_stats": {name: _describe_labels(rows) for name, rows in by_split.items()},
        "split": {
            **task.split.model_dump(),
            "group": task.fields.group,
            "by": "class" if classes else "quantile of the mean score",
        },
    }


def _name_outputs(task: TaskConfig, classes: list[str] | None) -> list[str]:
    """Return what a model's outputs stand for, in order: part of what the data is."""
    match task.labels:
        case ScoresConfig(dimensions=names):
            return names
        case ClassConfig():
            return classes or []


def _describe_labels(rows: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], str):
        return dict(sorted(Counter(labels).items()))
    described = {}
    for name in labels[0]:
        scores = np.array([label[name] for label in labels])
        described[name] = {
            "mean": round(float(scores.mean()), 4),
            "sd": round(float(scores.std()), 4),
            "median": round(float(np.median(scores)), 4),
            "min": float(scores.min()),
            "max": float(scores.max()),
        }
    return described


def _summarise(rejected: list[Rejection]) -> str:
    if not rejected:
        return "the sources are empty"
    kinds = Counter(r.reason.partition(":")[0] for r in rejected)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    first = rejected[0]
    return f"reasons: {counted}; the first: {first.source}:{first.line}: {first.reason}"
