"""Read rows from files, one at a time, each with the line that it stood on."""

import csv
import difflib
import glob
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmft.config.task import FieldsConfig, SourceConfig
from llmft.errors import UserError

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a long article is no error


class SourceRow(NamedTuple):
    """One row as it was found."""

    source: str
    """Path of the file."""
    line: int
    """Line on which the row starts, counted from 1."""
    values: dict[str, Any]
    """Empty if the row is broken."""
    fault: str | None
    """Why the row cannot be used, or None."""


class RowFaultError(ValueError):
    """A row that cannot be used; the message is `kind: detail`."""


def find_files(sources: list[SourceConfig]) -> list[Path]:
    """Return the files of all sources, each once, in a stable order.

    Raises:
        UserError: If a glob matches nothing or a file has an unknown ending.
    """
    paths: dict[Path, None] = {}
    for source in sources:
        matches = sorted(glob.glob(source.path, recursive=True))  # noqa: PTH207 - absolute globs
        if not matches:  # a name may hold brackets that are no glob
            matches = glob.glob(glob.escape(source.path))  # noqa: PTH207
        if not matches:
            raise UserError(
                f"sources: {source.path!r} matches no file below {Path.cwd()}; mend the path, "
                "which is relative to the folder that the command runs in"
            )
        for match in matches:
            path = Path(match)
            if path.suffix not in (".jsonl", ".csv"):
                raise UserError(f"sources: {path}: unknown ending; allowed: .jsonl, .csv")
            if not path.is_file():
                raise UserError(f"sources: {path}: is no file; name the files in it, or a glob")
            paths[path] = None
    return list(paths)


def read_rows(path: Path) -> Iterator[SourceRow]:
    """Read a .jsonl or .csv file.

    Raises:
        UserError: If the file cannot be read or is not UTF-8.
    """
    reader = _read_csv if path.suffix == ".csv" else _read_jsonl
    try:
        with path.open("rb") as probe:
            _check_encoding(probe, path)
        yield from reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def assemble_text(values: dict[str, Any], fields: FieldsConfig) -> str:
    """Join the text fields of a row by a blank line.

    A row that lacks all of them but has a prepared `text` gives that.

    Raises:
        RowFaultError: If a field is no text, or nothing is left.
    """
    names = fields.text
    if "text" in values and not any(name in values for name in names):
        names = ["text"]
    parts = [as_text(values.get(name), name=name) for name in names]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise RowFaultError(f"empty text: nothing in {', '.join(names)}")
    return text


def refuse_absent_fields(
    fields: FieldsConfig, rows: Iterable[dict[str, Any]], *, where: str, prepared: bool = False
) -> None:
    """Stop if a field that is named stands in no row at all: it is most likely misspelt.

    Args:
        fields: The fields.
        rows: Rows as they were found.
        where: What the message begins with.
        prepared: Whether rows may hold a prepared `text` in place of the text fields.

    Raises:
        UserError: Naming the first such field, and the fields that there are.
    """
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
    wanted = [] if prepared and "text" in found else list(fields.text)
    if not prepared:
        wanted += [*fields.keep, *([fields.group] if fields.group else [])]
    for name in wanted:
        if found and name not in found:
            near = difflib.get_close_matches(name, list(found), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(
                f"{where}: no row has the field {name!r}.{hint} Fields found: {', '.join(found)}"
            )


def as_text(value: Any, *, name: str) -> str:
    """Return a field's value as stripped text.

    Raises:
        RowFaultError: If the value is a list or object, or not valid Unicode text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # as tables say it
        return ""
    if isinstance(value, bytes):
        raise RowFaultError(f"not text: {name} holds bytes")
    if isinstance(value, dict | list):
        raise RowFaultError(f"not text: {name} holds a {type(value).__name__}")
    text = str(value).strip()
    if "\0" in text:
        raise RowFaultError(f"not text: {name} holds NUL bytes")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFaultError(f"not text: {name} holds half a surrogate pair") from error
    return text


def _check_encoding(file: Any, path: Path) -> None:
    for number, line in enumerate(file, start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number}: not UTF-8 (byte {line[error.start]:#04x} at column "
                f"{error.start + 1}; the file may be Latin-1); convert it to UTF-8, for example "
                f"with `iconv -f latin1 -t utf-8`"
            ) from error


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield SourceRow(str(path), number, {}, f"broken JSON: {error}")
                continue
            if isinstance(values, dict):
                yield SourceRow(str(path), number, values, None)
            else:
                found = type(values).__name__
                yield SourceRow(
                    str(path), number, {}, f"broken JSON: expected an object, found a {found}"
                )


def _read_csv(path: Path) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        start = 1
        try:
            header = next(reader, [])
            _check_header(header, path)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    fault = None
                    if len(cells) != len(header):
                        fault = f"broken CSV: {len(cells)} cells, the header has {len(header)}"
                    values = {} if fault else dict(zip(header, cells, strict=True))
                    yield SourceRow(str(path), start, values, fault)
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}:{start}: not valid CSV: {error}; mend the quotes of this row, since what "
                "follows cannot be told apart"
            ) from error


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise UserError(f"{path}:1: no header; the first line of a CSV names its columns")
    if len(set(header)) < len(header):
        raise UserError(f"{path}:1: a column stands twice in the header; rename one")
