"""Shards: predictions of many processes as files in a folder, resumable after a kill."""

import base64
import glob
from collections.abc import Container, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import pyarrow as pa
from pydantic import NonNegativeInt, field_validator

from llmft.data.fields import Row, RowFaultError, require_fields
from llmft.data.prompts import fill_prompt
from llmft.data.sources import Skips, split_ending
from llmft.errors import UserError
from llmft.files import hash_file
from llmft.models.saved import ModelSpec
from llmft.prediction.tables import (
    TableLayout,
    check_unicode,
    find_output_ending,
    find_types,
    list_needed_fields,
    make_schema,
    read_input,
    read_types,
    write_table,
)
from llmft.processes import get_rank, get_world_size
from llmft.results.files import ResultFile, read_result, write_result
from llmft.results.manifest import PredictionManifest, ShardOrigin

STATE_NAME = "_state"
StateT = TypeVar("StateT", bound=ResultFile)
_ROWS_AT_ONCE = 1_000
# Readers of a folder of tables ignore names with a leading underscore.
MANIFEST_NAME = "_manifest.json"
ROWS_PER_SHARD = 4_096


class ChangedError(UserError):
    """The shards in a folder are of another model or other inputs, or of unknown origin."""

    def __init__(self, reason: str, *, fix: str) -> None:
        """Set why the prediction cannot be resumed, and how to fix that, as an imperative."""
        super().__init__(f"{reason}; {fix}")
        self.reason = reason


class Survey(ResultFile):
    """Size, hash and columns of an input file, which was read completely and can be predicted."""

    schema_version: Literal[1] = 1
    name: str
    """Name of the file, without its folder."""
    num_bytes: NonNegativeInt
    modified_ns: int
    sha256: str
    num_rows: NonNegativeInt
    num_empty: NonNegativeInt
    """Rows without a text, which get empty predictions."""
    first_fault: str | None
    """What is wrong with the first of them."""
    fields: list[str]
    """Columns of all rows, in the order of their first row."""
    types: str | None
    """Arrow schema of these columns in base64, if the output is Parquet."""

    @field_validator("types")
    @classmethod
    def _refuse_unreadable(cls, types: str | None) -> str | None:
        try:
            _decode_types(types)
        except (ValueError, pa.ArrowException, OSError) as error:
            raise ValueError("expected the schema of an Arrow table in base64") from error
        return types

    def is_of(self, path: Path) -> bool:
        """Return whether the file still has the same size and modification time."""
        return (self.num_bytes, self.modified_ns) == _stamp(path)

    def read_types(self) -> pa.Schema | None:
        """Return the types of the columns."""
        return _decode_types(self.types)


def _decode_types(coded: str | None) -> pa.Schema | None:
    if coded is None:
        return None
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(coded, validate=True)))


def read_state(path: Path, schema: type[StateT], *, fix: str) -> StateT:
    """Read the state that an earlier prediction wrote next to its shards.

    Raises:
        ChangedError: If it cannot be read, so that the origin of the shards is unknown.
    """
    try:
        return read_result(path, schema, fix=fix)
    except UserError as error:
        raise ChangedError(str(error).removesuffix(f"; {fix}"), fix=fix) from error


