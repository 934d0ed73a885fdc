"""Parts: which there are, who makes them, and what happens when things have changed since."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.heads import LabelSpace
from llmft.prediction import shards as shards_module
from llmft.prediction.shards import (
    ChangedError,
    Shard,
    claim_folder,
    list_missing_shards,
    plan_shards,
    read_shards,
    survey_inputs,
    write_manifest,
    write_shard,
)
from tests.conftest import make_spec

FOLDER = Path("out")
SPEC = make_spec(BaseConfig(model="builtin:tiny-qwen2"), LabelSpace("regression", ["risk"]))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setattr(shards_module, "ROWS_PER_SHARD", 3)


def write_rows(name: str, num_rows: int, *, text: str = "bank") -> Path:
    lines = [json.dumps({"text": text, "n": i}) + "\n" for i in range(num_rows)]
    Path(name).write_text("".join(lines))
    return Path(name)


def plan(*inputs: Path, model: str = "m") -> list[Shard]:
    claim_folder(FOLDER, model_hash=model, inputs=inputs)
    surveys = survey_inputs(FOLDER, inputs, spec=SPEC, ending=None)
    return plan_shards(FOLDER, inputs, surveys, ending=None)


def square(rows):
    return [{"prediction": row["n"] ** 2, "score_risk": None} for row in rows]


def run(shards: list[Shard], predict=square) -> None:
    for shard, rows in read_shards(shards):
        write_shard(shard, rows, predict(rows), spec=SPEC)


def read_predictions() -> list[int]:
    names = json.loads((FOLDER / "_manifest.json").read_text())["shards"]
    lines = [line for name in names for line in (FOLDER / name).read_text().splitlines()]
    return [json.loads(line)["prediction"] for line in lines]


def test_parts_are_named_after_input_and_first_row() -> None:
    found = plan(write_rows("a.jsonl", 7), write_rows("b.jsonl", 0))
    assert [(shard.path.name, shard.num_rows) for shard in found] == [
        ("a-000000000000.jsonl", 3),
        ("a-000000000003.jsonl", 3),
        ("a-000000000006.jsonl", 1),
        ("b-000000000000.jsonl", 0),
    ]


def test_shards_written_with_and_without_csv_safe_do_not_mix() -> None:
    inputs = [write_rows("a.jsonl", 7)]
    claim_folder(FOLDER, model_hash="m", inputs=inputs, csv_safe=True)
    claim_folder(FOLDER, model_hash="m", inputs=inputs, csv_safe=True)
    with pytest.raises(ChangedError, match="made with --csv-safe"):
        claim_folder(FOLDER, model_hash="m", inputs=inputs)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_r3_any_number_of_processes_makes_each_part_once(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(write_rows("a.jsonl", 10), write_rows("b.jsonl", 5))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    made: list[Path] = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        assert plan(Path("a.jsonl"), Path("b.jsonl")) == found
        missing = list_missing_shards(found)
        made += [shard.path for shard in missing]
        assert not missing or not write_manifest(FOLDER, found, model_hash="m")
        run(missing)
    assert sorted(made) == sorted(shard.path for shard in found)
    assert write_manifest(FOLDER, found, model_hash="m")
    assert read_predictions() == [n**2 for size in (10, 5) for n in range(size)]


def test_what_was_predicted_before_a_crash_is_not_predicted_again() -> None:
    found = plan(write_rows("a.jsonl", 10))
    seen: list[int] = []

    def die_at_six(rows):
        if rows[0]["n"] == 6:
            raise KeyboardInterrupt
        return square(rows)

    def count(rows):
        seen.extend(row["n"] for row in rows)
        return square(rows)

    with pytest.raises(KeyboardInterrupt):
        run(list_missing_shards(found), die_at_six)
    torn = FOLDER / ".a-000000000006.jsonl.x1y2"
    torn.write_text("half a li")
    run(list_missing_shards(plan(Path("a.jsonl"))), count)
    assert seen == [6, 7, 8, 9]
    assert write_manifest(FOLDER, found, model_hash="m")
    assert read_predictions() == [n**2 for n in range(10)]
    assert not torn.exists()


def test_another_model_or_other_inputs_are_refused_and_nothing_is_lost() -> None:
    path = write_rows("a.jsonl", 4)
    run(plan(path))
    before = sorted(FOLDER.rglob("*"))
    with pytest.raises(ChangedError, match="holds predictions made by another model"):
        plan(path, model="other")
    with pytest.raises(ChangedError, match=r"from other inputs \(b\.jsonl only in one"):
        plan(path, write_rows("b.jsonl", 1))
    os.utime(path, ns=(1, 1))  # another time alone is no other input
    assert list_missing_shards(plan(path)) == []
    write_rows("a.jsonl", 5)
    with pytest.raises(ChangedError, match=r"a\.jsonl changed since .* out/a-\*\.jsonl"):
        plan(path)
    assert sorted(FOLDER.rglob("*")) == before
    (FOLDER / "_state/a.jsonl.json").unlink()  # as the message says
    for shard in FOLDER.glob("a-*.jsonl"):
        shard.unlink()
    assert len(list_missing_shards(plan(path))) == 2


def test_a_folder_of_somebody_else_is_refused() -> None:
    FOLDER.mkdir()
    (FOLDER / "thesis.jsonl").write_text("{}")
    with pytest.raises(ChangedError, match="name a new folder"):
        plan(write_rows("a.jsonl", 1))
    assert [path.name for path in FOLDER.iterdir()] == ["thesis.jsonl"]


def test_an_input_that_changes_meanwhile_gives_no_part() -> None:
    found = plan(write_rows("a.jsonl", 2))

    def change(rows):
        write_rows("a.jsonl", 3)
        return square(rows)

    with pytest.raises(UserError, match="changed while it was read"):
        run(found, change)
    assert list_missing_shards(found) == found


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": ', r"a\.jsonl:2: broken JSON"),
        ('{"text": "\\ud800"}', r"a\.jsonl: row 2: cannot be written: .*surrogates"),
        ('{"text": "x", "score_risk": 1}', r"a\.jsonl: has a column 'score_risk' already"),
    ],
)
def test_a_row_that_cannot_be_used_stops_before_anything_is_predicted(
    line: str, complaint: str
) -> None:
    Path("a.jsonl").write_text(f'{{"text": "bank"}}\n{line}\n')
    with pytest.raises(UserError, match=complaint):
        plan(Path("a.jsonl"))
    assert not list(FOLDER.glob("*.jsonl"))


def test_rows_without_text_are_counted() -> None:
    Path("a.jsonl").write_text('{"text": "bank"}\n{"text": ""}\n{"text": null}\n')
    (shard,) = plan(Path("a.jsonl"))
    assert (shard.survey.num_rows, shard.survey.num_empty) == (3, 2)
    assert shard.survey.first_fault == "empty text: nothing in text"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_input(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the rows, of 1 kB each, and the same peak; a thousand are read at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(shards_module, "ROWS_PER_SHARD", 400)
    peaks = []
    for num_rows in (3_000, 9_000):
        name = f"rows{num_rows}.{ending}"
        rows = [{"text": f"{i} " + "bank " * 200, "n": i} for i in range(num_rows)]
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), name, row_group_size=num_rows)
        else:
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        del rows
        folder = Path(f"out{num_rows}")
        tracemalloc.start()
        claim_folder(folder, model_hash="m", inputs=[Path(name)])
        surveys = survey_inputs(folder, [Path(name)], spec=SPEC, ending=None)
        run(plan_shards(folder, [Path(name)], surveys, ending=None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("change", "expected_message"),
    [
        (lambda r: r.pop("num_rows"), "num_rows: missing"),
        (lambda r: r.update(num_empty=-1), "num_empty: found -1, but expected greater than or"),
        (lambda r: r.update(num_rows="3"), "num_rows: found '3', but expected a valid integer"),
        (lambda r: r.update(types="no schema"), "types: expected the schema of an Arrow table"),
        (lambda r: r.update(schema_version=9, llmft_version="7.8.9"), "written by llmft 7.8.9"),
        (lambda r: r.update(schema_version=True), "schema_version: found True, written by llmft"),
    ],
)
def test_a_survey_that_was_edited_is_reported(
    change: Callable[[dict[str, Any]], Any], expected_message: str
) -> None:
    source = write_rows("a.jsonl", 3)
    survey_inputs(FOLDER, [source], spec=SPEC, ending=".parquet")
    path = FOLDER / "_state/a.jsonl.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ChangedError) as caught:
        survey_inputs(FOLDER, [source], spec=SPEC, ending=".parquet")
    assert expected_message in str(caught.value)
    assert str(path) in str(caught.value) and "; remove it, and " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        ("", "cannot be read as JSON"),
        ('{"schema_version": 1, "model_hash": "m"}', "missing"),
        ('{"schema_version": 2, "llmft_version": "7.8.9"}', "written by llmft 7.8.9"),
    ],
)
def test_a_folder_of_nobody_knows_whom_is_left_alone(text: str, expected_message: str) -> None:
    path = FOLDER / "_state/run.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ChangedError, match=expected_message) as caught:
        plan()
    assert f"restore it, or remove {FOLDER}" in str(caught.value)
    assert path.read_text() == text
