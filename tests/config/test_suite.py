"""What a suite may say."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from llmft.cli import main
from llmft.config.suite import Suite, load_suite
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
    write("recipes/variant.yaml", RECIPE)
    text = with_variants(
        "\n  small: runs/small\n  large: [runs/large-1, runs/large-2]\n"
        "  trained: {recipe: recipes/variant.yaml, seeds: [1, 2]}"
    ).replace("task.yaml", "recipes/task.yaml", 1)
    suite = load_suite(write("suite.yaml", text))
    assert suite.config.variants["small"].runs == ["runs/small"]
    assert suite.config.variants["large"].runs == ["runs/large-1", "runs/large-2"]
    assert suite.config.variants["trained"].seeds == [1, 2]
    assert suite.config.task == "recipes/task.yaml"


@pytest.mark.parametrize(
    ("variants", "complaint"),
    [
        (
            "{small: runs/a}",
            "suite.yaml:2: variants: found 1; a comparison needs two variants or more",
        ),
        ("{small: runs/a, b: {seeds: [1]}}", "variants.b: expected either a run folder"),
        ("{small: runs/a, b: {runs: [x], recipe: y}}", "variants.b: expected either a run folder"),
        (
            "{small: runs/a, b: {recipe: variant.yaml}}",
            "variants.b: a recipe needs seeds, for example",
        ),
        (
            "{small: runs/a, b: {recipe: variant.yaml, seeds: 3}}",
            "variants.b.seeds: found 3, but expected the seeds themselves; write [1, 2, 3]",
        ),
        ("{small: runs/a, b: []}", "variants.b"),
        (
            "{small: runs/a, b: {runs: [x], seeds: [1]}}",
            "variants.b: seeds belong to a recipe, not to finished runs; remove seeds",
        ),
        (
            "{small: runs/a,\n  tfidf: runs/b}",
            "suite.yaml:3: variants.tfidf: 'tfidf' is the name of",
        ),
        (
            "{small: runs/a, a/b: runs/b}",
            "suite.yaml:2: variants.a/b: found 'a/b', allowed: letters",
        ),
        (
            "{smal: runs/a, large: runs/b}",
            "suite.yaml:3: reference: found 'small', allowed: smal, large. Did you mean `smal`?",
        ),
        ("{small: runs/a, b: 5}", "variants.b: found 5, but expected keys and values"),
        ("{small: runs/a, b: [runs/b, 5]}", "variants.b.1: found 5, but"),
        ("{small: runs/a, b: {run: [x]}}", "variants.b.run: unknown key. Did you mean `runs`?"),
        ("{small: runs/a, b: [runs/b, runs/b]}", "variants.b: runs: one is repeated"),
        ("{small: runs/a, b: {recipe: a.yaml, seeds: [1, 1]}}", "variants.b: seeds: one is"),
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
        (SCORES_TASK, {"metric: mae": "metric: mea"}, "Did you mean `mae`?"),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {accuracy: {deploy: 1, review: 1}}\nmargin: 0.1"},
            "suite.yaml:5: gates.accuracy: found accuracy, but the labels",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {class_f1: {deploy: 1.0}}\nmargin: 0.1"},
            "suite.yaml:5: gates.class_f1: found class_f1, but the labels",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {maee: {deploy: 1.0}}\nmargin: 0.1"},
            "Did you mean `mae`?",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {p95_ms: {deploy: 9, review: 5}}\nmargin: 0.1"},
            "suite.yaml:5: gates.p95_ms.deploy: deploy 9 must be as strict as review 5",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {skill: {deploy: 0.5, fraction: 0.5}}\nmargin: 0.1"},
            "suite.yaml:5: gates.skill.fraction: is for the gate dimensions only",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "waive: [{check: same_data, variants: [x], reason: y}]\nmargin: 0.1"},
            "suite.yaml:5: waive.0.variants.0: found 'x', allowed: small, large.",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "waive: [{check: same_data, reason: ''}]\nmargin: 0.1"},
            "suite.yaml:5: waive.0.reason: empty; explain why it does not matter",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "slices: [language]\nmargin: 0.1"},
            "suite.yaml:5: slices: 'language' is not kept by task.yaml",
        ),
        (
            CLASS_TASK,
            {"metric: mae": "metric: accuracy", "margin: 0.1": "high: 7\nmargin: 0.1"},
            "suite.yaml:5: high: is for scores, but",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "noise: {repeated: gone.jsonl}\nmargin: 0.1"},
            "suite.yaml:5: noise.repeated: no such file",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates:\n  mae:\n    review: 1\n    deploy: 2\nmargin: 0.1"},
            "suite.yaml:8: gates.mae.deploy: deploy 2 must be",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "gates: {mae: 1.2}\nmargin: 0.1"},
            "gates.mae: found 1.2, but a gate has keys; write {deploy: 1.2, review: ...}",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "top_k: 10\nmargin: 0.1"},
            "suite.yaml:5: top_k: found 10, but expected a list; write [10]",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "slices: source\nmargin: 0.1"},
            "slices: found 'source', but expected a list; write [source]",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "slices: [length]\nmargin: 0.1"},
            "suite.yaml:5: slices: 'length' is always among the slices; remove it",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "slices: [tier]\nmargin: 0.1"},
            "suite.yaml:5: slices: 'tier' is not kept",
        ),
        (
            CLASS_TASK,
            {"metric: mae": "metric: accuracy\nslices: [class]"},
            "suite.yaml:5: slices: 'class' is always among the slices; remove it",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "treatment:\n- head\n- promt\nmargin: 0.1"},
            "suite.yaml:7: treatment.1: 'promt' is not a key of a recipe",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "waive: [{check: truncated, reason: x}]\nmargin: 0.1"},
            "waive.0.check: found 'truncated', allowed: ",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "waive: [{check: truncated, reason: x}]\nmargin: 0.1"},
            "Did you mean `truncation`?",
        ),
        (
            SCORES_TASK,
            {"margin: 0.1": "waive: [{check: same_rows, reason: x}]\nmargin: 0.1"},
            "waive.0.check: 'same_rows' cannot be waived",
        ),
        *(
            (
                SCORES_TASK,
                {"margin: 0.1": f"waive: [{{check: {check}, reason: x}}]\nmargin: 0.1"},
                f"waive.0.check: '{check}' cannot be waived: it only warns and changes no verdict",
            )
            for check in ("baselines", "trial_run", "oracle_view")
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


def test_edge_cases_are_found_next_to_the_suite(write) -> None:
    write("eval/task.yaml", SCORES_TASK)
    cases = write("eval/cases.jsonl", "{}\n")
    suite = load_suite(write("eval/suite.yaml", SUITE + "edge_cases: cases.jsonl\n"))
    assert suite.edge_cases_path == cases


@pytest.mark.parametrize("name", ["tfidf", "constant", "a/b"])
def test_a_variant_may_not_take_the_name_of_a_baseline_or_a_path(name: str) -> None:
    with pytest.raises(ValidationError, match=r"name of a baseline|allowed: letters"):
        Suite.model_validate(
            {
                "task": "t.yaml",
                "variants": {name: "runs/a", "b": "runs/b"},
                "reference": "b",
                "metric": "mae",
                "margin": 0,
                "output_dir": "o",
            }
        )