def survey_inputs(
    folder: Path, inputs: Sequence[Path], *, spec: ModelSpec, ending: str | None
) -> list[Survey]:
    """Return the survey of every input, made by this process or by another.

    Each process starts at a different input and finds most of the others surveyed already, so that
    none has to wait for another.

    Args:
        folder: Folder of the shards, where surveys are stored.
        inputs: The files.
        spec: The model.
        ending: Format of the shards; None for that of each input.

    Raises:
        ChangedError: If an input changed since its survey.
        UserError: If an input cannot be predicted.
    """
    first = get_rank() * len(inputs) // get_world_size()
    surveys: dict[Path, Survey] = {}
    for path in (*inputs[first:], *inputs[:first]):
        kept = folder / STATE_NAME / f"{path.name}.json"
        fix = f"remove it, and {folder}/{path.stem}-*, to predict this input again"
        known = read_state(kept, Survey, fix=fix) if kept.is_file() else None
        if known is not None and known.is_of(path):
            surveys[path] = known
            continue
        ends = ending or find_output_ending(path)
        survey = survey_input(path, spec=spec, ending=ends)
        is_begun = any(folder.glob(f"{glob.escape(path.stem)}-{'[0-9]' * 12}.*"))
        if known is not None and known.sha256 != survey.sha256 and is_begun:
            raise ChangedError(
                f"{folder}: {path} changed since shards of it were predicted",
                fix=f"name a new folder, or remove {kept} and "
                f"{folder}/{path.stem}-*{ends} to predict this input again",
            )
        write_result(kept, survey)
        surveys[path] = survey
    return [surveys[path] for path in inputs]


def survey_input(path: Path, *, spec: ModelSpec, ending: str) -> Survey:
    """Read an input completely, in chunks, and check that it can be predicted.

    Args:
        path: The file.
        spec: The model that will predict it.
        ending: Format of the output.

    Raises:
        UserError: If the file is broken, lacks a field that the model needs, has a column with the
            name of a prediction column, or has values that cannot be written.
    """
    num_bytes, modified_ns = _stamp(path)
    sha256 = hash_file(path)
    own = split_ending(path)[0]
    is_parquet, is_json = own == ".parquet", own in (".jsonl", ".json")
    types = read_types(path) if is_parquet else pa.schema([])
    fields = dict.fromkeys(types.names)
    prompt, num_rows, num_empty = spec.make_prompt(), 0, 0
    first_fault: str | None = None
    for rows in _read_by_the_thousand(path):
        for row in rows:
            num_rows += 1
            fields |= dict.fromkeys(row)
            if is_json:
                check_unicode(row, where=f"{path}: row {num_rows}")
            try:
                fill_prompt(prompt, row, fields=spec.fields)
            except RowFaultError as fault:
                first_fault = first_fault or str(fault)
                num_empty += 1
        if ending == ".parquet" and not is_parquet:
            types = find_types(rows, types)
    taken = [name for name in make_schema(spec).names if name in fields]
    if taken:
        raise UserError(f"{path}: has a column {taken[0]!r} already; rename or remove it")
    require_fields(list_needed_fields(spec, list(fields)), list(fields), where=str(path))
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
        raise UserError(f"{path}: cannot be read: {error.strerror}; fix the path") from error
    return stat.st_size, stat.st_mtime_ns


def _read_by_the_thousand(path: Path) -> Iterator[list[Row]]:
    rows = read_input(path)
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        yield some


class Shard(NamedTuple):
    """Consecutive rows of an input, and the file with their predictions."""

    source: Path
    start: int
    """Position of the first row in the input, counted from 0."""
    num_rows: int
    path: Path
    survey: Survey


def claim_folder(
    folder: Path, *, model_hash: str, inputs: Sequence[Path], fit_hash: str | None = None,
    csv_safe: bool = False,
) -> None:  # fmt: skip
    """Make a folder for the shards of this model, fit and inputs, or check an existing one.

    Raises:
        ChangedError: If it has shards of another model, fit or other inputs, or written otherwise.
    """
    path = folder / STATE_NAME / "run.json"
    names = [source.name for source in inputs]
    origin = ShardOrigin(
        model_hash=model_hash, fit_hash=fit_hash, inputs=names, rows_per_shard=ROWS_PER_SHARD,
        csv_safe=csv_safe,
    )  # fmt: skip
    if not path.is_file():
        if folder.is_dir() and any(found.name[0] not in "._" for found in folder.iterdir()):
            raise ChangedError(
                f"{folder}: has files that `llmft predict` did not write",
                fix="name a new folder",
            )
        write_result(path, origin)
        return
    fix = f"restore it, or remove {folder} to predict all again"
    found = read_state(path, ShardOrigin, fix=fix)
    others = sorted(set(names) ^ set(found.inputs))
    details = {
        "llmft_version": f"by llmft {found.llmft_version}",
        "model_hash": "by another model",
        "fit_hash": "with another fit.json",
        "inputs": f"from other inputs ({', '.join(others[:5])} only in one of them)"
        if others
        else "from the inputs in another order",
        "rows_per_shard": "in shards of another size",
        "csv_safe": "with --csv-safe" if found.csv_safe else "without --csv-safe",
    }
    changed = [
        detail for name, detail in details.items() if getattr(found, name) != getattr(origin, name)
    ]
    if changed:
        raise ChangedError(
            f"{folder}: holds predictions made {', '.join(changed)}",
            fix="name a new folder, or predict with the earlier model and inputs",
        )


