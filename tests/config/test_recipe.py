"""What a recipe may say, and how it finds its task and its prompt."""

from pathlib import Path

import pytest

from llmft.cli import main
from llmft.config.loading import dump_yaml
from llmft.config.recipe import load_recipe
from llmft.errors import UserError
from tests.config.examples import CLASS_TASK, MULTILABEL_TASK, RECIPE, SCORES_TASK


def complain(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    return str(caught.value)


def test_a_recipe_finds_its_task_and_prompt_next_to_it(write) -> None:
    write("recipes/tasks/risk.yaml", SCORES_TASK)
    write("recipes/prompts/risk.md", "Rate this.\n{text}")
    recipe = load_recipe(
        write(
            "recipes/variant.yaml",
            RECIPE.replace("task.yaml", "tasks/risk.yaml")
            + "prompt: {mode: include, file: prompts/risk.md}\n",
        )
    )
    assert recipe.task.name == "risk"
    assert recipe.prompt_path == Path("recipes/prompts/risk.md")
    assert recipe.config.task == "recipes/tasks/risk.yaml"


def test_the_resolved_recipe_loads_again_from_its_run(write) -> None:
    write("recipes/task.yaml", SCORES_TASK)
    write("recipes/risk.md", "Rate this.")
    first = load_recipe(
        write("recipes/variant.yaml", RECIPE + "prompt: {mode: include, file: risk.md}\n"),
        overrides={"train.learning_rate": 2e-5, "base.revision": "1e10", "tokens.waive": "no"},
    )
    again = load_recipe(write("runs/variant/recipe.resolved.yaml", dump_yaml(first.config)))
    assert again == first


@pytest.mark.parametrize(
    ("task", "head", "wanted"),
    [
        (CLASS_TASK, "regression", "class take binary or multiclass"),
        (SCORES_TASK, "multiclass", "scores take regression"),
        (SCORES_TASK, "multilabel", "scores take regression"),
        (MULTILABEL_TASK, "multiclass", "multilabel take multilabel"),
    ],
)
def test_head_and_labels_must_fit(
    write, capsys: pytest.CaptureFixture[str], task: str, head: str, wanted: str
) -> None:
    write("task.yaml", task)
    path = write("variant.yaml", RECIPE.replace("regression", head))
    assert main(["check", str(path)]) == 2
    message = capsys.readouterr().err
    assert f"variant.yaml:4: head.type: found {head}, but labels of type {wanted}" in message


@pytest.mark.parametrize(
    ("found", "instead", "complaint"),
    [
        (
            "{model: builtin:minilm}",
            "{model: builtin:minilm, lora: {rank: 4}}",
            "variant.yaml:3: base: lora settings have no effect with tuning: full",
        ),
        (
            "builtin:minilm",
            "builtin:minlm",
            "base.model: found 'builtin:minlm', allowed: builtin:minilm, builtin:tiny-qwen2",
        ),
        (
            "minilm}",
            "minilm, tuning: qlorra}",
            "base.tuning: found 'qlorra', allowed: frozen, full",
        ),
        ("{type: regression}", "{}", "variant.yaml:4: head.type: missing"),
        (
            "minilm}",
            "minilm, tuning: lora, lora: {target_modules: 5}}",
            "base.lora.target_modules: found 5",
        ),
        (
            "minilm}",
            "minilm, tuning: lora, lora: {target_modules: [q, 5]}}",
            "base.lora.target_modules.1: found 5",
        ),
    ],
)
def test_bases_and_heads_that_make_no_sense(
    write, found: str, instead: str, complaint: str
) -> None:
    write("task.yaml", SCORES_TASK)
    assert RECIPE.count(found) == 1
    message = complain(write("variant.yaml", RECIPE.replace(found, instead)))
    assert complaint in message
    assert "list[str]" not in message, "no names of our own types"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("prompt: {mode: include}", "variant.yaml:6: prompt: mode: include needs a file"),
        (
            "prompt: {mode: include, file: no.md}",
            "variant.yaml:6: prompt.file: no such file: 'no.md'",
        ),
        ("tokens: {waive: ''}", "tokens.waive: found '', but"),
        ("tokens: {max_length: 4}", "tokens.max_length: found 4, but"),
        ("train: {epoch: 3}", "train.epoch: unknown key. Did you mean `epochs`?"),
        ("train: {learning_rate: 0}", "train.learning_rate: found 0, but"),
        ("train: {learning_rate: .inf}", "train.learning_rate: found inf, but"),
        ("train: {weight_decay: .nan}", "train.weight_decay: found nan, but"),
        ("train: {epochs: '3'}", "train.epochs: found '3', but"),
        ("train: {batch_size: 8.5}", "train.batch_size: found 8.5, but"),
        ("train: {seed: -1}", "train.seed: found -1, but"),
        ("train: {seed: 4294967296}", "train.seed: found 4294967296, but"),
        (
            "train: {metric: accuracy}",
            "train.metric: found accuracy, but the labels of this task have mae",
        ),
        ("train: {metric: tier_accuracy}", "train.metric: found tier_accuracy, but the labels"),
        ("train: {metric: maee}", "train.metric: found 'maee', allowed: mae"),
        ("train: {metric: f1}", "loss. Did you mean `f1_macro` or `f1_micro`?"),
        ("train: {steps: 0}", "train.steps: found 0, but"),
        ("train: {limit_rows: 1}", "train.limit_rows: found 1, but"),
        ("train: {report_to: [tensorbord]}", "train.report_to.0: found 'tensorbord', allowed: wan"),
        ("tokens: {article: tail}", "tokens.article: found 'tail', allowed: head, head_tail."),
        ("train: {precision: bf16}", "train.precision: found 'bf16', allowed: auto, float32"),
    ],
)
def test_sections_that_make_no_sense(write, section: str, complaint: str) -> None:
    write("task.yaml", SCORES_TASK)
    assert complaint in complain(write("variant.yaml", f"{RECIPE}{section}\n"))


