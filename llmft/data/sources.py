"""From files to source rows: JSONL, CSV in any encoding, Parquet, data sets, DataFrames."""

import codecs
import contextlib
import csv
import glob
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, filterfalse
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.config.frames import FRAME, Frame
from llmft.config.loading import FaultList
from llmft.config.task import SourceConfig, Split, rank_given
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.files import hash_file

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 1 << 20
HUB = "hf://"
_BATCH = 1_000
_BUFFER_BYTES = 1 << 20  # else a row group, maybe the complete file, is in memory
Skips = Callable[[int], bool]
"""Position of a row, counted from 0 -> whether the row may be skipped."""


def check_encoding(path: Path, encoding: str) -> str:
    """Return the codec to read a text file with; a byte order mark of UTF-8 is skipped.

    Raises:
        UserError: If the file is in another encoding: with the line, and the likely one.
        OSError: If it cannot be read.
    """
    wanted = codecs.lookup(encoding).name
    fault = _find_fault(path, wanted)
    if fault is not None:
        line, found = fault
        likely = guess_encoding(path)
        if codecs.lookup(likely).name == wanted:
            raise UserError(
                f"{path}:{line}: not {encoding} ({found}), though the rest is; fix the line"
            )
        raise UserError(
            f"{path}:{line}: not {encoding} ({found}); the file is likely {likely}: set "
            f"`encoding: {likely}` for this source, or convert it with "
            f"`iconv -f {likely} -t utf-8`"
        )
    # Any bytes decode as Latin-1, but text in Latin-1 is hardly ever valid UTF-8 by chance.
    if wanted != "utf-8" and len("é".encode(wanted, "replace")) == 1 and _holds_utf8(path):
        raise UserError(
            f"{path}: its non-ASCII bytes are valid UTF-8, so it is probably not {encoding}; "
            "set `encoding: utf-8` for this source"
        )
    return "utf-8-sig" if wanted == "utf-8" else wanted


def guess_encoding(path: Path) -> str:
    """Return the likely encoding of a file that is not in the configured one."""
    data = path.read_bytes()
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if b"\0" in data[:2]:  # the first character is ASCII in two bytes
        return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    text = data.decode("utf-8", "replace")
    num_beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    # One broken byte does not make a long UTF-8 file Latin-1; there, hardly a letter is valid.
    if 2 * text.count("\ufffd") <= num_beyond_ascii:
        return "utf-8"
    # 0x80 to 0x9f are quotes and dashes in Windows-1252, but control characters in Latin-1.
    if any(0x80 <= byte <= 0x9F for byte in data):
        with contextlib.suppress(UnicodeDecodeError):
            data.decode("cp1252")
            return "cp1252"
    return "latin-1"


def _find_fault(path: Path, encoding: str) -> tuple[int, str] | None:
    """Return line and description of the first bytes that cannot be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += _decode_start(error).count("\n")
                return line, f"byte {error.object[error.start]:#04x}, {error.reason}"
            except UnicodeError as error:  # such as UTF-16 without a byte order mark
                return line, str(error)
            if not block:
                return None


def _decode_start(error: UnicodeDecodeError) -> str:
    return error.object[: error.start].decode(error.encoding, "ignore")


def _holds_utf8(path: Path) -> bool:
    """Return whether a file holds letters beyond ASCII, and all of them are valid UTF-8."""
    return _find_fault(path, "utf-8") is None and _find_fault(path, "ascii") is not None


def read_parquet(path: Path, *, skips: Skips = lambda position: False) -> Iterator[Row]:
    """Read the rows of a Parquet file in small batches.

    Args:
        path: The file.
        skips: Which rows to skip; row groups of skipped rows only are not read at all.

    Raises:
        UserError: If it is not a Parquet file.
    """
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            start = 0
            for group in range(file.num_row_groups):
                positions = range(start, start + file.metadata.row_group(group).num_rows)
                start = positions.stop
                if not all(map(skips, positions)):
                    yield from _read_wanted(file, group, positions, skips)
    except (pa.ArrowException, ValueError, OverflowError) as error:  # a date in the year 30,000
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error


def _read_wanted(file: pq.ParquetFile, group: int, positions: range, skips: Skips) -> Iterator[Row]:
    """Read the wanted rows of a row group; skipped rows are not converted to Python objects."""
    for batch in file.iter_batches(_BATCH, row_groups=[group]):
        wanted = [not skips(position) for position in positions[: len(batch)]]
        positions = positions[len(batch) :]
        if any(wanted):
            yield from batch.filter(pa.array(wanted)).to_pylist()


def read_hub(path: str, *, subset: str | None, rows: str | None) -> Iterator[Row]:
    """Read the rows of `hf://owner/name@revision`, with class names instead of numbers.

    Args:
        path: The data set; a local folder of that name takes precedence.
        subset: Its configuration, if it has several.
        rows: Its split; None for all splits, one after the other.

    Raises:
        UserError: If it cannot be loaded.
    """
    for dataset in _load_splits(path, subset=subset, rows=rows):
        names = {
            key: feature.names
            for key, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel"
        }
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
            for row in table.to_pylist():
                for key, classes in names.items():
                    # Data sets have -1 for labels that are not published.
                    is_known = row[key] is not None and row[key] >= 0
                    row[key] = classes[row[key]] if is_known else None
                yield row


def hash_hub(path: str, *, subset: str | None, rows: str | None) -> str:
    """Return the SHA-256 of a data set's rows."""
    digest = hashlib.sha256()
    for row in read_hub(path, subset=subset, rows=rows):
        digest.update(json.dumps(row, default=str).encode())
    return digest.hexdigest()