def plan_shards(
    folder: Path, inputs: Sequence[Path], surveys: Sequence[Survey], *, ending: str | None
) -> list[Shard]:
    """Return the shards of all inputs, in their order; an input without rows has an empty one."""
    return [
        Shard(
            path,
            start,
            min(ROWS_PER_SHARD, survey.num_rows - start),
            folder / f"{path.stem}-{start:012d}{ending or find_output_ending(path)}",
            survey,
        )
        for path, survey in zip(inputs, surveys, strict=True)
        for start in range(0, max(1, survey.num_rows), ROWS_PER_SHARD)
    ]


def list_missing_shards(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards of this process that do not exist yet."""
    mine = shards[get_rank() :: get_world_size()]
    return [shard for shard in mine if not shard.path.is_file()]


def read_shards(shards: Sequence[Shard]) -> Iterator[tuple[Shard, list[Row]]]:
    """Read the rows of shards in their order, without parsing those of other shards."""
    for source, group in groupby(shards, key=lambda shard: shard.source):
        wanted = {shard.start: shard for shard in group}
        rows = read_input(source, skips=_skip_others(wanted))
        for shard in wanted.values():
            yield shard, list(islice(rows, shard.num_rows))


def write_shard(
    shard: Shard, rows: Sequence[Row], predicted: Sequence[Row], *, spec: ModelSpec,
    csv_safe: bool = False,
) -> None:  # fmt: skip
    """Write the rows of a shard with their prediction columns.

    Raises:
        UserError: If the input changed since it was surveyed, or the disk is full.
    """
    if not shard.survey.is_of(shard.source):
        raise UserError(f"{shard.source}: changed while it was read; run the same command again")
    layout = TableLayout(
        shard.survey.fields, shard.survey.read_types(), make_schema(spec), csv_safe
    )
    write_table(shard.path, rows, predicted, layout=layout)


def _skip_others(starts: Container[int]) -> Skips:
    return lambda position: position - position % ROWS_PER_SHARD not in starts


def write_manifest(
    folder: Path, shards: Sequence[Shard], *, model_hash: str, fit_hash: str | None = None
) -> bool:
    """Write the manifest if all shards exist; return whether they do."""
    found = {path.name for path in folder.iterdir()}
    if not all(shard.path.name in found for shard in shards):
        return False
    surveys = {shard.source: shard.survey for shard in shards}
    manifest = PredictionManifest(
        model_hash=model_hash,
        fit_hash=fit_hash,
        num_rows=sum(survey.num_rows for survey in surveys.values()),
        num_empty=sum(survey.num_empty for survey in surveys.values()),
        inputs={survey.name: survey.sha256 for survey in surveys.values()},
        shards={shard.path.name: shard.num_rows for shard in shards},
    )
    write_result(folder / MANIFEST_NAME, manifest)
    _remove_torn(folder, found, {shard.path.name for shard in shards})
    return True


def _remove_torn(folder: Path, found: set[str], shards: set[str]) -> None:
    """Remove temporary files of killed processes."""
    for name in found:
        if name.startswith(".") and name[1:].rpartition(".")[0] in shards:
            (folder / name).unlink(missing_ok=True)
