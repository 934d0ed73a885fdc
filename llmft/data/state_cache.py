"""Vectors that a frozen base computes of rows, kept on disk by the rows' tokens."""

import hashlib
import logging
from array import array
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmft.data.encoding import EncodedRow
from llmft.files import hash_file, replace_file

logger = logging.getLogger(__name__)

STATES_FOLDER = "states"
"""Folder within the prepared data; it may be deleted at any time."""

_ENDING = ".safetensors"


class StateCache:
    """Vectors [N, E] of rows, in files that are written once: a killed pass loses the last one."""

    def __init__(self, folder: Path) -> None:
        """Read which rows are there; files that are broken are removed.

        Args:
            folder: Where the files are; its name has to be unique for all that the vectors depend
                on, except the row's own tokens.
        """
        self._folder = folder
        self._places: dict[bytes, tuple[Path, int]] = {}
        self.read()

    def read(self) -> None:
        """Read again which rows are there, since other processes write too."""
        known = {path for path, _ in self._places.values()}
        for path in sorted(set(self._folder.glob(f"*{_ENDING}")) - known):
            try:
                if hash_file(path)[:16] != path.name.removesuffix(_ENDING):
                    raise ValueError("its contents changed")
                with safe_open(path, framework="np") as file:
                    keys_NK = file.get_tensor("keys")
            except (OSError, SafetensorError, ValueError) as error:
                logger.info("%s: cannot be used (%s); computing its rows again", path, error)
                if not isinstance(error, OSError):
                    with suppress(OSError):
                        path.unlink()
                continue
            self._places |= {key.tobytes(): (path, i) for i, key in enumerate(keys_NK)}

    def has(self, key: bytes) -> bool:
        """Return whether the row with a key is there."""
        return key in self._places

    def write(self, rows: Sequence[EncodedRow], vectors_NE: NDArray[np.float32]) -> None:
        """Write the vectors of rows, shape [N, E].

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        keys = [_make_key(row) for row in rows]
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1),
            "vectors": np.ascontiguousarray(vectors_NE),
        }
        data = save(tensors)
        path = self._folder / f"{hashlib.sha256(data).hexdigest()[:16]}{_ENDING}"
        with replace_file(path) as file:
            file.write(data)
        self._places |= {key: (path, i) for i, key in enumerate(keys)}

    def gather(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        """Return the vectors of rows that are there, shape [N, E]."""
        by_path: dict[Path, list[tuple[int, int]]] = {}
        for position, row in enumerate(rows):
            path, place = self._places[_make_key(row)]
            by_path.setdefault(path, []).append((position, place))
        found_NE: NDArray[np.float32] | None = None
        for path, pairs in by_path.items():
            positions, places = map(list, zip(*pairs, strict=True))
            with safe_open(path, framework="np") as file:
                vectors_ME = file.get_tensor("vectors")
            if found_NE is None:
                found_NE = np.empty((len(rows), vectors_ME.shape[1]), dtype=np.float32)
            found_NE[positions] = vectors_ME[places]
        assert found_NE is not None
        return found_NE


def find_missing(caches: Collection[StateCache], rows: Sequence[EncodedRow]) -> list[int]:
    """Return the positions of the rows that one of the caches lacks, each distinct input once."""
    first: dict[bytes, int] = {}
    for position, row in enumerate(rows):
        key = _make_key(row)
        if not all(cache.has(key) for cache in caches):
            first.setdefault(key, position)
    return list(first.values())


def _make_key(row: EncodedRow) -> bytes:
    ids = array("i", [*row.own_ids, -1 if row.pair_start is None else row.pair_start])
    return hashlib.sha256(ids.tobytes()).digest()[:16]
