"""From source rows to prepared rows: ids, dates, filters, labels, and reasons of rejection."""

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from llmft.config.task import (
    ClassConfig,
    FilterConfig,
    MultilabelConfig,
    ScoresConfig,
    Task,
    name_class,
    write_value,
)
from llmft.data.fields import (
    Row,
    RowFaultError,
    as_text,
    assemble_text,
    has_decimal_comma,
    is_missing,
    read_number,
    require_fields,
)
from llmft.data.labels import parse_labels
from llmft.data.sources import Source, SourceRow, find_sources, looks_like_data, read_rows
from llmft.errors import UserError
from llmft.files import hash_text

_DATE = re.compile(r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[ T]+(\d{1,2})(?=:))?(?!\d)")
"""A date that begins with the year, its numbers padded or not."""


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
    padded = _DATE.sub(_pad_date, text)
    for read in (datetime.datetime.fromisoformat, parsedate_to_datetime):
        try:
            return "date", _count_seconds(read(padded.replace("/", "-")))
        except (ValueError, TypeError, OverflowError):
            continue
    raise RowFaultError(
        f"not a date: {name} holds {text[:80]!r}; a date begins with the year (2024-01-31), or is "
        "written as in e-mail headers (31 Jan 2024)"
    )


def _pad_date(found: re.Match[str]) -> str:
    year, month, day, hour = found.groups()
    return f"{year}-{month:0>2}-{day:0>2}" + (f" {hour:0>2}" if hour else "")


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
    if number is None and text:
        comma = ", with a decimal comma" if has_decimal_comma(text) else ""
        raise RowFaultError(f"not a number: {condition.field} holds {text[:80]!r}{comma}")
    if number is None:
        return "it is empty"
    if condition.min is not None and number < condition.min:
        return f"{number:g} is below {condition.min:g}"
    if condition.max is not None and number > condition.max:
        return f"{number:g} is above {condition.max:g}"
    return None


def _check_text(text: str, condition: FilterConfig) -> str | None:
    if condition.in_ is not None and name_class(text) not in map(name_class, condition.in_):
        return f"{text[:80]!r} is not in the list"
    if condition.not_in is not None and name_class(text) in map(name_class, condition.not_in):
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
    number = read_number(text)
    return None if number is None or math.isinf(number) else number


_WANTED_REASONS = ("filtered by", "too short", "too long", "excluded class", "repeated row")
"""Kinds of rejections that the task asks for."""
_MIN_SOURCE_ROWS = 20


class Rejection(NamedTuple):
    """A source row that is in no split."""

    source: str
    line: int
    id: str | None
    reason: str
    """`kind: detail`."""

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]


def is_asked_for(kind: str) -> bool:
    """Return whether the task asks for this kind of rejection, as by a filter."""
    return kind.startswith(_WANTED_REASONS)


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
    sources: Iterable[Source], task: Task, *, for_evaluation: bool = False
) -> TaskRows:
    """Read sources as prepared rows, filtered and checked, but neither cleaned nor split.

    Args:
        sources: What to read.
        task: The task, with fields, filters and labels.
        for_evaluation: Whether they are read for a model of the task, which exists already: nothing
            is split by date, the fields in `fields.keep` may be missing, and a row whose class or
            label the task does not list is accepted, so that it can count as wrong (D24).

    Raises:
        UserError: If a source cannot be read, or a field that the task names is in no row.
    """
    date = None if for_evaluation else task.split.by
    accepted: list[UsableRow] = []
    rejected: list[Rejection] = []
    seen: dict[str, UsableRow] = {}
    copies: Counter[str] = Counter()
    renamed: Counter[tuple[str, str]] = Counter()
    fields: dict[Source, dict[str, None]] = {}
    for source in sources:
        found = fields.setdefault(source, {})
        for row in read_rows(source):
            found |= dict.fromkeys(row.values)
            row_id = None
            try:
                row_id = _read_id(row, task)
                apply_filters(row.values, task.filters)
                record = _make_record(row.values, task, accepts_unknown=for_evaluation)
                moment = read_date(row.values.get(date), name=date) if date else None
            except RowFaultError as fault:
                rejected.append(Rejection(source.name, row.line, row_id, str(fault)))
                continue
            usable = UsableRow(source, row.line, moment, {"id": row_id, **record})
            other = _set_id(usable, seen, copies)
            if isinstance(other, str):
                rejected.append(Rejection(source.name, row.line, row_id, other))
                continue
            if other is not None:
                renamed[source.name, other.source.name] += 1
            accepted.append(usable)
    kept = [] if for_evaluation else task.fields.keep
    wanted = list(dict.fromkeys([*_list_named_fields(task), *kept, *([date] if date else [])]))
    everywhere = list(dict.fromkeys(name for found in fields.values() for name in found))
    try:
        require_fields(wanted, everywhere, where=task.name)
    except UserError as error:
        nameless = [
            source.name
            for source, found in fields.items()
            if source.is_csv and source.columns is None and looks_like_data(found)
        ]
        if nameless:
            raise UserError(
                f"{error}. The first line of {nameless[0]} looks like a row, not like a header: "
                "name its columns with `columns: [...]` in its source"
            ) from error
        raise
    warnings = [
        f"{source.name}: no row has the field {name!r}"
        for source, found in fields.items()
        for name in wanted
        if found and name not in found
    ]
    warnings += [
        f"{source}: ids that {other} has too, with other texts: {count}; their rows are prepared "
        f"as '{_name_file(source)}:ID'"
        for (source, other), count in renamed.items()
    ]
    return TaskRows(accepted, rejected, warnings)


