"""A file in another encoding is named with its line and the likely encoding, before any row."""

from pathlib import Path

import pytest

from llmft.config.task import SourceConfig
from llmft.data.sources import Source, check_encoding, guess_encoding, read_rows
from llmft.errors import UserError

ROWS = '{"text": "Straße"}\n{"text": "Zürich – “Bahn”"}\n'
LATIN_ROWS = '{"text": "Straße"}\n{"text": "Zürich"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


def complain(path: Path, encoding: str) -> str:
    with pytest.raises(UserError) as caught:
        check_encoding(path, encoding)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "named", "line", "likely"),
    [
        (LATIN_ROWS.encode("latin-1"), "utf-8", 1, "latin-1"),
        (ROWS.encode("cp1252"), "utf-8", 1, "cp1252"),
        (ROWS.encode("utf-16"), "utf-8", 1, "utf-16"),
        (ROWS.encode("utf-32"), "utf-8", 1, "utf-32"),
        (ROWS.encode("utf-16-le"), "utf-8", 1, "utf-16-le"),
        (ROWS.encode("utf-16-be"), "utf-8", 1, "utf-16-be"),
        (ROWS.encode("utf-16-le"), "utf-16", 1, "utf-16-le"),
        (b"x\n" * 6 + ROWS.encode(), "ascii", 7, "utf-8"),
        (b"x\n" * 6 + ROWS.encode(), "utf-16", 1, "utf-8"),
        ("Á".encode("cp1252") + b"\x81 is nothing in cp1252", "cp1252", 1, "latin-1"),
    ],
)
def test_the_likely_encoding_is_named_and_reads_the_file(
    path: Path, content: bytes, named: str, line: int, likely: str
) -> None:
    path.write_bytes(content)
    message = complain(path, named)
    assert message.startswith(f"{path}:{line}: not {named} (")
    assert f"`encoding: {likely}`" in message
    assert f"iconv -f {likely} -t utf-8" in message
    assert check_encoding(path, likely)


def test_utf_8_that_is_called_latin_1_is_refused(path: Path) -> None:
    path.write_text(ROWS, encoding="utf-8")
    assert "it is probably not latin-1; set `encoding: utf-8`" in complain(path, "latin-1")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32", "utf-8", "gb18030"])
def test_rows_are_read_in_the_encoding_that_is_named(path: Path, encoding: str) -> None:
    text = LATIN_ROWS if encoding == "latin-1" else ROWS
    path.write_bytes(text.encode(encoding))
    texts = [row.values["text"] for row in read_rows(Source(str(path), encoding))]
    assert texts == (
        ["Straße", "Zürich"] if encoding == "latin-1" else ["Straße", "Zürich – “Bahn”"]
    )


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "ascii", "cp1252"])
def test_plain_ascii_is_in_all_of_these_encodings(path: Path, encoding: str) -> None:
    path.write_bytes(b'{"text": "plain"}\n')
    assert len(list(read_rows(Source(str(path), encoding)))) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "shift_jis"])
@pytest.mark.parametrize("num_lines", [0, 1, 300_000])
def test_the_line_is_right_also_in_a_late_block(path: Path, encoding: str, num_lines: int) -> None:
    good = ("é" if encoding != "shift_jis" else "日") + " good\n"
    broken = {"utf-8": b"ab\xff\n", "utf-16": b"\x00\xdc\n\x00", "shift_jis": b"ab\xff\n"}
    path.write_bytes((good * num_lines).encode(encoding) + broken[encoding])
    if num_lines == 0 and encoding == "utf-16":
        path.write_bytes(b"\xff\xfe" + broken[encoding])
    assert complain(path, encoding).startswith(f"{path}:{num_lines + 1}: not {encoding} (")


def test_a_letter_on_the_border_of_two_blocks_is_no_fault(path: Path) -> None:
    path.write_bytes(b"x" * ((1 << 20) - 1) + "é\n".encode())
    assert check_encoding(path, "utf-8")


def test_one_broken_byte_does_not_make_utf_8_latin_1(path: Path) -> None:
    path.write_bytes(ROWS.encode() + b"Z\xfcrich\n" + ROWS.encode())
    message = complain(path, "utf-8")
    assert message.startswith(f"{path}:3: not utf-8 (byte 0xfc")
    assert "though the rest is; fix the line" in message
    assert "latin-1" not in message


def test_a_file_that_breaks_off_in_a_letter_is_reported(path: Path) -> None:
    path.write_bytes("Zürich".encode()[:2])
    assert "unexpected end of data" in complain(path, "utf-8")


def test_an_empty_file_is_in_any_encoding(path: Path) -> None:
    path.write_bytes(b"")
    assert check_encoding(path, "utf-16") == "utf-16"
    assert guess_encoding(path) == "utf-8"


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", "idna", "undefined", ""])
def test_what_is_no_text_encoding_is_refused_in_the_task(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"not a text encoding of Python, such as utf-8"):
        SourceConfig(path="a.csv", encoding=encoding)


def test_encodings_go_by_any_of_their_names(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + ROWS.encode())
    for name in ("UTF8", "utf_8", "U8"):
        first, _ = read_rows(Source(str(path), SourceConfig(path="x", encoding=name).encoding))
        assert first.values == {"text": "Straße"}, "the byte order mark is skipped"
