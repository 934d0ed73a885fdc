"""Cold start times of commands: each in a process of its own, all of them in turns."""

import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from llmft.benchmarks.plans import Figures
from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.bases import locate_base

logger = logging.getLogger(__name__)

_LLMFT = [sys.executable, "-m", "llmft"]
_RECIPE, _RUN, _ROWS = "recipes/market_news_minilm.yaml", "runs/market_news_minilm", "ten.jsonl"
_PLAIN = str(Path(__file__).with_name("plain_predict.py"))
COMMANDS = {
    "llmft --help": [*_LLMFT, "--help"],
    "import llmft": [sys.executable, "-c", "import llmft"],
    "llmft check, a wrong key in the recipe": [*_LLMFT, "check", "wrong/recipe.yaml"],
    "llmft train, a wrong key in the recipe": [*_LLMFT, "train", "wrong/recipe.yaml"],
    "llmft prepare, a wrong key in the task": [*_LLMFT, "prepare", "wrong/task.yaml"],
    "llmft compare, a wrong key in the suite": [*_LLMFT, "compare", "wrong/suite.yaml"],
    "llmft check --no-data": [*_LLMFT, "check", "--no-data", _RECIPE],
    "llmft check": [*_LLMFT, "check", _RECIPE],
    "llmft predict, ten rows": [*_LLMFT, "predict", _RUN, "--input", _ROWS, "--output", "out.csv"],
    "transformers, the same ten rows": [sys.executable, _PLAIN, f"{_RUN}/model", _ROWS],
}


class _Cost(NamedTuple):
    """Seconds of one process, with its child processes."""

    cpu_s: float
    wall_s: float


def measure_cold_start(*, num_rounds: int) -> list[Figures]:
    """Measure commands on the sample, with MiniLM as the base: medians over the rounds.

    Raises:
        UserError: If MiniLM is not installed, or a command ends with an unexpected exit status.
    """
    locate_base(BaseConfig(model="builtin:minilm"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        logger.info("first training MiniLM on a few rows of the sample")
        _make_run(folder)
        return measure_commands(COMMANDS, folder, num_rounds=num_rounds)


def measure_commands(
    commands: dict[str, list[str]], folder: Path, *, num_rounds: int
) -> list[Figures]:
    """Measure commands in a folder in turn: medians over the rounds.

    Args:
        commands: Name -> command; exit status 2 is expected of a name with "wrong key", else 0.
        folder: The working folder, without the output of a round before.
        num_rounds: Times that each command is started.

    Raises:
        UserError: If a command ends with an unexpected exit status.
    """
    costs: dict[str, list[_Cost]] = {name: [] for name in commands}
    for _ in range(num_rounds):
        for name, command in commands.items():
            (folder / "out.csv").unlink(missing_ok=True)
            costs[name].append(_run(command, folder, status=2 if "wrong key" in name else 0))
    return [
        {
            "command": name,
            "cpu_s": statistics.median(cost.cpu_s for cost in found),
            "wall_s": statistics.median(cost.wall_s for cost in found),
        }
        for name, found in costs.items()
    ]


def _make_run(folder: Path) -> None:
    """Write the sample, a trained run, ten rows, and YAML files with an unknown key."""
    few = ["--set", "train.limit_rows=40", "--set", "train.epochs=1"]
    for verb in (
        ["init", "."],
        ["prepare", "recipes/tasks/market_news.yaml"],
        ["train", _RECIPE, *few, "--set", f"output_dir={_RUN}"],
    ):
        _run([*_LLMFT, *verb], folder, status=0)
    rows = (folder / "datasets/scored/market_news.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / _ROWS).write_text("\n".join(rows[:10]) + "\n", encoding="utf-8")
    (folder / "wrong").mkdir()
    for kind, path in (
        ("recipe", _RECIPE),
        ("task", "recipes/tasks/market_news.yaml"),
        ("suite", "eval/market_news.yaml"),
    ):
        text = (folder / path).read_text(encoding="utf-8")
        (folder / "wrong" / f"{kind}.yaml").write_text(f"{text}wrong: 1\n", encoding="utf-8")


def _run(command: list[str], folder: Path, *, status: int) -> _Cost:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        raise UserError(
            f"{' '.join(command)}: exit status {done.returncode} instead of {status}; run it alone "
            f"on the sample of `llmft init`: {done.stderr.strip()[-500:]}"
        )
    return _Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s)
