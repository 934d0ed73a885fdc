"""A training fits into the memory that is free, or is refused before anything is loaded."""

import fcntl
import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, MPNetConfig

from llmft.cli import main
from llmft.config.recipe import load_recipe
from llmft.errors import UserError
from llmft.models.memory import peak
from llmft.training import memory, run_folder
from llmft.training.inputs import open_inputs, plan_batches
from llmft.training.launch import ONE_PROCESS
from llmft.training.memory import choose_micro_batches, surely_fits
from tests.families import build_base


@pytest.fixture
def recipe(write_scores_task, write_recipe, tiny_qwen: Path) -> str:
    """LoRA in micro-batches of 8 rows."""
    assert main(["prepare", str(write_scores_task())]) == 0
    return str(write_recipe(tiny_qwen, tuning="lora", prompt="Rate.\n{text}"))


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Leave so many GiB free."""

    def leave(gib: float) -> None:
        monkeypatch.setattr(memory, "measure_free_memory", lambda device: gib)

    return leave


def choose(recipe: str, **options) -> memory.MicroBatches:
    resolved = load_recipe(Path(recipe))
    found = choose_micro_batches(resolved, open_inputs(resolved), ONE_PROCESS, **options)
    assert found is not None
    return found


def test_the_fastest_way_that_fits_is_taken(recipe: str, leave: Callable[[float], None]) -> None:
    leave(100)
    whole = choose(recipe)
    assert (whole.divisor, whole.gradient_checkpointing, whole.largest.num_rows) == (1, False, 8)
    leave(whole.estimate.peak_gib)
    halved = choose(recipe)
    assert (halved.divisor, halved.gradient_checkpointing) == (2, False)
    assert halved.estimate.peak_gib < whole.estimate.peak_gib


def test_what_fits_barely_is_halved_where_that_costs_nothing(
    recipe: str, leave: Callable[[float], None]
) -> None:
    leave(100)
    whole = choose(recipe)
    leave(1.3 * whole.estimate.peak_gib)
    assert choose(recipe).divisor == 2, "glibc would keep more than is free"
    leave(1.4 * whole.estimate.peak_gib)
    assert choose(recipe).divisor == 1
    resolved = load_recipe(Path(recipe), overrides={"train.auto_batch_size": False})
    leave(1.3 * whole.estimate.peak_gib)
    found = choose_micro_batches(resolved, open_inputs(resolved), ONE_PROCESS)
    assert found is not None
    assert found.divisor == 1, "the recipe's own"


@pytest.mark.launched
def test_where_one_row_does_not_fit_activations_are_recomputed(
    recipe: str, leave: Callable[[float], None]
) -> None:
    leave(100)
    least = choose(recipe, divisor=8, gradient_checkpointing=True)
    leave(1.101 * least.estimate.peak_gib)
    assert choose(recipe).gradient_checkpointing


@pytest.mark.launched
def test_a_training_is_made_to_fit_with_the_same_steps(
    recipe: str, leave: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "base.lora.dropout=0.0", "--set"]
    assert main(["train", recipe, *settings, "output_dir=runs/whole"]) == 0
    leave(100)
    leave(0.5 * choose(recipe).estimate.peak_gib)
    capsys.readouterr()
    assert main(["train", recipe, *settings, "output_dir=runs/small"]) == 0
    assert "its optimizer steps stay the same" in capsys.readouterr().out
    whole, small = (
        json.loads(Path(f"runs/{name}/training_metadata.json").read_text())
        for name in ("whole", "small")
    )
    assert small["per_device_batch_size"] < whole["per_device_batch_size"]
    assert small["global_batch_size"] == whole["global_batch_size"]
    assert small["best_metric"] == pytest.approx(whole["best_metric"], rel=1e-4)


@pytest.mark.parametrize("command", ["check", pytest.param("train", marks=pytest.mark.launched)])
def test_what_does_not_fit_is_refused_with_what_would(
    command: str, recipe: str, leave: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    leave(100)
    leave(choose(recipe).estimate.peak_gib)
    assert main([command, recipe, "--set", "train.auto_batch_size=false"]) == 2
    told = capsys.readouterr().err
    assert "GiB are free, but training with 8 rows of up to" in told
    assert "What would fit: train.auto_batch_size: true (4 rows of up to" in told
    assert not Path("runs/variant/model").exists()


@pytest.mark.launched
def test_what_nothing_makes_fit_needs_a_smaller_base(
    recipe: str, leave: Callable[[float], None]
) -> None:
    leave(1e-5)
    with pytest.raises(UserError, match="Take a smaller base"):
        choose(recipe)


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_weights_for_a_gpu_have_to_fit_into_the_machine_first(
    tuning: str, recipe: str, leave: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step = memory.make_step
    monkeypatch.setattr(
        memory, "make_step", lambda *args, **more: make_step(*args, **more)._replace(on_gpu=True)
    )
    resolved = load_recipe(Path(recipe), overrides={"base.tuning": tuning})
    leave(1e-5)
    words = "of the machine are free, but the weights take" if tuning == "lora" else "smaller base"
    with pytest.raises(UserError, match=words):
        choose_micro_batches(resolved, open_inputs(resolved), ONE_PROCESS)


def test_what_a_gpu_is_asked_about_is_not_refused_for_this_machine(
    recipe: str, leave: Callable[[float], None]
) -> None:
    leave(1e-5)
    assert main(["check", recipe, "--gpu-memory", "24GiB"]) == 0


@pytest.mark.launched
def test_a_full_training_that_does_not_fit_may_fit_with_adapters(
    recipe: str, leave: Callable[[float], None]
) -> None:
    leave(100)
    resolved = load_recipe(Path(recipe), overrides={"base.tuning": "full"})
    inputs = open_inputs(resolved)
    adapted = choose(recipe, divisor=8, gradient_checkpointing=True).estimate.peak_gib
    whole = choose_micro_batches(
        resolved, inputs, ONE_PROCESS, divisor=8, gradient_checkpointing=True
    )
    assert whole is not None
    leave(1.101 * adapted)
    with pytest.raises(UserError, match=r"What would fit: .*base\.tuning: lora \("):
        choose_micro_batches(resolved, inputs, ONE_PROCESS)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_freed_memory_goes_back_where_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    held = [b"x" * 100_000 for _ in range(3_000)]
    held = held[::30]  # what lies between stays
    before = measure()
    monkeypatch.setattr(peak, "measure_free_memory", lambda device: 1e6)
    peak.return_freed_memory()
    assert measure() > before - 100, "plenty is free"
    monkeypatch.setattr(peak, "measure_free_memory", lambda device: 0.0)
    peak.return_freed_memory()
    assert measure() < before - 200
    assert len(held) == 100


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_base_without_gradient_checkpointing_says_so(
    command: str, write_scores_task, write_recipe, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = build_base("bert", tmp_path / "base")
    AutoModel.from_config(
        MPNetConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=130, pad_token_id=0,
        )
    ).save_pretrained(base)  # fmt: skip
    assert main(["prepare", str(write_scores_task())]) == 0
    recipe = str(write_recipe(base, train=", gradient_checkpointing: true"))
    assert main([command, recipe]) == 2
    assert "a mpnet base has no gradient checkpointing" in capsys.readouterr().err
    assert main([command, recipe, "--set", "train.gradient_checkpointing=false"]) == 0


def test_a_frozen_base_that_does_not_fit_is_refused(
    recipe: str, leave: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["--set", "base.tuning=frozen"]
    leave(1e-5)
    for command in ("check", "train"):
        assert main([command, recipe, *frozen]) == 2
        assert "a frozen base with its states needs about" in capsys.readouterr().err
    leave(100)
    assert main(["train", recipe, *frozen]) == 0


def test_what_is_small_is_not_traced(recipe: str, leave: Callable[[float], None]) -> None:
    resolved = load_recipe(Path(recipe))
    inputs = open_inputs(resolved)
    plan = plan_batches(resolved, inputs)
    leave(100)
    need = choose(recipe).estimate.peak_gib
    assert surely_fits(resolved, inputs, plan)
    leave(need)
    assert not surely_fits(resolved, inputs, plan)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/inner\n", {"job/memory.max": 8, "job/memory.current": 3}, 6),
        ("0::/\n", {"memory.max": 8, "memory.current": 7}, 2),
        ("0::/\n", {"memory.max": "max", "memory.current": 7}, None),
        (
            "5:cpu:/\n4:memory:/of/the/host\n",
            {"memory/memory.limit_in_bytes": 8, "memory/memory.usage_in_bytes": 3},
            6,
        ),
    ],
)
def test_a_container_has_what_its_limit_leaves(
    own: str, files: dict[str, object], expected: float | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "own").write_text(own)
    used = f"anon 5\ninactive_file {2**30 // 2}\nactive_file {2**30 // 2}\nfile {2**40}\n"
    for name, gib in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(gib if isinstance(gib, str) else gib * 2**30))
        (path.parent / "memory.stat").write_text(used)
    monkeypatch.setattr(peak, "_CGROUPS", tmp_path)
    monkeypatch.setattr(peak, "_OWN_CGROUPS", tmp_path / "own")
    found = peak._measure_free_in_cgroup()
    assert found == (float("inf") if expected is None else pytest.approx(expected))
    assert peak.measure_free_memory(torch.device("cpu")) <= found


def test_a_killed_run_is_explained_at_its_next_start(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmft.training import train_model as module

    path, log = Path("runs/variant/training_metadata.json"), Path("runs/variant/logs/training.log")
    assert main(["train", recipe]) == 0
    assert main(["train", recipe, "--resume", "never"]) == 0
    assert "killed" not in capsys.readouterr().out, "a run that ended is not one that was killed"
    run_trainer = module.run_trainer

    def end(*args: object, **more: object) -> None:
        run_trainer(*args, **more)
        raise UserError("an error\nof several\nlines")

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_trainer", end)
        assert main(["train", recipe, "--resume", "never"]) == 2
        assert main(["train", recipe]) == 2
    assert "killed" not in capsys.readouterr().out, "the error is in the log"
    killed = log.read_text().rpartition("\n2")[0]  # as if it had been killed
    log.write_text(
        f"{killed}\n2026-11-30 06:00:00,000 a prompt that ended early: it started"
        "\n2026-11-30 06:01:00,000 training: step 1,200 of 9,000, 50 tokens/s, about 9 min left"
    )
    begun = json.loads(path.read_text())
    path.write_text(json.dumps({**begun, "memory_gib": 9.0, "free_gib": 10.0}))
    assert main(["train", recipe]) == 0
    told = capsys.readouterr().out
    assert "the last start was probably killed after step 1,200: its log ends" in told
    assert "by estimate it needed 9.0 of the 10.0 GiB that were free, so memory is the" in told
    assert "continuing with half of each micro-batch and twice the accumulation" in told
    assert json.loads(path.read_text())["per_device_batch_size"] == 4


def test_a_run_that_is_being_trained_is_left_alone(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe]) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    with Path("runs/variant/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for resume in ("auto", "never"):
            assert main(["train", recipe, "--resume", resume]) == 2
            assert "runs/variant: another process is training it" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert main(["train", recipe]) == 0


def test_a_folder_that_cannot_be_made_is_reported(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("in the way")
    assert main(["train", recipe, "--set", "output_dir=file/run"]) == 2
    assert "file/run: cannot be written: Not a directory" in capsys.readouterr().err


def test_a_file_system_without_locks_is_a_warning(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    assert main(["train", recipe]) == 0
    assert "runs/variant cannot be locked (No locks available)" in capsys.readouterr().out


def test_a_folder_of_other_files_is_left_without_a_lock(recipe: str) -> None:
    Path("runs/variant").mkdir(parents=True)
    Path("runs/variant/notes.txt").write_text("mine")
    assert main(["train", recipe]) == 2
    assert [path.name for path in Path("runs/variant").iterdir()] == ["notes.txt"]
