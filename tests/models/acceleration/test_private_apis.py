"""Private names of others stand in one module, and untested versions take the plain path."""

import ast
import logging
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmft.benchmarks.prompts import measure_shared_prompt
from llmft.cli import main
from llmft.errors import UserError
from llmft.files import read_json
from llmft.models.acceleration import private_apis
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.private_apis import TESTED, explain_untested
from llmft.models.acceleration.shared_prompt import explain_unshared
from llmft.prepare import main as prepare
from tests.models.acceleration.test_shared_prompt import make_model
from tests.test_shared_prompt import PROMPT, WITHOUT_SHARING, predict, run

ROOT = Path(__file__).parents[3]
UNTESTED = [
    ("torch", "2.8.1+cu128"), ("torch", "2.100.0a0+git1234567"),
    ("transformers", "5.5.9"), ("transformers", "5.100.0.dev0"),
]  # fmt: skip

Install = Callable[[str, str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Let a package seem to have another version."""
    versions = {package: private_apis.version(package) for package in TESTED}
    monkeypatch.setattr(private_apis, "version", versions.__getitem__)
    monkeypatch.setattr(logging.getLogger("llmft"), "propagate", True)  # a verb sets it to False

    def install(package: str, version: str) -> None:
        versions[package] = version
        explain_untested.cache_clear()

    yield install
    explain_untested.cache_clear()


class TestVersions:
    def test_they_begin_with_the_lower_bounds_of_the_package(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        bounds = dict(need.split(",")[0].split(">=") for need in project["dependencies"])
        assert {package: first for package, (first, _) in TESTED.items()} == {
            package: bounds[package] for package in TESTED
        }

    def test_those_installed_are_among_them(self) -> None:
        explain_untested.cache_clear()
        assert explain_untested() is None, "raise the bound in private_apis.py, then run all tests"

    @pytest.mark.parametrize(
        ("package", "version"),
        [("torch", "2.9.0"), ("torch", "2.13.9+cpu"), ("torch", "2.13.0a0+git1234567"),
         ("transformers", "5.6.0"), ("transformers", "5.24.1")],
    )  # fmt: skip
    def test_all_of_a_minor_version_are_tested(
        self, install: Install, package: str, version: str
    ) -> None:
        install(package, version)
        assert explain_untested() is None

    @pytest.mark.parametrize(("package", "version"), [*UNTESTED, ("transformers", "6.0.0")])
    def test_others_are_named_and_warned_of_once(
        self, install: Install, package: str, version: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(package, version)
        with caplog.at_level(logging.INFO, logger="llmft"):
            reasons = [explain_untested() for _ in range(3)]
        first, last = TESTED[package]
        assert set(reasons) == {
            f"llmft is tested with {package} {first} to {last}, not with {version}"
        }
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_asking_imports_no_package(self) -> None:
        code = (
            "import sys; from llmft.models.acceleration import private_apis as p;"
            "p.explain_untested(); assert not p.TESTED.keys() & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class TestPlainPath:
    @pytest.mark.parametrize(("package", "version"), UNTESTED)
    def test_a_prompt_is_trained_and_predicted_unshared(
        self, install: Install, package: str, version: str, workspace: Path,
        write_scores_task, write_recipe, tiny_qwen: Path, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        assert prepare([str(write_scores_task())]) == 0
        recipe = write_recipe(tiny_qwen, tuning="lora", prompt=PROMPT)
        settings = ["base.lora.dropout=0", "train.steps=3"]
        plain = run(recipe, "plain", *settings, *WITHOUT_SHARING)
        expected = predict(plain, workspace / "rows.jsonl")
        install(package, version)
        with caplog.at_level(logging.INFO, logger="llmft"):
            found = run(recipe, "untested", *settings)
            assert predict(found, workspace / "rows.jsonl") == expected
        weights = [
            (folder / "model" / "adapter_model.safetensors").read_bytes()
            for folder in (plain, found)
        ]
        assert weights[0] == weights[1]
        assert read_json(found / "training_metadata.json")["prompt_shared"] is False
        reason = explain_untested()
        assert f"the prompt is computed in every row: {reason}" in caplog.text
        warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
        assert [message.startswith(f"{reason}: ") for message in warnings] == [True]

    @pytest.mark.parametrize(("package", "version"), UNTESTED)
    def test_check_says_that_memory_is_not_known(
        self, install: Install, package: str, version: str,
        write_scores_task, write_recipe, tiny_qwen: Path, capsys,
    ) -> None:  # fmt: skip
        assert main(["prepare", str(write_scores_task())]) == 0
        recipe = write_recipe(tiny_qwen, tuning="lora", prompt=PROMPT)
        install(package, version)
        capsys.readouterr()
        assert main(["check", str(recipe), "--gpu-memory", "24GiB"]) == 0
        said = capsys.readouterr().out
        assert said.count(f"warning: {explain_untested()}") == 1
        assert f"the memory that {tiny_qwen} needs is unknown" in said
        assert said.endswith("ok\n")

    def test_dropout_and_attention_stay_as_they_are(self, install: Install) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=48,
        )  # fmt: skip
        model = BertForSequenceClassification(config)

        def describe() -> tuple[set[type], str | None]:
            return set(map(type, model.modules())), private_apis.read_attention(model.config)

        before = describe()
        with fast_dropout(model):
            assert describe() != before
        install("torch", "2.100.0")
        with fast_dropout(model):
            assert describe() == before

    def test_an_obstacle_of_the_base_comes_first(self, install: Install) -> None:
        install("torch", "2.100.0")
        config = make_model().config
        assert explain_unshared(config) == explain_untested()
        config.attention_dropout = 0.1
        assert explain_unshared(config) == "it has attention dropout"

    def test_nothing_is_measured_against_itself(self, install: Install) -> None:
        install("torch", "2.100.0")
        with pytest.raises(
            UserError, match=r"bench: llmft is tested with torch .* not with 2\.100"
        ):
            next(measure_shared_prompt([], num_rounds=1, seed=0))

    def test_other_configurations_have_no_attention_to_read(self) -> None:
        assert private_apis.read_attention(object()) is None


PACKAGES = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}
OTHERS = {"_asdict", "_replace", "_inline", "_tr"}
"""Private names that are no such package's: of NamedTuple and of python-docx."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def list_own_names(tree: ast.AST) -> set[str]:
    """Return what classes of a module define, and what they set on `self` or `cls`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(body=body):
                for statement in body:
                    match statement:
                        case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                            names.add(name)
                        case ast.Assign(targets=targets):
                            names |= {
                                target.id for target in targets if isinstance(target, ast.Name)
                            }
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def find_private_uses(source: str) -> list[str]:
    """Return private names of other packages that a module imports, reads or sets."""
    tree = ast.parse(source)
    ours = list_own_names(tree) | OTHERS
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                paths = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                paths = [f"{module}.{alias.name}" for alias in aliases]
            case ast.Attribute(attr=name) if is_private(name) and name not in ours:
                found.append(name)
                continue
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if is_private(name) and name not in ours:
                found.append(name)
                continue
            case _:
                continue
        for path in paths:
            package, *names = path.split(".")
            if package in PACKAGES and any(map(is_private, names)):
                found.append(path)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch._subclasses import FakeTensorMode", ["torch._subclasses.FakeTensorMode"]),
        ("def f():\n    import torch.utils._pytree as tree", ["torch.utils._pytree"]),
        ("from transformers.trainer import _is_peft", ["transformers.trainer._is_peft"]),
        ("torch.ops.aten._softmax(x)", ["_softmax"]),
        ("arguments._n_gpu = 1", ["_n_gpu"]),
        ("getattr(model.config, '_attn_implementation', None)", ["_attn_implementation"]),
        ("class T(Trainer):\n    def f(self):\n        self._inner_loop()", ["_inner_loop"]),
        ("import torch\nfrom __future__ import annotations\nfrom llmft.a import _b", []),
        ("class A:\n    def __init__(self):\n        self._x = 1\ndef f(a):\n    return a._x", []),
        ("class A:\n    def _f(self): ...\n    def g(self, other):\n        other._f()", []),
        ("row._replace(a=1)._asdict(); row.__class__", []),
    ],
)  # fmt: skip
def test_the_finder_finds_what_is_private_to_others(source: str, found: list[str]) -> None:
    assert find_private_uses(source) == found


def test_private_names_stand_in_one_module() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / "llmft").rglob("*.py"))
        if (names := find_private_uses(path.read_text()))
    }
    assert list(found) == ["llmft/models/acceleration/private_apis.py"], found
    assert len(set(found.popitem()[1])) > 5