def _load_splits(path: str, *, subset: str | None, rows: str | None) -> list[Any]:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, revision = path.removeprefix(HUB).partition("@")
    shows_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_info.json").is_file() or (
            Path(name) / "dataset_dict.json"
        ).is_file():
            loaded = datasets.load_from_disk(name)
            loaded = loaded[rows] if rows is not None else loaded
        else:
            loaded = datasets.load_dataset(name, subset, split=rows, revision=revision or None)
    except (OSError, ValueError, LookupError, pa.ArrowException, DatasetsError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(
            f"sources: {path} cannot be loaded. Looked for a folder {name}, in the cache "
            f"{datasets.config.HF_DATASETS_CACHE} and on the Hub: {reason}"
        ) from error
    finally:
        if shows_bars:
            datasets.enable_progress_bars()
    return list(loaded.values()) if isinstance(loaded, dict) else [loaded]


class Source(NamedTuple):
    """One file, data set or DataFrame."""

    path: str
    """Path of the file, `hf://owner/name@revision`, or `dataframe:HASH`."""
    encoding: str = "utf-8"
    split: Split | None = None
    """Split that all of its rows belong to."""
    subset: str | None = None
    rows: str | None = None
    """Configuration and split of a data set."""
    frame: Frame | None = None

    @property
    def name(self) -> str:
        """Name in manifests and messages; each split of a data set has a name of its own."""
        return " ".join(filter(None, (self.path, self.subset, self.rows)))

    @property
    def is_file(self) -> bool:
        """Whether it is a file, not a data set or a DataFrame."""
        return not self.path.startswith((HUB, FRAME))

    def compute_hash(self) -> str:
        """Return a hash of its contents: SHA-256, of a DataFrame the one in its path."""
        if self.frame is not None:
            return self.path.removeprefix(FRAME)
        if not self.is_file:
            return hash_hub(self.path, subset=self.subset, rows=self.rows)
        return hash_file(Path(self.path))


class SourceRow(NamedTuple):
    """One row as it is in its source."""

    source: Source
    line: int
    """Line on which the row starts, or number of the row in a table; counted from 1."""
    values: Row
    """Empty if the row is broken."""
    fault: str | None
    """Why the row cannot be used; None if it can."""


def find_sources(configs: list[SourceConfig]) -> list[Source]:
    """Return the files and data sets of all sources, each once, in a stable order.

    Sources of a given test split come first, then those of val and of train.

    Raises:
        UserError: If a glob matches nothing, a file has an unknown ending, or two sources name the
            same file with different settings.
    """
    found: dict[str, Source] = {}
    faults = FaultList()
    for config in configs:
        for path in faults.catch(partial(_list_paths, config)) or []:
            source = Source(
                path, config.encoding, config.split, config.subset, config.rows, config.frame
            )
            if found.setdefault(source.name, source) != source:
                faults.add(
                    f"sources: {path} is named twice, with another split or encoding; name it once"
                )
    faults.raise_all()
    # Of rows with the same id the first is kept, so a given test set is read before the others.
    return sorted(found.values(), key=lambda source: rank_given(source.split), reverse=True)


def read_rows(source: Source, *, skips: Skips = lambda position: False) -> Iterator[SourceRow]:
    """Read a source, one row at a time.

    Args:
        source: What to read.
        skips: Which rows of a file to skip; they are not parsed if the format allows it.

    Raises:
        UserError: If it cannot be read or is in another encoding.
    """
    if not source.is_file:
        rows = (
            iter(source.frame.rows)
            if source.frame is not None
            else read_hub(source.path, subset=source.subset, rows=source.rows)
        )
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


def _list_paths(config: SourceConfig) -> list[str]:
    if config.path.startswith(FRAME) and config.frame is None:
        raise UserError(
            f"sources: {config.path} stands for a DataFrame, which is not kept with the task; give "
            "it to the task again, or save it as .parquet and name the file"
        )
    if config.path.startswith((HUB, FRAME)):
        return [config.path]
    return _match_files(config)


def _match_files(config: SourceConfig) -> list[str]:
    matches = sorted(glob.glob(config.path, recursive=True))  # noqa: PTH207 - absolute globs
    if not matches:  # brackets in a file name are not a glob
        matches = glob.glob(glob.escape(config.path))  # noqa: PTH207
    if not matches:
        raise UserError(
            f"sources: {config.path!r} matches no file below {Path.cwd()}; fix the path, "
            "which is relative to the working folder"
        )
    paths = [Path(match) for match in matches]
    for path in paths:
        if not path.is_file():
            raise UserError(f"sources: {path}: is not a file; name the files in it, or a glob")
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


class _LongCells:
    """Allows articles in CSV cells, while any thread reads a file: the process has one limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_open = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_open == 0:
                self._before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
            self._num_open += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                csv.field_size_limit(self._before)


_LONG_CELLS = _LongCells()


def _read_csv(path: Path, source: Source, codec: str, *, skips: Skips) -> Iterator[SourceRow]:
    with path.open(encoding=codec, newline="") as file, _LONG_CELLS:
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
                f"{path}:{start}: not valid CSV: {error}; fix the quotes of this row, since the "
                "rows after it cannot be read"
            ) from error


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise UserError(f"{path}:1: no header; the first line of a CSV names its columns")
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UserError(f"{path}:1: the column {repeated[0]!r} is repeated; rename one")
    separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        raise UserError(
            f"{path}:1: the columns are separated by {separator!r}; save the file with commas"
        )
