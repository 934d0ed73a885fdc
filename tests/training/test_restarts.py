"""Resuming, starting from scratch, initial weights of another run, and less memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmft.cli import main
from llmft.files import read_json, write_json
from llmft.results.run import UnfinishedRun
from llmft.training.trainer import FiniteLoss

PROMPT = "Judge the risk.\n\n{text}\n"


def unfinish(path: Path) -> None:
    """Put back what the run said of itself while it was learning."""
    found = read_json(path)
    kept = {key: found[key] for key in UnfinishedRun.model_fields if key in found}
    new = {"status": "unfinished", "micro_batch_divisor": 1, "memory_gib": None, "free_gib": None}
    write_json(path, {**kept, **new})


@pytest.fixture
def recipe(write_scores_task, write_recipe, tiny_bert: Path, tiny_qwen: Path) -> str:
    """`qwen.yaml` behind a prompt, and `bert.yaml`."""
    write_scores_task(num_rows=60)
    write_recipe(tiny_qwen, name="qwen", tuning="lora", prompt=PROMPT)
    write_recipe(tiny_bert, name="bert")
    assert main(["prepare", "task.yaml"]) == 0
    return "qwen.yaml"


def train(recipe: str, run: str, *overrides: str, resume: str = "auto") -> int:
    sets = [x for value in (*overrides, f"output_dir={run}") for x in ("--set", value)]
    return main(["train", recipe, "--resume", resume, *sets])


def list_checkpoints(run: str) -> list[int]:
    return sorted(int(p.name.rpartition("-")[2]) for p in Path(run, "checkpoints").iterdir())


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next training end at a step, as a power cut would."""
    compute = FiniteLoss.__call__

    def fail(self: FiniteLoss, *args, **kwargs):
        if self.get_step() == step:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(FiniteLoss, "__call__", fail)


