"""The head is float32, also under autocast, and gives the labels' units once folded."""

from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.models.device import autocast, choose_precision
from llmft.models.heads import (
    LabelSpace,
    TargetScale,
    find_head,
    find_output_layer,
    fit_target_scale,
    fold_scale,
    is_far_from_zero,
    to_outputs,
)
from llmft.models.loading import load_model

SCORES = LabelSpace("regression", ["risk", "calm"])
INPUTS = {"input_ids": torch.arange(5, 45).reshape(4, 10)}


@pytest.fixture(params=["bert", "qwen lora"])
def model(request: pytest.FixtureRequest, tiny_bert: Path, tiny_qwen: Path) -> torch.nn.Module:
    base = BaseConfig(model=str(tiny_bert))
    if request.param == "qwen lora":
        base = BaseConfig(model=str(tiny_qwen), tuning="lora", lora=LoraConfig(rank=4))
    return load_model(base, labels=SCORES, pad_token_id=0, seed=0).model.eval()


def test_h2_logits_under_bfloat16_are_not_rounded_to_bfloat16(model: torch.nn.Module) -> None:
    with torch.inference_mode(), autocast(torch.device("cpu"), "bfloat16"):
        logits = model(**INPUTS).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_h2_h8_the_head_is_trainable_float32_and_no_lora_target(model: torch.nn.Module) -> None:
    layer = find_output_layer(model)
    assert layer.weight.requires_grad
    assert layer.weight.dtype == torch.float32
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert not any("score" in name or "classifier" in name for name in names)


def test_h8_only_adapters_and_new_modules_are_trained_with_lora(tiny_qwen: Path) -> None:
    base = BaseConfig(model=str(tiny_qwen), tuning="lora", lora=LoraConfig(rank=4))
    new = load_model(base, labels=SCORES, pad_token_id=0, seed=0)
    trained = [name for name, p in new.model.named_parameters() if p.requires_grad]
    assert new.new_modules == ["score"]
    assert all("lora_" in name or ".score.modules_to_save." in name for name in trained)
    assert any("lora_" in name for name in trained)
    assert any("score" in name for name in trained)


def test_h8_every_new_module_of_an_encoder_is_trained_in_full_with_lora(tiny_bert: Path) -> None:
    base = BaseConfig(model=str(tiny_bert), tuning="lora", lora=LoraConfig(rank=4))
    new = load_model(base, labels=SCORES, pad_token_id=0, seed=0)
    assert "classifier" in new.new_modules
    for module in new.new_modules:
        parameters = [
            p for name, p in new.model.named_parameters() if f"{module}.modules_to_save" in name
        ]
        assert parameters
        assert all(p.requires_grad for p in parameters)


def test_folding_gives_the_labels_units(model: torch.nn.Module) -> None:
    labels_ND = torch.tensor([[0.0, 10.0], [5.0, 4.0], [10.0, 1.0]])
    has_bias = find_output_layer(model).bias is not None
    scale = fit_target_scale(labels_ND, has_bias=has_bias)
    with torch.inference_mode():
        expected = scale.to_labels(model(**INPUTS).logits)
    fold_scale(model, scale)
    with torch.inference_mode():
        assert torch.allclose(model(**INPUTS).logits, expected, atol=1e-5)


def test_a_head_without_a_bias_is_not_centred() -> None:
    labels_ND = torch.tensor([[1.0, 3.0], [3.0, 3.0]])
    scale = fit_target_scale(labels_ND, has_bias=False)
    assert scale.mean_D.tolist() == [0.0, 0.0]
    assert scale.std_D.tolist() == [1.0, 3.0]  # the second is constant, its targets are 1
    assert fit_target_scale(labels_ND, has_bias=True).mean_D.tolist() == [2.0, 3.0]
    targets = scale.to_targets(labels_ND)
    assert torch.equal(scale.to_labels(targets), labels_ND)


def test_no_target_is_minus_100_which_the_trainer_would_not_count() -> None:
    labels_ND = torch.full((4, 1), -100.0)
    assert (
        fit_target_scale(labels_ND, has_bias=False).to_targets(labels_ND).tolist() == [[-1.0]] * 4
    )


def test_the_head_is_found_behind_adapters(model: torch.nn.Module) -> None:
    assert find_output_layer(model) in list(find_head(model).modules())


def test_l9_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_precision("auto") == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision("auto") == "float32"
    assert choose_precision("bfloat16") == "bfloat16"


def test_h8_a_head_of_several_layers_is_trained_and_folded_with_lora(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=66,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    base = BaseConfig(model=str(tmp_path), tuning="lora", lora=LoraConfig(rank=4))
    new = load_model(base, labels=SCORES, pad_token_id=1, seed=0)
    assert "classifier" in new.new_modules
    model = new.model.eval()
    with torch.inference_mode():
        expected = 3 * model(**INPUTS).logits
    fold_scale(model, TargetScale(torch.zeros(2), torch.full((2,), 3.0)))
    with torch.inference_mode():
        assert torch.allclose(model(**INPUTS).logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "logits", "expected"),
    [
        ("regression", [3.0, -1.0], [3.0, -1.0]),
        ("binary", [0.0], [0.5, 0.5]),
        ("binary", [2.0], [0.1192, 0.8808]),
        ("multiclass", [0.0, 0.0], [0.5, 0.5]),
        ("multilabel", [0.0, 2.0], [0.5, 0.8808]),
    ],
)
def test_logits_become_scores_or_probabilities(
    head: str, logits: list[float], expected: list[float]
) -> None:
    outputs = to_outputs(torch.tensor([logits]).bfloat16(), head)
    assert outputs.dtype == torch.float32
    assert outputs[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_scores_far_from_zero_for_their_spread_are_told_apart() -> None:
    ratings = torch.tensor([[7.0, 1.0], [8.0, 9.0]])
    assert not is_far_from_zero(ratings)
    assert is_far_from_zero(ratings + torch.tensor([2000.0, 0.0]))
    assert not is_far_from_zero(torch.full((3, 1), 7.0)), "a constant is told elsewhere"
