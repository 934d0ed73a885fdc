"""Rows from files, each with its line; nothing is guessed."""

import json
from pathlib import Path

import pandas as pd
import pytest

from llmft.config.task import FieldsConfig, SourceConfig
from llmft.data.fields import RowFaultError, as_text, assemble_text
from llmft.data.sources import Source, find_sources, read_rows
from llmft.errors import UserError


def write(name: str, content: str | bytes) -> Source:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Source(name)


def find(*patterns: str) -> list[str]:
    return [source.path for source in find_sources([SourceConfig(path=p) for p in patterns])]


@pytest.fixture(autouse=True)
def _in_workspace(workspace: Path) -> None:
    """Files are written into an empty working folder."""


# JSON lines


def test_jsonl_rows_know_their_line() -> None:
    rows = list(read_rows(write("a.jsonl", '{"x": 1}\n\n{"x": 2}\r\n{"x": 3}')))
    assert [(row.line, row.values["x"]) for row in rows] == [(1, 1), (3, 2), (4, 3)]
    assert rows[0].source.path == "a.jsonl"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"x": 1', "broken JSON"),
        ("[1, 2]", "broken JSON: expected an object, found a list"),
        ("null", "broken JSON: expected an object, found a NoneType"),
        ("[" * 100_000, "broken JSON"),
        ('{"x": ' + "9" * 5000 + "}", "broken JSON"),
        ("\0\0\0", "broken JSON"),
    ],
)
def test_a_broken_line_is_a_faulty_row_and_the_next_is_read(line: str, fault: str) -> None:
    broken, good = read_rows(write("a.jsonl", f'{line}\n{{"x": 2}}\n'))
    assert broken.line == 1
    assert broken.fault is not None
    assert broken.fault.startswith(fault)
    assert broken.values == {}
    assert (good.line, good.values, good.fault) == (2, {"x": 2}, None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_skipped(name: str) -> None:
    content = '{"x": "1"}\n' if name == "a.jsonl" else "x\n1\n"
    (row,) = read_rows(write(name, b"\xef\xbb\xbf" + content.encode()))
    assert row.values == {"x": "1"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_another_encoding_is_refused_with_file_line_and_the_likely_one(name: str) -> None:
    path = write(name, "x\n{}\nStra\xdfe\n".encode("latin-1"))
    wanted = rf"{name}:3: not utf-8 \(byte 0xdf, .*set `encoding: latin-1`.*iconv -f latin-1"
    with pytest.raises(UserError, match=wanted):
        list(read_rows(path))


# CSV


def test_csv_rows_know_their_line_across_quoted_newlines() -> None:
    path = write("a.csv", 'x,y\n1,"two\nlines"\n\n2,"a ""quote"", a comma"\n')
    rows = list(read_rows(path))
    assert [row.line for row in rows] == [2, 5]
    assert rows[0].values == {"x": "1", "y": "two\nlines"}
    assert rows[1].values["y"] == 'a "quote", a comma'


def test_a_row_with_too_few_or_too_many_cells_is_faulty() -> None:
    rows = list(read_rows(write("a.csv", "x,y\n1\n1,2\n1,2,3\n")))
    assert [row.fault for row in rows] == [
        "broken CSV: 1 cells, the header has 2",
        None,
        "broken CSV: 3 cells, the header has 2",
    ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest() -> None:
    path = write("a.csv", 'x,y\n1,2\n3,"four\n5,6\n7,8\n')
    with pytest.raises(UserError, match=r"a\.csv:3: not valid CSV: .*fix the quotes of this row"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("x,y,x\n1,2,3\n", r"a\.csv:1: the column 'x' is repeated"),
        ("", r"a\.csv:1: no header"),
        ('x,"y\n1,2\n', r"a\.csv:1: not valid CSV"),
    ],
)
def test_a_broken_header_is_refused(content: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        list(read_rows(write("a.csv", content)))


def test_a_cell_may_be_longer_than_the_csv_module_likes() -> None:
    (row,) = read_rows(write("a.csv", f"x\n{'word ' * 1_000_000}\n"))
    assert len(row.values["x"]) == 5_000_000


# which files


def test_globs_give_each_file_once_in_order() -> None:
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl", "x.csv"):
        write(name, "{}\n")
    assert find("data/*.jsonl") == ["data/a.jsonl", "data/b.jsonl"]
    assert find("x.csv", "data/**/*.jsonl", "./data/a.jsonl") == [
        "x.csv", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl",
    ]  # fmt: skip


def test_a_name_with_brackets_is_found() -> None:
    write("batch[1].jsonl", "{}\n")
    assert find("batch[1].jsonl") == ["batch[1].jsonl"]


@pytest.mark.parametrize("pattern", ["gone.jsonl", "*.csv", "[!", "x" * 5000, "a/../../*.csv"])
def test_a_source_that_matches_nothing_is_refused(pattern: str) -> None:
    write("a.jsonl", "{}\n")
    with pytest.raises(UserError, match="matches no file below"):
        find(pattern)


@pytest.mark.parametrize("name", ["a.xml", "a.txt", "a", "a.jsonl.bz2", "a.gz", "a.parquet.gz"])
def test_an_unknown_ending_is_refused(name: str) -> None:
    write(name, "{}\n")
    with pytest.raises(
        UserError, match=rf"{name}: unknown ending; allowed: \.jsonl, \.json, \.csv, \.tsv, \.parq"
    ):
        find(name)


def test_a_folder_that_is_called_like_a_file_is_refused() -> None:
    Path("a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: is not a file"):
        find("*.jsonl")


def test_a_link_to_nowhere_is_refused() -> None:
    Path("a.jsonl").symlink_to("gone")
    with pytest.raises(UserError, match=r"a\.jsonl: is not a file"):
        find("*.jsonl")


def test_a_file_that_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.jsonl", "{}\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read: Permission denied"):
        list(read_rows(path))


# texts


def test_text_fields_are_joined_by_a_blank_line_and_empty_ones_left_out() -> None:
    fields = FieldsConfig(text=["title", "teaser", "body"])
    row = {"title": " Crisis ", "teaser": None, "body": "Banks fall.\n"}
    assert assemble_text(row, fields) == "Crisis\n\nBanks fall."


def test_a_prepared_text_stands_in_for_its_fields() -> None:
    fields = FieldsConfig(text=["title", "body"])
    assert assemble_text({"text": "all of it"}, fields) == "all of it"
    assert assemble_text({"text": "other", "body": "mine"}, fields) == "mine"


@pytest.mark.parametrize("body", [None, "", " \n\t "])
def test_an_empty_text_is_a_fault(body: object) -> None:
    with pytest.raises(RowFaultError, match="empty text: nothing in body"):
        assemble_text({"body": body}, FieldsConfig(text=["body"]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"html": "x"}, "not text: body holds a dict"),
        (["x"], "not text: body holds a list"),
        ("a\0b", "not text: body holds NUL bytes"),
        (json.loads('"\\ud83d"'), "not text: body holds a lone surrogate"),
    ],
)
def test_what_is_no_text_is_a_fault(value: object, reason: str) -> None:
    with pytest.raises(RowFaultError, match=reason):
        as_text(value, name="body")


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (1.5, "1.5"), ("😀", "😀"), (None, "")])
def test_plain_values_become_text(value: object, text: str) -> None:
    assert as_text(value, name="body") == text


# Some of the rows


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_that_are_skipped_are_left_out_and_the_others_keep_their_line(ending: str) -> None:
    frame = pd.DataFrame({"x": range(2_500)})
    match ending:
        case "jsonl":
            frame.to_json("a.jsonl", orient="records", lines=True)
        case "csv":
            frame.to_csv("a.csv", index=False)
        case _:
            frame.to_parquet("a.parquet", row_group_size=1_200)
    wanted = {0, 999, 1_000, 1_199, 2_499}
    source = Source(f"a.{ending}")
    found = list(read_rows(source, skips=lambda position: position not in wanted))
    assert [int(row.values["x"]) for row in found] == sorted(wanted)
    every = {int(row.values["x"]): row.line for row in read_rows(source)}
    assert [row.line for row in found] == [every[x] for x in sorted(wanted)]


def test_lines_that_are_skipped_are_not_parsed() -> None:
    source = write("a.jsonl", '{"x": 1}\n{"x": \n\n{"x": 3}\n')
    found = read_rows(source, skips=lambda position: position == 1)
    assert [(row.line, row.values, row.fault) for row in found] == [
        (1, {"x": 1}, None),
        (4, {"x": 3}, None),
    ]
