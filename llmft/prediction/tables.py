"""Input and output tables of predict: JSONL, CSV or Parquet by their ending."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.data.columnar import Skips
from llmft.data.fields import Row
from llmft.data.sources import Source, read_rows
from llmft.errors import UserError
from llmft.files import replace_file

_ENDINGS = (".jsonl", ".csv", ".parquet")


class Layout(NamedTuple):
    """The columns of an output."""

    fields: list[str]
    """Columns of the input."""
    types: pa.Schema | None
    """Their types; only Parquet needs them."""
    added: pa.Schema
    """Names and types of the prediction columns, which stand behind them."""


def check_ending(path: Path, *, option: str) -> None:
    """Refuse a file name that tells no format.

    Raises:
        UserError: If the ending is none of .jsonl, .csv and .parquet.
    """
    if path.suffix not in _ENDINGS:
        raise UserError(f"{option}: {path}: unknown ending; allowed: {', '.join(_ENDINGS)}")


def read_input(path: Path, *, skips: Skips = lambda position: False) -> Iterator[Row]:
    """Read the rows of a file, one at a time, but for those that may be left out.

    Raises:
        UserError: If the file cannot be read, or a line of it is broken.
    """
    for row in read_rows(Source(str(path)), skips=skips):
        if row.fault is not None:
            raise UserError(f"{path}:{row.line}: {row.fault}; mend or remove this line")
        yield row.values


def refuse_no_unicode(row: Row, *, where: str) -> None:
    r"""Refuse a row whose text cannot be written, such as half a surrogate pair (`\ud800`).

    Raises:
        UserError: If it is none.
    """
    try:
        _dump(row).encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"{where}: cannot be written: {error}; mend the text") from error


def read_types(path: Path) -> pa.Schema:
    """Return the types of a Parquet file's columns.

    Raises:
        UserError: If it is none.
    """
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error


def find_types(rows: Sequence[Row], known: pa.Schema) -> pa.Schema:
    """Return the types of columns that Parquet could hold, for these rows and those before.

    Args:
        rows: Some rows.
        known: Types of the rows before them.

    Raises:
        UserError: If a column has no one type.
    """
    types = {name: known.field(name).type for name in known.names}
    for name in dict.fromkeys(name for row in rows for name in row):
        found = _make_column(name, [row.get(name) for row in rows], None).type
        both = [pa.schema([(name, kind)]) for kind in (types.get(name, found), found)]
        try:
            types[name] = pa.unify_schemas(both, promote_options="permissive").field(name).type
        except pa.ArrowException as error:
            raise _refuse_column(name, error) from error
    return pa.schema(types)


def write_table(path: Path, rows: Sequence[Row], added: Sequence[Row], *, layout: Layout) -> None:
    """Write rows with their prediction columns behind the columns that they came with.

    Args:
        path: Output file.
        rows: Input rows.
        added: Prediction columns for each row.
        layout: All columns.

    Raises:
        UserError: If a value does not fit the layout, or the disk is full.
    """
    writer: Callable[[IO[bytes]], None]
    match path.suffix:
        case ".jsonl":
            writer = lambda file: _write_jsonl(file, rows, added)  # noqa: E731
        case ".csv":
            writer = lambda file: _write_csv(file, rows, added, layout)  # noqa: E731
        case _:
            table = _make_table(rows, added, layout)
            writer = lambda file: pq.write_table(table, file)  # noqa: E731
    try:
        with replace_file(path) as file:
            writer(file)
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{path}: cannot be written: {error}; mend the input's text") from error


def join_tables(parts: Sequence[Path], path: Path) -> None:
    """Write tables of the same columns into one file, one after the other."""
    with replace_file(path) as file:
        match path.suffix:
            case ".parquet":
                with pq.ParquetWriter(file, pq.read_schema(parts[0])) as writer:
                    for part in parts:
                        writer.write_table(pq.read_table(part))
            case ".csv":
                for number, part in enumerate(parts):
                    with part.open(encoding="utf-8", newline="") as text:
                        if number > 0:
                            next(csv.reader(text))  # a name may span several lines
                        file.writelines(line.encode("utf-8") for line in text)
            case _:
                for part in parts:
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, file)


def _write_jsonl(file: IO[bytes], rows: Iterable[Row], added: Iterable[Row]) -> None:
    for row, columns in zip(rows, added, strict=True):
        known = {name: None if _is_nan(value) else value for name, value in row.items()}
        file.write(_dump({**known, **columns}).encode("utf-8") + b"\n")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _write_csv(file: IO[bytes], rows: Iterable[Row], added: Iterable[Row], layout: Layout) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, fieldnames=[*layout.fields, *layout.added.names])
    writer.writeheader()
    for row, columns in zip(rows, added, strict=True):
        writer.writerow({name: _as_cell(value) for name, value in {**row, **columns}.items()})
    text.detach()


def _as_cell(value: Any) -> Any:
    return _dump(value) if isinstance(value, dict | list) else value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _make_table(rows: Sequence[Row], added: Sequence[Row], layout: Layout) -> pa.Table:
    assert layout.types is not None
    columns = [
        _make_column(field.name, [row.get(field.name) for row in values], field.type)
        for schema, values in ((layout.types, rows), (layout.added, added))
        for field in schema
    ]
    return pa.table(columns, schema=pa.schema([*layout.types, *layout.added]))


def _make_column(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise _refuse_column(name, error) from error


def _refuse_column(name: str, error: Exception) -> UserError:
    return UserError(f"the column {name!r} holds what Parquet cannot ({error}); write .jsonl")
