"""Rows of Parquet files, and of data sets on the Hugging Face Hub or in a folder."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmft.data.fields import Row
from llmft.errors import UserError

HUB = "hf://"
_BATCH = 1_000
_BUFFER_BYTES = 1 << 20  # without it a whole row group is held, which may be the whole file

Skips = Callable[[int], bool]
"""Tells of a row's position, counted from 0, whether the row may be left out."""


def read_parquet(path: Path, *, skips: Skips = lambda position: False) -> Iterator[Row]:
    """Read the rows of a Parquet file, little of it in memory at a time.

    Args:
        path: The file.
        skips: Tells which rows to leave out; row groups of nothing else are not read at all.

    Raises:
        UserError: If it is none.
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
    """Read the wanted rows of a row group; the others are decoded but made into no objects."""
    for batch in file.iter_batches(_BATCH, row_groups=[group]):
        wanted = [not skips(position) for position in positions[: len(batch)]]
        positions = positions[len(batch) :]
        if any(wanted):
            yield from batch.filter(pa.array(wanted)).to_pylist()


def read_hub(path: str, *, subset: str | None, rows: str | None) -> Iterator[Row]:
    """Read the rows of `hf://owner/name@revision`, classes by their names.

    Args:
        path: The data set; a folder of that name comes first.
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
                    # -1 is how data sets say that a row's label is kept secret.
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

    datasets.disable_progress_bars()
    name, _, revision = path.removeprefix(HUB).partition("@")
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
    return list(loaded.values()) if isinstance(loaded, dict) else [loaded]
