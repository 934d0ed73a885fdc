"""`llmft prepare`, from rows to splits: every row is accounted for and nothing leaks."""

import contextlib
import errno
import io
import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.cli import main
from llmft.config.task import SPLITS
from tests.conftest import WORDS
from tests.data.conftest import SCORES_LABELS, Outcome, number_rows, write_rows


def test_rows_become_splits_with_a_manifest(prepare) -> None:
    outcome = prepare(number_rows(50), labels=SCORES_LABELS)
    assert outcome.status == 0
    assert sorted(outcome.bytes) == [
        "manifest.json", "rejected.jsonl", "test.jsonl", "train.jsonl", "val.jsonl",
    ]  # fmt: skip
    manifest = outcome.manifest
    assert manifest["counts"] == {
        "input": 50, "repeated": 0, "train": 40, "val": 5, "test": 5, "rejected": 0,
    }  # fmt: skip
    row = outcome.rows["r7"]
    assert row == {"id": "r7", "text": row["text"], "labels": {"risk": 7.0, "calm": 3.0}}
    test_risks = [r["labels"]["risk"] for r in outcome.splits["test"]]
    assert manifest["label_stats"]["test"]["risk"]["mean"] == sum(test_risks) / 5
    assert manifest["split"]["seed"] == 42
    assert list(manifest["sources"]) == ["rows.jsonl"]


def test_fields_groups_and_kept_fields_travel_with_the_row(prepare) -> None:
    rows = number_rows(30)
    for i, row in enumerate(rows):
        row |= {"title": f" Title {i} ", "act": f"act {i}", "url": None, "year": 1900 + i}
    outcome = prepare(rows, fields="{id: id, text: [title, mood], group: act, keep: [url, year]}")
    assert outcome.rows["r3"] == {
        "id": "r3", "text": "Title 3\n\ncalm", "labels": "calm", "title": "Title 3",
        "mood": "calm", "url": "", "year": "1903", "group": "act 3",
    }  # fmt: skip


def find_clusters(outcome: Outcome) -> list[set[str]]:
    """Return the ids of the rows of each cluster."""
    found: dict[str, set[str]] = {}
    for row in outcome.rows.values():
        if "cluster" in row:
            found.setdefault(row["cluster"], set()).add(row["id"])
    return sorted(found.values(), key=min)


def test_d15_what_stays_in_one_split_is_noted_as_a_cluster(prepare) -> None:
    rows = number_rows(40, act=None)
    words = " ".join(f"again{k}" for k in range(40))
    rows[3]["text"], rows[11]["text"] = f"{words} one", f"{words} two"  # near-duplicates
    for i in (20, 21, 22):
        rows[i]["act"] = "act 7"
    rows[22]["text"] = f"{words} three"  # joins the two
    rows[30]["act"] = "act 8"  # by itself
    outcome = prepare(rows, fields="{id: id, text: text, group: act}")
    assert find_clusters(outcome) == [{"r11", "r20", "r21", "r22", "r3"}]
    assert outcome.rows["r20"]["cluster"] == "r3"
    assert "cluster" not in outcome.rows["r30"], "a group of one row"


def test_d15_pairs_of_one_article_and_repeats_that_stay_are_clusters(prepare) -> None:
    rows = number_rows(40, question="")
    for i, row in enumerate(rows):
        row["question"] = f"what of {i}?"
    rows[8]["text"] = rows[5]["text"]
    pairs = "{id: id, text: text, text_pair: question}"
    assert find_clusters(prepare(rows, fields=pairs)) == [{"r5", "r8"}]
    assert find_clusters(prepare(rows, "clean.drop=none")) == [{"r5", "r8"}]
    assert find_clusters(prepare(rows)) == [], "dropped, so that one row is left"


def test_d15_a_row_repeated_for_balance_is_of_the_cluster_of_the_first(prepare) -> None:
    rows = number_rows(60)
    for i, row in enumerate(rows):
        row["mood"] = "rare" if i % 6 == 0 else "common"
    outcome = prepare(rows, "balance.oversample=0.5")
    repeated = [row for row in outcome.splits["train"] if "+" in row["id"]]
    assert repeated
    for row in repeated:
        original = row["id"].partition("+")[0]
        assert row["cluster"] == outcome.rows[original]["cluster"] == original
    assert not any("cluster" in row for row in outcome.splits["test"])


def test_a_field_cluster_cannot_be_kept(prepare) -> None:
    outcome = prepare(number_rows(30, cluster="x"), fields="{id: id, text: text, keep: [cluster]}")
    assert outcome.status == 2
    assert "prepared rows hold the cluster under this name" in outcome.message


