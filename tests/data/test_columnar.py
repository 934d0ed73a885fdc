"""Rows of Parquet files and of data sets in a folder, read as those of any other source."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.config.task import SourceConfig
from llmft.data.sources import Source, find_sources, read_rows
from llmft.errors import UserError
from tests.data.conftest import SCORES_LABELS, number_rows, write_rows

datasets = pytest.importorskip("datasets")
ROWS = [{"text": "one", "mood": 0}, {"text": "two", "mood": 1}, {"text": "three", "mood": None}]


@pytest.fixture(autouse=True)
def _in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and caches go into an empty working folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workspace / "cache")


def read(source: Source) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(source)]


def make_split(num_rows: int = 3) -> Any:
    """A split whose labels are a ClassLabel; the third row's is kept secret."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "mood": datasets.ClassLabel(names=["calm", "tense"]),
        }
    )
    rows = [{**row, "mood": -1 if row["mood"] is None else row["mood"]} for row in ROWS]
    return datasets.Dataset.from_list(rows[:num_rows], features=features)


# Parquet


def test_parquet_rows_are_numbered_over_all_groups() -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), "a.parquet", row_group_size=2)
    rows = list(read_rows(Source("a.parquet")))
    assert [row.line for row in rows] == [1, 2, 3]
    assert [row.values for row in rows] == ROWS
    assert {row.fault for row in rows} == {None}


def test_a_task_reads_parquet_like_jsonl(prepare) -> None:
    rows = number_rows(30)
    from_jsonl = prepare(rows, labels=SCORES_LABELS)
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    from_parquet = prepare(source="rows.parquet", labels=SCORES_LABELS, output="again")
    assert from_parquet.status == 0
    assert from_parquet.splits == from_jsonl.splits


def test_null_and_nan_are_missing_and_bytes_are_no_text(prepare) -> None:
    rows = number_rows(30)
    table = pa.Table.from_pylist(rows)
    mood = [None, float("nan"), *[float(i % 2) for i in range(28)]]
    table = table.drop(["mood"]).append_column("mood", pa.array(mood))
    pq.write_table(table, "rows.parquet")
    outcome = prepare(source="rows.parquet")
    assert outcome.reasons == [(1, "label missing: mood"), (2, "not a class: mood holds nan")]
    table = table.drop(["text"]).append_column("text", pa.array([b"x"] * 30))
    pq.write_table(table, "rows.parquet")
    assert "not text: text holds bytes" in prepare(source="rows.parquet").message


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"text": "a"}\n' * 10])
def test_what_is_no_parquet_is_refused(content: bytes) -> None:
    Path("a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet: "):
        read(Source("a.parquet"))


def test_a_parquet_file_that_breaks_off_is_refused() -> None:
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)]}), "a.parquet")
    content = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        read(Source("a.parquet"))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10**18], pa.timestamp("us")),
        pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers()),
    ],
)
def test_values_that_python_cannot_hold_are_refused(column: Any) -> None:
    pq.write_table(pa.table({"text": column}), "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet: "):
        read(Source("a.parquet"))


def test_parquet_has_no_encoding() -> None:
    pq.write_table(pa.table({"text": ["a"]}), "a.parquet")
    with pytest.raises(UserError, match=r"a Parquet file has no encoding; remove the key"):
        find_sources([SourceConfig(path="a.parquet", encoding="latin-1")])


