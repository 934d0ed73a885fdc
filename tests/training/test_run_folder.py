"""A run folder belongs to one recipe on one version of the data."""

from pathlib import Path

import pytest

from llmft.data.files import read_json, write_json
from llmft.errors import UserError
from llmft.training.run_folder import RunIdentity, claim_run_folder, read_metadata

IDENTITY = RunIdentity({"train": {"epochs": 3}, "name": "arm"}, {"name": "risk"}, "f1", None)


def test_a_new_folder_is_claimed_and_known_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert claim_run_folder(run, IDENTITY) == "new"
    assert claim_run_folder(run, IDENTITY) == "unfinished"
    metadata = read_json(run / "training_metadata.json")
    write_json(run / "training_metadata.json", {**metadata, "status": "finished"})
    assert claim_run_folder(run, IDENTITY) == "finished"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (IDENTITY._replace(recipe={"train": {"epochs": 4}, "name": "arm"}), "train.epochs"),
        (IDENTITY._replace(data_fingerprint="f2"), "data_fingerprint"),
        (IDENTITY._replace(prompt_sha256="p"), "prompt_sha256"),
    ],
)
def test_r5_another_run_is_refused_with_what_differs(
    tmp_path: Path, other: RunIdentity, named: str
) -> None:
    claim_run_folder(tmp_path / "run", IDENTITY)
    (tmp_path / "run" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(UserError, match=f"differs in {named}"):
        claim_run_folder(tmp_path / "run", other)


def test_a_run_that_never_got_to_a_checkpoint_gives_way_to_a_mended_recipe(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "run", IDENTITY)
    other = IDENTITY._replace(data_fingerprint="f2")
    assert claim_run_folder(tmp_path / "run", other) == "new"
    assert claim_run_folder(tmp_path / "run", other) == "unfinished"


def test_another_spelling_of_a_path_is_no_other_run(tmp_path: Path) -> None:
    one = {"name": "a", "task": "t.yaml", "prompt": {"mode": "include", "file": "p.md"}}
    other = {"name": "b", "task": "/abs/t.yaml", "prompt": {"mode": "include", "file": "./p.md"}}
    claim_run_folder(tmp_path / "run", IDENTITY._replace(recipe=one))
    assert claim_run_folder(tmp_path / "run", IDENTITY._replace(recipe=other)) == "unfinished"


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(UserError, match="no run of llmft"):
        claim_run_folder(tmp_path, IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_an_unfinished_run_has_no_metadata_to_compare(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "run", IDENTITY)
    with pytest.raises(UserError, match="no finished run"):
        read_metadata(tmp_path / "run")
