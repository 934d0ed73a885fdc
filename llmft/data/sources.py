"""From files to source rows: JSON, CSV in any encoding, Parquet, data sets, DataFrames."""

import codecs
import contextlib
import csv
import glob
import gzip
import hashlib
import io
import json
import re
import sys
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import count, filterfalse, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.config.frames import FRAME, Frame
from llmft.config.loading import FaultList
from llmft.config.task import SourceConfig, Split, rank_given
from llmft.data.fields import Row, read_number
from llmft.errors import UserError
from llmft.files import hash_file

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONTENTS = {
    b"\x1f\x8b": ("compressed by gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", ".zst"),
    b"PAR1": ("Parquet", ".parquet"),
    b"PK\x03\x04": ("a zip archive, as Excel (.xlsx) writes it", None),
    b"\xd0\xcf\x11\xe0": ("an Excel file (.xls)", None),
    b"BZh": ("compressed by bzip2", None),
    b"\xfd7zXZ": ("compressed by xz", None),
    b"SQLite format 3": ("an SQLite database", None),
    b"%PDF": ("PDF", None),
}
"""First bytes of a file -> what it is, and the ending of those that are read."""
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_BLOCK = 1 << 20
_OVER_LINES = re.compile(r"\s*(?:(\[)\s*(?:\{.*)?|(\{)\s*)$")
_NOT_LINES = {
    "[": "a list of objects, as in a .json file; rename it to .json",
    None: "an object over several lines; write each object on one line, or all as a list in a "
    ".json file",
}
"""First bracket of a file that should have one object a line -> what it is, and how to mend it."""
HUB = "hf://"
_BATCH = 1_000
_LONGEST_NAME = 60
_SAMPLE_ROWS, _MOSTLY, _WORDS_OF_TEXT = 200, 0.9, 4
"""Rows of a CSV that show how it is written, and the fraction of them that has to fit."""
_BUFFER_BYTES = 1 << 20  # else a row group, maybe the complete file, is in memory
Skips = Callable[[int], bool]
"""Position of a row, counted from 0 -> whether the row may be skipped."""


def split_ending(path: Path) -> tuple[str, str]:
    """Return the ending of the format, and that of the compression or nothing, in lower case."""
    ending = path.suffix.lower()
    if ending in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), ending
    return ending, ""


def check_ending(path: Path, *, where: str) -> None:
    """Refuse a file name without a known ending.

    Args:
        path: The file.
        where: What names it.

    Raises:
        UserError: With the endings that are allowed.
    """
    ending, compression = split_ending(path)
    if ending not in ENDINGS or (ending == ".parquet" and compression):
        raise UserError(
            f"{where}: {path}: unknown ending; allowed: {', '.join(ENDINGS)}, and all but .parquet "
            f"with {' or '.join(COMPRESSIONS)} behind it"
        )


def check_contents(path: Path) -> None:
    """Refuse a file that is not what its ending says.

    Raises:
        UserError: With what it is instead.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
    ending, compression = split_ending(path)
    found = _recognise(start)
    if found is None and start and compression:
        raise UserError(f"{path}: is not what {compression} says; remove this ending")
    if found is not None and found[1] == compression != "":
        with _open_binary(path) as unpacked:
            inner = _recognise(unpacked.read(16))
        if inner is None:
            return
        raise UserError(
            f"{path}: holds {inner[0]} behind {compression}; unpack it, and name it as what it is"
        )
    if found is None or found[1] == (compression or ending):
        return
    what, proper = found
    name = path.stem if compression else path.name
    if proper == ".parquet":
        mend = "rename it to .parquet"
    elif proper is not None and ending != ".parquet":
        mend = f"rename it to {name}{proper}"
    else:
        mend = "save it as .csv, .jsonl or .parquet"
    raise UserError(f"{path}: is {what}; {mend}")


def _recognise(start: bytes) -> tuple[str, str | None] | None:
    """Return what a file is by its first bytes, and its proper ending; None if it may be text."""
    return next((what for magic, what in _CONTENTS.items() if start.startswith(magic)), None)


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed."""
    match split_ending(path)[1]:
        case ".gz":
            with gzip.open(path, "rb") as file:
                yield cast(IO[bytes], file)
        case ".zst":
            with pa.input_stream(path, compression="zstd") as file:
                yield file
        case _:
            with path.open("rb") as file:
                yield file


@contextlib.contextmanager
def _open_text(path: Path, codec: str) -> Iterator[TextIO]:
    with _open_binary(path) as file, io.TextIOWrapper(file, encoding=codec, newline="") as text:
        yield text


