"""Atomic writes: a killed command leaves either the old file or the new one."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmft.errors import UserError

StrPath = str | os.PathLike[str]
"""A path as users give it: a text, a `Path` or a `Run`."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path` that replaces it once it is synced to disk.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is "
            "unchanged. Free some space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def find_staged(folder: Path) -> list[Path]:
    """Return the temporary folders of killed commands."""
    return list(folder.glob(".new.*"))


@contextmanager
def stage_files(folder: Path) -> Iterator[Path]:
    """Open a temporary folder within `folder`, for files that are moved there together.

    Raises:
        UserError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = tempfile.TemporaryDirectory(dir=folder, prefix=".new.")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder"
        ) from error
    with staged as name:
        yield Path(name)
    for left in find_staged(folder):
        shutil.rmtree(left, ignore_errors=True)


def explain_disk(error: Exception) -> str | None:
    """Return the message of a disk error, such as a full disk; None for other errors.

    The libraries that write weights wrap the errors of the system in errors of their own.
    """
    text = str(error)
    is_system = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    is_wrapped = "os error" in text.lower() or "PytorchStreamWriter" in text
    return text if is_system or is_wrapped else None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON, atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with replace_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")


def read_json(path: Path, *, fix: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        fix: How the user can fix a missing or broken file, as an imperative.

    Raises:
        UserError: If the file is missing or broken.
    """
    ending = f"; {fix}" if fix else ""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}{ending}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(data).__name__}{ending}")
    return data


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; fix the path or its permissions"
        ) from error


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
