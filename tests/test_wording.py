"""Counts with their nouns, and names from data that a terminal must not follow."""

import logging
from pathlib import Path

import pytest

from llmft.cli import main
from llmft.console import LineFormatter
from llmft.wording import count, escape_controls


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "row", "1 row"), (0, "row", "0 rows"), (1200, "row", "1,200 rows"),
        (2, "class", "2 classes"), (2, "process", "2 processes"), (2, "batch", "2 batches"),
        (1.0, "epoch", "1 epoch"), (0.5, "epoch", "0.5 epochs"), (3.0, "epoch", "3 epochs"),
    ],
)  # fmt: skip
def test_a_count_has_its_noun(number: float, noun: str, text: str) -> None:
    assert count(number, noun) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\rb\x07\x9b1m", r"a\rb\x07\x9b1m"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("é ꦠꦺ\u200dꦏ 中 👍\xa0", "é ꦠꦺ\u200dꦏ 中 👍\xa0"),
    ],
)
def test_control_characters_are_shown_not_followed(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


def test_names_from_data_reach_log_and_errors_without_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord("llmft", logging.INFO, "", 1, "class %s", ("\x1b]0;x\x07",), None)
    assert LineFormatter("%(message)s").format(record) == r"class \x1b]0;x\x07"
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"a text of words {i},{'ab'[i % 2]},{'cd'[i % 2]}\n" for i in range(60))
    Path("t.csv").write_text(f"text,\x1b[31mmood,other\n{rows}")
    assert main(["init", "--from", "t.csv", "own"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert r"\x1b[31mmood" in shown
