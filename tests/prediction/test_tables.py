"""Rows in, the same rows out, with prediction columns behind them."""

import csv
import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.errors import UserError
from llmft.prediction.tables import (
    TableLayout,
    check_output,
    find_types,
    join_tables,
    read_input,
    read_types,
    write_table,
)

ROWS = [
    {"id": "a", "text": 'one, "two"\nthree', "extra": {"deep": [1]}},
    {"id": "b", "text": "four", "late": "only here"},
]
ADDED = [{"prediction": 1.5, "score_x": 1.5}, {"prediction": None, "score_x": None}]
SCHEMA = pa.schema({"prediction": pa.float64(), "score_x": pa.float64()})
LAYOUT = TableLayout(["id", "text", "extra", "late"], None, SCHEMA)


def test_jsonl_keeps_unknown_fields(tmp_path: Path) -> None:
    write_table(tmp_path / "out.jsonl", ROWS, ADDED, layout=LAYOUT)
    found = list(read_input(tmp_path / "out.jsonl"))
    assert found == [{**row, **added} for row, added in zip(ROWS, ADDED, strict=True)]


def test_csv_has_a_column_for_every_field_of_any_row(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", ROWS, ADDED, layout=LAYOUT)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "text", "extra", "late", "prediction", "score_x"]
    assert found[0]["text"] == 'one, "two"\nthree'
    assert json.loads(found[0]["extra"]) == {"deep": [1]}
    assert found[1]["prediction"] == ""


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'), ("+1 or so", "'+1 or so"),
        ("-minus", "'-minus"), ("@SUM(1)", "'@SUM(1)"), ("\t=1", "'\t=1"), ("-5.5", "-5.5"),
        ("+3", "+3"), (-5, "-5"), ("a = b", "a = b"), ("", ""), (["=x"], '["=x"]'),
    ],
)  # fmt: skip
def test_formulas_of_spreadsheets_are_quoted_in_csv_on_request(
    tmp_path: Path, cell: object, written: str
) -> None:
    name = "=cmd"
    for safe in (True, False):
        layout = TableLayout([name, "text"], None, SCHEMA, csv_safe=safe)
        write_table(tmp_path / "out.csv", [{name: cell}], ADDED[:1], layout=layout)
        with (tmp_path / "out.csv").open(newline="") as file:
            header, row = csv.reader(file)
        as_it_is = json.dumps(cell) if isinstance(cell, list) else str(cell)
        assert header[0] == ("'=cmd" if safe else "=cmd")
        assert row[0] == (written if safe else as_it_is)
    write_table(tmp_path / "out.jsonl", [{name: cell}], ADDED[:1], layout=layout)
    assert json.loads((tmp_path / "out.jsonl").read_text())[name] == cell


def test_parquet_keeps_the_types_of_its_input(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 31)
    table = pa.table({"day": pa.array([day, None], pa.date32()), "n": pa.array([1, 2], pa.int8())})
    pq.write_table(table, tmp_path / "in.parquet")
    rows, types = list(read_input(tmp_path / "in.parquet")), read_types(tmp_path / "in.parquet")
    layout = TableLayout(types.names, types, SCHEMA)
    write_table(tmp_path / "out.parquet", rows, ADDED, layout=layout)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("day").type == pa.date32()
    assert found.schema.field("n").type == pa.int8()
    assert found["prediction"].to_pylist() == [1.5, None]


def test_a_column_of_mixed_types_cannot_become_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'n' cannot be written as Parquet"):
        find_types([{"n": 1}, {"n": "two"}], pa.schema([]))
    with pytest.raises(UserError, match="'n' cannot be written as Parquet"):
        find_types([{"n": "two"}], find_types([{"n": 1}], pa.schema([])))


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [
        (None, 1, pa.int64()),
        (1, 2.5, pa.float64()),
        ([], ["a"], pa.list_(pa.string())),
        ({"a": 1}, {"b": "x"}, pa.struct({"a": pa.int64(), "b": pa.string()})),
    ],
)
def test_types_become_wider_as_rows_are_seen(early, late, kind: pa.DataType) -> None:
    types = find_types([{"late": late}], find_types([{"late": early}], pa.schema([])))
    assert types.field("late").type == kind


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_joined_tables_are_the_table_of_all_rows(tmp_path: Path, ending: str) -> None:
    fields = ["a\nb", "n"]
    layout = TableLayout(fields, pa.schema({"a\nb": pa.string(), "n": pa.int64()}), SCHEMA)
    rows = [{"a\nb": f"line\n{i}", "n": i} for i in range(6)]
    added = [{"prediction": None if i < 2 else 0.5, "score_x": None} for i in range(6)]
    parts = [tmp_path / f"{start}.{ending}" for start in (0, 2, 4)]
    for part, start in zip(parts, (0, 2, 4), strict=True):
        write_table(part, rows[start : start + 2], added[start : start + 2], layout=layout)
    join_tables(parts, tmp_path / f"joined.{ending}")
    write_table(tmp_path / f"whole.{ending}", rows, added, layout=layout)
    joined, whole = (list(read_input(tmp_path / f"{n}.{ending}")) for n in ("joined", "whole"))
    assert joined == whole
    assert len(joined) == 6


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_what_json_has_no_number_for_becomes_null(tmp_path: Path, ending: str) -> None:
    value = {"a": [float("inf"), 1.5, {"b": float("nan")}], "c": "NaN"}
    layout = TableLayout(["meta"], None, pa.schema([("prediction", pa.float64())]))
    path = tmp_path / f"out{ending}"
    write_table(path, [{"meta": value}], [{"prediction": 1.0}], layout=layout)
    (row,) = read_input(path)
    found = json.loads(row["meta"]) if ending == ".csv" else row["meta"]
    assert found == {"a": [None, 1.5, {"b": None}], "c": "NaN"}


def test_infinity_becomes_null_in_jsonl(tmp_path: Path) -> None:
    layout = TableLayout(["n"], None, pa.schema([("prediction", pa.int64())]))
    rows = [{"n": float("inf")}, {"n": float("-inf")}]
    write_table(tmp_path / "out.jsonl", rows, [{"prediction": 1}] * 2, layout=layout)
    assert "Infinity" not in (tmp_path / "out.jsonl").read_text()


def test_an_input_in_another_encoding_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\n1,caf\xe9 cr\xe8me\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"likely latin-1: convert it with `iconv") as caught:
        list(read_input(tmp_path / "in.csv"))
    assert "set `encoding" not in str(caught.value)


def test_nan_becomes_null_in_jsonl(tmp_path: Path) -> None:
    layout = TableLayout(["n"], None, SCHEMA)
    write_table(tmp_path / "out.jsonl", [{"n": float("nan")}], [{"prediction": 1}], layout=layout)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"n": None, "prediction": 1}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_text_that_is_no_unicode_is_one_message_and_no_file(tmp_path: Path, ending: str) -> None:
    layout = TableLayout(["n"], pa.schema({"n": pa.string()}), SCHEMA)
    with pytest.raises(UserError):
        write_table(tmp_path / f"out.{ending}", [{"n": "\ud800"}], ADDED[:1], layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: broken JSON"):
        list(read_input(tmp_path / "in.jsonl"))


def test_an_unknown_ending_is_refused() -> None:
    with pytest.raises(UserError, match=r"--output: out\.xlsx: unknown ending"):
        check_output(Path("out.xlsx"), option="--output")