def check_encoding(path: Path, encoding: str, *, in_task: bool = True) -> str:
    """Return the codec to read a text file with; a byte order mark of UTF-8 is skipped.

    Args:
        path: The file.
        encoding: The one that it should have.
        in_task: Whether a task names the file, so that another encoding can be set there.

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
        key = f"set `encoding: {likely}` for this source, or " if in_task else ""
        raise UserError(
            f"{path}:{line}: not {encoding} ({found}); the file is likely {likely}: {key}convert "
            f"it with `iconv -f {likely} -t utf-8`"
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
    with _open_binary(path) as file:
        data = file.read()
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
    with _open_binary(path) as file:
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
        raise UserError(
            f"{path}: cannot be read as Parquet: {error}; write it again, or name another file"
        ) from error


def _read_wanted(file: pq.ParquetFile, group: int, positions: range, skips: Skips) -> Iterator[Row]:
    """Read the wanted rows of a row group; skipped rows are not converted to Python objects."""
    for batch in file.iter_batches(_BATCH, row_groups=[group]):
        wanted = [not skips(position) for position in positions[: len(batch)]]
        positions = positions[len(batch) :]
        if any(wanted):
            yield from batch.filter(pa.array(wanted)).to_pylist()


def read_hub(source: "Source") -> Iterator["SourceRow"]:
    """Read the rows of `hf://owner/name@revision`, with class names instead of numbers.

    Its CSV files are read as others are: pandas would take `None` and `null` for nothing, and
    `00002` for a number.

    Args:
        source: The data set, a local folder of its name first; its configuration, and its split, or
            all splits one after the other.

    Raises:
        UserError: If it cannot be loaded.
    """
    for found in _load_splits(source):
        if isinstance(found, Path):
            yield from _read_file(found, source, skips=lambda position: False)
        else:
            yield from _number_rows(_list_rows(found), source, skips=lambda position: False)


def _list_rows(dataset: Any) -> Iterator[Row]:
    found = {key: _find_class_names(feature) for key, feature in dataset.features.items()}
    names = {key: classes for key, classes in found.items() if classes is not None}
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        for row in table.to_pylist():
            yield {
                key: _name_label(value, names[key]) if key in names else value
                for key, value in row.items()
            }


def _find_class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of classes, or of lists of them."""
    feature = getattr(feature, "feature", feature)
    names: list[str] | None = feature.names if type(feature).__name__ == "ClassLabel" else None
    return names


def _name_label(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_name_label(item, names) for item in value]
    # Data sets have -1 for labels that are not published.
    return names[value] if value is not None and value >= 0 else None


