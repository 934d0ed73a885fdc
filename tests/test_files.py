"""Files are replaced whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmft.errors import UserError
from llmft.files import (
    hash_file,
    hash_text,
    read_json,
    replace_file,
    stage_files,
    write_json,
    write_jsonl,
    write_text,
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"name": "Zürich 😀", "n": [1, 2.5, None]})
    assert read_json(path) == {"name": "Zürich 😀", "n": [1, 2.5, None]}
    assert "Zürich 😀" in path.read_text(encoding="utf-8"), "readable, not escaped"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_line_separator_in_a_text_does_not_break_the_lines(tmp_path: Path) -> None:
    rows = [{"text": "one\ntwo\u2028three\x85"}, {"text": "four"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open(encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == rows


def test_writing_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_text(path, "old")

    def rows() -> Any:
        yield {"x": 1}
        raise RuntimeError("the third row is missing")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"No space left on device; the old file.*unchanged"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_staged_files_that_nobody_moved_are_gone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage_files(tmp_path / "new") as staged:
        write_text(staged / "a.txt", "a")
        raise RuntimeError("before they took their places")
    assert list((tmp_path / "new").iterdir()) == []
    with stage_files(tmp_path / "new") as staged:
        write_text(staged / "a.txt", "a")
        (staged / "a.txt").replace(tmp_path / "new" / "a.txt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    with (
        pytest.raises(UserError, match=r"a\.txt: cannot be written"),
        stage_files(tmp_path / "new" / "a.txt"),
    ):
        pass


@pytest.mark.parametrize("name", ["folder", "file/below.txt", "x" * 300])
def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / name, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_holds_no_nan(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 100_000])
def test_broken_json_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: (cannot be read as JSON|expected a JSON obj)"):
        read_json(tmp_path / "a.json")


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é")
    assert hash_file(tmp_path / "a.txt") == hash_text("é")
    with pytest.raises(UserError, match="cannot be read"):
        hash_file(tmp_path / "gone.txt")