def test_rows_come_from_csv_as_well(prepare) -> None:
    rows = number_rows(30)
    cells = [
        f'{r["id"]},"{r["text"]}","{{""risk"": {i % 3}, ""calm"": 2}}"' for i, r in enumerate(rows)
    ]
    Path("rows.csv").write_text("\n".join(["id,text,scores", *cells]) + "\n")
    outcome = prepare(source="rows.csv", labels=SCORES_LABELS)
    assert outcome.status == 0
    assert outcome.rows["r1"]["labels"] == {"risk": 1.0, "calm": 2.0}


# rejections


def test_d3_missing_dimension_rejects_the_row(prepare) -> None:
    rows = number_rows(30)
    del rows[3]["scores"]["calm"]
    rows[4]["scores"]["risk"] = None
    rows[5]["scores"]["risk"] = "n/a"
    rows[6]["scores"] = None
    rows[7]["scores"]["risk"] = 11
    outcome = prepare(rows, "max_rejected=0.1", labels=SCORES_LABELS)
    assert outcome.status == 0
    assert outcome.reasons == [
        (4, "label missing: calm"),
        (5, "label missing: risk"),
        (6, "not a number: risk is 'n/a'"),
        (7, "label missing: scores"),
        (8, "out of range: risk is 11, allowed 0 to 10"),
    ]
    assert not {f"r{i}" for i in range(3, 8)} & set(outcome.rows)
    assert outcome.manifest["rejected"] == {
        "label missing": 3, "not a number": 1, "out of range": 1,
    }  # fmt: skip


def test_rows_that_cannot_be_used_are_listed_with_their_reason(prepare) -> None:
    good = number_rows(30)
    bad = [
        "{broken",
        {**good[0], "id": "a", "text": ""},
        {**good[0], "id": "b", "text": {"html": "x"}},
        {**good[0], "id": "c", "text": "a\0b"},
        '{"id": "d", "text": "\\ud800", "mood": "calm"}',
        {**good[0], "id": None},
        {**good[0], "id": "r7"},
    ]
    outcome = prepare([*good, *bad], "max_rejected=0.1")
    assert outcome.status == 0
    kinds = [(line, reason.partition(":")[0]) for line, reason in outcome.reasons]
    assert kinds == [
        (31, "broken JSON"),
        (32, "empty text"),
        (33, "not text"),
        (34, "not text"),
        (35, "not text"),
        (36, "id missing"),
        (37, "repeated id"),
    ]
    assert [r["id"] for r in outcome.read("rejected")] == [None, "a", "b", "c", "d", None, "r7"]
    assert {r["source"] for r in outcome.read("rejected")} == {"rows.jsonl"}


def test_without_an_id_field_equal_texts_get_numbers(prepare) -> None:
    rows = number_rows(30)
    outcome = prepare([*rows, rows[3], rows[3]], "clean.drop=none", fields="{text: text}")
    assert outcome.status == 0
    assert len(outcome.rows) == 32
    (plain,) = [i for i, r in outcome.rows.items() if r["text"] == rows[3]["text"] and "-" not in i]
    assert {f"{plain}-2", f"{plain}-3"} <= set(outcome.rows)
    assert len(plain) == 16


def test_classes_stand_in_the_order_of_the_map(prepare) -> None:
    rows = number_rows(30)
    for i, row in enumerate(rows):
        row["mood"] = i % 3
    outcome = prepare(rows, labels="{type: class, from: mood, map: {2: c, 0: a, 1: b, 7: never}}")
    assert outcome.manifest["label_names"] == ["c", "a", "b"]
    outcome = prepare(rows, "labels.map=null")
    assert outcome.manifest["label_names"] == ["0", "1", "2"]


# repeats


def test_d5_exact_repeats_are_dropped_by_default(prepare) -> None:
    rows = number_rows(30)
    outcome = prepare([*rows, {**rows[3], "id": "again"}])
    assert outcome.reasons == [(31, "same text: as in row 'r3'")]
    assert outcome.manifest["near_duplicates"] == {
        "threshold": 0.9, "num_clusters": 1, "num_rows": 2, "num_dropped": 1, "num_leaks": 0,
    }  # fmt: skip


