"""Dates in the spellings of files, feeds and tables; and splits that go by them."""

import datetime
from typing import Any

import pandas as pd
import pytest

from llmft.data.fields import RowFaultError
from llmft.data.reading import read_date
from tests.data.conftest import number_rows

NOON = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC).timestamp()
MIDNIGHT = NOON - 12 * 3600


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2024-01-31", MIDNIGHT),
        ("2024-01-31T12:00:00", NOON),
        ("2024-01-31 12:00:00Z", NOON),
        ("2024-01-31T13:00:00+01:00", NOON),
        ("Wed, 31 Jan 2024 12:00:00 GMT", NOON),
        ("Wed, 31 Jan 2024 07:00:00 -0500", NOON),
        (datetime.date(2024, 1, 31), MIDNIGHT),
        (datetime.datetime(2024, 1, 31, 12), NOON),
        (datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC), NOON),
        (pd.Timestamp("2024-01-31T12:00:00.000000001"), NOON),
    ],
)
def test_dates_are_read_as_seconds(value: Any, moment: float) -> None:
    assert read_date(value, name="day") == ("date", moment)


@pytest.mark.parametrize(("value", "number"), [(1945, 1945.0), ("1945", 1945.0), (-3.5, -3.5)])
def test_plain_numbers_are_put_in_order_as_they_are(value: Any, number: float) -> None:
    assert read_date(value, name="day") == ("number", number)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "date missing: day"),
        ("  ", "date missing: day"),
        ("last week", "not a date: day holds 'last week'"),
        ("2024-13-01", "not a date: day holds '2024-13-01'"),
        ("inf", "not a date: day holds 'inf'"),
        (pd.NaT, "not a date: day holds 'NaT'"),
        ("0001-01-01T00:00:00+14:00", "not a date: day holds '0001-01-01T00:00:00+14:00'"),
        ("9999-12-31T23:59:59-14:00", "not a date: day holds '9999-12-31T23:59:59-14:00'"),
        (["2024"], "not text: day holds a list"),
    ],
)
def test_what_is_no_date_rejects_the_row(value: Any, reason: str) -> None:
    with pytest.raises(RowFaultError) as caught:
        read_date(value, name="day")
    assert str(caught.value).partition(";")[0] == reason


def make_dated_rows(num_rows: int = 20) -> list[dict[str, Any]]:
    """Rows of one day each, the latest first."""
    rows = number_rows(num_rows)
    for i, row in enumerate(rows):
        row["day"] = f"2024-01-{num_rows - i:02d}"
    return rows


def test_the_earliest_rows_are_train_and_the_latest_test(prepare) -> None:
    outcome = prepare(make_dated_rows(), "split.by=day")
    assert [r["id"] for r in outcome.splits["test"]] == ["r0", "r1"]
    assert [r["id"] for r in outcome.splits["val"]] == ["r2", "r3"]
    split = outcome.manifest["split"]
    assert split["strata"] == "none, since rows are split by day"
    assert split["ranges"] == {
        "train": ["2024-01-01T00:00:00+00:00", "2024-01-16T00:00:00+00:00"],
        "val": ["2024-01-17T00:00:00+00:00", "2024-01-18T00:00:00+00:00"],
        "test": ["2024-01-19T00:00:00+00:00", "2024-01-20T00:00:00+00:00"],
    }


def test_years_are_written_as_years(prepare) -> None:
    rows = [{**row, "year": 1945 + i} for i, row in enumerate(number_rows(20))]
    outcome = prepare(rows, "split.by=year")
    assert outcome.manifest["split"]["ranges"]["test"] == ["1963", "1964"]


def test_dates_and_numbers_cannot_be_mixed(prepare) -> None:
    rows = make_dated_rows()
    rows[4]["day"] = 2024
    outcome = prepare(rows, "split.by=day")
    assert outcome.status == 2
    assert "split.by: day holds 19 dates and 1 plain numbers" in outcome.message


def test_a_row_without_a_date_is_rejected_and_a_misspelt_field_refused(prepare) -> None:
    rows = make_dated_rows(30)
    rows[4]["day"] = None
    rows[5]["day"] = "soon"
    outcome = prepare(rows, "split.by=day")
    assert [(line, reason.partition(";")[0]) for line, reason in outcome.reasons] == [
        (5, "date missing: day"),
        (6, "not a date: day holds 'soon'"),
    ]
    outcome = prepare(rows, "split.by=dya")
    assert outcome.status == 2
    assert "no row has the field 'dya'. Did you mean `day`?" in outcome.message


def test_d6_a_group_over_many_days_goes_where_its_newest_row_is(prepare) -> None:
    rows = [{**row, "act": f"a{i}"} for i, row in enumerate(make_dated_rows())]
    rows[19]["act"] = rows[0]["act"]  # the first day and the last
    outcome = prepare(rows, "split.by=day", fields="{id: id, text: text, group: act}")
    assert outcome.split_of["r0"] == outcome.split_of["r19"] == "test"


def test_rows_of_one_day_only_cannot_be_split_by_day(prepare) -> None:
    rows = [{**row, "day": "2024-01-31"} for row in number_rows(30)]
    outcome = prepare(rows, "split.by=day")
    assert outcome.status == 2
    assert "would be empty" in outcome.message