def _set_id(
    row: UsableRow, seen: dict[str, UsableRow], copies: Counter[str]
) -> UsableRow | str | None:
    """Make the id of a row unique, in place, and note the row in `seen`.

    Files that number their rows each from 0 have equal ids for different texts, so the id of a
    later file gets the file's name.

    Args:
        row: The row.
        seen: Id -> row, of all rows so far.
        copies: Hash of a text without an id -> number of rows, counted here.

    Returns:
        The row of another source that has its id; or why the row cannot be used.
    """
    record = row.record
    if record["id"] is None:
        base = hash_text(record["text"])[:16]
        copies[base] += 1
        record["id"] = base if copies[base] == 1 else f"{base}-{copies[base]}"
    other = seen.get(record["id"])
    is_elsewhere = other is not None and other.source.name != row.source.name
    if other is not None and is_elsewhere and _drop_labels(other) != _drop_labels(row):
        for prefix in (_name_file(row.source.name), row.source.name):
            if f"{prefix}:{record['id']}" not in seen:
                record["id"] = f"{prefix}:{record['id']}"
                seen[record["id"]] = row
                return other
    if other is not None:
        kind = "row" if other.record == record else "id"
        return f"repeated {kind}: an earlier row has {record['id']!r}"
    seen[record["id"]] = row
    return None


def _drop_labels(row: UsableRow) -> Row:
    """Return a prepared row without its labels."""
    return {name: value for name, value in row.record.items() if name != "labels"}


def _name_file(source: str) -> str:
    return source.rpartition("/")[2]


def refuse_systematic_faults(
    accepted: Sequence[UsableRow], rejected: Sequence[Rejection], *, most: float
) -> None:
    """Refuse a source in which too many rows are rejected for one reason that nobody asked for.

    A date format or a wrong column rejects rows by the hundred, and the rest is a selection (D24).

    Args:
        accepted: The usable rows.
        rejected: The others.
        most: Largest fraction of the rows of a source.

    Raises:
        UserError: With the reason, the first of these rows, and how to allow it.
    """
    sizes = Counter(row.source.name for row in accepted) + Counter(r.source for r in rejected)
    counts: dict[tuple[str, str], list[Rejection]] = {}
    for rejection in rejected:
        if not is_asked_for(rejection.kind):
            counts.setdefault((rejection.source, rejection.kind), []).append(rejection)
    for (source, kind), found in counts.items():
        num_rows = sizes[source]
        if num_rows >= _MIN_SOURCE_ROWS and len(found) > most * num_rows:
            share = len(found) / num_rows
            raise UserError(
                f"{source}: {len(found)} of {num_rows} rows cannot be used for one reason: {kind} "
                f"(line {found[0].line}: {found[0].reason}); mend the data or the task, or allow "
                f"it with `max_rejected: {math.ceil(100 * share) / 100:g}` in the task"
            )


def read_labelled(task: Task) -> tuple[list[Row], list[Rejection]]:
    """Read a task's sources for a model of the task, without cleaning or splitting them."""
    accepted, rejected, _ = read_task_rows(find_sources(task.sources), task, for_evaluation=True)
    return [a.record for a in accepted], rejected


def _read_id(row: SourceRow, task: Task) -> str | None:
    if row.fault is not None:
        raise RowFaultError(row.fault)
    if task.fields.id is None:
        return None
    row_id = name_class(as_text(row.values.get(task.fields.id), name=task.fields.id))
    if not row_id:
        raise RowFaultError(f"id missing: {task.fields.id}")
    return row_id


def _make_record(values: Row, task: Task, *, accepts_unknown: bool) -> Row:
    fields, clean = task.fields, task.clean
    text = assemble_text(values, fields)
    if len(text) < clean.min_chars:
        raise RowFaultError(f"too short: {len(text)} characters, below {clean.min_chars}")
    if clean.max_chars is not None and len(text) > clean.max_chars:
        raise RowFaultError(f"too long: {len(text)} characters, above {clean.max_chars}")
    labels = parse_labels(values, task.labels, accepts_unknown=accepts_unknown)
    record: Row = {"text": text, "labels": labels}
    record |= {name: as_text(values.get(name), name=name) for name in fields.carried}
    if fields.text_pair is not None and not record[fields.text_pair]:
        raise RowFaultError(f"empty text: nothing in {fields.text_pair}")
    if fields.group is not None:
        record["group"] = name_class(as_text(values.get(fields.group), name=fields.group)) or None
    return record


def _list_named_fields(task: Task) -> list[str]:
    """Return the source fields that a task uses; one that no row has is a misspelling."""
    fields, labels = task.fields, task.labels
    named = [*fields.text, *filter(None, (fields.text_pair, fields.id, fields.group))]
    named += [f.field for f in task.filters if not _may_be_absent(f)]
    match labels:
        case ScoresConfig(from_=None, dimensions=names):
            return named + names
        case (
            ScoresConfig(from_=str(name))
            | ClassConfig(from_=str(name))
            | MultilabelConfig(from_=str(name))
        ):
            return [*named, name]
        case _:
            return named + list(labels.from_ or [])


def _may_be_absent(condition: FilterConfig) -> bool:
    """Return whether the filter is on a field such as `error`, which good rows lack."""
    return condition.empty is True
