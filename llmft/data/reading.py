"""Turn source rows into prepared rows, and keep account of those that cannot be used."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from llmft.config.labels import ClassConfig, ScoresConfig
from llmft.config.task import FilterConfig, TaskConfig
from llmft.data.dates import read_date
from llmft.data.fields import Row, RowFaultError, as_text, assemble_text, refuse_absent_fields
from llmft.data.filters import apply_filters
from llmft.data.labels import parse_labels
from llmft.data.sources import Source, SourceRow, find_sources, read_rows
from llmft.files import hash_text


class Rejection(NamedTuple):
    """An input row that went into no split."""

    source: str
    line: int
    id: str | None
    reason: str
    """`kind: detail`."""


class Accepted(NamedTuple):
    """An input row that can be used."""

    source: Source
    line: int
    date: tuple[str, float] | None
    """Kind and value of the field that the split goes by."""
    record: Row
    """The prepared row."""

    def reject(self, reason: str) -> Rejection:
        """Return the row as one that goes into no split."""
        return Rejection(self.source.name, self.line, self.record["id"], reason)


class ReadRows(NamedTuple):
    """All rows of a task's sources."""

    accepted: list[Accepted]
    rejected: list[Rejection]
    warnings: list[str]


def read_task(
    sources: Iterable[Source], task: TaskConfig, *, date: str | None, requires_kept: bool = True
) -> ReadRows:
    """Read sources as prepared rows, filtered and checked, but neither cleaned nor split.

    Args:
        sources: What to read.
        task: What the rows have to hold.
        date: Field with the date that the split goes by.
        requires_kept: Whether fields that are merely carried along have to be there.

    Raises:
        UserError: If a source cannot be read, or a field that the task names is in no row.
    """
    accepted: list[Accepted] = []
    rejected: list[Rejection] = []
    seen: Counter[str] = Counter()
    fields: dict[Source, dict[str, None]] = {}
    for source in sources:
        found = fields.setdefault(source, {})
        for row in read_rows(source):
            found |= dict.fromkeys(row.values)
            row_id = None
            try:
                row_id = _read_id(row, task)
                apply_filters(row.values, task.filters)
                record = _make_record(row.values, task)
                moment = read_date(row.values.get(date), name=date) if date else None
            except RowFaultError as fault:
                rejected.append(Rejection(source.name, row.line, row_id, str(fault)))
                continue
            row_id = row_id or hash_text(record["text"])[:16]
            seen[row_id] += 1
            if seen[row_id] > 1:
                if task.fields.id is not None:
                    reason = f"repeated id: {row_id!r} stands in an earlier row"
                    rejected.append(Rejection(source.name, row.line, row_id, reason))
                    continue
                row_id = f"{row_id}-{seen[row_id]}"
            accepted.append(Accepted(source, row.line, moment, {"id": row_id, **record}))
    kept = task.fields.keep if requires_kept else []
    wanted = list(dict.fromkeys([*_list_named_fields(task), *kept, *([date] if date else [])]))
    everywhere = list(dict.fromkeys(name for found in fields.values() for name in found))
    refuse_absent_fields(wanted, everywhere, where=task.name)
    warnings = [
        f"{source.name}: no row has the field {name!r}"
        for source, found in fields.items()
        for name in wanted
        if found and name not in found
    ]
    return ReadRows(accepted, rejected, warnings)


def read_labelled(task: TaskConfig) -> tuple[list[Row], list[Rejection]]:
    """Read a task's sources as prepared rows, without cleaning or splitting them."""
    accepted, rejected, _ = read_task(
        find_sources(task.sources), task, date=None, requires_kept=False
    )
    return [a.record for a in accepted], rejected


def _read_id(row: SourceRow, task: TaskConfig) -> str | None:
    if row.fault is not None:
        raise RowFaultError(row.fault)
    if task.fields.id is None:
        return None
    row_id = as_text(row.values.get(task.fields.id), name=task.fields.id)
    if not row_id:
        raise RowFaultError(f"id missing: {task.fields.id}")
    return row_id


def _make_record(values: Row, task: TaskConfig) -> Row:
    fields, clean = task.fields, task.clean
    text = assemble_text(values, fields)
    if len(text) < clean.min_chars:
        raise RowFaultError(f"too short: {len(text)} characters, below {clean.min_chars}")
    if clean.max_chars is not None and len(text) > clean.max_chars:
        raise RowFaultError(f"too long: {len(text)} characters, above {clean.max_chars}")
    record: Row = {"text": text, "labels": parse_labels(values, task.labels)}
    record |= {name: as_text(values.get(name), name=name) for name in fields.carried}
    if fields.text_pair is not None and not record[fields.text_pair]:
        raise RowFaultError(f"empty text: nothing in {fields.text_pair}")
    if fields.group is not None:
        record["group"] = as_text(values.get(fields.group), name=fields.group) or None
    return record


def _list_named_fields(task: TaskConfig) -> list[str]:
    """Return the source fields that a row is made from; one that no row has is a misspelling."""
    fields, labels = task.fields, task.labels
    named = [*fields.text, *filter(None, (fields.text_pair, fields.id, fields.group))]
    named += [f.field for f in task.filters if not _may_be_absent(f)]
    match labels:
        case ScoresConfig(from_=None, dimensions=names):
            return named + names
        case ScoresConfig(from_=str(name)) | ClassConfig(from_=str(name)):
            return [*named, name]
        case _:
            return named + list(labels.from_ or [])


def _may_be_absent(condition: FilterConfig) -> bool:
    """Return whether the filter is on a field such as `error`, which good rows lack."""
    return condition.empty is True
