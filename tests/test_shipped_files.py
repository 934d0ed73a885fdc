"""Every YAML that we ship loads, and none is forgotten."""

from pathlib import Path

import pytest

from llmft.cli import main
from llmft.config.recipe import load_recipe
from llmft.config.suite import load_suite
from llmft.config.task import load_task
from llmft.data.prompts import find_strange_placeholders, read_prompt
from llmft.init import write_sample

ROOT = Path(__file__).parents[1]


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
            text = recipe.prompt_path.read_text()
            assert find_strange_placeholders(text, fields=recipe.task.fields) == []
    for path in suites:
        suite = load_suite(path)
        assert set(suite.recipe_paths) == set(suite.config.variants)


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


def test_the_sample_prepares_and_accounts_for_every_row(workspace: Path) -> None:
    write_sample(workspace)
    assert main(["prepare", "recipes/tasks/market_news.yaml"]) == 0
    assert main(["check", "recipes/market_news_instruct.yaml"]) == 0
