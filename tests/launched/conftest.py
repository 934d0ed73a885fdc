"""A workspace with two recipes, and commands started in real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main
from llmft.results.files import read_result
from llmft.results.run import LearningCurve
from tests.conftest import make_recipe_writer, make_task_writer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TOKENIZERS_PARALLELISM": "false",
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
PROMPT = "Judge the risk of this article, and how calm it is.\n\n{text}\n"


def launch(
    *arguments: str, launcher: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the working folder."""
    return subprocess.run(
        [*(launcher or [sys.executable]), *arguments],
        env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


def read_epochs(run: str) -> list[dict[str, float]]:
    """Return the learning curve of a run but for its times."""
    curve = read_result(Path(run, "training_history.json"), LearningCurve, fix="train again")
    return [{**point.model_dump(exclude={"seconds", "val"}), **point.val} for point in curve.epochs]


def read_metadata(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "training_metadata.json").read_text())
    return found


@pytest.fixture(scope="module")
def recipes(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_qwen: Path
) -> Iterator[None]:
    """`bert.yaml`, a full fine-tune; `qwen.yaml` and `four_bit.yaml`, LoRA behind a shared prompt.

    None drops anything, since each process draws its own masks.
    """
    folder = tmp_path_factory.mktemp("launched")
    before = Path.cwd()
    os.chdir(folder)
    config = json.loads((tiny_bert / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still = folder / "still-bert"
    still.mkdir()
    for path in tiny_bert.iterdir():
        (still / path.name).write_bytes(path.read_bytes())
    (still / "config.json").write_text(json.dumps(config))
    make_task_writer(folder)(num_rows=61)
    write: Callable[..., Path] = make_recipe_writer(folder)
    write(still, name="bert")
    qwen = write(tiny_qwen, name="qwen", tuning="lora", prompt=PROMPT)
    # As sharded weights are read: by the class in transformers, from a random head.
    settings = "tuning: lora, pooling: transformers, lora: {dropout: 0.0}"
    text = qwen.read_text().replace("tuning: lora", settings)
    qwen.write_text(text)
    four_bit = text.replace("name: qwen", "name: four_bit").replace("tuning: lora", "tuning: qlora")
    (folder / "four_bit.yaml").write_text(four_bit)
    assert main(["prepare", "task.yaml"]) == 0
    yield
    os.chdir(before)


@pytest.fixture
def dropping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tiny_qwen: Path
) -> None:
    """The same recipes, with dropout."""
    monkeypatch.chdir(tmp_path)
    make_task_writer(tmp_path)(num_rows=61)
    write: Callable[..., Path] = make_recipe_writer(tmp_path)
    write(tiny_bert, name="bert")
    write(tiny_qwen, name="qwen", tuning="lora", prompt=PROMPT)
    assert main(["prepare", "task.yaml"]) == 0
