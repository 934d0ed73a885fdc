"""A full disk: what was finished stays, and nothing is left half-written."""

from pathlib import Path

import pytest

from tests.bad_input.materials import (
    dump_rows,
    list_files,
    make_rows,
    run,
    run_process,
)


@pytest.mark.launched
@pytest.mark.parametrize("max_file_bytes", [0, 1000, 3000])
def test_a_full_disk_leaves_what_was_prepared_before(write, max_file_bytes: int) -> None:
    write()
    assert run("prepare", "task.yaml").status == 0
    before = list_files(Path("out"))
    Path("rows.jsonl").write_text(dump_rows(make_rows(60)))
    run_process("prepare", "task.yaml", max_file_bytes=max_file_bytes).check_refusal(
        "cannot be written: File too large; the old file, if any, is unchanged. Free some space"
    )
    assert list_files(Path("out")) == before
    assert run("check", "recipe.yaml").status == 0


@pytest.mark.launched
def test_a_full_disk_leaves_no_half_prepared_data(write) -> None:
    write()
    run_process("prepare", "task.yaml", max_file_bytes=3000).check_refusal("File too large")
    assert list_files(Path("out")) == {}


@pytest.mark.launched
def test_a_full_disk_while_a_model_is_saved_is_reported_and_the_run_goes_on_afterwards(
    write_scores_task, write_recipe, tiny_bert: Path
) -> None:
    assert run("prepare", str(write_scores_task())).status == 0
    recipe = str(write_recipe(tiny_bert))
    outcome = run_process("train", recipe, max_file_bytes=100_000)
    outcome.check_refusal("File too large", "runs/variant")
    assert not Path("runs/variant/model").exists()
    assert not list(Path("runs/variant").rglob("*.tmp"))
    assert run("train", recipe).status == 0
    assert Path("runs/variant/model/llmft.json").is_file()
