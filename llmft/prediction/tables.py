"""Input and output tables of predict: JSONL, CSV or Parquet by their ending."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.data.files import replace_file
from llmft.data.sources import Source, read_rows
from llmft.errors import UserError

Row = dict[str, Any]
_ENDINGS = (".jsonl", ".csv", ".parquet")


def check_ending(path: Path, *, option: str) -> None:
    """Refuse a file name that tells no format.

    Raises:
        UserError: If the ending is none of .jsonl, .csv and .parquet.
    """
    if path.suffix not in _ENDINGS:
        raise UserError(f"{option}: {path}: unknown ending; allowed: {', '.join(_ENDINGS)}")


def read_table(path: Path) -> tuple[list[Row], pa.Schema | None]:
    """Read all rows; the schema is that of a Parquet file, else None.

    Raises:
        UserError: If the file cannot be read, or a line of it is broken.
    """
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read as Parquet: {error}") from error
        return table.to_pylist(), table.schema
    rows = []
    for row in read_rows(Source(str(path))):
        if row.fault is not None:
            raise UserError(f"{path}:{row.line}: {row.fault}; mend or remove this line")
        rows.append(row.values)
    return rows, None


def refuse_unwritable(path: Path, rows: Sequence[Row], *, schema: pa.Schema | None) -> None:
    """Find out before anything is predicted whether the rows can be written to the output.

    Raises:
        UserError: If a column has no one type that Parquet could hold, or a text is not Unicode.
    """
    try:
        if path.suffix == ".parquet":
            _make_table(rows, [], schema)
        else:
            for row in rows:
                json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{path}: cannot be written: {error}; mend the input's text") from error


def write_table(
    path: Path, rows: Sequence[Row], added: Sequence[Row], *, schema: pa.Schema | None
) -> None:
    """Write rows with their prediction columns behind the columns that they came with.

    Args:
        path: Output file.
        rows: Input rows.
        added: Prediction columns for each row, all with the same keys.
        schema: Types of the input columns, kept in Parquet output.

    Raises:
        UserError: If a column has no one type that Parquet could hold.
    """
    writer: Callable[[IO[bytes]], None]
    match path.suffix:
        case ".jsonl":
            writer = lambda file: _write_jsonl(file, rows, added)  # noqa: E731
        case ".csv":
            writer = lambda file: _write_csv(file, rows, added)  # noqa: E731
        case _:
            table = _make_table(rows, added, schema)
            writer = lambda file: pq.write_table(table, file)  # noqa: E731
    try:
        with replace_file(path) as file:
            writer(file)
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{path}: cannot be written: {error}; mend the input's text") from error


def _write_jsonl(file: IO[bytes], rows: Iterable[Row], added: Iterable[Row]) -> None:
    for row, columns in zip(rows, added, strict=True):
        known = {name: None if _is_nan(value) else value for name, value in row.items()}
        line = json.dumps({**known, **columns}, ensure_ascii=False, default=str)
        file.write(line.encode("utf-8") + b"\n")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _write_csv(file: IO[bytes], rows: Sequence[Row], added: Sequence[Row]) -> None:
    names = dict.fromkeys(name for row in (*rows, *added[:1]) for name in row)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, fieldnames=list(names))
    writer.writeheader()
    for row, columns in zip(rows, added, strict=True):
        writer.writerow({name: _as_cell(value) for name, value in {**row, **columns}.items()})
    text.detach()


def _as_cell(value: Any) -> Any:
    nested = isinstance(value, dict | list)
    return json.dumps(value, ensure_ascii=False, default=str) if nested else value


def _make_table(rows: Sequence[Row], added: Sequence[Row], schema: pa.Schema | None) -> pa.Table:
    names = list(schema.names if schema else dict.fromkeys(n for row in rows for n in row))
    columns = {}
    for name in names:
        kind = schema.field(name).type if schema else None
        columns[name] = _make_column(name, [row.get(name) for row in rows], kind)
    for name in added[0] if added else ():
        columns[name] = _make_column(name, [row[name] for row in added], None)
    return pa.table(columns)


def _make_column(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise UserError(
            f"the column {name!r} holds what Parquet cannot ({error}); write .jsonl"
        ) from error
