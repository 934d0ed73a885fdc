"""The command line: fast to answer, one message for an error, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmft import __version__, prepare
from llmft.cli import VERBS, main


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
