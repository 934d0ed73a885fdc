"""A split that a source fixes stays as it is; what would leak into it is left out (D5)."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.config.task import SPLITS, SourceConfig
from llmft.data.sources import find_sources
from llmft.errors import UserError
from tests.data.conftest import number_rows, write_rows
from tests.data.test_preparation import make_near, run_in

WITH_TEST = "[{path: rows.jsonl}, {path: test.jsonl, split: test}]"


def test_a_given_test_set_is_the_test_split_and_the_rest_is_shared_out(prepare) -> None:
    rows = number_rows(40)
    write_rows(Path("test.jsonl"), rows[30:])
    outcome = prepare(rows[:30], sources=WITH_TEST)
    assert {row["id"] for row in outcome.splits["test"]} == {f"r{i}" for i in range(30, 40)}
    assert (
        outcome.manifest["counts"] | {"test": 10, "train": 27, "val": 3, "input": 40}
        == (outcome.manifest["counts"])
    )


def test_d5_what_repeats_a_row_of_the_given_test_set_is_left_out(prepare) -> None:
    rows = number_rows(40, act=None)
    rows[5]["act"] = rows[32]["act"] = "law"
    leaking = [{**rows[30], "id": "same"}, make_near(rows[31], "near")]
    write_rows(Path("test.jsonl"), rows[30:])
    outcome = prepare(
        [*rows[:30], *leaking], sources=WITH_TEST, fields="{id: id, text: text, group: act}"
    )
    reason = "leak: repeats row {!r} of the given test split, or is of its group"
    assert {r["id"]: r["reason"] for r in outcome.read("rejected")} == {
        "same": reason.format("r30"), "near": reason.format("r31"), "r5": reason.format("r32"),
    }  # fmt: skip
    assert len(outcome.splits["test"]) == 10
    assert outcome.manifest["near_duplicates"]["num_leaks"] == 3


def test_d5_near_duplicates_of_a_given_training_set_are_not_shared_out(prepare) -> None:
    rows = number_rows(40)
    write_rows(Path("train.jsonl"), rows[20:])
    outcome = prepare(
        [*rows[:20], make_near(rows[30], "near")],
        sources="[{path: rows.jsonl}, {path: train.jsonl, split: train}]",
    )
    assert [r["id"] for r in outcome.read("rejected")] == ["near"]
    assert len(outcome.splits["train"]) == 20
    assert len(outcome.splits["val"]) == len(outcome.splits["test"]) == 10


@pytest.mark.parametrize("order", [1, -1])
def test_d24_a_row_of_another_file_with_an_id_of_the_test_set_gets_its_own(
    prepare, order: int
) -> None:
    rows = number_rows(40)
    write_rows(Path("test.jsonl"), rows[30:])
    sources = ["{path: rows.jsonl}", "{path: test.jsonl, split: test}"][::order]
    changed = {**rows[0], "id": "r33", "text": "quite another text"}
    outcome = prepare([*rows[:30], changed], sources=f"[{', '.join(sources)}]")
    assert outcome.reasons == []
    assert {row["id"] for row in outcome.splits["test"]} == {f"r{i}" for i in range(30, 40)}
    assert outcome.rows["rows.jsonl:r33"]["text"] == "quite another text"
    assert outcome.manifest["warnings"] == [
        "rows.jsonl: ids that test.jsonl has too, with other texts: 1; their rows are prepared as "
        "'rows.jsonl:ID'"
    ]


def test_all_three_splits_may_be_given(prepare) -> None:
    rows = number_rows(12)
    for name, part in {"train": rows[:6], "val": rows[6:9], "test": rows[9:]}.items():
        write_rows(Path(f"{name}-rows.jsonl"), list(part))
    outcome = prepare(
        sources="[{path: train-rows.jsonl, split: train}, {path: val-rows.jsonl, split: val}, "
        "{path: test-rows.jsonl, split: test}]"
    )
    assert {name: len(rows) for name, rows in outcome.splits.items()} == {
        "train": 6, "val": 3, "test": 3,
    }  # fmt: skip


def test_a_source_without_a_split_has_no_place_if_all_are_given(prepare) -> None:
    named = ", ".join(f"{{path: rows.jsonl, split: {s}}}" for s in ("train", "val", "test"))
    outcome = prepare(number_rows(9), sources=f"[{named}, {{path: rows.jsonl}}]")
    assert outcome.status == 2
    assert "every split is fixed, so every source has to name its split" in outcome.message


def test_a_class_that_only_the_test_set_has_is_refused(prepare) -> None:
    rows = number_rows(40)
    write_rows(Path("test.jsonl"), [{**row, "mood": "angry"} for row in rows[30:]])
    outcome = prepare(rows[:30], sources=WITH_TEST)
    assert outcome.status == 2
    assert "no row of train is of the class angry" in outcome.message
    assert not (outcome.folder / "manifest.json").exists()


def test_a_file_cannot_be_in_two_splits(workspace: Path) -> None:
    write_rows(Path("a.jsonl"), [{}])
    configs = [SourceConfig(path="*.jsonl"), SourceConfig(path="./a.jsonl", split="test")]
    with pytest.raises(UserError, match=r"sources: a\.jsonl is named twice, with another split"):
        find_sources(configs)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([None, *SPLITS]), st.booleans()),
        min_size=12, max_size=40,
    ),
    st.sampled_from(["none", "exact", "near"]),
)  # fmt: skip
def test_d5_no_text_is_in_two_splits_whatever_is_given(
    drawn: list[tuple[int, str | None, bool]], drop: str
) -> None:
    rows: dict[str | None, list[Any]] = {}
    for i, (text, split, near) in enumerate(drawn):
        row: dict[str, Any] = {**number_rows(9)[text], "id": f"x{i}", "mood": "ab"[i % 2]}
        rows.setdefault(split, []).append(make_near(row, row["id"]) if near else row)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = []
        for split, part in rows.items():
            write_rows(folder / f"{split}-rows.jsonl", part)
            sources.append(
                {"path": f"{folder}/{split}-rows.jsonl"} | ({"split": split} if split else {})
            )
        outcome = run_in(
            folder, [{}], "split.stratify=false", f"clean.drop={drop}",
            f"sources={json.dumps(sources)}",
        )  # fmt: skip
        assert outcome.status in (0, 2), outcome.message
        if outcome.status == 2:
            return
        places: dict[str, set[str]] = {}
        for split, found in outcome.splits.items():
            for row in found:
                places.setdefault(row["text"].split()[0], set()).add(split)
        assert all(len(found) == 1 for found in places.values())
        counts = outcome.manifest["counts"]
        assert counts["input"] == len(drawn)
        given_test = {row["text"] for row in rows.get("test", [])}
        if given_test:
            firsts = {text.split()[0] for text in given_test}
            assert {row["text"].split()[0] for row in outcome.splits["test"]} == firsts
