"""Sources and outputs that look right at first sight."""

import json
from pathlib import Path

from tests.bad_input.materials import TASK, dump_rows, make_rows, read_rejected, run

PLAIN = TASK.replace("drop: near", "drop: exact")


def test_files_that_prepare_did_not_write_are_not_replaced(write) -> None:
    write()
    Path("out").mkdir()
    Path("out/test.jsonl").write_text("precious\n")
    run("prepare", "task.yaml").check_refusal("was not written by `llmft prepare`")
    assert Path("out/test.jsonl").read_text() == "precious\n"


def test_semicolons_between_the_columns_are_named(write) -> None:
    write()
    Path("rows.csv").write_text("id;title;mood\n1;a;c\n")
    Path("task.yaml").write_text(TASK.replace("rows.jsonl", "rows.csv"))
    run("prepare", "task.yaml").check_refusal("separated by ';'")


def test_equal_texts_with_other_labels_have_a_reason_of_their_own(write) -> None:
    rows = make_rows()
    rows.append({**rows[0], "id": "again", "mood": "t"})
    write()
    Path("rows.jsonl").write_text(dump_rows(rows))
    Path("task.yaml").write_text(PLAIN)
    assert run("prepare", "task.yaml").status == 0
    assert (31, "same text with other labels: as in row 'r0'") in read_rejected()


def test_a_field_that_one_source_lacks_is_a_warning(write) -> None:
    write()
    Path("more.jsonl").write_text('{"id": "x", "title": "only a title", "mood": "c"}\n')
    Path("task.yaml").write_text(PLAIN.replace("{path: rows.jsonl}", "{path: '*.jsonl'}"))
    assert run("prepare", "task.yaml").status == 0
    warnings = json.loads(Path("out/manifest.json").read_text())["warnings"]
    assert "more.jsonl: no row has the field 'body'" in warnings


def test_d5_near_duplicates_are_found_where_no_spaces_part_the_words(write) -> None:
    rows = make_rows()
    letters = [chr(0x4E00 + 7 * i) for i in range(60)]
    for i, changed in enumerate(("", "".join(letters[:1]))):
        body = "".join(letters) + changed
        rows.append({**rows[0], "id": f"han{i}", "title": "", "body": body})
    write()
    Path("rows.jsonl").write_text(dump_rows(rows))
    Path("task.yaml").write_text(TASK)
    assert run("prepare", "task.yaml").status == 0
    assert (32, "near-duplicate: as in row 'han0'") in read_rejected()
