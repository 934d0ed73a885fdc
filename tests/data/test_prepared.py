"""Prepared data is used only if it is what the task asks for."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmft.config.task import load_task
from llmft.data.prepared import PreparedData, is_prepared, open_prepared
from llmft.errors import UserError
from tests.data.conftest import SCORES_LABELS, number_rows


def open_it(overrides: dict[str, Any] | None = None) -> PreparedData:
    task = load_task(Path("task.yaml"), overrides=overrides)
    return open_prepared(task, named="task.yaml")


def test_what_was_prepared_is_opened_again(prepare) -> None:
    outcome = prepare(number_rows(30), labels=SCORES_LABELS)
    data = open_it()
    assert data.read_split("test") == outcome.splits["test"]
    assert data.label_names == ["risk", "calm"]
    assert data.fingerprint == outcome.manifest["fingerprint"]


def test_the_names_of_classes_come_from_the_data(prepare) -> None:
    prepare(number_rows(30))
    assert open_it().label_names == ["calm", "tense"]


def test_data_that_is_not_there_says_how_to_get_it(prepare) -> None:
    prepare([])
    with pytest.raises(UserError, match=r"not prepared; run `llmft prepare task\.yaml`"):
        open_it()


def test_data_of_another_version_of_the_task_says_what_changed(prepare) -> None:
    prepare(number_rows(30))
    assert is_prepared(open_it().task)
    overrides = {"split.seed": 7, "clean.drop": "near"}
    assert not is_prepared(load_task(Path("task.yaml"), overrides=overrides))
    with pytest.raises(UserError) as caught:
        open_it(overrides)
    message = str(caught.value)
    assert "another version of the task (changed: clean, split)" in message
    assert "run `llmft prepare task.yaml`" in message


def test_a_split_that_was_changed_on_disk_is_refused(prepare) -> None:
    outcome = prepare(number_rows(30))
    data = open_it()
    path = outcome.folder / "test.jsonl"
    path.write_text(path.read_text().replace("calm", "tense"))
    with pytest.raises(UserError, match=r"test\.jsonl: changed since .* prepare again"):
        data.read_split("test")
    assert data.read_split("train"), "the others are as they were"
    path.unlink()
    with pytest.raises(UserError, match=r"test\.jsonl: cannot be read"):
        data.read_split("test")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", r".*missing.*; run `llmft prepare task.yaml`"),
        ('{"task": null}', "run `llmft prepare task.yaml`"),
    ],
)
def test_a_manifest_that_is_none_is_refused(prepare, content: str, complaint: str) -> None:
    outcome = prepare(number_rows(30))
    (outcome.folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=complaint):
        open_it()


def test_a_manifest_that_lacks_a_part_is_refused(prepare) -> None:
    outcome = prepare(number_rows(30))
    manifest: dict[str, Any] = outcome.manifest
    del manifest["files"]
    (outcome.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json: files: missing; run `llmft prepare"):
        open_it()


def test_a_task_that_lost_a_setting_says_which(prepare) -> None:
    outcome = prepare(number_rows(30))
    manifest = outcome.manifest
    manifest["task"]["translate"] = []
    (outcome.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"task.translate: unknown key.*; run `llmft prepare"):
        open_it()
