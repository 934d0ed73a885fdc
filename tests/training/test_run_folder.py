"""A run folder belongs to one recipe on one version of the data."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmft.errors import StoppedError, UserError
from llmft.files import read_json, write_json
from llmft.results.files import write_result
from llmft.results.run import RunIdentity, UnfinishedRun
from llmft.training.checkpoints import find_last_checkpoint, seal_checkpoint
from llmft.training.launch import Launch
from llmft.training.run_folder import (
    claim_run_folder,
    is_finished,
    log_to_file,
    read_record,
    update_run,
)
from tests.results.made_up import make_identity, make_recipe, make_record

IDENTITY = make_identity()


def claim(
    run: Path, identity: RunIdentity = IDENTITY, *, world_size: int = 1, resume: str = "auto"
) -> UnfinishedRun | None:
    launch = Launch(world_size, "none" if world_size == 1 else "ddp", None)
    return claim_run_folder(run, identity, launch=launch, resume=resume)


def find_start(run: Path, *args: Any, **kwargs: Any) -> Path | None:
    """Claim the folder; return the checkpoint from which the training would resume."""
    assert claim(run, *args, **kwargs) is not None
    return find_last_checkpoint(run / "checkpoints")


def write_checkpoint(run: Path, step: int, *, is_whole: bool = True) -> Path:
    path = run / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    if is_whole:
        seal_checkpoint(path)
    return path


def finish(run: Path) -> None:
    write_result(run / "training_metadata.json", make_record(IDENTITY))


def test_a_new_folder_is_claimed_and_known_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert find_start(run) is None
    assert find_start(run) is None
    first, last = write_checkpoint(run, 9), write_checkpoint(run, 10)
    write_checkpoint(run, 11, is_whole=False)
    assert find_start(run) == last
    assert sorted((run / "checkpoints").iterdir()) == [last, first], "half-written ones are gone"
    finish(run)
    assert claim(run) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("shorter", "cannot be trusted, as trainer_state.json was changed since it was written"),
        ("missing", "cannot be trusted, as trainer_state.json was changed since it was written"),
        ("extra", "cannot be trusted, as rng_state_1.pth was changed since it was written"),
        ("seal", "cannot be trusted, as its complete.json was changed"),
        ("no seal", "is incomplete"),
    ],
)
def test_r5_a_checkpoint_that_is_not_as_it_was_written_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, said: str
) -> None:
    caplog.set_level("INFO", logger="llmft")
    claim(tmp_path / "run")
    good, bad = (write_checkpoint(tmp_path / "run", step) for step in (1, 2))
    match damage:
        case "shorter":
            (bad / "trainer_state.json").write_text("{")
        case "missing":
            (bad / "trainer_state.json").unlink()
        case "extra":
            (bad / "rng_state_1.pth").write_bytes(b"of another attempt")
        case "seal":
            (bad / "complete.json").write_text('{"file": ')
        case _:
            (bad / "complete.json").unlink()
    assert find_start(tmp_path / "run") == good
    assert f"{bad}: {said}, removed" in caplog.messages


def test_r5_resume_never_begins_anew_and_a_path_goes_on_from_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="there is no run in"):
        claim(run, resume="somewhere")
    claim(run)
    first, _ = write_checkpoint(run, 1), write_checkpoint(run, 2)
    with pytest.raises(
        UserError, match=r"checkpoint-3 is incomplete; complete checkpoints: checkpoint-1, ch"
    ):
        claim(run, resume=str(run / "checkpoints" / "checkpoint-3"))
    with pytest.raises(UserError, match=r"is not a checkpoint of .*run; .* init_from"):
        claim(run, resume=str(write_checkpoint(tmp_path / "other", 1)))
    copied = run / "checkpoints" / "best"
    shutil.copytree(first, copied)
    with pytest.raises(UserError, match=r"best is not named checkpoint-STEP; complete"):
        claim(run, resume=str(copied))
    state = json.dumps({"best_model_checkpoint": "elsewhere/checkpoint-0"})
    (first / "trainer_state.json").write_text(state)
    seal_checkpoint(first)
    with pytest.raises(UserError, match="needs checkpoint-0, the best checkpoint so far, which"):
        claim(run, resume=str(first))
    (first / "trainer_state.json").write_text(state.replace("checkpoint-0", "checkpoint-1"))
    seal_checkpoint(first)
    shutil.rmtree(copied)
    assert find_start(run, resume=str(first)) == first
    assert list((run / "checkpoints").iterdir()) == [first], "what came after it is gone"
    finish(run)
    assert find_start(run, resume="never") is None
    assert not list((run / "checkpoints").iterdir())
    assert not is_finished(run)


def test_r6_another_number_of_processes_does_not_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, world_size=2)
    assert claim(run, world_size=1) is not None, "nothing was learned yet"
    claim(run, world_size=2)
    write_checkpoint(run, 1)
    with pytest.raises(UserError, match="began with 2 processes, and 1 process cannot resume it"):
        claim(run, world_size=1)
    assert find_start(run, world_size=1, resume="never") is None
    finish(run)
    assert claim(run, world_size=4) is None, "what is finished is finished"


def test_how_a_run_is_kept_and_shared_does_not_make_another_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = make_recipe(train={"auto_batch_size": True, "save_steps": 2})
    claim(run)
    write_checkpoint(run, 1)
    assert find_start(run, make_identity(recipe=asked)) is not None
    launch = Launch(1, "zero3", None)
    with pytest.raises(UserError, match="began with 1 process, and 1 process under ZeRO-3 cannot"):
        claim_run_folder(run, IDENTITY, launch=launch, resume="auto")


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path) -> None:
    run = tmp_path / "run"
    identity = make_identity(recipe=make_recipe(train={"precision": "bfloat16"}))
    claim(run, identity)
    write_checkpoint(run, 1)
    found = read_json(run / "training_metadata.json")
    write_json(run / "training_metadata.json", {**found, "precision": "float32"})
    with pytest.raises(UserError, match="began in float32, but this machine computes in bfloat16"):
        claim(run, identity)


def test_the_log_says_why_a_training_ended_early(tmp_path: Path) -> None:
    with pytest.raises(StoppedError), log_to_file(tmp_path / "training.log"):
        raise StoppedError("stopped at step 5")
    assert "ended early: stopped at step 5" in (tmp_path / "training.log").read_text()


def test_smaller_micro_batches_are_remembered_as_long_as_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = claim(run)
    assert first is not None
    update_run(run, first, micro_batch_divisor=4)
    after, anew = claim(run), claim(run, resume="never")
    assert after is not None
    assert after.micro_batch_divisor == 4
    assert anew is not None
    assert anew.micro_batch_divisor == 1


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (make_identity(recipe=make_recipe(train={"epochs": 4})), "train.epochs"),
        (make_identity(data_fingerprint="f2"), "the prepared data"),
        (make_identity(prompt_sha256="p"), "the text of the prompt"),
        (make_identity(init_hash="i"), "the weights of init_from"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_r5_another_run_is_refused_with_what_differs(
    tmp_path: Path, other: RunIdentity, named: str, resume: str
) -> None:
    claim(tmp_path / "run")
    write_checkpoint(tmp_path / "run", 2)
    with pytest.raises(UserError, match=f"differs in {named}"):
        claim(tmp_path / "run", other, resume=resume)


def test_a_run_that_never_got_to_a_checkpoint_gives_way_to_a_mended_recipe(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    other = make_identity(data_fingerprint="f2")
    assert find_start(tmp_path / "run", other) is None
    write_checkpoint(tmp_path / "run", 2)
    assert find_start(tmp_path / "run", other) is not None


def test_another_spelling_of_a_path_is_no_other_run(tmp_path: Path) -> None:
    one = make_recipe(name="a", task="t.yaml", prompt={"mode": "include", "file": "p.md"})
    other = make_recipe(name="b", task="/a/t.yaml", prompt={"mode": "include", "file": "./p.md"})
    claim(tmp_path / "run", make_identity(recipe=one))
    write_checkpoint(tmp_path / "run", 2)
    assert find_start(tmp_path / "run", make_identity(recipe=other)) is not None


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(UserError, match="not a run of llmft"):
        claim(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_an_unfinished_run_has_no_metadata_to_compare(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    with pytest.raises(UserError, match="no finished run"):
        read_record(tmp_path / "run")


def test_runs_inside_a_folder_are_offered_in_its_place(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        claim(tmp_path / f"variant/seed-{seed}")
    for seed in (1, 3):
        finish(tmp_path / f"variant/seed-{seed}")
    told = f"did you mean {tmp_path}/variant/seed-1 or {tmp_path}/variant/seed-3?"
    with pytest.raises(UserError, match=re.escape(told)):
        read_record(tmp_path / "variant")
