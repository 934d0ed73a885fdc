"""A training that is killed, told to stop, or loses its launcher ends as if unbroken (R5, R9)."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launched.conftest import ENVIRONMENT, TORCHRUN, launch, read_epochs

pytestmark = pytest.mark.launched

ALONE = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
TRAINING = (
    "train.epochs=3 train.batch_size=2 train.gradient_accumulation_steps=2 train.save_steps=2 "
    "train.save_total_limit=2 base.lora.dropout=0.1"
).split()


def start(
    recipe: str, run: str, *overrides: str, launcher: list[str] = ALONE
) -> subprocess.Popen[bytes]:
    """Start a training in a process group of its own."""
    sets = [x for value in (*overrides, f"output_dir={run}") for x in ("--set", value)]
    return subprocess.Popen(
        [*launcher, "-m", "llmft.train", f"{recipe}.yaml", *sets],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Return whether a state was reached before the process ended."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.0005)
    return False


def list_tree(group: int) -> list[int]:
    """Return the running processes that belong to a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":  # the session, which torchrun keeps
            found.append(int(path.parent.name))
    return found


def kill(process: subprocess.Popen[bytes]) -> str:
    """Kill all of a training that still runs; return what it has said."""
    for pid in list_tree(process.pid):
        os.kill(pid, signal.SIGKILL)
    return process.communicate()[0].decode()


def kill_at(
    run: str, recipe: str, *overrides: str, launcher: list[str], step: int, delay: float
) -> str:
    """Kill a training around a checkpoint; return in what state that was left."""
    folder = Path(run, "checkpoints", f"checkpoint-{step}")
    process = start(recipe, run, *overrides, launcher=launcher)
    reached = wait_until(folder.exists, process)
    time.sleep(delay)
    kill(process)
    if not reached:
        return "ended"
    return "written" if (folder / "complete.json").is_file() else "being written"


def finish(recipe: str, run: str, *overrides: str, launcher: list[str]) -> None:
    sets = [x for value in (*overrides, f"output_dir={run}") for x in ("--set", value)]
    done = launch("-m", "llmft.train", f"{recipe}.yaml", *sets, launcher=launcher)
    assert done.returncode == 0, done.stderr[-4000:]


def assert_same(run: str, expected: str) -> None:
    for path in Path(expected, "model").glob("*.safetensors"):
        found = load_file(Path(run, "model", path.name))
        for name, tensor in load_file(path).items():
            assert torch.equal(found[name], tensor), name
    assert read_epochs(run) == read_epochs(expected)


@pytest.mark.parametrize(
    ("recipe", "launcher", "precision"),
    [("qwen", ALONE, "bfloat16"), ("bert", TORCHRUN, "float32")],
    ids=["qwen-one-bfloat16", "bert-two-float32"],
)
def test_r5_a_killed_training_ends_bit_identical(
    dropping: None, recipe: str, launcher: list[str], precision: str
) -> None:
    overrides = [o for o in TRAINING if recipe == "qwen" or "lora" not in o]
    overrides.append(f"train.precision={precision}")
    finish(recipe, "runs/whole", *overrides, launcher=launcher)
    state = kill_at("runs/killed", recipe, *overrides, launcher=launcher, step=16, delay=0.0)
    assert state != "ended"
    finish(recipe, "runs/killed", *overrides, launcher=launcher)
    assert_same("runs/killed", "runs/whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ALONE, TORCHRUN], ids=["one", "two"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["bert", "qwen"])
def test_r5_a_training_killed_again_and_again_ends_bit_identical(
    dropping: None, recipe: str, precision: str, launcher: list[str]
) -> None:
    """Three kills each, so 24 in all: at random steps, and while a checkpoint is being written."""
    overrides = [o for o in TRAINING if recipe == "qwen" or "lora" not in o]
    overrides.append(f"train.precision={precision}")
    generator = random.Random(f"{recipe} {precision} {len(launcher)}")
    finish(recipe, "runs/whole", *overrides, launcher=launcher)
    num_steps = 39 if launcher == ALONE else 21
    states, steps = [], sorted(generator.sample(range(2, num_steps, 2), 3))
    for step, delay in zip(steps, (0.0, 0.05 * generator.random(), 0.0), strict=True):
        state = kill_at(
            "runs/killed", recipe, *overrides, launcher=launcher, step=step, delay=delay
        )
        states.append(state)
    print(recipe, precision, launcher[1:3], steps, states)
    finish(recipe, "runs/killed", *overrides, launcher=launcher)
    assert_same("runs/killed", "runs/whole")
    assert "ended" not in states


LONG = ["train.steps=100000", "train.eval_steps=10", "train.batch_size=4"]


def wait_for_checkpoint(run: str, process: subprocess.Popen[bytes]) -> None:
    reached = wait_until(lambda: bool([*Path(run).glob("checkpoints/*/complete.json")]), process)
    assert reached, process.communicate()[0]


def read_last_step(run: str) -> int:
    sealed = Path(run).glob("checkpoints/*/complete.json")
    return max(int(path.parent.name.rpartition("-")[2]) for path in sealed)


def test_sigterm_saves_and_exits_with_143(dropping: None) -> None:
    process = start("bert", "runs/told", *LONG)
    wait_for_checkpoint("runs/told", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 143
    step = read_last_step("runs/told")
    assert f"llmft: stopped at step {step} of 100000, with everything saved" in output
    assert not Path("runs/told/model").exists()


@pytest.mark.parametrize(
    ("launcher", "number"),
    [(TORCHRUN, signal.SIGTERM), (TORCHRUN, signal.SIGKILL), (ACCELERATE, signal.SIGTERM)],
    ids=["torchrun-told", "torchrun-killed", "accelerate-told"],
)
def test_r9_workers_save_and_stop_when_their_launcher_got_sigterm_to_or_dies(
    dropping: None, launcher: list[str], number: signal.Signals
) -> None:
    run = "runs/orphans"
    process = start("qwen", run, *LONG, launcher=launcher)
    wait_for_checkpoint(run, process)
    process.send_signal(number)
    deadline = time.monotonic() + 60
    while list_tree(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = list_tree(process.pid)
    told = kill(process)
    assert not left, "no worker goes on unseen"
    assert f"llmft: stopped at step {read_last_step(run)} of" in told