def make_near(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {**row, "id": name, "text": row["text"] + " " + row["text"].split()[0]}


def test_d5_near_repeats_are_dropped_when_asked_for(prepare) -> None:
    rows = number_rows(30)
    outcome = prepare([*rows, make_near(rows[3], "near")], "clean.drop=near")
    assert outcome.reasons == [(31, "near-duplicate: as in row 'r3'")]


@pytest.mark.parametrize("drop", ["none", "exact"])
def test_d5_near_repeats_that_stay_are_never_split(prepare, drop: str) -> None:
    rows = number_rows(40)
    nears = [make_near(row, f"near-{row['id']}") for row in rows]
    split_of = prepare([*rows, *nears], f"clean.drop={drop}").split_of
    assert len(split_of) == 80
    assert all(split_of[row["id"]] == split_of[f"near-{row['id']}"] for row in rows)
    assert set(split_of.values()) == set(SPLITS)


def test_d6_groups_are_never_split(prepare) -> None:
    rows = number_rows(60)
    for i, row in enumerate(rows):
        row["act"] = f"act {i % 20}"
    outcome = prepare(rows, fields="{id: id, text: text, group: act}")
    places: dict[str, set[str]] = {}
    for row_id, split in outcome.split_of.items():
        places.setdefault(outcome.rows[row_id]["group"], set()).add(split)
    assert len(places) == 20
    assert all(len(found) == 1 for found in places.values())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_d5_d6_planted_clusters_and_groups_never_leak(seed: int) -> None:
    generator = random.Random(seed)
    rows: list[Any] = []
    for cluster in range(25):
        words = [f"{generator.choice(WORDS)}{generator.randrange(99)}" for _ in range(40)]
        for _ in range(generator.randint(1, 4)):
            changed = list(words)
            changed[generator.randrange(40)] = "another"
            group = generator.choice([None, f"g{generator.randrange(40)}"])
            row = {"id": f"r{len(rows)}", "text": " ".join(changed), "group": group}
            rows.append({**row, "cluster": cluster, "mood": generator.choice("ab")})
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_in(Path(folder), rows, fields="{id: id, text: text, group: group}")
        if outcome.status == 2:
            assert "would be empty" in outcome.message  # all joined by the groups
            return
        split_of = outcome.split_of
        for key in ("cluster", "group"):
            places: dict[Any, set[str]] = {}
            for row in rows:
                if row[key] is not None and row["id"] in split_of:
                    places.setdefault(row[key], set()).add(split_of[row["id"]])
            assert all(len(found) == 1 for found in places.values())


def test_classes_are_equally_frequent_in_every_split(prepare) -> None:
    rows = number_rows(200)
    for i, row in enumerate(rows):
        row["mood"] = "rare" if i < 20 else "common"
    stats = prepare(rows).manifest["label_stats"]
    assert stats["train"] == {"common": 144, "rare": 16}
    assert stats["val"] == stats["test"] == {"common": 18, "rare": 2}


# the same again


def test_the_same_rows_and_seed_give_the_same_bytes(prepare) -> None:
    rows = number_rows(60)
    first = prepare(rows).bytes
    again = prepare(rows, output="again").bytes
    other = prepare(rows, "split.seed=7").bytes
    assert {n: first[n] for n in first if n != "manifest.json"} == {
        n: again[n] for n in again if n != "manifest.json"
    }
    assert json.loads(first["manifest.json"])["fingerprint"] == json.loads(
        again["manifest.json"]
    )["fingerprint"]  # fmt: skip
    assert first["test.jsonl"] != other["test.jsonl"]
    assert prepare(rows).bytes == first, "in the same folder, byte for byte"


# hostile input


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "none of 0 rows can be used; the sources are empty"),
        (
            ["{x", "["],
            "none of 2 rows can be used; reasons: 2 broken JSON; the first: rows.jsonl:1",
        ),
        (number_rows(2), "are too few: test would be empty"),
    ],
)
def test_too_little_to_learn_from(prepare, rows: list[Any], complaint: str) -> None:
    outcome = prepare(rows, labels=SCORES_LABELS)
    assert outcome.status == 2
    assert complaint in outcome.message
    assert not (outcome.folder / "manifest.json").exists()


def test_one_group_over_all_rows_is_refused(prepare) -> None:
    outcome = prepare(number_rows(30, act="x"), fields="{id: id, text: text, group: act}")
    assert outcome.status == 2
    assert "look for a `group` that joins too many rows" in outcome.message


def test_an_output_that_is_a_file_is_refused(prepare) -> None:
    for output in ("rows.jsonl", "rows.jsonl/below"):
        outcome = prepare(number_rows(30), output=output)
        assert outcome.status == 2
        assert "output: rows.jsonl is a file; name a folder" in outcome.message
    assert len(Path("rows.jsonl").read_text().splitlines()) == 30, "the data is unharmed"


def test_an_output_that_cannot_be_a_folder_is_refused(prepare) -> None:
    outcome = prepare(number_rows(30), output="x" * 300)
    assert outcome.status == 2
    assert "File name too long" in outcome.message
    Path("out/manifest.json").mkdir(parents=True)
    outcome = prepare(number_rows(30))
    assert outcome.status == 2
    assert "out: cannot be written: Is a directory" in outcome.message


