"""Every YAML that we ship loads, and none is forgotten."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from llmft.audit.comparability import check_treatment
from llmft.audit.findings import RunFacts
from llmft.cli import main
from llmft.config.loading import load_values, read_yaml, validate
from llmft.config.recipe import Recipe, load_recipe
from llmft.config.suite import load_suite
from llmft.config.task import ClassConfig, LabelsConfig, ScoresConfig, Task, load_task
from llmft.data.fields import assemble_text
from llmft.data.prompts import read_prompt
from llmft.evaluation.edge_cases import (
    EdgeCase,
    ExpectedClass,
    ExpectedLabels,
    read_edge_cases,
)
from llmft.init import write_sample
from llmft.schema import make_schema
from tests.results.made_up import make_record

ROOT = Path(__file__).parents[1]
KINDS = {"recipes/tasks": "task", "recipes": "recipe", "eval": "suite"}
RECIPES = """
    investment_risk_distill investment_risk_instruct investment_risk_7b_qlora uplifting fiscal_act
    fiscal_motivation fiscal_exogenous hate_speech_jv library_topics
""".split()


@pytest.fixture(params=["repository", "sample"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = ROOT
    if request.param == "sample":
        folder = tmp_path / "sample"
        write_sample(folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_task_recipe_and_suite_loads(home: Path) -> None:
    tasks = sorted(Path().glob("recipes/tasks/*.yaml"))
    recipes = sorted(Path().glob("recipes/*.yaml"))
    suites = sorted(Path().glob("eval/*.yaml"))
    assert tasks
    assert recipes
    assert suites
    for path in tasks:
        assert load_task(path).name == path.stem
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.config.name == path.stem
        assert f"llmft train {path}" in path.read_text()
        prompt = read_prompt(recipe.prompt_path, fields=recipe.task.fields)
        if recipe.prompt_path is not None:
            assert prompt.before
    for path in suites:
        suite = load_suite(path)
        assert suite.task.name == path.stem
        assert set(suite.recipes) == set(suite.config.variants)
        assert {load_recipe(p).task.name for p in suite.recipes.values()} == {path.stem}
        assert f"llmft compare {path}" in path.read_text()
    assert {path.stem for path in suites} == {path.stem for path in tasks}


def test_d2_the_variants_of_each_suite_differ_in_the_treatment_only(home: Path) -> None:
    for path in sorted(Path().glob("eval/*.yaml")):
        suite = load_suite(path)
        runs = []
        for name, recipe in suite.recipes.items():
            config = load_recipe(recipe).config
            rows = (config.train.batch_size or 1) * config.train.gradient_accumulation_steps
            record = make_record(global_batch_size=rows).replace(recipe=config)
            runs.append(RunFacts(name, f"runs/{name}", record))
        found = check_treatment(
            runs, reference=suite.config.reference, treatment=suite.config.treatment
        )
        assert {f.status for f in found} <= {"ok", "note"}, (path, [f.message for f in found])


def test_the_repository_has_the_recipes_that_it_promises() -> None:
    assert len(RECIPES) == 9
    assert {path.stem for path in ROOT.glob("recipes/*.yaml")} >= set(RECIPES)


def list_label_names(labels: LabelsConfig) -> list[str]:
    match labels:
        case ScoresConfig():
            return labels.dimensions
        case ClassConfig():
            return labels.order or list((labels.map or {}).values())
    return list(labels.from_)


def list_expected(case: EdgeCase) -> list[str]:
    match case.expect:
        case ExpectedClass(label=label):
            return [label]
        case ExpectedLabels(labels=wanted):
            return wanted
    return list(case.expect)


def test_every_prompt_and_every_file_of_edge_cases_is_used_and_reads(home: Path) -> None:
    recipes = [load_recipe(path) for path in Path().glob("recipes/*.yaml")]
    prompts = {recipe.prompt_path.resolve() for recipe in recipes if recipe.prompt_path}
    assert prompts == {path.resolve() for path in Path().glob("recipes/prompts/*")}
    assert prompts
    suites = [load_suite(path) for path in Path().glob("eval/*.yaml")]
    found = set()
    for suite in suites:
        if suite.edge_cases_path is not None:
            labels = suite.task.labels
            names = list_label_names(labels)
            path = suite.edge_cases_path
            cases = read_edge_cases(path, label_names=names, task=suite.task)
            assert len({case.row["id"] for case in cases}) == len(cases) >= 8
            assert len({assemble_text(case.row, suite.task.fields) for case in cases}) == len(cases)
            assert all(case.category for case in cases)
            assert {name for case in cases for name in list_expected(case)} == set(names)
            assert any(case.must_pass for case in cases)
            found.add(path)
    assert found == set(Path().glob("eval/cases/*"))
    assert found


def test_editors_find_the_schema_of_every_yaml_and_see_each_typo(home: Path) -> None:
    for folder, kind in KINDS.items():
        schema = make_schema(kind)
        validator = Draft202012Validator(schema)
        for path in Path(folder).glob("*.yaml"):
            comment, name = path.read_text().split("\n", 1)[0].split("=", 1)
            assert comment == "# yaml-language-server: $schema"
            assert json.loads((path.parent / name).read_text()) == schema

            data = read_yaml(path).data
            assert list(validator.iter_errors(data)) == []
            for key, value in data.items():
                renamed = {k: v for k, v in data.items() if k != key} | {f"{key}x": value}
                assert list(validator.iter_errors(renamed)), f"{path}: {key}x"
                if isinstance(value, dict):
                    strange = data | {key: value | {"typo": 1}}
                    assert list(validator.iter_errors(strange)), f"{path}: {key}.typo"


def test_recipes_pass_check_without_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(Path().glob("recipes/*.yaml")):
        assert main(["check", str(path), "--no-data"]) == 0, capsys.readouterr().err


def test_init_writes_the_sample_twice_but_over_no_change(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "sample"]) == 0
    assert "compare eval/market_news.yaml --train" in capsys.readouterr().out
    assert main(["init", "sample"]) == 0
    changed = Path("sample/recipes/market_news_minilm.yaml")
    changed.write_text(changed.read_text() + "# mine\n")
    assert main(["init", "sample"]) == 2
    assert "market_news_minilm.yaml" in capsys.readouterr().err
    assert changed.read_text().endswith("# mine\n")


def test_init_leaves_the_schemas_of_others_alone(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Path(".schemas/task.json")
    theirs.parent.mkdir()
    theirs.write_text("{}\n")
    assert main(["init", "."]) == 2
    assert "task.json: exists already" in capsys.readouterr().err
    assert theirs.read_text() == "{}\n"
    assert not Path("recipes").exists()


def test_the_sample_prepares_and_accounts_for_every_row(workspace: Path) -> None:
    write_sample(workspace)
    assert main(["prepare", "recipes/tasks/market_news.yaml"]) == 0
    assert main(["check", "recipes/market_news_instruct.yaml"]) == 0


BLOCKS = [
    pytest.param(path, block, id=f"{path.name}-{i}")
    for path in (ROOT / "README.md", ROOT / "docs/tasks.md")
    for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("path", "block"), BLOCKS)
def test_the_yaml_of_the_documentation_is_valid(path: Path, block: str, tmp_path: Path) -> None:
    task = {"name": "t", "sources": [{"path": "rows.jsonl"}], "output": "prepared",
            "labels": {"type": "class", "from": "mood"}}  # fmt: skip
    recipe = {"name": "r", "task": "t.yaml", "base": {"model": "m"}, "output_dir": "runs/r",
              "head": {"type": "multiclass"}}  # fmt: skip
    source = tmp_path / "block.yaml"
    source.write_text(block)
    values = load_values(source, schema=Recipe)
    is_task = not values.data.keys() & {"task", "base", "head", "train"}
    whole = {**(task if is_task else recipe), **values.data}
    validate(values._replace(data=whole), schema=Task if is_task else Recipe)


def test_the_documentation_has_such_blocks() -> None:
    assert len(BLOCKS) >= 9
