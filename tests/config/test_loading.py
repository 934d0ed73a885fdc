"""Faults of a file, all at once; files that extend files; overrides; paths."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmft.cli import main
from llmft.config.loading import (
    dump_yaml,
    find_named_file,
    load_values,
    parse_overrides,
    suggest,
    validate,
)
from llmft.config.recipe import BaseConfig, Recipe, TrainConfig
from llmft.config.task import Task, load_task
from llmft.errors import UserError
from tests.config.examples import CLASS_TASK, SCORES_TASK


def complain(path: Path, *overrides: str) -> str:
    """Return what is said of a task file that does not load."""
    with pytest.raises(UserError) as caught:
        load_task(path, overrides=parse_overrides(overrides))
    return str(caught.value)


def test_all_faults_of_a_file_come_at_once(write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        "task.yaml",
        "name: news\n"
        "sources: []\n"
        "labels: {type: scores, from: scores, dimension: [risk]}\n"
        "split:\n"
        "  train: 0.8\n"
        "  sede: 1\n"
        "clean: {drop: exacte}\n",
    )
    assert main(["prepare", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.splitlines()[0] == "llmft: task.yaml: 6 errors"
    for part in (
        "task.yaml:2: sources: found []",
        "task.yaml:3: labels.dimensions: missing",
        "task.yaml:3: labels.dimension: unknown key. Did you mean `dimensions`?",
        "task.yaml:6: split.sede: unknown key. Did you mean `seed`?",
        "task.yaml:7: clean.drop: found 'exacte', allowed: none, exact, near. Did you mean `ex",
        "task.yaml:1: output: missing",
    ):
        assert part in message
    assert "Traceback" not in message


def test_the_allowed_keys_are_those_of_the_chosen_type_of_labels(write) -> None:
    message = complain(write("task.yaml", CLASS_TASK.replace("mood}", "mood, range: [0, 1]}")))
    assert "task.yaml:3: labels.range: unknown key. Allowed: type, from, otherwise, map" in message


def test_a_key_that_is_called_like_the_type_is_still_found(write) -> None:
    message = complain(write("task.yaml", CLASS_TASK.replace("from: mood", "class: mood")))
    assert "labels.from: missing" in message
    assert "labels.class: unknown key. Allowed: type, from, otherwise, map" in message


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("{from: mood}", "labels.type: missing"),
        (
            "{type: clas, from: mood}",
            "labels.type: found 'clas', allowed: scores, class, multilabel. Did",
        ),
        (
            "{type: [class], from: mood}",
            "labels.type: found ['class'], allowed: scores, class, mul",
        ),
        ("mood", "labels: found 'mood', but expected keys and values"),
        ("", "labels: found None, but expected keys and values"),
    ],
)
def test_labels_of_no_known_type_say_what_is_allowed(write, labels: str, complaint: str) -> None:
    path = write("task.yaml", CLASS_TASK.replace("{type: class, from: mood}", labels))
    assert f"task.yaml:3: {complaint}" in complain(path)


def test_values_are_never_coerced(write) -> None:
    message = complain(
        write("task.yaml", CLASS_TASK + 'split: {seed: "1", stratify: 1, train: high}\n')
    )
    assert "task.yaml:5: split.seed: found '1', but expected a valid integer" in message
    assert "split.stratify: found 1" in message
    assert "split.train: found 'high'" in message


def test_a_long_value_is_shortened_in_the_message(write) -> None:
    message = complain(write("task.yaml", CLASS_TASK + f"split: {{seed: {'x' * 5000}}}\n"))
    assert "split.seed: found 'xxx" in message
    assert len(message) < 400


def test_a_fault_inside_a_list_names_the_item_and_its_line(write) -> None:
    text = CLASS_TASK.replace("[{path: rows.jsonl}]", "\n  - {path: a.csv}\n  - {pat: b.csv}")
    message = complain(write("task.yaml", text))
    assert "task.yaml:4: sources.1.pat: unknown key. Did you mean `path`?" in message


# extends


def test_a_file_changes_only_what_it_names(write) -> None:
    write("shared/base.yaml", SCORES_TASK + "split: {train: 0.6, val: 0.2, test: 0.2, seed: 1}\n")
    path = write("shared/mine.yaml", "extends: base.yaml\nname: mine\nsplit: {seed: 2}\n")
    task = load_task(path)
    assert task.name == "mine"
    assert (task.split.seed, task.split.train) == (2, 0.6)


def test_a_fault_is_found_in_the_file_that_wrote_it(write) -> None:
    write("base.yaml", SCORES_TASK + "split: {sed: 1}\n")
    message = complain(write("mine.yaml", "extends: base.yaml\n\nclean: {dropp: near}\n"))
    assert message.startswith("mine.yaml: 2 errors")
    assert "base.yaml:5: split.sed: unknown key" in message
    assert "mine.yaml:3: clean.dropp: unknown key. Did you mean `drop`?" in message


def test_extending_reaches_over_generations(write) -> None:
    write("a.yaml", SCORES_TASK)
    write("b.yaml", "extends: a.yaml\nclean: {drop: near}\n")
    task = load_task(write("c.yaml", "extends: b.yaml\nname: third\n"))
    assert (task.name, task.clean.drop, task.output) == ("third", "near", "prepared")


def test_a_circle_is_named(write) -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: a.yaml\n")
    assert "circular: a.yaml -> b.yaml -> a.yaml" in complain(Path("a.yaml"))
    path = write("self.yaml", "extends: self.yaml\n")
    assert "circular: self.yaml -> self.yaml" in complain(path)


@pytest.mark.parametrize(
    ("parent", "complaint"),
    [
        ("nowhere.yaml", "sub/mine.yaml:2: extends: no such file: 'nowhere.yaml'. Looked for sub/"),
        ("[a, b]", "sub/mine.yaml:2: extends: expected a file name"),
        (".", "sub/mine.yaml:2: extends: no such file: '.'"),
        ("x" * 5000, "cannot be opened: File name too long"),
    ],
)
def test_a_parent_that_is_not_there_is_named(write, parent: str, complaint: str) -> None:
    path = write("sub/mine.yaml", f"name: mine\nextends: {parent}\n")
    assert complaint in complain(path)


def test_a_misspelt_extends_is_suggested(write) -> None:
    assert "Did you mean `extends`?" in complain(write("mine.yaml", "extend: base.yaml\n"))


# --set


def test_overrides_are_laid_over_the_file_in_order(write) -> None:
    path = write("task.yaml", CLASS_TASK + "clean: {drop: near}\n")
    task = load_task(
        path,
        overrides=parse_overrides(
            ["split.seed=1", "split.seed=2", "clean.near_duplicates=1e-1", "name=no"]
        ),
    )
    assert (task.split.seed, task.clean.near_duplicates, task.name) == (2, 0.1, "no")
    assert task.clean.drop == "near", "a neighbour of an overridden key stays"


def test_an_override_can_bring_a_whole_section(write) -> None:
    path = write("task.yaml", CLASS_TASK)
    whole = {"fields": {"id": "uid", "text": ["title", "body"]}, "fields.group": "act"}
    task = load_task(path, overrides=whole)
    assert (task.fields.id, task.fields.text, task.fields.group) == (
        "uid",
        ["title", "body"],
        "act",
    )


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("split.sed=1", "override split.sed: split.sed: unknown key. Did you mean `seed`?"),
        ("split.seed=x", "override split.seed: split.seed: found 'x', but expected a valid"),
        ("split.seed.x=1", "override split.seed.x: split.seed: found {'x': 1}"),
        ("clean.near_duplicates=.nan", "found nan, but expected a finite number"),
        ("nonsense", "--set 'nonsense': expected KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_reported_from_a_wrong_file(
    write, capsys: pytest.CaptureFixture[str], override: str, complaint: str
) -> None:
    path = write("task.yaml", CLASS_TASK)
    assert main(["prepare", str(path), "--set", override]) == 2
    assert complaint in capsys.readouterr().err


# paths


def test_a_file_is_looked_for_next_to_the_yaml_first(write) -> None:
    write("prompt.md", "in the working folder")
    values = load_values(write("recipes/a.yaml", "file: prompt.md\n"), schema=Recipe)
    assert find_named_file("prompt.md", key=("file",), values=values) == Path("prompt.md")
    write("recipes/prompt.md", "next to the recipe")
    assert find_named_file("prompt.md", key=("file",), values=values) == Path("recipes/prompt.md")


def test_a_file_that_a_parent_names_is_looked_for_next_to_the_parent(write) -> None:
    write("shared/base.yaml", "file: prompt.md\n")
    write("shared/prompt.md", "next to the parent")
    values = load_values(write("mine/a.yaml", "extends: ../shared/base.yaml\n"), schema=Recipe)
    found = find_named_file("prompt.md", key=("file",), values=values)
    assert found.read_text() == "next to the parent"


def test_a_missing_file_names_both_places(write, workspace: Path) -> None:
    values = load_values(write("recipes/a.yaml", "x: 1\nprompt: {file: gone.md}\n"), schema=Recipe)
    with pytest.raises(UserError) as caught:
        find_named_file("gone.md", key=("prompt", "file"), values=values)
    message = str(caught.value)
    assert message.startswith("recipes/a.yaml:2: prompt.file: no such file: 'gone.md'")
    assert "recipes/gone.md" in message
    assert str(workspace / "gone.md") in message


# dumping


def test_a_task_loads_again_from_its_own_dump(write) -> None:
    task = load_task(write("task.yaml", CLASS_TASK.replace("mood}", "mood, map: {0: no, 1: on}}")))
    assert load_task(write("again.yaml", dump_yaml(task))) == task


PLAIN = st.characters(
    exclude_categories=["Cs"],  # surrogates and NUL are refused on reading
    exclude_characters="\0\x85\u2028\u2029",  # PyYAML folds these three when it writes them
)


@settings(max_examples=150, deadline=None)
@given(st.text(PLAIN))
@example("1e5")
@example("010")
@example("5e10123")
@example("no")
@example("2024-01-31")
@example("null")
@example(" spaced\n\nlines\t")
@example("#: - {}")
def test_any_text_survives_dumping(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    base = BaseConfig(model="x", revision=text)
    path.write_text(dump_yaml(base), encoding="utf-8", newline="")
    assert validate(load_values(path, schema=Recipe), schema=BaseConfig) == base


@settings(max_examples=50, deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_number_survives_dumping(
    tmp_path_factory: pytest.TempPathFactory, learning_rate: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    train = TrainConfig(learning_rate=learning_rate)
    path.write_text(dump_yaml(train))
    again = validate(load_values(path, schema=Recipe), schema=TrainConfig)
    assert math.isclose(again.learning_rate, learning_rate, rel_tol=0)


def test_a_dump_spells_out_the_defaults(write) -> None:
    text = dump_yaml(load_task(write("task.yaml", CLASS_TASK)))
    assert "seed: 42" in text
    assert "from: mood" in text, "keys as the user writes them"


def test_suggestions_are_near_or_none() -> None:
    assert suggest("epoch", allowed=["epochs", "seed"]) == " Did you mean `epochs`?"
    assert suggest("banana", allowed=["epochs", "seed"]) == ""


def test_a_section_cannot_be_changed(write) -> None:
    task: Task = load_task(write("task.yaml", CLASS_TASK))
    with pytest.raises(ValueError, match="frozen"):
        task.name = "other"
