"""A results file that was edited by hand: one message and status 2 from every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.cli import main

BERT = Path("runs/bert/seed-1")
RECORD, CURVE = BERT / "training_metadata.json", BERT / "training_history.json"
CARD, FIT = BERT / "model/llmft.json", BERT / "fit.json"
READS, MANIFEST = BERT / "evaluation/test_reads.json", Path("prepared/manifest.json")
SEED = [*"train bert.yaml --set train.seed=1 --set".split(), f"output_dir={BERT}"]
INIT = [
    *"train bert.yaml --set output_dir=runs/next --set".split(), f"init_from={BERT}",
]  # fmt: skip
EVALUATE, COMPARE = ["evaluate", str(BERT)], ["compare", "suite.yaml"]
PREDICT = ["predict", str(BERT), "--input", "rows.jsonl", "--output", "out.jsonl"]
READERS = [
    (RECORD, EVALUATE), (RECORD, COMPARE), (RECORD, [*COMPARE, "--train"]), (RECORD, SEED),
    (RECORD, INIT), (RECORD, [*EVALUATE, "--fit", "none"]),
    (CURVE, EVALUATE), (CURVE, COMPARE),
    (CARD, EVALUATE), (CARD, COMPARE), (CARD, PREDICT), (CARD, INIT),
    (FIT, EVALUATE), (FIT, COMPARE), (FIT, PREDICT),
    (READS, EVALUATE), (READS, COMPARE),
    (MANIFEST, EVALUATE), (MANIFEST, COMPARE), (MANIFEST, [*COMPARE, "--train"]),
    (MANIFEST, SEED), (MANIFEST, ["check", "bert.yaml"]),
]  # fmt: skip
NUMBERS = {
    RECORD: ["num_steps"], CURVE: ["epochs", 0, "train_loss"], CARD: ["num_parameters"],
    FIT: ["num_rows"], READS: ["reads", 0, "when"], MANIFEST: ["counts", "input"],
}  # fmt: skip
"""File -> a value in it that has one type only."""


def lose(file: Path, data: dict[str, Any]) -> str:
    *above, key = NUMBERS[file]
    for step in above[:-1]:
        data = data[step]
    if above:
        data = data[above[-1]]
    del data[key]
    return str(key)


def quote(file: Path, data: dict[str, Any]) -> str:
    """Put text in the place of a number, and a number in that of text."""
    *above, key = NUMBERS[file]
    for step in above:
        data = data[step]
    data[key] = 7 if isinstance(data[key], str) else str(data[key])
    return f"found {data[key]!r}, but expected a valid"


def renew(file: Path, data: dict[str, Any]) -> str:
    data.update(schema_version=99, llmft_version="7.8.9")
    return "schema_version: found 99, written by llmft 7.8.9, but this llmft"


@pytest.fixture
def judged(copy: Path) -> Path:
    assert main([*EVALUATE, "--fit", "isotonic"]) == 0
    return copy


@pytest.mark.parametrize("file", [CURVE, READS, FIT])
def test_d8_what_is_broken_is_reported_before_anything_is_predicted_or_counted(
    judged: Path, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    reads = READS.read_bytes()
    for command in (EVALUATE, COMPARE):
        stored = BERT / "predictions/test.parquet"
        stored.unlink(missing_ok=True)
        before = file.read_bytes()
        file.write_text("{")
        assert main(command) == 2
        assert f"llmft: {file}: cannot be read as JSON" in capsys.readouterr().err
        file.write_bytes(before)
        assert not stored.exists()
        assert READS.read_bytes() == reads


@pytest.mark.parametrize("change", [lose, quote, renew])
def test_every_command_tells_a_file_that_was_edited(
    judged: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, dict[str, Any]], str],
) -> None:
    """All commands in one test, since the runs that they read take long to copy."""
    silent = []
    for file, command in READERS:
        before = file.read_bytes()
        data = json.loads(before)
        expected = change(file, data)
        file.write_text(json.dumps(data))
        capsys.readouterr()
        status, message = main(command), capsys.readouterr().err
        file.write_bytes(before)
        right = status == 2 and message.startswith(f"llmft: {file}: ") and expected in message
        if not right or message.count("\n") != 1:
            silent.append((str(file), command[:2], status, message[-300:]))
    assert silent == []
