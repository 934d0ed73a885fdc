"""Read rows from files and data sets, one at a time, each with the line that it stood on."""

import csv
import glob
import json
import sys
from collections.abc import Iterator
from functools import partial
from itertools import count, filterfalse
from pathlib import Path
from typing import NamedTuple

from llmft.config.loading import FaultList
from llmft.config.task import SourceConfig, Split
from llmft.data.columnar import HUB, Skips, hash_hub, read_hub, read_parquet
from llmft.data.encodings import check_encoding
from llmft.data.fields import Row
from llmft.data.splitting import rank_given
from llmft.errors import UserError
from llmft.files import hash_file

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a long article is no error


class Source(NamedTuple):
    """One file or data set."""

    path: str
    """Path of the file, or `hf://owner/name@revision`."""
    encoding: str = "utf-8"
    split: Split | None = None
    """Split that all of its rows belong to."""
    subset: str | None = None
    rows: str | None = None
    """Configuration and split of a data set."""

    @property
    def name(self) -> str:
        """What manifests and messages call it; each split of a data set has a name of its own."""
        return " ".join(filter(None, (self.path, self.subset, self.rows)))

    @property
    def is_hub(self) -> bool:
        """Whether it is a data set, and no file."""
        return self.path.startswith(HUB)

    def compute_hash(self) -> str:
        """Return the SHA-256 of what it holds."""
        if self.is_hub:
            return hash_hub(self.path, subset=self.subset, rows=self.rows)
        return hash_file(Path(self.path))


class SourceRow(NamedTuple):
    """One row as it was found."""

    source: Source
    line: int
    """Line on which the row starts, or number of the row in a table; counted from 1."""
    values: Row
    """Empty if the row is broken."""
    fault: str | None
    """Why the row cannot be used, or None."""


def find_sources(configs: list[SourceConfig]) -> list[Source]:
    """Return the files and data sets of all sources, each once, in a stable order.

    Sources of a given test split come first, then those of val and of train.

    Raises:
        UserError: If a glob matches nothing, a file has an unknown ending, or two sources that
            name the same file say different things of it.
    """
    found: dict[str, Source] = {}
    faults = FaultList()
    for config in configs:
        match = partial(_match_files, config)
        paths = [config.path] if config.path.startswith(HUB) else faults.catch(match)
        for path in paths or []:
            source = Source(path, config.encoding, config.split, config.subset, config.rows)
            if found.setdefault(source.name, source) != source:
                faults.add(
                    f"sources: {path} is named twice, with another split or encoding; name it once"
                )
    faults.raise_all()
    # Of rows with the same id the first stays, so a given test set is read before the others.
    return sorted(found.values(), key=lambda source: rank_given(source.split), reverse=True)


def read_rows(source: Source, *, skips: Skips = lambda position: False) -> Iterator[SourceRow]:
    """Read a source, one row at a time.

    Args:
        source: What to read.
        skips: Tells which rows of a file to leave out; they are not parsed where that can be.

    Raises:
        UserError: If it cannot be read or is in another encoding.
    """
    if source.is_hub:
        rows = read_hub(source.path, subset=source.subset, rows=source.rows)
        yield from _number_rows(rows, source, skips=lambda position: False)
        return
    path = Path(source.path)
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _number_rows(read_parquet(path, skips=skips), source, skips=skips)
            case ".csv":
                codec = check_encoding(path, source.encoding)
                yield from _read_csv(path, source, codec, skips=skips)
            case _:
                codec = check_encoding(path, source.encoding)
                yield from _read_jsonl(path, source, codec, skips=skips)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _match_files(config: SourceConfig) -> list[str]:
    matches = sorted(glob.glob(config.path, recursive=True))  # noqa: PTH207 - absolute globs
    if not matches:  # a name may hold brackets that are no glob
        matches = glob.glob(glob.escape(config.path))  # noqa: PTH207
    if not matches:
        raise UserError(
            f"sources: {config.path!r} matches no file below {Path.cwd()}; mend the path, "
            "which is relative to the folder that the command runs in"
        )
    paths = [Path(match) for match in matches]
    for path in paths:
        if not path.is_file():
            raise UserError(f"sources: {path}: is no file; name the files in it, or a glob")
        if path.suffix.lower() not in (".jsonl", ".csv", ".parquet"):
            raise UserError(f"sources: {path}: unknown ending; allowed: .jsonl, .csv, .parquet")
        if path.suffix.lower() == ".parquet" and config.encoding != "utf-8":
            raise UserError(f"sources: {path}: a Parquet file has no encoding; remove the key")
    return [str(path) for path in paths]


def _number_rows(rows: Iterator[Row], source: Source, *, skips: Skips) -> Iterator[SourceRow]:
    positions = filterfalse(skips, count())
    for values, position in zip(rows, positions, strict=False):
        yield SourceRow(source, position + 1, values, None)


def _read_jsonl(path: Path, source: Source, codec: str, *, skips: Skips) -> Iterator[SourceRow]:
    with path.open(encoding=codec) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for position, (number, line) in enumerate(lines):
            if skips(position):
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield SourceRow(source, number, {}, f"broken JSON: {error}")
                continue
            if isinstance(values, dict):
                yield SourceRow(source, number, values, None)
            else:
                found = type(values).__name__
                fault = f"broken JSON: expected an object, found a {found}"
                yield SourceRow(source, number, {}, fault)


def _read_csv(path: Path, source: Source, codec: str, *, skips: Skips) -> Iterator[SourceRow]:
    with path.open(encoding=codec, newline="") as file:
        reader = csv.reader(file, strict=True)
        start = 1
        try:
            header = next(reader, [])
            _check_header(header, path)
            start = reader.line_num + 1
            positions = count()
            for cells in reader:
                if cells and not skips(next(positions)):
                    fault = None
                    if len(cells) != len(header):
                        fault = f"broken CSV: {len(cells)} cells, the header has {len(header)}"
                    values = {} if fault else dict(zip(header, cells, strict=True))
                    yield SourceRow(source, start, values, fault)
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}:{start}: not valid CSV: {error}; mend the quotes of this row, since what "
                "follows cannot be told apart"
            ) from error


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise UserError(f"{path}:1: no header; the first line of a CSV names its columns")
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UserError(f"{path}:1: the column {repeated[0]!r} stands twice; rename one")
    separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        raise UserError(
            f"{path}:1: the columns are separated by {separator!r}; save the file with commas"
        )