def test_prepared_files_are_no_sources_of_the_same_task(prepare) -> None:
    write_rows(Path("rows.jsonl"), list(number_rows(30)))
    assert prepare(source="*.jsonl", output=".").status == 0
    outcome = prepare(source="*.jsonl", output=".")
    assert outcome.status == 2
    assert "rejected.jsonl would be overwritten by `llmft prepare`" in outcome.message


def test_a_failed_preparation_leaves_no_manifest_that_vouches_for_it(prepare, monkeypatch) -> None:
    first = prepare(number_rows(30))
    assert (first.folder / "manifest.json").exists()
    (first.folder / "val.jsonl").unlink()
    (first.folder / "val.jsonl").mkdir()
    outcome = prepare(number_rows(40))
    assert outcome.status == 2
    assert "val.jsonl: cannot be written" in outcome.message
    assert not (first.folder / "manifest.json").exists()


def test_a_text_of_five_megabytes_is_a_row_like_any_other(prepare) -> None:
    rows = [*number_rows(30), {"id": "long", "text": "word " * 1_000_000, "mood": "calm"}]
    outcome = prepare(rows)
    assert outcome.status == 0
    assert len(outcome.rows["long"]["text"]) == 4_999_999


def run_in(
    folder: Path, rows: list[Any], *overrides: str, fields: str = "{id: id, text: text}"
) -> Outcome:
    """Prepare rows in a folder of their own."""
    write_rows(folder / "rows.jsonl", rows)
    (folder / "task.yaml").write_text(
        f"name: t\nsources: [{{path: {folder}/rows.jsonl}}]\nfields: {fields}\n"
        f"labels: {{type: class, from: mood}}\noutput: {folder}/out\n"
    )
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        options = [part for override in overrides for part in ("--set", override)]
        status = main(["prepare", str(folder / "task.yaml"), *options])
    return Outcome(status, errors.getvalue(), folder / "out")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
words = st.text(st.sampled_from("abc \0é\ud800"), max_size=8)
strange_rows = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")).filter(str.strip),
    anything.map(json.dumps),
    st.fixed_dictionaries(
        {}, optional={"id": words | anything, "text": words | anything, "mood": words | anything}
    ).map(json.dumps),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(strange_rows, max_size=20), st.integers(0, 25), st.randoms())
def test_every_row_ends_in_one_split_or_is_rejected(
    strange: list[str], num_good: int, generator: random.Random
) -> None:
    rows: list[Any] = [*strange, *number_rows(num_good)]
    generator.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_in(Path(folder), rows)
        assert outcome.status in (0, 2), outcome.message
        assert "Traceback" not in outcome.message
        if outcome.status == 2:
            return
        counts = outcome.manifest["counts"]
        rejected = outcome.read("rejected")
        assert counts["input"] == len(rows)
        assert counts == {
            "input": sum(len(r) for r in outcome.splits.values()) + len(rejected),
            "repeated": 0,
            **{name: len(found) for name, found in outcome.splits.items()},
            "rejected": len(rejected),
        }
        ids = Counter(row["id"] for found in outcome.splits.values() for row in found)
        assert set(ids.values()) == {1}
        assert len({row["line"] for row in rejected}) == len(rejected)
        assert all(row["reason"].partition(":")[0] for row in rejected)
        assert sum(outcome.manifest["rejected"].values()) == len(rejected)


def test_d6_a_misspelt_field_is_refused_and_not_taken_for_empty(
    workspace: Path, write_scores_task, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_scores_task(num_rows=20)
    text = task.read_text()
    for wrong in ("text: [title, contnet]", "text: [title, content], group: titel"):
        task.write_text(text.replace("text: [title, content]", wrong))
        assert main(["prepare", str(task)]) == 2
        assert "Did you mean" in capsys.readouterr().err


def test_one_class_only_is_nothing_to_learn(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.jsonl").write_text('{"text": "a", "y": 1}\n{"text": "b", "y": 1}\n')
    Path("task.yaml").write_text(
        "name: t\nsources: [{path: rows.jsonl}]\nlabels: {type: class, from: y}\noutput: out\n"
    )
    assert main(["prepare", "task.yaml"]) == 2
    assert "all 2 usable rows are of the class '1'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_full_disk_ends_prepare_with_status_2(prepare, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    outcome = prepare(number_rows(30))
    assert outcome.status == 2
    assert "No space left on device" in outcome.message
    assert list(outcome.folder.iterdir()) == []
