"""Rows in, the same rows out, with prediction columns behind them."""

import csv
import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.errors import UserError
from llmft.prediction.tables import check_ending, read_table, write_table

ROWS = [
    {"id": "a", "text": 'one, "two"\nthree', "extra": {"deep": [1]}},
    {"id": "b", "text": "four", "late": "only here"},
]
ADDED = [{"prediction": 1.5, "score_x": 1.5}, {"prediction": None, "score_x": None}]


def test_jsonl_keeps_unknown_fields(tmp_path: Path) -> None:
    write_table(tmp_path / "out.jsonl", ROWS, ADDED, schema=None)
    found, _ = read_table(tmp_path / "out.jsonl")
    assert found == [{**row, **added} for row, added in zip(ROWS, ADDED, strict=True)]


def test_csv_has_a_column_for_every_field_of_any_row(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", ROWS, ADDED, schema=None)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "text", "extra", "late", "prediction", "score_x"]
    assert found[0]["text"] == 'one, "two"\nthree'
    assert json.loads(found[0]["extra"]) == {"deep": [1]}
    assert found[1]["prediction"] == ""


def test_parquet_keeps_the_types_of_its_input(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 31)
    table = pa.table({"day": pa.array([day, None], pa.date32()), "n": pa.array([1, 2], pa.int8())})
    pq.write_table(table, tmp_path / "in.parquet")
    rows, schema = read_table(tmp_path / "in.parquet")
    write_table(tmp_path / "out.parquet", rows, ADDED, schema=schema)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("day").type == pa.date32()
    assert found.schema.field("n").type == pa.int8()
    assert found["prediction"].to_pylist() == [1.5, None]


def test_a_column_of_mixed_types_cannot_become_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'n' holds what Parquet cannot"):
        write_table(tmp_path / "out.parquet", [{"n": 1}, {"n": "two"}], ADDED, schema=None)
    assert list(tmp_path.iterdir()) == []


def test_nan_becomes_null_in_jsonl(tmp_path: Path) -> None:
    write_table(tmp_path / "out.jsonl", [{"n": float("nan")}], [{"prediction": 1}], schema=None)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"n": None, "prediction": 1}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_text_that_is_no_unicode_is_one_message_and_no_file(tmp_path: Path, ending: str) -> None:
    with pytest.raises(UserError):
        write_table(tmp_path / f"out.{ending}", [{"n": "\ud800"}], ADDED[:1], schema=None)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: broken JSON"):
        read_table(tmp_path / "in.jsonl")


def test_an_unknown_ending_is_refused() -> None:
    with pytest.raises(UserError, match=r"--output: out\.xlsx: unknown ending"):
        check_ending(Path("out.xlsx"), option="--output")
