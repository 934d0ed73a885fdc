"""What a suite may say."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from llmft.cli import main
from llmft.config.labels import ClassConfig, ScoresConfig
from llmft.config.suite import SuiteConfig, get_default_gates, load_suite
from llmft.errors import UserError
from tests.config.examples import CLASS_TASK, RECIPE, SCORES_TASK, SUITE


def complain(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_suite(path)
    return str(caught.value)


def with_variants(variants: str) -> str:
    return SUITE.replace("{small: runs/small, large: runs/large}", variants)


def test_variants_come_in_three_shapes(write) -> None:
    write("recipes/task.yaml", SCORES_TASK)
    write("recipes/arm.yaml", RECIPE)
    text = with_variants(
        "\n  small: runs/small\n  large: [runs/large-1, runs/large-2]\n"
        "  trained: {recipe: recipes/arm.yaml, seeds: [1, 2]}"
    ).replace("task.yaml", "recipes/task.yaml", 1)
    suite = load_suite(write("suite.yaml", text))
    assert suite.config.variants["small"].runs == ["runs/small"]
    assert suite.config.variants["large"].runs == ["runs/large-1", "runs/large-2"]
    assert suite.config.variants["trained"].seeds == [1, 2]
    assert suite.config.task == "recipes/task.yaml"


@pytest.mark.parametrize(
    ("variants", "complaint"),
    [
        ("{small: runs/a}", "suite.yaml:2: variants: found {'small': "),
        ("{small: runs/a, b: {seeds: [1]}}", "variants.b: expected either a run folder"),
        ("{small: runs/a, b: {runs: [x], recipe: y}}", "variants.b: expected either a run folder"),
        ("{small: runs/a, b: {recipe: arm.yaml}}", "variants.b: a recipe needs seeds, for example"),
        ("{small: runs/a, b: []}", "variants.b"),
        ("{small: runs/a, b: 5}", "variants.b: found 5, but expected keys and values"),
        ("{small: runs/a, b: [runs/b, 5]}", "variants.b.1: found 5, but"),
        ("{small: runs/a, b: {run: [x]}}", "variants.b.run: unknown key. Did you mean `runs`?"),
        ("{small: runs/a, b: [runs/b, runs/b]}", "variants.b: runs: one stands twice"),
        ("{small: runs/a, b: {recipe: a.yaml, seeds: [1, 1]}}", "variants.b: seeds: one stands"),
        ("{small: runs/a, b: {recipe: a.yaml, seeds: [-1]}}", "variants.b.seeds.0: found -1, but"),
        ("{small: runs/a, b: {recipe: gone.yaml, seeds: [1]}}", "variants.b.recipe: no such file"),
        ("{big: runs/a, large: runs/b}", "reference: found 'small', allowed: big, large"),
    ],
)
def test_variants_that_make_no_sense(write, variants: str, complaint: str) -> None:
    write("task.yaml", SCORES_TASK)
    assert complaint in complain(write("suite.yaml", with_variants(variants)))


@pytest.mark.parametrize(
    ("task", "changes", "complaint"),
    [
        (
            CLASS_TASK,
            {},
            "suite.yaml:4: metric: found mae, but the labels of task.yaml, of type class, have "
            "accuracy, balanced_accuracy, f1_macro",
        ),
        (SCORES_TASK, {"metric: mae": "metric: f1_macro"}, "of type scores, have mae, rmse, r2"),
        (SCORES_TASK, {"metric: mae": "metric: mea"}, "metric: found 'mea', allowed: mae, rmse"),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {accuracy: {deploy: 1, review: 1}}\nmargin: 0.1"},
            "suite.yaml:5: gates.accuracy: found accuracy, but the labels",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {mae: {deploy: 1.0}}\nmargin: 0.1"},
            "gates.mae.review: missing",
        ),
        (SCORES_TASK, {"margin: 0.1": "margin: -0.1"}, "margin: found -0.1, but"),
        (SCORES_TASK, {"margin: 0.1": "margin: .nan"}, "margin: found nan, but"),
        (
            SCORES_TASK,
            {"margin: 0.1": "margin: 0.1\nedge_cases: gone.jsonl"},
            "suite.yaml:6: edge_cases: no such file",
        ),
        (SCORES_TASK, {"task: task.yaml": "task: tusk.yaml"}, "suite.yaml:1: task: no such file"),
    ],
)
def test_suites_that_make_no_sense(
    write, task: str, changes: dict[str, str], complaint: str
) -> None:
    write("task.yaml", task)
    text = SUITE
    for found, instead in changes.items():
        assert text.count(found) == 1
        text = text.replace(found, instead)
    assert complaint in complain(write("suite.yaml", text))


def test_a_broken_suite_is_status_2(write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write("suite.yaml", "task: x\nvariant: {}\n"))]) == 2
    message = capsys.readouterr().err
    assert "suite.yaml:2: variant: unknown key. Did you mean `variants`?" in message
    assert "Traceback" not in message


def test_edge_cases_are_found_beside_the_suite(write) -> None:
    write("eval/task.yaml", SCORES_TASK)
    cases = write("eval/cases.jsonl", "{}\n")
    suite = load_suite(write("eval/suite.yaml", SUITE + "edge_cases: cases.jsonl\n"))
    assert suite.edge_cases_path == cases


def test_default_gates_on_errors_grow_with_the_range() -> None:
    small = ScoresConfig.model_validate(
        {"type": "scores", "from": "x", "dimensions": ["a"], "range": [0, 1]}
    )
    large = small.model_copy(update={"range": [0.0, 100.0]})
    assert get_default_gates(small)["mae"].deploy == pytest.approx(0.1)
    assert get_default_gates(large)["mae"].deploy == pytest.approx(10.0)
    assert get_default_gates(small)["skill"] == get_default_gates(large)["skill"]


def test_default_gates_of_classes_are_shares() -> None:
    gates = get_default_gates(ClassConfig.model_validate({"type": "class", "from": "x"}))
    assert set(gates) == {"accuracy", "f1_macro"}
    assert all(0 < gate.review < gate.deploy < 1 for gate in gates.values())


@pytest.mark.parametrize("name", ["tfidf", "constant", "a/b"])
def test_an_arm_may_not_take_the_name_of_a_baseline_or_a_path(name: str) -> None:
    with pytest.raises(ValidationError, match=r"name of a baseline|allowed: letters"):
        SuiteConfig.model_validate(
            {
                "task": "t.yaml",
                "variants": {name: "runs/a", "b": "runs/b"},
                "reference": "b",
                "metric": "mae",
                "margin": 0,
                "output_dir": "o",
            }
        )
