"""What the documentation names is there: files, functions, rooms, verbs, and the traps."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

from llmft.cli import VERBS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmft"
TRAPS = ROOT / "docs" / "traps.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
TRAP = re.compile(r"(?<![\w-])(?<!MiniLM )[DHRLO]\d{1,2}(?![\w-])")
NAMED_BY_TEST = re.compile(r"def test_((?:(?:to_)?[dhrlo]\d{1,2}_)+)")
NOT_OURS = ("transformers.",)


def list_named_traps() -> set[str]:
    """Return the ids that code, tests and documentation name, as D5 or as `test_d5_...`."""
    files = [*PAGES, ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in (PACKAGE, ROOT / "tests"):
        files += [p for end in ("py", "yaml", "j2") for p in folder.rglob(f"*.{end}")]
    found: set[str] = set()
    for path in set(files) - {TRAPS, Path(__file__)}:
        text = path.read_text(encoding="utf-8")
        found |= set(TRAP.findall(text))
        for ids in NAMED_BY_TEST.findall(text):
            found |= {name.upper() for name in ids.split("_") if name not in ("", "to")}
    return found


def test_every_trap_that_is_named_is_explained_and_no_other() -> None:
    explained = re.findall(r"^- \*\*(\w+)\*\* ", TRAPS.read_text(encoding="utf-8"), re.MULTILINE)
    named = list_named_traps()
    assert len(named) > 30
    assert sorted(set(explained)) == sorted(explained)
    assert named - set(explained) == set(), "explain them in docs/traps.md"
    assert set(explained) - named == set(), "nothing names them: take them out of docs/traps.md"


@functools.cache
def list_names(file: Path) -> set[str]:
    """Return what a module defines: its functions, classes, constants, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                members = (m.name for m in body if isinstance(m, ast.FunctionDef))
                names |= {name, *(f"{name}.{member}" for member in members)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def is_defined(dotted: str) -> bool:
    """Return whether `room.module.name` stands in the package; nothing is imported."""
    parts = dotted.split(".")
    for i in range(1, len(parts)):
        file = PACKAGE.joinpath(*parts[:i]).with_suffix(".py")
        if file.is_file():
            return ".".join(parts[i:]) in list_names(file)
    return False


def list_code(page: Path) -> list[str]:
    """Return what stands in backticks, without fenced blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def test_the_architecture_names_what_is_there() -> None:
    code = list_code(ARCHITECTURE)
    dotted = [c for c in code if re.fullmatch(r"[a-z_]+(\.\w+)+", c)]
    files = [c for c in code if re.fullmatch(r"[a-z_/]+(/|\.py|\.md|\.toml)", c)]
    functions = [c for c in dotted if not c.startswith(NOT_OURS) and c not in files]
    functions = [c for c in functions if not c.endswith((".json", ".jsonl"))]  # what a run leaves
    assert len(functions) > 50
    assert len(files) > 20
    assert [name for name in functions if not is_defined(name)] == []
    assert [f for f in files if not any((home / f).exists() for home in (ROOT, PACKAGE))] == []


def test_a_function_that_is_gone_would_be_found() -> None:
    assert is_defined("training.train_model.train_model")
    assert is_defined("data.encoding.Encoder.encode")
    assert not is_defined("training.train_model.train_models")
    assert not is_defined("evaluation.metrics.measure")


def test_the_rooms_are_those_of_the_import_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("llmft.", "").split(" | ") for layer in reversed(contract["layers"])]
    ordered = [name for layer in layers for name in layer]
    modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(ordered) == modules | rooms, "give it a layer in pyproject.toml"
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [n for n in ordered if n in rooms]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_and_links_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ours = re.findall(r"(?<![\w./-])(?:llmft|tests|ds_configs|docs)/[\w./-]*[\w/]", text)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    bare = [word for code in list_code(page) for word in re.findall(r"(?<![\w./-])\w+\.py\b", code)]
    assert [name for name in ours if not (ROOT / name).exists()] == []
    assert [link for link in links if not (page.parent / link).exists()] == []
    known = {path.name for home in (PACKAGE, ROOT / "tests") for path in home.rglob("*.py")}
    assert set(bare) <= known


def test_the_readme_shows_the_tree_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("## Repository layout")[2].partition("\n\n")[2].partition("\n\n")[0]
    place: list[str] = []
    shown = []
    for line in block.splitlines():
        found = re.match(r"( +)(\S+(?: \S+)*)", line)
        assert found, line
        place = place[: len(found[1]) // 2 - 2]
        for name in found[2].split():
            shown.append(ROOT.joinpath(*place, name))
        place.append(found[2])
    assert len(shown) > 10
    assert [str(path) for path in shown if not path.exists()] == []
    verbs = {path.stem for path in shown if path.suffix == ".py"}
    assert set(VERBS) <= verbs


def test_the_readme_explains_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [v for v in VERBS if f"| `llmft {v} " not in text and f"| `llmft {v}` " not in text]
    assert missing == []
