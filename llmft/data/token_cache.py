"""Encoded rows as Arrow: memory-mapped from cached files, or in memory."""

import json
import logging
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmft.console import Progress
from llmft.data.encoding import EncodedRow, Encoder, measure_budget
from llmft.data.fields import Row
from llmft.errors import UserError
from llmft.files import find_staged, hash_file, read_json
from llmft.results.run import TokenBudget
from llmft.wording import count

TOKENS_FOLDER = "tokens"
"""Folder within the prepared data; it may be deleted at any time."""

_MANIFEST = "tokens.json"
_FORMAT = 1
_ROWS_PER_CHUNK = 1_000
_NUM_PROBES = 8
_SCHEMA = pa.schema(
    {
        "own_ids": pa.list_(pa.int32()),
        "num_article_tokens": pa.int32(),
        "num_kept_tokens": pa.int32(),
        "pair_start": pa.int32(),
    }
)

logger = logging.getLogger(__name__)


class TokenisedRows(Sequence[EncodedRow]):
    """Encoded rows with the same leading tokens; each is decoded on access."""

    def __init__(self, chunks: Sequence[pa.RecordBatch], *, shared_ids: list[int]) -> None:
        self.shared_ids = shared_ids
        """Leading tokens of every row."""
        self._chunks = chunks
        self._ends = list(accumulate(chunk.num_rows for chunk in chunks))
        ids = [chunk.column("own_ids") for chunk in chunks]
        self._offsets: list[NDArray[np.int32]] = [column.offsets.to_numpy() for column in ids]
        self._values: list[NDArray[np.int32]] = [column.values.to_numpy() for column in ids]

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> "TokenisedRows":
        """Convert rows, all with the same shared tokens."""
        if isinstance(rows, cls):
            return rows
        shared_ids = rows[0].shared_ids if rows else []
        assert all(row.shared_ids == shared_ids for row in rows)
        return cls([_make_chunk(rows)], shared_ids=shared_ids)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        k = bisect_right(self._ends, position)
        chunk, offsets = self._chunks[k], self._offsets[k]
        row = position - self._ends[k] + chunk.num_rows
        return EncodedRow(
            self.shared_ids,
            self._values[k][offsets[row] : offsets[row + 1]].tolist(),
            *(chunk.column(name)[row].as_py() for name in _SCHEMA.names[1:]),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each input, shape [N]."""
        own = [np.diff(offsets).astype(np.int64) for offsets in self._offsets]
        lengths: NDArray[np.int64] = np.concatenate([np.zeros(0, dtype=np.int64), *own])
        return lengths + len(self.shared_ids)

    def without_shared(self) -> "TokenisedRows":
        """Return the same rows without the leading tokens that all have in common."""
        return TokenisedRows(self._chunks, shared_ids=[])


class Tokens(NamedTuple):
    """The encoded rows of all splits, and their token budgets."""

    encoded: dict[str, TokenisedRows]
    budgets: dict[str, TokenBudget]


def open_tokens(
    rows: Mapping[str, Sequence[Row]], *, encoder: Encoder, folder: Path, keep: bool
) -> Tokens:
    """Return tokenised rows, from the cache if it has them.

    Args:
        rows: Split -> rows.
        encoder: How they are encoded.
        folder: Folder of the cache; its name has to be unique for these rows and this encoder.
        keep: Whether to write them there, if they are not there yet.

    Raises:
        RowFaultError: If a row has no text or lacks a field that the prompt names.
        UserError: If the prompt leaves no tokens for an article.
    """
    found = _read(folder, rows, encoder, keep=keep)
    if found is None and keep:
        _write(folder, rows, encoder)
        found = _read(folder, rows, encoder, keep=keep)
    if found is not None:
        return found
    encoded = {
        split: TokenisedRows(
            list(_encode_chunks(split_rows, encoder)), shared_ids=encoder.shared_ids
        )
        for split, split_rows in rows.items()
    }
    return Tokens(encoded, _measure_budgets(rows, encoded, encoder))


def remove_tokens(folder: Path) -> None:
    """Remove the caches of `open_tokens` within a folder, and nothing else."""
    written = [path.parent for path in folder.glob(f"*/{_MANIFEST}")]
    for path in (*written, *find_staged(folder)):
        shutil.rmtree(path, ignore_errors=True)


def _read(
    folder: Path, rows: Mapping[str, Sequence[Row]], encoder: Encoder, *, keep: bool
) -> Tokens | None:
    """Return the cached rows; None if there are none or they cannot be used.

    A cache that cannot be used is removed, if `keep`.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = read_json(folder / _MANIFEST)
        if manifest["format"] != _FORMAT:
            raise ValueError("another version of llmft wrote it")
        for split in rows:
            if hash_file(_name_file(folder, split)) != manifest["files"][split]:
                raise ValueError(f"{split} was changed")
        encoded = _map_files(folder, rows, encoder)
        for split, split_rows in rows.items():
            if len(encoded[split]) != len(split_rows):
                raise ValueError(f"{split} has another number of rows")
            # The encoding code may have changed in a way that the fingerprint does not cover.
            probes = range(0, len(split_rows), len(split_rows) // _NUM_PROBES + 1)
            expected = encoder.encode([split_rows[i] for i in probes])
            if [encoded[split][i] for i in probes] != expected:
                raise ValueError(f"{split} was tokenised differently")
        budgets = {split: TokenBudget.model_validate(manifest["budgets"][split]) for split in rows}
    except (UserError, OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        logger.info("%s: cannot be used (%s); tokenising again", folder, error)
        if keep:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return Tokens(encoded, budgets)


def _write(folder: Path, rows: Mapping[str, Sequence[Row]], encoder: Encoder) -> None:
    """Write the cache atomically; if the disk cannot be written, tokens stay in memory."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new.") as name:
            staged = Path(name) / folder.name
            staged.mkdir()
            for split, split_rows in rows.items():
                with (
                    _open_synced(_name_file(staged, split)) as file,
                    pa.ipc.new_file(file, _SCHEMA) as writer,
                ):
                    for chunk in _encode_chunks(split_rows, encoder):
                        writer.write_batch(chunk)
            budgets = _measure_budgets(rows, _map_files(staged, rows, encoder), encoder)
            manifest = {
                "format": _FORMAT,
                "files": {split: hash_file(_name_file(staged, split)) for split in rows},
                "budgets": {split: budget.model_dump() for split, budget in budgets.items()},
            }
            with _open_synced(staged / _MANIFEST) as file:
                file.write(json.dumps(manifest, indent=2).encode())
            try:
                staged.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                # Another run was faster. Its cache is validated when it is read.
    except (OSError, UserError) as error:
        fault = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(fault, OSError):
            raise
        logger.info(
            "%s: cannot be written (%s); tokens stay in memory", folder, fault.strerror or fault
        )


def _map_files(
    folder: Path, rows: Mapping[str, Sequence[Row]], encoder: Encoder
) -> dict[str, TokenisedRows]:
    files = {
        split: pa.ipc.open_file(pa.memory_map(str(_name_file(folder, split)))) for split in rows
    }
    return {
        split: TokenisedRows(
            [file.get_batch(i) for i in range(file.num_record_batches)],
            shared_ids=encoder.shared_ids,
        )
        for split, file in files.items()
    }


def _measure_budgets(
    rows: Mapping[str, Sequence[Row]],
    encoded: dict[str, TokenisedRows],
    encoder: Encoder,
) -> dict[str, TokenBudget]:
    return {
        split: measure_budget(split_rows, encoded[split], encoder=encoder)
        for split, split_rows in rows.items()
    }


def _encode_chunks(rows: Sequence[Row], encoder: Encoder) -> Iterator[pa.RecordBatch]:
    """Encode rows in chunks, since ids as Python lists take ten times the memory."""
    if len(rows) > _ROWS_PER_CHUNK:
        logger.info("tokenising %s", count(len(rows), "row"))
    is_shown = len(rows) > _ROWS_PER_CHUNK
    with Progress("tokenising", len(rows), is_shown=is_shown) as progress:
        for start in range(0, len(rows), _ROWS_PER_CHUNK):
            encoded = encoder.encode(rows[start : start + _ROWS_PER_CHUNK])
            progress.update(len(encoded))
            yield _make_chunk(encoded)


def _make_chunk(rows: Sequence[EncodedRow]) -> pa.RecordBatch:
    columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)


def _name_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


@contextmanager
def _open_synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that is synced to disk before it is closed."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