def _load_splits(source: "Source") -> list[Any]:
    """Return the data sets of the splits, or the paths of their CSV files."""
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, revision = source.path.removeprefix(HUB).partition("@")
    shows_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_info.json").is_file() or (
            Path(name) / "dataset_dict.json"
        ).is_file():
            loaded = datasets.load_from_disk(name)
            loaded = loaded[source.rows] if source.rows is not None else loaded
        else:
            files = _find_csv_files(name, source, revision=revision or None)
            if files is not None:
                return files
            loaded = datasets.load_dataset(
                name, source.subset, split=source.rows, revision=revision or None
            )
    except (OSError, ValueError, LookupError, pa.ArrowException, DatasetsError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(
            f"sources: {source.path} cannot be loaded. Looked for a folder {name}, in the cache "
            f"{datasets.config.HF_DATASETS_CACHE} and on the Hub: {reason}. Fix "
            "the name, or download it while online"
        ) from error
    finally:
        if shows_bars:
            datasets.enable_progress_bars()
    return list(loaded.values()) if isinstance(loaded, dict) else [loaded]


def _find_csv_files(name: str, source: "Source", *, revision: str | None) -> list[Path] | None:
    """Return the files of a data set of plain CSV, downloaded; None if it is of another kind.

    One that declares its columns, such as names of classes, or another form of CSV is left to
    `datasets`, as is an expression for its rows.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv, CsvConfig

    builder = datasets.load_dataset_builder(name, source.subset, revision=revision)
    if not isinstance(builder, Csv) or builder.info.features is not None:
        return None
    plain, config = CsvConfig().pd_read_csv_kwargs, builder.config
    splits = config.data_files or {}
    wanted = [source.rows] if source.rows is not None else list(splits)
    if config.pd_read_csv_kwargs != plain or not splits or not set(wanted) <= set(splits):
        return None
    paths = [path for split in wanted for path in splits[split]]
    return [Path(path) for path in datasets.DownloadManager().download(paths)]


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
    delimiter: str | None = None
    """Between the cells of a CSV; None for that of its ending."""
    columns: tuple[str, ...] | None = None
    """Of a CSV without a header."""
    in_task: bool = True
    """Whether a task names it, where its keys can be set."""

    @property
    def name(self) -> str:
        """Name in manifests and messages; each split of a data set has a name of its own."""
        return " ".join(filter(None, (self.path, self.subset, self.rows)))

    @property
    def is_file(self) -> bool:
        """Whether it is a file, not a data set or a DataFrame."""
        return not self.path.startswith((HUB, FRAME))

    @property
    def is_csv(self) -> bool:
        """Whether it is a file of delimited text."""
        return self.is_file and split_ending(Path(self.path))[0] in (".csv", ".tsv")

    def compute_hash(self) -> str:
        """Return a hash of its contents: SHA-256, of a DataFrame the one in its path."""
        if self.frame is not None:
            return self.path.removeprefix(FRAME)
        if not self.is_file:
            digest = hashlib.sha256()
            for row in read_hub(self):
                digest.update(json.dumps(row.values, default=str).encode())
            return digest.hexdigest()
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
                path, config.encoding, config.split, config.subset, config.rows, config.frame,
                config.delimiter, None if config.columns is None else tuple(config.columns),
            )  # fmt: skip
            if found.setdefault(source.name, source) != source:
                faults.add(
                    f"sources: {path} is named twice, with another split or encoding; name it once"
                )
    faults.raise_all()
    # Of rows with the same id the first is kept, so a given test set is read before the others.
    return sorted(found.values(), key=lambda source: rank_given(source.split), reverse=True)


def guess_source(path: str) -> SourceConfig:
    """Return how a file, or the first one of a glob, is written.

    That is its encoding, and for a CSV the delimiter, and names of columns if it has no header.

    Raises:
        UserError: If there is no such file, or it cannot be read.
    """
    first = Path(_match_files(SourceConfig(path=path))[0])
    keys: dict[str, Any] = {}
    try:
        check_contents(first)
        ending = split_ending(first)[0]
        if ending != ".parquet" and _find_fault(first, "utf-8") is not None:
            keys["encoding"] = guess_encoding(first)
        if ending in (".csv", ".tsv"):
            keys |= _guess_csv(first, keys.get("encoding", "utf-8-sig"), ending=ending)
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise UserError(
            f"{first}: cannot be read: {error}; fix the file, or name another"
        ) from error
    return SourceConfig.model_validate({"path": path, **keys})


def _guess_csv(path: Path, codec: str, *, ending: str) -> dict[str, Any]:
    usual = "\t" if ending == ".tsv" else ","
    for mark in dict.fromkeys((usual, ",", ";", "\t", "|")):
        with _open_text(path, codec) as file, _LONG_CELLS, contextlib.suppress(csv.Error):
            header, *rows = list(islice(csv.reader(file, delimiter=mark), _SAMPLE_ROWS)) or [[]]
            num_fitting = sum(len(cells) == len(header) for cells in rows)
            if len(header) < 2 or num_fitting < _MOSTLY * len(rows):
                continue
            found: dict[str, Any] = {} if mark == usual else {"delimiter": mark}
            has_text = any(len(name.split()) >= _WORDS_OF_TEXT for name in header)
            if looks_like_data(header) or (has_text and any(_recurs(header, rows))):
                found["columns"] = [f"column_{i + 1}" for i in range(len(header))]
            return found
    return {}


def _recurs(header: list[str], rows: list[list[str]]) -> Iterator[bool]:
    """Yield for each name of a header whether it is also a frequent value below."""
    for position, name in enumerate(header):
        below = [cells[position] for cells in rows if len(cells) == len(header)]
        yield name != "" and below.count(name) > 1


def read_rows(source: Source, *, skips: Skips = lambda position: False) -> Iterator[SourceRow]:
    """Read a source, one row at a time.

    Args:
        source: What to read.
        skips: Which rows of a file to skip; they are not parsed if the format allows it.

    Raises:
        UserError: If it cannot be read or is in another encoding.
    """
    if source.frame is not None:
        yield from _number_rows(iter(source.frame.rows), source, skips=lambda position: False)
    elif not source.is_file:
        yield from read_hub(source)
    else:
        yield from _read_file(Path(source.path), source, skips=skips)


def _read_file(path: Path, source: Source, *, skips: Skips) -> Iterator[SourceRow]:
    try:
        check_contents(path)
        ending = split_ending(path)[0]
        if ending == ".parquet":
            yield from _number_rows(read_parquet(path, skips=skips), source, skips=skips)
            return
        codec = check_encoding(path, source.encoding, in_task=source.in_task)
        read = {".jsonl": _read_jsonl, ".json": _read_json}.get(ending, _read_csv)
        yield from read(path, source, codec, skips=skips)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read: {reason}; fix the file, or name another"
        ) from error


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
        check_ending(path, where="sources")
        ending = split_ending(path)[0]
        if ending == ".parquet" and config.encoding != "utf-8":
            raise UserError(f"sources: {path}: a Parquet file has no encoding; remove the key")
        for key in ("delimiter", "columns"):
            if getattr(config, key) is not None and ending not in (".csv", ".tsv"):
                raise UserError(f"sources: {path}: {key} is for .csv and .tsv; remove the key")
    return [str(path) for path in paths]


def _number_rows(rows: Iterator[Row], source: Source, *, skips: Skips) -> Iterator[SourceRow]:
    positions = filterfalse(skips, count())
    for values, position in zip(rows, positions, strict=False):
        yield SourceRow(source, position + 1, values, None)


def _read_jsonl(path: Path, source: Source, codec: str, *, skips: Skips) -> Iterator[SourceRow]:
    with _open_text(path, codec) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for position, (number, line) in enumerate(lines):
            if position == 0 and (found := _OVER_LINES.match(line.removeprefix("\ufeff"))):
                raise UserError(f"{path}:{number}: begins {_NOT_LINES[found[1]]}")
            if skips(position):
                continue
            try:
                values = json.loads(line.removeprefix("\ufeff"))
            except (ValueError, RecursionError) as error:
                yield SourceRow(source, number, {}, f"broken JSON: {error}")
                continue
            yield _take_object(values, source, number)


def _read_json(path: Path, source: Source, codec: str, *, skips: Skips) -> Iterator[SourceRow]:
    """Read a list of objects, or one object on each line."""
    with _open_text(path, codec) as file:
        start = file.read(_BLOCK).removeprefix("\ufeff").lstrip()
        if not start.startswith("["):
            yield from _read_jsonl(path, source, codec, skips=skips)
            return
        try:
            values = json.loads(start + file.read())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: broken JSON: {error}; fix the list") from error
    for position, value in enumerate(values):
        if not skips(position):
            yield _take_object(value, source, position + 1)


def _take_object(values: Any, source: Source, number: int) -> SourceRow:
    if isinstance(values, dict):
        return SourceRow(source, number, values, None)
    found = type(values).__name__
    return SourceRow(source, number, {}, f"broken JSON: expected an object, found a {found}")


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
    delimiter = source.delimiter or ("\t" if split_ending(path)[0] == ".tsv" else ",")
    with _open_text(path, codec) as file, _LONG_CELLS:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        start = 1
        try:
            header = list(source.columns or next(reader, []))
            header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]
            _check_header(header, path, in_task=source.in_task, delimiter=delimiter)
            start = reader.line_num + 1  # 1 without a header
            positions = count()
            for cells in reader:
                if start == 1 and source.columns is not None and cells == header:
                    raise UserError(
                        f"{path}:1: is a header that names the columns of `columns`; remove the key"
                    )
                if cells and not skips(next(positions)):
                    fault = None
                    if len(cells) != len(header):
                        fault = f"broken CSV: {len(cells)} cells, the header has {len(header)}"
                        mark = _find_separator(cells, num_columns=len(header), delimiter=delimiter)
                        if mark is not None and source.in_task:
                            fault += f"; the cells may be separated by {mark!r} (`delimiter`)"
                    values = {} if fault else dict(zip(header, cells, strict=True))
                    yield SourceRow(source, start, values, fault)
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}:{start}: not valid CSV: {error}; fix the quotes of this row, since the "
                "rows after it cannot be read"
            ) from error


def _check_header(header: list[str], path: Path, *, in_task: bool, delimiter: str) -> None:
    if not header:
        raise UserError(f"{path}:1: no header; write the names of its columns in the first line")
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        hint = ", or if this is no header, set `columns: [...]`" if looks_like_data(header) else ""
        hint = hint if in_task else ""
        raise UserError(f"{path}:1: the column {repeated[0]!r} is repeated; rename one{hint}")
    separator = _find_separator(header, delimiter=delimiter)
    if separator is not None and (delimiter, separator) != ("\t", ","):  # text may have commas
        key = f"set `delimiter: {json.dumps(separator)}` for this source, or " if in_task else ""
        raise UserError(
            f"{path}:1: the columns are separated by {separator!r}; {key}save it with commas"
        )


def _find_separator(
    cells: list[str], *, delimiter: str, num_columns: int | None = None
) -> str | None:
    """Return what separates the cells of a line that was read as one; None if nothing does."""
    marks = [mark for mark in (";", "\t", "|", ",") if len(cells) == 1 and mark in cells[0]]
    if num_columns is not None:
        marks = [mark for mark in marks if cells[0].count(mark) == num_columns - 1]
    return next((mark for mark in marks if mark != delimiter), None)


def looks_like_data(fields: Collection[str]) -> bool:
    """Return whether what stands for names of columns is likely the first row of a table."""
    return any(read_number(name) is not None or len(name) > _LONGEST_NAME for name in fields)
