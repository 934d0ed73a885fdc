"""Tables of predictions: their columns, and how inputs are read and outputs written."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmft.config.task import ScoresConfig
from llmft.data.fields import Row, read_number
from llmft.data.labels import LABEL_THRESHOLD, assign_tiers, compute_overall
from llmft.data.sources import Skips, Source, read_rows, split_ending
from llmft.errors import UserError
from llmft.files import replace_file
from llmft.models.saved import ModelSpec
from llmft.prediction.post_hoc_fit import FinalOutputs

Floats = NDArray[np.floating[Any]]
_OUTPUTS = (".jsonl", ".csv", ".parquet")


def name_columns(spec: ModelSpec) -> list[str]:
    """Return the names of the output columns, `score_*` or `prob_*`, in order."""
    prefix = "score" if spec.head == "regression" else "prob"
    return [f"{prefix}_{name}" for name in spec.label_names]


def make_schema(spec: ModelSpec) -> pa.Schema:
    """Return names and types of all prediction columns, in order."""
    is_scores = isinstance(spec.labels, ScoresConfig)
    has_tiers = isinstance(spec.labels, ScoresConfig) and spec.labels.tiers is not None
    kind = pa.list_(pa.string()) if spec.head == "multilabel" else pa.string()
    fields = [("prediction", pa.float64() if is_scores else kind)]
    fields += [("tier", pa.string())] if has_tiers else []
    return pa.schema(fields + [(name, pa.float64()) for name in name_columns(spec)])


def make_columns(outputs: FinalOutputs, spec: ModelSpec) -> list[Row]:
    """Return for each row its prediction columns.

    `prediction` is the overall score, the most probable class, or the list of labels that are
    more probable than not; `tier` is the tier of the overall score. Scores are calibrated, and
    classes and labels are decided by thresholds, if the model has a fit; thresholds do not change
    the probabilities.
    """
    names = name_columns(spec)
    rows = []
    decisions = _decide(outputs.decision_scores_NC, spec)
    for probabilities, decision in zip(outputs.probabilities_NC, decisions, strict=True):
        values = [round(float(value), 6) for value in probabilities]
        rows.append({**decision, **dict(zip(names, values, strict=True))})
    return rows


def _decide(decision_scores_NC: Floats, spec: ModelSpec) -> list[Row]:
    if isinstance(spec.labels, ScoresConfig):
        overall_N = compute_overall(decision_scores_NC, spec.labels)
        decisions: list[Row] = [{"prediction": round(float(v), 4)} for v in overall_N]
        if spec.labels.tiers is not None:
            tiers = list(spec.labels.tiers)
            for row, tier in zip(decisions, assign_tiers(overall_N, spec.labels), strict=True):
                row["tier"] = tiers[tier]
        return decisions
    if spec.head == "multilabel":
        named = [
            [n for n, s in zip(spec.label_names, scores, strict=True) if s >= LABEL_THRESHOLD]
            for scores in decision_scores_NC
        ]
        return [{"prediction": names} for names in named]
    return [{"prediction": spec.label_names[best]} for best in decision_scores_NC.argmax(axis=1)]


def list_needed_fields(spec: ModelSpec, found: Sequence[str]) -> list[str]:
    """Return the fields that the model needs of rows with the fields `found`.

    Prepared rows have `text` for the text fields.
    """
    needed = [] if "text" in found else list(spec.fields.text)
    return needed + ([spec.fields.text_pair] if spec.fields.text_pair else [])


class TableLayout(NamedTuple):
    """The columns of an output."""

    fields: list[str]
    """Columns of the input."""
    types: pa.Schema | None
    """Their types; only Parquet needs them."""
    added: pa.Schema
    """Names and types of the prediction columns, which follow those of the input."""
    csv_safe: bool = False
    """Whether text in CSV that a spreadsheet would take for a formula begins with `'`."""


def check_output(path: Path, *, option: str) -> None:
    """Refuse the name of an output without a known ending.

    Raises:
        UserError: If the ending is none of .jsonl, .csv and .parquet.
    """
    if path.suffix not in _OUTPUTS:
        raise UserError(f"{option}: {path}: unknown ending; allowed: {', '.join(_OUTPUTS)}")


def find_output_ending(path: Path) -> str:
    """Return the ending of the shards of an input: lines for .json, commas for .tsv."""
    ending = split_ending(path)[0]
    return {".json": ".jsonl", ".tsv": ".csv"}.get(ending, ending)


def read_input(path: Path, *, skips: Skips = lambda position: False) -> Iterator[Row]:
    """Read the rows of a file one at a time, without those to skip.

    Raises:
        UserError: If the file cannot be read, or a line of it is broken.
    """
    for row in read_rows(Source(str(path), in_task=False), skips=skips):
        if row.fault is not None:
            raise UserError(f"{path}:{row.line}: {row.fault}; fix or remove this line")
        yield row.values


def check_unicode(row: Row, *, where: str) -> None:
    r"""Refuse a row whose text is not Unicode, such as a lone surrogate (`\ud800`).

    Raises:
        UserError: If it cannot be encoded.
    """
    try:
        _dump(row).encode("utf-8")
    except UnicodeError as error:
        raise UserError(f"{where}: cannot be written: {error}; fix the text") from error


def read_types(path: Path) -> pa.Schema:
    """Return the types of a Parquet file's columns.

    Raises:
        UserError: If it is not a Parquet file.
    """
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}; write it again") from error


def find_types(rows: Sequence[Row], known: pa.Schema) -> pa.Schema:
    """Return the Parquet types of columns, for these rows and those before.

    Args:
        rows: Some rows.
        known: Types of the rows before them.

    Raises:
        UserError: If a column has values of several types.
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


def write_table(
    path: Path, rows: Sequence[Row], added: Sequence[Row], *, layout: TableLayout
) -> None:
    """Write rows with their input columns, followed by their prediction columns.

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
        raise UserError(f"{path}: cannot be written: {error}; fix the text of the input") from error


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
        file.write(_dump({**row, **columns}).encode("utf-8") + b"\n")


def _write_csv(
    file: IO[bytes], rows: Iterable[Row], added: Iterable[Row], layout: TableLayout
) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, fieldnames=[*layout.fields, *layout.added.names])
    for row in chain(
        [{name: name for name in writer.fieldnames}],
        ({**row, **columns} for row, columns in zip(rows, added, strict=True)),
    ):
        cells = {name: _as_cell(value) for name, value in row.items()}
        if layout.csv_safe:
            cells = {name: _quote_formula(value) for name, value in cells.items()}
        writer.writerow(cells)
    text.detach()


def _as_cell(value: Any) -> Any:
    return _dump(value) if isinstance(value, dict | list) else value


def _quote_formula(value: Any) -> Any:
    """Return text that begins as a formula of a spreadsheet with `'` in front; numbers stay.

    Source:
        OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
    """
    is_formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r")
    return f"'{value}" if is_formula and read_number(value) is None else value


def _dump(value: Any) -> str:
    """Return valid JSON, which has neither NaN nor Infinity: both become null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_drop_infinite(value), ensure_ascii=False, default=str)


def _drop_infinite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _drop_infinite(item) for key, item in value.items()}
        case list() | tuple():
            return [_drop_infinite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _make_table(rows: Sequence[Row], added: Sequence[Row], layout: TableLayout) -> pa.Table:
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
    return UserError(f"the column {name!r} cannot be written as Parquet ({error}); write .jsonl")
