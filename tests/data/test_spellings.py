"""Data as they come: one class, date, number or table, however it is written (D24)."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.config.task import ClassConfig, MultilabelConfig, ScoresConfig, SourceConfig, name_class
from llmft.data.fields import RowFaultError, as_text, read_number
from llmft.data.labels import find_alike, parse_class, parse_multilabel, parse_scores
from llmft.data.reading import read_date
from llmft.data.sources import find_sources, read_rows
from llmft.errors import UserError
from tests.data.conftest import number_rows, write_rows

# classes


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([3, 3.0, "3", "3.0", " 3 ", "3.00", Decimal("3.0"), Decimal("3")], "3"),
        ([0, 0.0, -0.0, "0", "-0", "0.0"], "0"),
        ([-2, -2.0, "-2.0"], "-2"),
        ([12345678901, 12345678901.0, "12345678901.0"], "12345678901"),
        ([True, "true", "True", "TRUE"], "true"),
        (["007"], "007"),
        (["1.50"], "1.50"),
        ([1.5, "1.5", Decimal("1.50")], "1.5"),
        (["1e3"], "1e3"),
    ],
)
def test_d24_a_number_is_one_class_however_it_is_written(values: list[Any], name: str) -> None:
    config = ClassConfig.model_validate({"type": "class", "from": "label"})
    assert {parse_class({"label": value}, config) for value in values} == {name}


def test_d24_a_map_and_an_order_meet_numbers_of_any_form() -> None:
    mapped = ClassConfig.model_validate({"type": "class", "from": "x", "map": {1.0: "a", "2": "b"}})
    found = [parse_class({"x": value}, mapped) for value in (1, "1.0", 2.0)]
    assert found == ["a", "a", "b"]
    ordered = ClassConfig.model_validate({"type": "class", "from": "x", "order": [1.0, "2.0"]})
    assert ordered.order == ["1", "2"]
    assert parse_class({"x": 2}, ordered) == "2"


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["Spam", "spam"], [["Spam", "spam"]]),
        (["soft ware", "software", "hard"], [["soft ware", "software"]]),
        (["ham", "h\u200bam"], [["ham", "h\u200bam"]]),
        (["1", "01", "2"], [["1", "01"]]),
        (["1.5", "1.50"], [["1.5", "1.50"]]),
        (["1", "true", "false"], [["1", "true"]]),
        (["\uff11", "1"], [["\uff11", "1"]]),
        (["Straße", "STRASSE"], [["Straße", "STRASSE"]]),
        (["123456789012", "123456789013", "a", "b"], []),
    ],
)
def test_d24_names_that_are_likely_one_class_are_found(
    names: list[str], alike: list[list[str]]
) -> None:
    assert find_alike(names) == alike


def test_d24_prepare_says_how_to_join_classes_and_the_advice_works(prepare) -> None:
    moods = ["Calm", "calm", "CALM ", "tense"]
    rows = [{**row, "mood": moods[i % 4]} for i, row in enumerate(number_rows(60))]
    (warning,) = prepare(rows).manifest["warnings"]
    assert "'CALM' (15 rows) and 'Calm' (15 rows) and 'calm' (15 rows)" in warning
    advice = warning.partition("labels.map: ")[2].rstrip("`")
    outcome = prepare(rows, labels=f"{{type: class, from: mood, map: {advice}}}")
    assert outcome.manifest["warnings"] == []
    assert len(outcome.manifest["label_names"]) == 2


def test_d24_ids_that_a_gap_made_floats_are_the_same_ids(prepare) -> None:
    rows = [{**row, "id": i} for i, row in enumerate(number_rows(30))]
    pq.write_table(
        pa.Table.from_pylist([{**row, "id": float(row["id"])} for row in rows]), "a.parquet"
    )
    expected = prepare(rows).splits
    assert prepare(source="a.parquet").splits == expected


# lists of labels


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["joy", "fear"], ["joy", "fear"]),
        ('["joy", "fear"]', ["joy", "fear"]),
        ("['joy', 'fear']", ["joy", "fear"]),
        ("joy, fear", ["joy", "fear"]),
        ("joy", ["joy"]),
        ("'joy', 'fear'", ["joy", "fear"]),
        ("('joy', 'fear')", ["joy", "fear"]),
        ('["it\'s"]', ["it's"]),
        ([], []),
        ("[]", []),
        (["joy", "joy "], ["joy"]),
        ([0, 2.0, "2"], ["0", "2"]),
        (3, ["3"]),
    ],
)
def test_lists_of_labels_are_read(value: Any, expected: list[str]) -> None:
    config = MultilabelConfig.model_validate({"type": "multilabel", "from": "tags"})
    assert parse_multilabel({"tags": value}, config) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "label missing: tags"),
        ("", "label missing: tags (a row to which none applies has [])"),
        ("['joy' 'fear']", "not a list: tags holds \"['joy' 'fear']\""),
        ("joy|fear", "not a list: tags holds 'joy|fear'; separate labels by commas"),
        (
            [0, 1, 0],
            "not a list: tags holds a number twice, as a list of 0 and 1 for each label does; "
            "write these as columns",
        ),
        (["joy", None], "label missing: tags holds an empty entry"),
        ({"joy": 1}, "not a list: tags holds an object"),
        ('{"joy": 1, "fear": 0}', "not a list: tags holds an object"),
        ("{'joy': 1, 'fear': 0}", "not a list: tags holds an object"),
        ("('joy')", "not a list: tags holds \"('joy')\""),
        ("[joy, fear", "not a list: tags holds '[joy, fear'"),
        ([["joy"]], "not text: tags holds a list"),
        (["rage"], "unknown label: 'rage' is not among the names"),
    ],
)
def test_what_is_no_list_of_known_labels_rejects_the_row(value: Any, reason: str) -> None:
    config = MultilabelConfig.model_validate(
        {"type": "multilabel", "from": "tags", "names": ["joy", "fear"], "map": {"F": "fear"}}
    )
    with pytest.raises(RowFaultError) as caught:
        parse_multilabel({"tags": value}, config)
    assert str(caught.value) == reason
    assert parse_multilabel({"tags": "F"}, config) == ["fear"]


@pytest.mark.parametrize("named", [True, False])
def test_the_labels_of_a_list_are_those_given_or_those_in_the_data(prepare, named: bool) -> None:
    tags = [["b"], ["a", "b"], [], ["c"]]
    rows = [{**row, "tags": tags[i % 4]} for i, row in enumerate(number_rows(60))]
    names = ", names: [c, b, a]" if named else ""
    outcome = prepare(rows, labels=f"{{type: multilabel, from: tags{names}}}")
    assert outcome.manifest["label_names"] == (["c", "b", "a"] if named else ["a", "b", "c"])


def test_lists_of_classes_of_a_data_set_have_their_names() -> None:
    import datasets

    moods = datasets.ClassLabel(names=["sad", "glad"])
    datasets.Dataset.from_dict(
        {"text": ["one", "two"], "tags": [[0, 1], [1]]},
        features=datasets.Features(
            {"text": datasets.Value("string"), "tags": datasets.List(moods)}
        ),
    ).save_to_disk("moods")
    (source,) = find_sources([SourceConfig(path="hf://moods")])
    assert [row.values["tags"] for row in read_rows(source)] == [["sad", "glad"], ["glad"]]


# dates, numbers and texts


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("2024/1/5", "2024-01-05"),
        ("2024-1-5", "2024-01-05"),
        ("2024.1.15", "2024-01-15"),
        ("2024-1-5 9:05", "2024-01-05T09:05"),
        ("2024-11-5T9:05:30", "2024-11-05T09:05:30"),
        ("2024-1-5 10:05:00+02:00", "2024-01-05T10:05:00+02:00"),
    ],
)
def test_d24_dates_need_no_padding(text: str, padded: str) -> None:
    assert read_date(text, name="day") == read_date(padded, name="day")


@pytest.mark.parametrize("text", ["2024-13-1", "2024-1-50", "5/1/2024", "2024-1-5x"])
def test_what_is_no_date_stays_none(text: str) -> None:
    with pytest.raises(RowFaultError, match="not a date"):
        read_date(text, name="day")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7.0), (" 7.5 ", 7.5), (".5", 0.5), ("-1e2", -100.0), ("+3.", 3.0), ("1_0", None),
        ("0x10", None), ("nan", None), ("inf", None), ("７", None), ("7,5", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_are_those_that_people_write(text: str, number: float | None) -> None:
    assert read_number(text) == number


def test_decimals_are_scores() -> None:
    config = ScoresConfig.model_validate({"type": "scores", "dimensions": ["risk"]})
    assert parse_scores({"risk": Decimal("7.50")}, config) == {"risk": 7.5}


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u200d", "\u2060\n", "\u00ad"])
def test_text_that_nobody_sees_is_none(text: str) -> None:
    assert as_text(text, name="text") == ""
    assert as_text(f"{text}a", name="text").endswith("a")


def test_names_take_booleans_in_quotes_only() -> None:
    assert name_class("no") == "no"
    assert ClassConfig.model_validate({"type": "class", "from": "x", "order": ["true", "no"]})


# systematic faults


@pytest.mark.parametrize(
    ("num_rows", "num_bad", "most", "status"),
    [(20, 1, None, 0), (20, 2, None, 2), (19, 5, None, 0), (60, 4, None, 2), (60, 4, 0.1, 0)],
)
def test_d24_one_reason_for_many_rows_stops(
    prepare, num_rows: int, num_bad: int, most: float | None, status: int
) -> None:
    rows = number_rows(num_rows)
    for row in rows[:num_bad]:
        row["mood"] = None
    outcome = prepare(rows, *([] if most is None else [f"max_rejected={most}"]))
    assert outcome.status == status
    if status:
        assert f"{num_bad} of {num_rows} rows cannot be used for one reason: label missing" in (
            outcome.message
        )
        assert not (outcome.folder / "train.jsonl").exists()
        advice = outcome.message.partition("max_rejected: ")[2].partition("`")[0]
        assert prepare(rows, f"max_rejected={advice}").status == 0


def test_d24_each_source_is_judged_by_itself(prepare) -> None:
    write_rows(Path("good.jsonl"), number_rows(400))
    bad = [{**row, "id": f"b{row['id']}", "text": f"new {row['text']}"} for row in number_rows(20)]
    write_rows(Path("bad.jsonl"), [{**row, "mood": ""} for row in bad[:10]] + bad[10:])
    message = prepare(sources="[{path: good.jsonl}, {path: bad.jsonl}]").message
    assert "bad.jsonl: 10 of 20 rows cannot be used for one reason" in message


def test_what_the_task_asks_for_is_no_fault(prepare) -> None:
    rows = number_rows(60)
    labels = "{type: class, from: mood, exclude: [odd]}"
    for row in rows[:20]:
        row["mood"] = "odd"
    copies = [dict(row) for row in rows[20:40]]
    outcome = prepare([*rows, *copies], "clean.max_chars=60", labels=labels)
    assert outcome.status == 0
    assert {"excluded class", "repeated row"} <= set(outcome.manifest["rejected"])


def test_d24_pairs_of_one_article_with_one_id_are_a_fault(prepare) -> None:
    rows = [
        {**number_rows(20)[i // 3], "id": f"r{i // 3}", "why": f"because {i}", "mood": "ct"[i % 2]}
        for i in range(60)
    ]
    message = prepare(rows, fields="{id: id, text: text, text_pair: why}").message
    assert "40 of 60 rows cannot be used for one reason: repeated id" in message


def test_d24_groups_are_the_same_however_their_numbers_are_written(prepare) -> None:
    rows = [
        {**row, "act": [i % 10, f"{i % 10}.0"][i // 30]} for i, row in enumerate(number_rows(60))
    ]
    outcome = prepare(rows, fields="{id: id, text: text, group: act}")
    assert {row["group"] for row in outcome.rows.values()} == {str(i) for i in range(10)}
    for act in range(10):
        own = {
            split
            for split, found in outcome.splits.items()
            for r in found
            if r["group"] == str(act)
        }
        assert len(own) == 1


def test_d24_a_filter_on_what_is_no_number_is_a_fault(prepare) -> None:
    rows = [{**row, "sure": "0,8" if i % 3 else 0.9} for i, row in enumerate(number_rows(60))]
    message = prepare(rows, "filters=[{field: sure, min: 0.1}]").message
    assert "40 of 60 rows cannot be used for one reason: not a number" in message
    assert "sure holds '0,8', with a decimal comma" in message


@pytest.mark.parametrize("extra", ["exclude: [odd]", "map: {Calm: Calm, calm: calm, t: t, odd: x}"])
def test_d24_the_advice_to_join_classes_keeps_what_the_task_says(prepare, extra: str) -> None:
    moods = ["Calm", "calm", "t", "odd"]
    rows = [{**row, "mood": moods[i % 4]} for i, row in enumerate(number_rows(80))]
    (warning,) = prepare(rows, labels=f"{{type: class, from: mood, {extra}}}").manifest["warnings"]
    if "map" in extra:
        assert "give those that are one the same name in `labels.map`" in warning
        return
    advice = warning.partition("labels.map: ")[2].rstrip("`")
    labels = f"{{type: class, from: mood, {extra}, map: {advice}}}"
    assert prepare(rows, labels=labels).manifest["label_names"] in (["Calm", "t"], ["calm", "t"])


def test_d24_an_id_that_repeats_with_another_text_counts_as_a_fault(prepare) -> None:
    rows = [{**row, "id": f"r{i % 20}"} for i, row in enumerate(number_rows(40))]
    assert "20 of 40 rows cannot be used for one reason: repeated id" in prepare(rows).message


# files

ROWS = [
    {"id": "001", "text": "one, \"two\" and 'three'", "mood": "None"},
    {"id": "002", "text": "null", "mood": "calm"},
    {"id": "003", "text": "más\nlines", "mood": "None"},
]


def save(name: str) -> str:
    """Save the rows under a name; return the path of the source."""
    path = Path(name)
    text = {
        ".csv": lambda: pd.DataFrame(ROWS).to_csv(index=False),
        ".tsv": lambda: pd.DataFrame(ROWS).to_csv(index=False, sep="\t"),
        ".json": lambda: json.dumps(ROWS, ensure_ascii=False, indent=1),
        ".jsonl": lambda: "".join(json.dumps(row) + "\n" for row in ROWS),
    }
    kind = next((suffix for suffix in path.suffixes if suffix in text), None)
    if kind is None:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return name
    data = text[kind]().encode("utf-8-sig" if "mark" in name else "utf-8")
    if path.suffix == ".zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return name


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.csv.gz", "a.tsv.zst", "a.json.gz",
     "a.jsonl.zst", "mark.csv", "mark.json", "mark.jsonl.gz", "mark.tsv"],
)  # fmt: skip
def test_d24_one_table_is_one_table_in_any_file(name: str, workspace: Path) -> None:
    (source,) = find_sources([SourceConfig(path=save(name))])
    assert [row.values for row in read_rows(source)] == ROWS


def test_d24_a_data_set_of_csv_files_is_read_as_the_files_are(workspace: Path) -> None:
    save("news/train.csv")
    (source,) = find_sources([SourceConfig(path="hf://news")])
    assert [row.values for row in read_rows(source)] == ROWS


def test_a_utf_16_mark_is_no_part_of_the_first_name(workspace: Path) -> None:
    Path("a.csv").write_bytes("\ufeffid,text\n1,one\n".encode("utf-16-le"))
    (source,) = find_sources([SourceConfig(path="a.csv", encoding="utf-16-le")])
    assert [row.values for row in read_rows(source)] == [{"id": "1", "text": "one"}]


def test_a_csv_without_a_header_gets_names(workspace: Path) -> None:
    Path("a.csv").write_text("3;Fears for pensions\n1;Rates rise\n")
    config = SourceConfig(path="a.csv", delimiter=";", columns=["label", "text"])
    (source,) = find_sources([config])
    assert [row.values for row in read_rows(source)] == [
        {"label": "3", "text": "Fears for pensions"}, {"label": "1", "text": "Rates rise"},
    ]  # fmt: skip


def test_a_wrong_delimiter_is_suspected_where_columns_are_given(workspace: Path) -> None:
    Path("a.csv").write_text("1;calm;one\n2;tense;two\n")  # two marks for three columns
    (source,) = find_sources([SourceConfig(path="a.csv", columns=["id", "mood", "text"])])
    fault = "broken CSV: 1 cells, the header has 3; the cells may be separated by ';' (`delimiter`)"
    assert {row.fault for row in read_rows(source)} == {fault}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_comma_in_the_name_of_an_only_column_separates_nothing(
    name: str, workspace: Path
) -> None:
    Path(name).write_text('"text, joined"\n"one, two"\n')
    (source,) = find_sources([SourceConfig(path=name)])
    assert [row.values for row in read_rows(source)] == [{"text, joined": "one, two"}]


def test_text_with_commas_is_no_hint_at_another_delimiter(workspace: Path) -> None:
    Path("a.csv").write_text('id,text\n"Hello, world"\n')
    (source,) = find_sources([SourceConfig(path="a.csv")])
    assert [row.fault for row in read_rows(source)] == ["broken CSV: 1 cells, the header has 2"]


def test_columns_are_for_files_without_a_header(prepare) -> None:
    Path("a.csv").write_text(
        "id,mood,text\n" + "".join(f"r{i},{i % 2},words w{i}\n" for i in range(30))
    )
    sources = "[{path: a.csv, columns: [id, mood, text]}]"
    assert "a.csv:1: is a header that names the columns" in prepare(sources=sources).message


def test_a_data_set_of_csv_with_a_form_of_its_own_is_read_by_datasets(workspace: Path) -> None:
    Path("news").mkdir()
    Path("news/train.csv").write_text("text;mood\n" + "".join(f"w{i};{i % 2}\n" for i in range(6)))
    Path("news/README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  sep: ";"\n  data_files:\n  - split: train\n'
        "    path: train.csv\n---\n"
    )
    (source,) = find_sources([SourceConfig(path="hf://news")])
    assert [row.values["text"] for row in read_rows(source)] == [f"w{i}" for i in range(6)]
    (half,) = find_sources([SourceConfig(path="hf://news", rows="train[:50%]")])
    assert len(list(read_rows(half))) == 3


def test_a_missing_header_is_suspected(prepare) -> None:
    Path("a.csv").write_text("".join(f"{i + 7},{i % 2},words w{i}\n" for i in range(30)))
    assert "a.csv looks like a row, not like a header: name its columns with `columns: [...]`" in (
        prepare(source="a.csv").message
    )
    sources = "[{path: a.csv, columns: [id, mood, text]}]"
    assert prepare(sources=sources).status == 0


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        (
            "a.jsonl",
            gzip.compress(b"{}", mtime=0),
            "is compressed by gzip; rename it to a.jsonl.gz",
        ),
        ("a.csv", pa.Codec("zstd").compress(b"a,b", asbytes=True), "rename it to a.csv.zst"),
        ("a.csv.gz", pa.Codec("zstd").compress(b"a", asbytes=True), "rename it to a.csv.zst"),
        ("a.csv", b"PK\x03\x04xl/", r"a zip archive, as Excel \(.xlsx\) writes it; save it as"),
        ("a.parquet", b"PK\x03\x04xl/", "a zip archive, as Excel"),
        ("a.jsonl", b"PAR1xxxxPAR1", "is Parquet; rename it to .parquet"),
        ("a.csv.gz", b"id,text\n1,one\n", "is not what .gz says; remove this ending"),
        ("a.csv", b"%PDF-1.7", "is PDF; save it as .csv, .jsonl or .parquet"),
        ("a.json", b"[{},", "broken JSON"),
        ("a.csv.gz", gzip.compress(b"id,text\n" * 9_000, mtime=0)[:40], "cannot be read"),
        ("a.csv.gz", gzip.compress(b"PK\x03\x04xl/", mtime=0), "holds a zip archive.* behind .gz"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "behind .gz; unpack"),
        ("a.jsonl", b'[{"id": 1}, {"id": 2}]', "begins a list of objects.*; rename it to .json"),
        ("a.jsonl", b'[\n  {"id": 1},\n', "begins a list of objects.*; rename it to .json"),
        ("a.jsonl", b'\xef\xbb\xbf\n{\n  "id": 1\n}\n', "a.jsonl:2: begins an object over several"),
        ("a.json", b'{\n "id": 1\n}\n', "write each object on one line, or all as a list"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    name: str, data: bytes, complaint: str, workspace: Path
) -> None:
    Path(name).write_bytes(data)
    (source,) = find_sources([SourceConfig(path=name)])
    with pytest.raises(UserError, match=complaint):
        list(read_rows(source))


def save_typed(name: str, rows: list[dict[str, Any]]) -> None:
    table, path = pa.Table.from_pylist(rows), Path(name)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    else:
        frame = pd.DataFrame(rows)
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.json", "a.jsonl.gz", "a.parquet", "hub/train.csv"]
)
@pytest.mark.parametrize("kind", ["integers", "floats", "booleans"])
def test_d24_any_file_of_one_table_gives_the_same_splits(prepare, name: str, kind: str) -> None:
    labels = {"integers": [0, 1, 10], "floats": [0.0, 1.0, 2.5], "booleans": [True, False]}[kind]
    rows = [
        {
            "id": i,
            "text": row["text"],
            "mood": labels[i % len(labels)],
            "day": f"2024-1-{i % 28 + 1}",
        }
        for i, row in enumerate(number_rows(60))
    ]
    expected = prepare([dict(row) for row in rows], "split.by=day")
    assert expected.status == 0
    save_typed(name, rows)
    found = prepare(None, "split.by=day", source="hf://hub" if "hub" in name else name)
    assert found.splits == expected.splits
    assert found.manifest["label_names"] == expected.manifest["label_names"]