# data sets


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_folder_of_files_is_a_data_set(kind: str) -> None:
    Path("news").mkdir()
    rows = [{"text": "one", "mood": 0}, {"text": "two", "mood": 1}]
    if kind == "jsonl":
        write_rows(Path("news/train.jsonl"), list(rows))
    elif kind == "csv":
        Path("news/train.csv").write_text("text,mood\none,0\ntwo,1\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), "news/train.parquet")
    found = list(read_rows(Source("hf://news")))
    if kind == "csv":
        assert found == [
            row._replace(source=found[0].source) for row in read_rows(Source("news/train.csv"))
        ]
    else:
        assert [row.values for row in found] == rows
        assert [row.line for row in found] == [1, 2]


def test_a_saved_data_set_gives_its_classes_by_name() -> None:
    make_split().save_to_disk("saved")
    assert read(Source("hf://saved")) == [
        {"text": "one", "mood": "calm"}, {"text": "two", "mood": "tense"},
        {"text": "three", "mood": None},
    ]  # fmt: skip


def test_a_secret_label_rejects_its_row(prepare) -> None:
    names = {"mood": datasets.ClassLabel(names=["tense", "calm"])}
    rows = [{**row, "mood": -1 if i == 4 else i % 2} for i, row in enumerate(number_rows(30))]
    split = datasets.Dataset.from_list(rows)
    split.cast(datasets.Features({**split.features, **names})).save_to_disk("saved")
    outcome = prepare(sources="[{path: 'hf://saved'}]")
    assert outcome.status == 0
    assert outcome.reasons == [(5, "label missing: mood")]
    assert outcome.manifest["label_names"] == ["calm", "tense"]
    assert list(outcome.manifest["sources"]) == ["hf://saved"]


def test_rows_name_one_split_and_without_them_all_are_read() -> None:
    parts = datasets.DatasetDict({"train": make_split(2), "test": make_split(1)})
    parts.save_to_disk("saved")
    assert len(read(Source("hf://saved"))) == 3
    assert len(read(Source("hf://saved", rows="train"))) == 2
    Path("news").mkdir()
    Path("news/train.csv").write_text("text\none\ntwo\n")
    Path("news/test.csv").write_text("text\nthree\n")
    assert len(read(Source("hf://news"))) == 3
    assert read(Source("hf://news", rows="test")) == [{"text": "three"}]


def test_a_subset_is_chosen_by_its_name() -> None:
    Path("news").mkdir()
    Path("news/a.csv").write_text("text\nfrom a\n")
    Path("news/b.csv").write_text("text\nfrom b\n")
    Path("news/README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files: a.csv\n"
        "- config_name: second\n  data_files: b.csv\n---\n"
    )
    assert read(Source("hf://news", subset="second")) == [{"text": "from b"}]
    with pytest.raises(UserError, match=r"hf://news cannot be loaded.*\['first', 'second'\]"):
        read(Source("hf://news"))


def test_splits_of_a_data_set_are_given_splits(prepare) -> None:
    rows = number_rows(30)
    parts = {"train": rows[:20], "test": [*rows[20:], {**rows[3], "id": "again"}]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    ).save_to_disk("saved")
    outcome = prepare(
        sources="[{path: 'hf://saved', rows: train}, {path: 'hf://saved', rows: test, split: test}]"
    )
    assert outcome.status == 0
    assert {row["id"] for row in outcome.splits["test"]} == {
        *(f"r{i}" for i in range(20, 30)),
        "again",
    }
    (rejected,) = outcome.read("rejected")
    assert (rejected["source"], rejected["line"], rejected["id"]) == ("hf://saved train", 4, "r3")
    assert list(outcome.manifest["sources"]) == ["hf://saved test", "hf://saved train"]


def test_the_hash_of_a_data_set_is_that_of_its_rows() -> None:
    make_split().save_to_disk("one")
    make_split().save_to_disk("same")
    make_split(2).save_to_disk("other")
    one, same, other = (Source(f"hf://{n}").compute_hash() for n in ("one", "same", "other"))
    assert one == same != other


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (Source("hf://nobody/nothing"), "nobody/nothing"),
        (Source("hf://nobody/nothing@v1", subset="x", rows="train"), "nobody/nothing"),
        (Source("hf://saved", rows="dev"), "dev"),
        (Source("hf://"), "hf://"),
        (Source("hf://a/b/c/d"), "a/b/c/d"),
        (Source("hf://empty"), "empty"),
    ],
)
def test_h7_a_data_set_that_is_not_there_says_where_it_was_looked_for(
    source: Source, what: str, workspace: Path
) -> None:
    make_split().save_to_disk("saved")
    datasets.DatasetDict({"train": make_split()}).save_to_disk("saved")
    Path("empty").mkdir()
    with pytest.raises(UserError) as caught:
        read(source)
    message = str(caught.value)
    assert message.startswith(f"sources: {source.path} cannot be loaded. Looked for a folder ")
    assert str(workspace / "cache") in message
    assert what in message
    assert "\n" not in message
