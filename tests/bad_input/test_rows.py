"""Rows that cannot be used are rejected with their reason, or nothing is prepared."""

import json
from pathlib import Path

import pytest

from tests.bad_input.materials import (
    TASK,
    Outcome,
    dump_rows,
    make_rows,
    read_rejected,
    run,
)


def test_the_files_of_these_tests_are_good_but_for_what_is_changed(write) -> None:
    write()
    assert run("prepare", "task.yaml") == Outcome(0, "")
    assert run("check", "recipe.yaml", "--no-data") == Outcome(0, "")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "none of 0 rows can be used; the sources are empty"),
        ("\n \n\n", "none of 0 rows can be used; the sources are empty"),
        ("{}\n" * 3, "none of 3 rows can be used; reasons: 3 id missing; the first: rows.jsonl:1"),
        (dump_rows([{**r, "mood": "c"} for r in make_rows()]), "all 30 usable rows are of the cl"),
        (dump_rows(make_rows(2)), "are too few: "),
        (dump_rows([{**r, "bdy": ""} for r in make_rows()]).replace('"body"', '"bod"'),
         "no row has the field 'body'. Did you mean `bod`?"),
        (dump_rows(make_rows()).encode("utf-16"), "rows.jsonl:1: not utf-8"),
        (dump_rows(make_rows()).replace("title 7", "Größe").encode("latin-1"),
         "rows.jsonl:8: not utf-8 (byte 0xf6, invalid start byte); the file is likely latin-1"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_learned_from(write, content: str | bytes, complaint: str) -> None:
    write(content)
    run("prepare", "task.yaml").check_refusal(complaint)
    assert not Path("out").exists()


def test_a_glob_without_a_match_says_where_it_was_looked_for(write, workspace: Path) -> None:
    write(task=TASK.replace("rows.jsonl", "scored_*.jsonl"))
    run("prepare", "task.yaml").check_refusal(
        f"sources: 'scored_*.jsonl' matches no file below {workspace}; fix the path"
    )


def test_all_scores_equal_is_nothing_to_learn(write) -> None:
    labels = "labels: {type: scores, from: scores, dimensions: [risk, calm]}\n"
    lines = [labels if line.startswith("labels") else line for line in TASK.splitlines(True)]
    write(
        dump_rows([{**row, "scores": {"risk": 5, "calm": 5}} for row in make_rows()]),
        task="".join(lines),
    )
    run("prepare", "task.yaml").check_refusal("all 30 usable rows have the same scores")


def test_a_class_too_small_to_stratify_says_how_to_mend_it(write) -> None:
    rows = [{**row, "mood": "t" if i < 2 else "c"} for i, row in enumerate(make_rows())]
    write(dump_rows(rows), task=TASK.replace("stratify: false", "stratify: true"))
    run("prepare", "task.yaml").check_refusal(
        "classes with too few rows to be in every split: 'tense' (2)", "split.stratify: false"
    )


def test_bad_rows_are_rejected_with_their_reason(write) -> None:
    good = make_rows()
    bad = {
        '{"id": "x", "title': "broken JSON: ",
        json.dumps({**good[0], "body": "new", "id": "r7"}): "repeated id: an earlier row has 'r7",
        json.dumps({**good[0], "id": "a", "title": "", "body": " "}): "empty text: nothing in ti",
        json.dumps({**good[0], "id": "b", "body": "NUL \0 byte"}): "not text: body holds NUL byte",
        "\0" * 50: "broken JSON: Expecting value: line 1",
        json.dumps({**good[0], "id": "c", "mood": "angry"}): "unknown class: 'angry' is not in",
        json.dumps({**good[0], "id": "d", "url": "SPAM.org"}): "filtered by url: a match of",
        json.dumps({**good[0], "id": "e", "title": "x", "body": ""}): "too short: 1 characters",
        json.dumps({**good[0], "id": "f"}): "same text: as in row 'r0'",
    }
    write(dump_rows(good) + "\n".join(bad) + "\n")
    assert run("prepare", "task.yaml", "--set", "max_rejected=0.1").status == 0
    rejected = read_rejected()
    assert [line for line, _ in sorted(rejected)] == list(range(31, 40))
    for (_, reason), wanted in zip(sorted(rejected), bad.values(), strict=True):
        assert reason.startswith(wanted)


def test_a_csv_with_a_missing_column_names_it(write) -> None:
    lines = [f"r{i},title {i},w{i},{'ct'[i % 2]}" for i in range(30)]
    write(
        "\n".join(["id,title,body,mod", *lines]), name="rows.csv",
        task=TASK.replace("rows.jsonl", "rows.csv").replace(", keep: [url]", "").replace(
            '{field: url, not_matches: "(?i)spam"}, ', ""
        ),
    )  # fmt: skip
    run("prepare", "task.yaml").check_refusal(
        "no row has the field 'mood'. Did you mean `mod`? Fields found: id, title, body, mod"
    )


def test_a_csv_with_a_quote_that_is_never_closed_names_its_line(write) -> None:
    write('id,title\nr0,"open\nr1,x\n', name="rows.csv", task=TASK.replace(".jsonl", ".csv"))
    run("prepare", "task.yaml").check_refusal("rows.csv:2: not valid CSV", "fix the quotes")


def test_a_text_of_five_megabytes_is_prepared_checked_and_cut(
    write_scores_task, write_recipe, tiny_bert: Path
) -> None:
    task = write_scores_task()
    row = {
        "id": "long", "title": "bank", "content": "bank rate crisis " * 300_000,
        "scores": {"risk": 1, "calm": 9},
    }  # fmt: skip
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert run("prepare", str(task)).status == 0
    outcome = run("check", str(write_recipe(tiny_bert)))
    assert outcome == Outcome(0, "")
