"""The command line: fast to answer, one message for an error, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmft import __version__, console, prepare
from llmft.cli import VERBS, main
from llmft.console import Progress


def test_help_names_every_verb_and_imports_no_library() -> None:
    script = (
        "import sys; from llmft.cli import main; status = main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'pandas'} & set(sys.modules); "
        "sys.exit(status or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


def test_every_verb_exists_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert f"llmft {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llmft {__version__}\n"


def test_an_unknown_verb_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_no_verb_prints_the_help_and_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: llmft" in capsys.readouterr().out


def test_a_fault_of_the_users_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str], workspace: Path
) -> None:
    assert main(["prepare", "nothing.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmft: nothing.yaml: cannot be read")
    assert "Traceback" not in error


def test_a_fault_of_ours_is_status_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(prepare, "load_task", fail)
    assert main(["prepare", "task.yaml"]) == 3
    error = capsys.readouterr().err
    assert "ZeroDivisionError: seven" in error
    assert "report it" in error


def test_ctrl_c_is_status_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "load_task", interrupt)
    assert main(["prepare", "task.yaml"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_without_a_terminal_a_line_a_minute_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 30.0, 70.0, 100.0, 140.0, 200.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with (
        caplog.at_level("INFO", logger="llmft"),
        Progress("training", 12, unit="step", initial=2, tokens_per_unit=1_400.0) as progress,
    ):
        for _ in range(3):
            progress.show(loss="0.5")
            progress.update()
        progress.show()
        progress.update(2)
        progress.update(5)  # the last line is that of what comes next
    assert [record.getMessage() for record in caplog.records] == [
        "training: step 4 of 12, loss 0.5, 40 tokens/s, about 5 min left",
        "training: step 7 of 12, 50 tokens/s, about 2 min left",
    ]


def test_a_hidden_bar_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console, "_SILENCE_S", -1)
    for is_shown in (False, True):
        with (
            caplog.at_level("INFO", logger="llmft"),
            Progress("predicting", 3, is_shown=is_shown) as progress,
        ):
            progress.update()
        assert bool(caplog.records) is is_shown
