"""Training and prediction with the prompt shared end where those without it end."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.config.loading import parse_overrides
from llmft.files import read_json
from llmft.predict import predict_file
from llmft.prepare import main as prepare
from llmft.train import train

PROMPT = "Score the risk of this bank and trade news, from 0 to 10.\n\n{text}\n\nScores:"
WITHOUT_SHARING = ["prompt.share=false"]


def run(recipe: Path, name: str, *settings: str) -> Path:
    """Train into a folder of its own."""
    overrides = [*settings, f"output_dir=runs/{name}"]
    return Path(train(recipe, overrides=parse_overrides(overrides)))


def predict(run_dir: Path, rows: Path) -> list[dict[str, Any]]:
    output = run_dir / "predicted.jsonl"
    predict_file(run_dir, input_path=rows, output_path=output)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture
def task(write_scores_task: Callable[..., Path]) -> Path:
    path = write_scores_task()
    assert prepare([str(path)]) == 0
    return path


@pytest.mark.parametrize("tuning", ["lora", "qlora", "full"])
@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_20_steps_with_and_without_sharing_end_in_the_same_metric(
    task: Path, write_recipe: Callable[..., Path], tiny_qwen: Path, tuning: str, prompt: str | None
) -> None:
    recipe = write_recipe(
        tiny_qwen, tuning=tuning, prompt=prompt,
        train=", steps: 20, eval_steps: 20, gradient_accumulation_steps: 2",
    )  # fmt: skip
    no_dropout = ["base.lora.dropout=0"] if tuning != "full" else []
    shared, plain = (
        read_json(run(recipe, name, *no_dropout, *settings) / "training_metadata.json")
        for name, settings in (("shared", []), ("plain", WITHOUT_SHARING))
    )
    assert shared["num_steps"] == plain["num_steps"] == 20
    assert shared["best_metric"] == pytest.approx(plain["best_metric"], rel=1e-4)
    assert shared["num_train_tokens"] == plain["num_train_tokens"]
    assert (shared["prompt_shared"], plain["prompt_shared"]) == (prompt is not None, False)


def test_predictions_are_the_same_with_a_kept_prompt(
    task: Path, write_recipe: Callable[..., Path], tiny_qwen: Path, workspace: Path
) -> None:
    recipe = write_recipe(tiny_qwen, tuning="lora", prompt=PROMPT)
    shared = run(recipe, "shared")
    expected = predict(shared, workspace / "rows.jsonl")
    spec = shared / "model" / "llmft.json"
    spec.write_text(spec.read_text().replace('"share_prompt": true', '"share_prompt": false'))
    found = predict(shared, workspace / "rows.jsonl")
    assert len(found) == 60
    for a, b in zip(expected, found, strict=True):
        assert a["score_risk"] == pytest.approx(b["score_risk"], abs=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_a_shared_run_resumes_in_the_middle_of_an_epoch(
    task: Path, write_recipe: Callable[..., Path], tiny_qwen: Path, tuning: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """R5, with dropout and checkpointing."""
    recipe = write_recipe(
        tiny_qwen, tuning=tuning, prompt=PROMPT,
        train=", gradient_checkpointing: true, eval_steps: 3",
    )  # fmt: skip
    whole = run(recipe, "whole")
    from llmft.training.losses import FiniteLoss

    class _Stopped(Exception):
        pass

    original = FiniteLoss.__call__

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.get_step() == 4:
            raise _Stopped
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FiniteLoss, "__call__", stop)
        with pytest.raises(_Stopped):
            run(recipe, "broken")
    resumed = run(recipe, "broken")
    assert read_json(resumed / "training_metadata.json")["resumed_from_step"] == 3
    weights = [
        (folder / "model" / "adapter_model.safetensors").read_bytes() for folder in (whole, resumed)
    ]
    assert weights[0] == weights[1]


def test_an_encoder_says_why_it_repeats_the_prompt(
    task: Path, write_recipe: Callable[..., Path], tiny_bert: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    recipe = write_recipe(tiny_bert, prompt=PROMPT)
    with caplog.at_level(logging.INFO, logger="llmft"):
        run_dir = run(recipe, "encoder")
    assert "the prompt is computed in every row: a bert base is not one of" in caplog.text
    assert read_json(run_dir / "training_metadata.json")["prompt_shared"] is False
