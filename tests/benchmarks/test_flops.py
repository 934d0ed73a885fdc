"""FLOP counts: against PyTorch's own counter, and the known ceilings of sharing a prompt."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, Qwen2Config

from llmft.benchmarks.timing import (
    Work,
    count_cached_work,
    count_shared_work,
    count_unshared_work,
    find_flop_rates,
)
from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model

LABELS = LabelSpace("regression", ["risk"])


def load(base: Any, *, tuning: str = "full") -> Any:
    lora = LoraConfig(rank=4, dropout=0) if tuning == "lora" else None
    config = BaseConfig(model=str(base), tuning=tuning, lora=lora)
    return load_model(config, labels=LABELS, pad_token_id=0, seed=0).model


def count_by_torch(model: Any, *, num_rows: int, longest: int) -> tuple[int, int]:
    """Return the FLOPs of forward, and of forward and backward."""
    ids = torch.full((num_rows, longest), 7)
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_an_encoder_needs_what_torch_counts(tiny_bert: Any, tuning: str) -> None:
    model = load(tiny_bert, tuning=tuning).eval()
    model.config._attn_implementation = "eager"  # the counter does not know the fused kernel
    rates, work = find_flop_rates(model), count_unshared_work([24] * 3, is_causal=False)
    forward, training = count_by_torch(model, num_rows=3, longest=24)
    adapters = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    assert rates.count_forward(work) + 2 * 72 * adapters == pytest.approx(forward, rel=0.02)
    # With adapters the first layer's inputs need no gradient, which is not taken off.
    assert rates.count_training(work) == pytest.approx(
        training, rel=0.02 if tuning == "full" else 0.1
    )


def test_a_prompt_and_what_stands_behind_it_add_up() -> None:
    whole = count_unshared_work([7 + 3], is_causal=True)
    assert count_shared_work([3], num_prompt_tokens=7) == whole
    assert count_shared_work([3, 3], num_prompt_tokens=0) == count_unshared_work(
        [3, 3], is_causal=True
    )
    assert count_cached_work([2, 1], num_prompt_tokens=5) == Work(3, (5 + 1) + (5 + 2) + (5 + 1))
    assert count_unshared_work([4, 2], is_causal=False) == Work(6, 16 + 4)


@pytest.mark.parametrize(
    ("prompt", "article", "training", "prediction"),
    [(3400, 400, 3.8, 6.6), (1024, 256, 2.9, 4.2)],
)
def test_known_ceilings(prompt: int, article: int, training: float, prediction: float) -> None:
    import peft

    config = Qwen2Config(
        vocab_size=2048, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear")
        rates = find_flop_rates(peft.get_peft_model(model, settings))
    plain = count_unshared_work([prompt + article] * 8, is_causal=True)
    shared = count_shared_work([article] * 8, num_prompt_tokens=prompt)
    cached = count_cached_work([article] * 8, num_prompt_tokens=prompt)
    assert rates.count_training(plain) / rates.count_training(shared) == pytest.approx(
        training, abs=0.05
    )
    assert rates.count_forward(plain) / rates.count_forward(cached) == pytest.approx(
        prediction, abs=0.05
    )


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="stack of layers"):
        find_flop_rates(torch.nn.Sequential(torch.nn.Linear(2, 2)))
