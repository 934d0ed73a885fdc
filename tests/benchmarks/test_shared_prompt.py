"""Measuring a shared prompt: figures of a shape, its ceilings, and how a step grows."""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import Qwen2ForSequenceClassification

from llmft.bench import main
from llmft.benchmarks import prompts
from llmft.benchmarks.articles import make_small_qwen2_config
from llmft.benchmarks.plans import Shape
from llmft.benchmarks.prompts import PromptBenchmark, count_ceilings, measure_shape
from llmft.errors import UserError
from llmft.models.device import list_precisions

KEYS = {
    "prompt_tokens", "article_tokens", "batch_size", "dtype", "training_speedup",
    "training_ceiling", "prediction_speedup", "prediction_ceiling", "training_speedup_vs_trainer",
    "peak_memory_ratio", "gradient_error", "flop_utilisation",
}  # fmt: skip


@pytest.fixture
def base(tiny_qwen: Path) -> str:
    return str(tiny_qwen)


@pytest.mark.launched
def test_a_shape_is_measured_whole(base: str) -> None:
    found = measure_shape(Shape(40, 6, 3), "float32", base_dir=base, num_rounds=1, seed=0)
    assert found.keys() >= KEYS
    assert found["gradient_error"] < 1e-5
    assert found["training_speedup"] == pytest.approx(
        found["seconds_unshared"] / found["seconds_shared"]
    )
    assert found["unshared_rows_at_once"] in (1, 2, 3)
    assert min(found[key] for key in KEYS - {"gradient_error", "dtype"}) > 0


def test_both_ways_give_the_same_gradient_behind_any_prompt(base: str) -> None:
    for num_prompt in (0, 1, 30):
        ways = PromptBenchmark(Shape(num_prompt, 5, 2), "float32", base_dir=base, seed=1)
        assert ways.measure_gradient_error() < 1e-5


@pytest.mark.parametrize(
    ("shape", "training", "prediction"),
    [(Shape(3400, 400, 8), 3.9, 6.6), (Shape(1024, 256, 8), 3.0, 4.2), (Shape(0, 9, 4), 1, 1)],
)
def test_ceilings_come_from_a_flop_count(shape: Shape, training: float, prediction: float) -> None:
    model = Qwen2ForSequenceClassification(make_small_qwen2_config())
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear")
    found = count_ceilings(peft.get_peft_model(model, settings), shape)
    assert found.training == pytest.approx(training, rel=0.03)
    assert found.prediction == pytest.approx(prediction, rel=0.03)


@pytest.fixture
def tiny_builds(monkeypatch: pytest.MonkeyPatch, tiny_qwen: Path) -> None:
    """Let the verb measure a tiny base, and small batches."""

    def build(folder: Path) -> None:
        for path in tiny_qwen.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(prompts, "build_small_qwen2", build)
    shapes = {"prompt_tokens": [Shape(0, 4, 2), Shape(9, 4, 2)], "batch_size": [Shape(9, 4, 1)]}
    monkeypatch.setattr(prompts, "GROWING", shapes)


@pytest.mark.launched
@pytest.mark.parametrize("is_named", [False, True])
def test_the_verb_writes_one_object_a_shape_and_precision(
    is_named: bool, workspace: Path, tiny_builds: None, tiny_qwen: Path
) -> None:
    options = ["--shape", "12,4,2", "--num-rounds", "1", "--json", "found.json"]
    if is_named:
        options += ["--base", str(tiny_qwen)]
    assert main(["shared-prompt", *options]) == 0
    found: list[dict[str, Any]] = json.loads(Path("found.json").read_text())
    precisions = list_precisions()
    assert [(e["prompt_tokens"], e["dtype"]) for e in found] == [(12, p) for p in precisions]


def test_a_base_that_shares_no_prompt_is_reported(tiny_bert: Path) -> None:
    with pytest.raises(UserError, match=r"base: .* cannot share a prompt: "):
        main(["shared-prompt", "--base", str(tiny_bert)])


@pytest.mark.parametrize("shape", ["12,4", "12,0,3", "12,-1,2", "12,b,3", "1,2,3,4"])
def test_a_shape_that_is_none_is_reported(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["shared-prompt", f"--shape={shape}"])
    assert stopped.value.code == 2
    assert f"--shape: '{shape}' is not PROMPT,ARTICLE,BATCH" in capsys.readouterr().err


@pytest.mark.launched
@pytest.mark.with_packages("matplotlib")
def test_growth_is_measured_and_drawn(workspace: Path, tiny_builds: None) -> None:
    arguments = ["--num-rounds", "1", "--json", "found.json", "--plot", "plots/growth.png"]
    assert main(["prompt-growth", *arguments]) == 0
    found: list[dict[str, Any]] = json.loads(Path("found.json").read_text())
    assert [e["growing"] for e in found] == ["prompt_tokens", "prompt_tokens", "batch_size"]
    assert found[1]["flops_unshared"] > found[1]["flops_shared"]
    assert found[0]["model_seconds_unshared"] == found[0]["model_seconds_shared"]
    assert Path("plots/growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_needs_matplotlib_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"--plot: needs matplotlib.*llmft.report"):
        main(["prompt-growth", "--plot", "growth.png"])
