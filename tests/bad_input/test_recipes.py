"""Recipes, bases and folders that cannot be used: one message, exit status 2."""

from pathlib import Path

import pytest

from tests.bad_input.materials import (
    RECIPE,
    TASK,
    list_files,
    run,
)


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (
            RECIPE.replace("epochs", "epoch"),
            ["recipe.yaml:7: train.epoch: unknown key. Did you mean `epochs`?"],
        ),
        (
            RECIPE.replace("task.yaml", "tusk.yaml"),
            ["recipe.yaml:2: task: no such file: 'tusk.yaml'. Looked for", "fix the path"],
        ),
        (
            RECIPE.replace("prompt.md", "promt.md"),
            ["recipe.yaml:5: prompt.file: no such file: 'promt.md'"],
        ),
        ("extends: recipe.yaml\n" + RECIPE, ["`extends` is circular: recipe.yaml -> recipe"]),
        ("", ["recipe.yaml:1: name: missing", "recipe.yaml:1: task: missing"]),
        ("- a\n", ["recipe.yaml:1: expected keys and values at the top, found a list"]),
        ("name: [\n", ["recipe.yaml:2: not valid YAML"]),
    ],
)
def test_recipes_that_do_not_load(write, recipe: str, parts: list[str]) -> None:
    write(recipe=recipe)
    for verb in ("check", "train"):
        run(verb, "recipe.yaml").check_refusal(*parts)
    assert not Path("runs").exists()


def test_a_circle_over_three_files_is_named(write) -> None:
    write(recipe="extends: a.yaml\n")
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: recipe.yaml\n")
    run("check", "recipe.yaml").check_refusal("recipe.yaml -> a.yaml -> b.yaml -> recipe.yaml")


def test_faults_of_recipe_task_and_prompt_are_reported_at_once(write) -> None:
    write(
        task=TASK.replace("drop: near,", "dorp: near,").replace("map:", "mop:"),
        recipe=RECIPE.replace("rank", "rnak").replace("prompt.md", "gone.md"),
    )
    run("check", "recipe.yaml").check_refusal(
        "base.lora.rnak: unknown key. Did you mean `rank`?",
        "task.yaml:4: labels.mop: unknown key. Did you mean `map`?",
        "task.yaml:6: clean.dorp: unknown key. Did you mean `drop`?",
    )


def test_a_base_that_is_not_there_offline_says_what_was_looked_for_and_where(write) -> None:
    write(recipe=RECIPE.replace("builtin:minilm", "nobody/nothing"))
    assert run("prepare", "task.yaml").status == 0
    for verb in ("check", "train"):
        run(verb, "recipe.yaml").check_refusal(
            "base.model: nobody/nothing (revision main) cannot be loaded. Looked for a folder of "
            "that name, in the cache ",
            "hf download nobody/nothing --revision main",
        )
    assert not Path("runs").exists()


def test_a_folder_with_another_runs_data_is_not_trained_over(
    write_scores_task, write_recipe, tiny_bert: Path
) -> None:
    assert run("prepare", str(write_scores_task())).status == 0
    recipe = str(write_recipe(tiny_bert, train=", steps: 1, warmup_ratio: 0"))
    assert run("train", recipe).status == 0
    before = list_files(Path("runs/variant"))
    assert run("prepare", str(write_scores_task(extra="split: {seed: 1}\n"))).status == 0
    run("train", recipe).check_refusal(
        "runs/variant: contains another run, which differs in", "choose another output_dir"
    )
    assert list_files(Path("runs/variant")) == before


def test_a_folder_with_strange_files_is_not_trained_into(
    write_scores_task, write_recipe, tiny_bert: Path
) -> None:
    assert run("prepare", str(write_scores_task())).status == 0
    Path("runs/variant").mkdir(parents=True)
    Path("runs/variant/thesis.tex").write_text("years of work")
    run("train", str(write_recipe(tiny_bert))).check_refusal(
        "contains files that are not a run of llmft"
    )
    assert list_files(Path("runs/variant")) == {"thesis.tex": b"years of work"}
