"""What is known of an input before any row of it is predicted."""

import base64
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
from pydantic import NonNegativeInt, field_validator

from llmft.data.fields import Row, RowFaultError, refuse_absent_fields
from llmft.data.prompts import NO_PROMPT, fill_prompt
from llmft.errors import UserError
from llmft.files import hash_file
from llmft.models.saved import ModelCard
from llmft.prediction.columns import make_schema
from llmft.prediction.tables import find_types, read_input, read_types, refuse_no_unicode
from llmft.processes import get_rank, get_world_size
from llmft.results.files import ResultFile, read_result, write_result

STATE_NAME = "_state"
StateT = TypeVar("StateT", bound=ResultFile)
_ROWS_AT_ONCE = 1_000


class ChangedError(UserError):
    """The parts in a folder are of another model, or of other inputs, or of nobody knows what."""

    def __init__(self, reason: str, *, mend: str) -> None:
        """Take why the parts cannot be gone on with, and what the user can do, as an imperative."""
        super().__init__(f"{reason}; {mend}")
        self.reason = reason


class Survey(ResultFile):
    """An input file that has been read to its end, and can be predicted."""

    schema_version: Literal[1] = 1
    name: str
    """Name of the file, without its folder."""
    num_bytes: NonNegativeInt
    modified_ns: int
    sha256: str
    num_rows: NonNegativeInt
    num_empty: NonNegativeInt
    """Rows that lack a text, and get empty predictions."""
    first_fault: str | None
    """Why the first of them does."""
    fields: list[str]
    """Columns of all rows, in the order in which they turn up."""
    types: str | None
    """Their types if the output is Parquet, as Arrow writes them, in base64."""

    @field_validator("types")
    @classmethod
    def _refuse_unreadable(cls, types: str | None) -> str | None:
        try:
            _decode_types(types)
        except (ValueError, pa.ArrowException, OSError) as error:
            raise ValueError("expected the schema of an Arrow table in base64") from error
        return types

    def is_of(self, path: Path) -> bool:
        """Return whether the file still has the size and the time of then."""
        return (self.num_bytes, self.modified_ns) == _stamp(path)

    def read_types(self) -> pa.Schema | None:
        """Return the types of the columns."""
        return _decode_types(self.types)


def _decode_types(coded: str | None) -> pa.Schema | None:
    if coded is None:
        return None
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(coded, validate=True)))


def read_state(path: Path, schema: type[StateT], *, mend: str) -> StateT:
    """Read what an earlier prediction noted beside its parts.

    Raises:
        ChangedError: If it cannot be read, so that nobody knows what the parts are of.
    """
    try:
        return read_result(path, schema, mend=mend)
    except UserError as error:
        raise ChangedError(str(error).removesuffix(f"; {mend}"), mend=mend) from error


def survey_inputs(
    folder: Path, inputs: Sequence[Path], *, card: ModelCard, ending: str | None
) -> list[Survey]:
    """Return what is known of every input, read by this process or by another.

    Each process begins with inputs of its own and finds most of the others done, so that none has
    to wait for another.

    Args:
        folder: Folder of the parts, where surveys are kept.
        inputs: The files.
        card: The model.
        ending: Format of the parts; None for that of each input.

    Raises:
        ChangedError: If an input holds other bytes than when its survey was made.
        UserError: If an input cannot be predicted.
    """
    first = get_rank() * len(inputs) // get_world_size()
    surveys: dict[Path, Survey] = {}
    for path in (*inputs[first:], *inputs[:first]):
        kept = folder / STATE_NAME / f"{path.name}.json"
        mend = f"remove it, and {folder}/{path.stem}-*, to predict this input again"
        known = read_state(kept, Survey, mend=mend) if kept.is_file() else None
        if known is not None and known.is_of(path):
            surveys[path] = known
            continue
        survey = survey_input(path, card=card, ending=ending or path.suffix)
        if known is not None and known.sha256 != survey.sha256:
            raise ChangedError(
                f"{folder}: {path} changed since parts of it were predicted",
                mend=f"name a new folder, or remove {kept} and "
                f"{folder}/{path.stem}-*{ending or path.suffix} to predict this input anew",
            )
        write_result(kept, survey)
        surveys[path] = survey
    return [surveys[path] for path in inputs]


def survey_input(path: Path, *, card: ModelCard, ending: str) -> Survey:
    """Read an input to its end, a little at a time.

    Args:
        path: The file.
        card: The model that shall predict it.
        ending: Format of the output.

    Raises:
        UserError: If the file is broken, lacks a field that the model needs, has a column of the
            name of a prediction column, or holds what cannot be written.
    """
    num_bytes, modified_ns = _stamp(path)
    sha256 = hash_file(path)
    is_parquet, is_json = path.suffix == ".parquet", path.suffix == ".jsonl"
    types = read_types(path) if is_parquet else pa.schema([])
    fields = dict.fromkeys(types.names)
    prompt, num_rows, num_empty = card.make_prompt(NO_PROMPT), 0, 0
    first_fault: str | None = None
    for rows in _read_by_the_thousand(path):
        for row in rows:
            num_rows += 1
            fields |= dict.fromkeys(row)
            if is_json:
                refuse_no_unicode(row, where=f"{path}: row {num_rows}")
            try:
                fill_prompt(prompt, row, fields=card.fields)
            except RowFaultError as fault:
                first_fault = first_fault or str(fault)
                num_empty += 1
        if ending == ".parquet" and not is_parquet:
            types = find_types(rows, types)
    taken = [name for name in make_schema(card).names if name in fields]
    if taken:
        raise UserError(f"{path}: has a column {taken[0]!r} already; rename or remove it")
    refuse_absent_fields(_list_wanted(card, list(fields)), list(fields), where=str(path))
    coded = base64.b64encode(types.serialize()).decode() if ending == ".parquet" else None
    return Survey(
        name=path.name,
        num_bytes=num_bytes,
        modified_ns=modified_ns,
        sha256=sha256,
        num_rows=num_rows,
        num_empty=num_empty,
        first_fault=first_fault,
        fields=list(fields),
        types=coded,
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns


def _read_by_the_thousand(path: Path) -> Iterator[list[Row]]:
    rows = read_input(path)
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        yield some


def _list_wanted(card: ModelCard, found: list[str]) -> list[str]:
    """Return the fields that the model needs; prepared rows hold `text` for the first ones."""
    wanted = [] if "text" in found else list(card.fields.text)
    return wanted + ([card.fields.text_pair] if card.fields.text_pair else [])
