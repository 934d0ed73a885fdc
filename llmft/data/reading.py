"""From source rows to prepared rows: ids, dates, filters, labels, and reasons of rejection."""

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from llmft.config.task import ClassConfig, FilterConfig, ScoresConfig, Task
from llmft.data.fields import (
    Row,
    RowFaultError,
    as_text,
    assemble_text,
    is_missing,
    require_fields,
    write_value,
)
from llmft.data.labels import parse_labels
from llmft.data.sources import Source, SourceRow, find_sources, read_rows
from llmft.files import hash_text


def read_date(value: Any, *, name: str) -> tuple[str, float]:
    """Return "date" and seconds since 1970, or "number" and the number, such as a year.

    ISO 8601 and the dates of mails and feeds are read; without a time zone they are UTC.

    Raises:
        RowFaultError: If it is neither.
    """
    text = value.isoformat() if isinstance(value, datetime.date) else as_text(value, name=name)
    if not text:
        raise RowFaultError(f"date missing: {name}")
    number = _as_number(text)
    if number is not None:
        return "number", number
    for read in (datetime.datetime.fromisoformat, parsedate_to_datetime):
        try:
            return "date", _count_seconds(read(text.replace("/", "-")))
        except (ValueError, TypeError, OverflowError):
            continue
    raise RowFaultError(
        f"not a date: {name} holds {text[:80]!r}; a date begins with the year (2024-01-31), or is "
        "written as in e-mail headers (31 Jan 2024)"
    )


def _count_seconds(moment: datetime.datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).timestamp()  # an error outside of the years 1 to 9999


def apply_filters(values: Row, filters: Sequence[FilterConfig]) -> None:
    """Check a source row against every filter.

    Raises:
        RowFaultError: Naming the first filter that excludes the row.
    """
    for condition in filters:
        reason = _find_reason(values.get(condition.field), condition)
        if reason is not None:
            raise RowFaultError(f"filtered by {condition.field}: {reason}")


def _find_reason(value: Any, condition: FilterConfig) -> str | None:
    text = _as_text(value, name=condition.field)
    reasons = [
        _check_presence(text, condition),
        _check_number(text, condition),
        _check_text(text, condition),
    ]
    return next(filter(None, reasons), None)


def _check_presence(text: str, condition: FilterConfig) -> str | None:
    if condition.empty in (None, text == ""):
        return None
    return f"it is not empty, but {text[:80]!r}" if text else "it is empty"


def _check_number(text: str, condition: FilterConfig) -> str | None:
    if condition.min is None and condition.max is None:
        return None
    number = _as_number(text)
    if number is None:
        return f"{text[:80]!r} is not a number" if text else "it is empty"
    if condition.min is not None and number < condition.min:
        return f"{number:g} is below {condition.min:g}"
    if condition.max is not None and number > condition.max:
        return f"{number:g} is above {condition.max:g}"
    return None


def _check_text(text: str, condition: FilterConfig) -> str | None:
    if condition.in_ is not None and text not in map(write_value, condition.in_):
        return f"{text[:80]!r} is not in the list"
    if condition.not_in is not None and text in map(write_value, condition.not_in):
        return f"{text[:80]!r} is in not_in"
    if condition.matches is not None and not re.search(condition.matches, text):
        return f"no match of {condition.matches!r}"
    if condition.not_matches is not None and re.search(condition.not_matches, text):
        return f"a match of {condition.not_matches!r}"
    return None


def _as_text(value: Any, *, name: str) -> str:
    if is_missing(value) or value in ([], {}):
        return ""
    return as_text(value if isinstance(value, bytes) else write_value(value), name=name)


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Rejection(NamedTuple):
    """A source row that is in no split."""

    source: str
    line: int
    id: str | None
    reason: str
    """`kind: detail`."""


class UsableRow(NamedTuple):
    """A source row that can be used, as a prepared row."""

    source: Source
    line: int
    date: tuple[str, float] | None
    """Kind and value of the field in `split.by`."""
    record: Row
    """The prepared row."""

    def reject(self, reason: str) -> Rejection:
        """Return the rejection of the row."""
        return Rejection(self.source.name, self.line, self.record["id"], reason)


class TaskRows(NamedTuple):
    """All rows of a task's sources."""

    accepted: list[UsableRow]
    rejected: list[Rejection]
    warnings: list[str]


def read_task_rows(
    sources: Iterable[Source], task: Task, *, date: str | None, requires_kept: bool = True
) -> TaskRows:
    """Read sources as prepared rows, filtered and checked, but neither cleaned nor split.

    Args:
        sources: What to read.
        task: The task, with fields, filters and labels.
        date: Field with the date that rows are split by.
        requires_kept: Whether the fields in `fields.keep` are required.

    Raises:
        UserError: If a source cannot be read, or a field that the task names is in no row.
    """
    accepted: list[UsableRow] = []
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
                    reason = f"repeated id: an earlier row has {row_id!r}"
                    rejected.append(Rejection(source.name, row.line, row_id, reason))
                    continue
                row_id = f"{row_id}-{seen[row_id]}"
            accepted.append(UsableRow(source, row.line, moment, {"id": row_id, **record}))
    kept = task.fields.keep if requires_kept else []
    wanted = list(dict.fromkeys([*_list_named_fields(task), *kept, *([date] if date else [])]))
    everywhere = list(dict.fromkeys(name for found in fields.values() for name in found))
    require_fields(wanted, everywhere, where=task.name)
    warnings = [
        f"{source.name}: no row has the field {name!r}"
        for source, found in fields.items()
        for name in wanted
        if found and name not in found
    ]
    return TaskRows(accepted, rejected, warnings)


def read_labelled(task: Task) -> tuple[list[Row], list[Rejection]]:
    """Read a task's sources as prepared rows, without cleaning or splitting them."""
    accepted, rejected, _ = read_task_rows(
        find_sources(task.sources), task, date=None, requires_kept=False
    )
    return [a.record for a in accepted], rejected


def _read_id(row: SourceRow, task: Task) -> str | None:
    if row.fault is not None:
        raise RowFaultError(row.fault)
    if task.fields.id is None:
        return None
    row_id = as_text(row.values.get(task.fields.id), name=task.fields.id)
    if not row_id:
        raise RowFaultError(f"id missing: {task.fields.id}")
    return row_id


def _make_record(values: Row, task: Task) -> Row:
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


def _list_named_fields(task: Task) -> list[str]:
    """Return the source fields that a task uses; one that no row has is a misspelling."""
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