def test_checkpoints_are_kept_at_the_recipes_steps_and_at_every_epoch(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.save_steps=2", "train.save_total_limit=4", "train.epochs=3"]
    with monkeypatch.context() as patch:
        stop_at(15, patch)
        assert train(recipe, "runs/a", *settings) == 130
    found = list_checkpoints("runs/a")
    assert found[-3:] == [10, 12, 14], "6 steps an epoch; step 6 and 12 end one"
    assert found[0] in (6, 8), "the best, or one of the last four"
    shutil.rmtree("runs/a/checkpoints/checkpoint-14/")  # so that the last one ends an epoch
    assert train(recipe, "runs/a", *settings) == 0
    assert "resuming from checkpoint-12" in capsys.readouterr().out
    history = json.loads(Path("runs/a/training_history.json").read_text())["epochs"]
    assert [entry["step"] for entry in history] == [6, 12, 18], "each epoch is validated once"


def test_r5_resume_begins_anew_goes_on_or_goes_back(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.save_steps=2", "train.save_total_limit=9"]
    with monkeypatch.context() as patch:
        stop_at(9, patch)
        assert train(recipe, "runs/a", *settings) == 130
    assert train(recipe, "runs/a", *settings, "train.seed=7") == 2
    assert "differs in train.seed" in capsys.readouterr().err
    back = "runs/a/checkpoints/checkpoint-4"
    for wrong in ("runs/a/checkpoints/checkpoint-5", "Never"):
        assert train(recipe, "runs/a", *settings, resume=wrong) == 2
        assert f"found {wrong!r}; write auto" in capsys.readouterr().err
    assert train(recipe, "runs/a", *settings, resume=back) == 0
    assert read_json(Path("runs/a/training_metadata.json"))["resumed_from_step"] == 4
    weights = load_file("runs/a/model/adapter_model.safetensors")
    assert train(recipe, "runs/a", *settings, resume="never") == 0
    assert read_json(Path("runs/a/training_metadata.json"))["resumed_from_step"] == 0
    again = load_file("runs/a/model/adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights), "bit-identical"
    assert train(recipe, "runs/a", *settings) == 0
    assert "already trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [["train.epochs=1.5"], ["train.steps=9"], ["train.eval_steps=4", "train.epochs=3"]],
    ids=["epochs", "steps", "early-stopping"],
)
@pytest.mark.parametrize("name", ["qwen", "bert"])
def test_r5_a_run_killed_after_its_last_step_is_only_saved(
    recipe: str, name: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The end is not that of an epoch, from where the trainer would go on."""
    if "train.eval_steps=4" in settings:
        # The learning rate makes every later validation worse.
        settings = [*settings, "train.early_stopping_patience=1", "train.learning_rate=0.3"]
    assert train(f"{name}.yaml", "runs/a", *settings) == 0
    path = Path("runs/a/training_metadata.json")
    whole = {p.name: load_file(p) for p in Path("runs/a/model").glob("*.safetensors")}
    history, steps = read_json(Path("runs/a/training_history.json")), list_checkpoints("runs/a")
    unfinish(path)
    shutil.rmtree("runs/a/model")
    # A run is the same wherever its folder lies.
    Path("runs/a").rename("runs/moved")
    assert train(f"{name}.yaml", "runs/moved", *settings) == 0
    assert read_json(Path("runs/moved/training_history.json")) == history
    assert list_checkpoints("runs/moved") == steps
    for file, tensors in whole.items():
        again = load_file(f"runs/moved/model/{file}")
        assert all(torch.equal(tensors[key], again[key]) for key in tensors)


def test_a_run_that_was_moved_goes_on_with_its_own_best_checkpoint(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train.epochs=3"]
    with monkeypatch.context() as patch:
        stop_at(14, patch)
        assert train(recipe, "runs/a", *settings) == 130
    shutil.copytree("runs/a", "runs/copy")
    Path("runs/copy/checkpoints/checkpoint-12-mine").mkdir()
    assert train(recipe, "runs/a", *settings) == 0
    shutil.rmtree("runs/a/checkpoints")
    assert train(recipe, "runs/copy", *settings) == 0
    one, other = (load_file(f"runs/{run}/model/adapter_model.safetensors") for run in ("a", "copy"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert Path("runs/copy/checkpoints/checkpoint-12-mine").is_dir(), "not ours to remove"


@pytest.mark.parametrize("name", ["qwen", "bert"])
def test_init_from_begins_with_the_weights_of_another_run(
    recipe: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"{name}.yaml", "runs/first", "train.epochs=4") == 0
    still = ["train.learning_rate=1e-12", "train.epochs=1"]
    assert train(f"{name}.yaml", "runs/second", *still, "init_from=runs/first") == 0
    first, second = (
        json.loads(Path(f"runs/{run}/training_metadata.json").read_text())
        for run in ("first", "second")
    )
    assert second["best_metric"] == pytest.approx(first["best_metric"], rel=1e-4)
    assert second["init_hash"] == first["model_hash"]
    assert second["resumed_from_step"] == 0, "a new training"
    capsys.readouterr()
    shutil.rmtree("runs/first")
    assert train(f"{name}.yaml", "runs/first", "train.epochs=1") == 0
    assert train(f"{name}.yaml", "runs/second", *still, "init_from=runs/first") == 2
    assert "differs in the weights of init_from" in capsys.readouterr().err


def test_init_from_a_run_that_does_not_fit_is_refused(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("bert.yaml", "runs/first", "train.epochs=1") == 0
    for overrides, told in {
        ("init_from=runs/first",): "init_from: runs/first was trained with another base.model: ",
        ("init_from=runs/absent",): "init_from: runs/absent contains no finished run",
    }.items():
        capsys.readouterr()
        assert train(recipe, "runs/second", *overrides) == 2
        assert told in capsys.readouterr().err
    unfinish(Path("runs/first/training_metadata.json"))
    assert train("bert.yaml", "runs/second", "init_from=runs/first") == 2
    assert "contains no finished run" in capsys.readouterr().err
    assert not Path("runs/second").exists()


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a training run out of memory from so many rows on, as a GPU would."""
    compute = FiniteLoss.__call__

    def hold(num_rows: int) -> None:
        def fail(self: FiniteLoss, outputs, labels, **kwargs):
            if torch.is_grad_enabled() and len(labels) > num_rows and self.get_step() > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return compute(self, outputs, labels, **kwargs)

        monkeypatch.setattr(FiniteLoss, "__call__", fail)

    return hold


def test_out_of_memory_says_what_was_too_much_and_what_to_change(
    recipe: str, small_memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    small_memory(4)
    assert train(recipe, "runs/a", "train.auto_batch_size=false") == 2
    told = capsys.readouterr().err
    for part in ("8 rows of up to 4", "train.gradient_accumulation_steps", "train.auto_batch_size"):
        assert part in told
    small_memory(0)
    assert train(recipe, "runs/b") == 2
    assert "a micro-batch of 1 row of up to" in capsys.readouterr().err


def test_auto_batch_size_halves_the_batch_and_changes_the_weights_for_the_same_rows(
    recipe: str, small_memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["base.lora.dropout=0.0", "train.save_steps=2"]
    assert train(recipe, "runs/whole", *settings) == 0
    small_memory(2)
    capsys.readouterr()
    assert train(recipe, "runs/halved", *settings) == 0
    assert capsys.readouterr().out.count("half of them and twice the accumulation") == 2
    whole, halved = (
        json.loads(Path(f"runs/{run}/training_metadata.json").read_text())
        for run in ("whole", "halved")
    )
    assert (halved["per_device_batch_size"], halved["gradient_accumulation_steps"]) == (2, 4)
    assert halved["global_batch_size"] == whole["global_batch_size"] == 8
    assert halved["best_metric"] == pytest.approx(whole["best_metric"], rel=1e-4)