def test_a_prompt_that_is_excluded_is_not_looked_for(write) -> None:
    write("task.yaml", SCORES_TASK)
    recipe = load_recipe(write("variant.yaml", RECIPE + "prompt: {mode: exclude, file: gone.md}\n"))
    assert recipe.prompt_path is None
    assert recipe.config.prompt.file is None


def test_faults_of_the_task_are_shown_as_faults_of_the_task(write) -> None:
    write("task.yaml", SCORES_TASK + "splitt: {}\n")
    message = complain(write("variant.yaml", RECIPE))
    assert "task.yaml:5: splitt: unknown key. Did you mean `split`?" in message


def test_lora_is_tuned_with_its_own_defaults(write) -> None:
    write("task.yaml", SCORES_TASK)
    path = write(
        "variant.yaml", RECIPE.replace("minilm}", "minilm, tuning: lora, lora: {rank: 4}}")
    )
    lora = load_recipe(path, overrides={"base.lora.alpha": 8}).config.base.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.target_modules) == (4, 8, "all-linear")


def with_head(head: str) -> str:
    return RECIPE.replace("{type: regression}", head)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (
            "{type: regression, loss: {name: bce}}",
            "loss.name: found bce, but a regression head take",
        ),
        (
            "{type: regression, loss: {nam: mse}}",
            "head.loss.nam: unknown key. Did you mean `name`?",
        ),
        (
            "{type: regression, loss: {class_weights: balanced}}",
            "loss.class_weights: has no effect",
        ),
        ("{type: regression, loss: {gamma: 1}}", "loss.gamma: has no effect with the loss mse"),
        (
            "{type: regression, loss: {label_smoothing: 1}}",
            "head.loss.label_smoothing: found 1, but",
        ),
        (
            "{type: regression, loss: {dimension_weights: {risk: 0}}}",
            "at least one must be above 0",
        ),
        (
            "{type: regression, loss: {dimension_weights: {rsk: 1}}}",
            "'rsk' is not a dimension of the",
        ),
        (
            "{type: regression, loss: {row_weights: sure}}",
            "'sure' is not in the prepared rows; name it in",
        ),
    ],
)
def test_losses_that_make_no_sense(write, head: str, complaint: str) -> None:
    write("task.yaml", SCORES_TASK)
    assert complaint in complain(write("variant.yaml", with_head(head)))


@pytest.mark.parametrize(
    ("task", "head"),
    [
        (SCORES_TASK, "{type: regression, loss: {name: huber, dimension_weights: {risk: 2}}}"),
        (CLASS_TASK, "{type: binary, loss: {positive_weights: [3]}}"),
        (CLASS_TASK, "{type: multiclass, loss: {label_smoothing: 0.1, class_weights: balanced}}"),
        (CLASS_TASK, "{type: multiclass, loss: {name: focal, gamma: 1, class_weights: [1, 2]}}"),
        (MULTILABEL_TASK, "{type: multilabel, loss: {positive_weights: balanced}}"),
    ],
)
def test_every_head_loads_again_from_its_run(write, task: str, head: str) -> None:
    write("task.yaml", task)
    first = load_recipe(write("variant.yaml", with_head(head)))
    again = load_recipe(write("runs/variant/recipe.resolved.yaml", dump_yaml(first.config)))
    assert again == first


@pytest.mark.parametrize(
    "classes",
    ["mood, order: [a, b, c]}", "mood, map: {x: a, y: b, z: c, w: c}}", "[a, b, c]}",
     "[a, b], otherwise: c}", "mood, map: {x: a, y: b, z: c, w: d}, exclude: [d]}"],
)  # fmt: skip
def test_a_binary_head_has_two_classes(write, classes: str) -> None:
    write("task.yaml", CLASS_TASK.replace("mood}", classes))
    message = complain(write("variant.yaml", with_head("{type: binary}")))
    assert "head.type: found binary, but the task has 3 classes; use multiclass" in message


def test_a_second_segment_and_a_prompt_do_not_go_together(write) -> None:
    write("task.yaml", SCORES_TASK + "fields: {text: body, text_pair: motive}\n")
    write("risk.md", "Rate this.")
    path = write("variant.yaml", RECIPE + "prompt: {mode: include, file: risk.md}\n")
    assert "prompt.mode: the task has a text_pair" in complain(path)


def test_faults_of_recipe_task_and_prompt_come_at_once(write) -> None:
    write("task.yaml", SCORES_TASK + "splitt: {}\n")
    message = complain(
        write("variant.yaml", RECIPE + "prompt: {mode: include, file: no.md}\ntrain: {epochs: 1}\n")
    )
    assert "prompt.file: no such file: 'no.md'" in message
    assert "task.yaml:5: splitt: unknown key" in message
