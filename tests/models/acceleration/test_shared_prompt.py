"""A batch behind a shared prompt gives the outputs and gradients of whole inputs.

Guards L1 (gradients flow back into the prompt), L2 (checkpointing), L3 (restarted positions),
L4 and L5 (no mask, more keys than queries) and H3 (padding).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from llmft.models.acceleration import shared_prompt as packed_attention
from llmft.models.acceleration.shared_prompt import SharedPrompt, explain_unshared
from llmft.models.device import autocast
from llmft.models.heads import compute_head_in_float32

PAD = 0
SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": PAD, "num_labels": 3,
    "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, Callable[..., Any]] = {
    "qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig, "qwen3": Qwen3Config,
}  # fmt: skip


class Batch(NamedTuple):
    """Rows behind a prompt."""

    prompt: list[int]
    rows: list[list[int]]

    @property
    def whole(self) -> dict[str, Tensor]:
        return pad([self.prompt + row for row in self.rows])

    @property
    def own(self) -> dict[str, Tensor]:
        return pad(self.rows)


class Measured(NamedTuple):
    logits: Tensor
    gradients: dict[str, Tensor]


def pad(rows: Sequence[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows]),
    }


def make_batch(num_prompt: int, lengths: Sequence[int], *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(1, SIZES["vocab_size"], (length,), generator=generator).tolist()

    return Batch(draw(num_prompt), [draw(length) for length in lengths])


def make_model(*, family: str = "qwen2", lora: bool = False, **changes: Any) -> Any:
    torch.manual_seed(1)
    config = CONFIGS[family](**{**SIZES, "sliding_window": None, **changes})
    model = AutoModelForSequenceClassification.from_config(config)
    if lora:
        settings = peft.LoraConfig(
            task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear",
            init_lora_weights=False,
        )  # fmt: skip
        model = peft.get_peft_model(model, settings)
    return model.eval()


def measure(model: Any, *batches: dict[str, Tensor]) -> Measured:
    """Return logits, and the gradients of a loss summed over batches."""
    model.zero_grad()
    logits = [model(**batch).logits for batch in batches]
    for found in logits:
        found.double().pow(2).sum().backward()
    named = model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return Measured(torch.cat(logits).detach(), gradients)


def measure_difference(expected: Measured, found: Measured) -> float:
    """Return the largest error, of a logit, or of a gradient relative to its norm."""
    largest = max(g.norm() for g in expected.gradients.values())
    assert expected.gradients.keys() == found.gradients.keys()
    errors = [
        (found.gradients[name] - g).norm() / g.norm().clamp(min=1e-3 * largest)
        for name, g in expected.gradients.items()
    ]
    return max((found.logits - expected.logits).abs().max().item(), max(errors).item())


@settings(max_examples=40, deadline=None)
@given(
    num_prompt=st.integers(0, 40),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=16),
    num_key_value_heads=st.sampled_from([1, 2, 4]),
    lora=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_outputs_and_gradients_are_those_of_whole_inputs(
    num_prompt: int, lengths: list[int], num_key_value_heads: int, lora: bool, dtype: torch.dtype
) -> None:
    batch = make_batch(num_prompt, lengths)
    model = make_model(lora=lora, num_key_value_heads=num_key_value_heads).to(dtype)
    expected = measure(model, batch.whole)
    SharedPrompt(model, batch.prompt)
    assert measure_difference(expected, measure(model, batch.own)) < 1e-5


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("lora", [False, True])
def test_l2_every_family_agrees_with_checkpointing_and_accumulation(
    family: str, lora: bool
) -> None:
    batches = [make_batch(17, [5, 1, 9]), make_batch(17, [3, 12])]
    batches[1] = batches[1]._replace(prompt=batches[0].prompt)
    model = make_model(family=family, lora=lora)
    expected = measure(model, *(batch.whole for batch in batches))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    SharedPrompt(model, batches[0].prompt)
    found = measure(model.train(), *(batch.own for batch in batches))
    assert measure_difference(expected, found) < 1e-5


@pytest.mark.parametrize("num_prompt", [0, 7])
def test_the_way_for_other_devices_gives_what_the_flash_kernel_gives(
    num_prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(num_prompt, [5, 1, 9])
    model = make_model()
    expected = measure(model, batch.whole)
    SharedPrompt(model, batch.prompt)
    monkeypatch.setattr(packed_attention._FlashRows, "apply", packed_attention.attend_rows)
    assert measure_difference(expected, measure(model, batch.own)) < 1e-5


def test_l1_gradients_flow_back_into_the_prompt() -> None:
    batch = make_batch(9, [4, 2])
    only_in_prompt = next(i for i in batch.prompt if all(i not in row for row in batch.rows))
    model = make_model()
    SharedPrompt(model, batch.prompt)
    gradient = measure(model, batch.own).gradients["model.embed_tokens.weight"]
    assert gradient[only_in_prompt].norm() > 0


def test_bfloat16_is_as_close_to_float32_as_the_plain_way_is() -> None:
    errors: dict[str, list[float]] = {"plain": [], "shared": []}
    for seed in range(8):
        batch = make_batch(40, [9, 20, 14, 3], seed=seed)
        model = make_model()
        compute_head_in_float32(model)
        exact = measure(model, batch.whole)
        with autocast(torch.device("cpu"), "bfloat16"):
            errors["plain"].append(measure_difference(exact, measure(model, batch.whole)))
            SharedPrompt(model, batch.prompt)
            errors["shared"].append(measure_difference(exact, measure(model, batch.own)))
    assert sum(errors["plain"]) > 0
    assert sum(errors["shared"]) < 1.1 * sum(errors["plain"])


def test_h3_a_row_gets_the_same_logits_alone_and_in_any_batch() -> None:
    batch = make_batch(11, [6, 1, 13])
    model = make_model()
    SharedPrompt(model, batch.prompt)
    together = model(**batch.own).logits
    for row, expected in zip(batch.rows, together, strict=True):
        torch.testing.assert_close(model(**pad([row])).logits[0], expected, rtol=1e-5, atol=1e-5)


def test_h3_rows_that_end_in_the_pad_token_are_pooled_as_transformers_does() -> None:
    """Some tokenizers close every text with it."""
    batch = make_batch(11, [6, 3, 13])
    batch = batch._replace(rows=[[*row, PAD] for row in batch.rows])
    whole = batch.whole
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    for i, row in enumerate(batch.rows):
        whole["attention_mask"][i, len(batch.prompt) + len(row) :] = 0
    model = make_model()
    expected = measure(model, whole)
    SharedPrompt(model, batch.prompt)
    assert measure_difference(expected, measure(model, batch.own)) < 1e-5


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 16,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
    ],
)  # fmt: skip
def test_l3_position_embeddings_go_on_where_the_prompt_ends(rope: dict[str, Any]) -> None:
    batch = make_batch(21, [6, 14])
    model = make_model(family="llama", rope_parameters={"rope_theta": 1e4, **rope})
    expected = measure(model, batch.whole)
    SharedPrompt(model, batch.prompt)
    assert measure_difference(expected, measure(model, batch.own)) < 1e-5


def test_threads_predict_at_the_same_time() -> None:
    batches = [make_batch(9, lengths) for lengths in ([4, 7], [2], [1, 8, 3])]
    model = make_model()
    SharedPrompt(model, batches[0].prompt)
    with torch.no_grad():
        expected = [model(**batch.own).logits for batch in batches]

    def predict(i: int) -> bool:
        with torch.no_grad():
            return torch.allclose(model(**batches[i % 3].own).logits, expected[i % 3], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(predict, range(60)))


class TestPromptCache:
    """Without gradients the prompt is computed once, for as long as nothing changes."""

    @pytest.fixture
    def batch(self) -> Batch:
        return make_batch(15, [4, 7])

    @pytest.fixture
    def lengths(self) -> list[int]:
        """Tokens that went through the first layer, call by call."""
        return []

    @pytest.fixture
    def model(self, batch: Batch, lengths: list[int]) -> Any:
        model = make_model(lora=True)
        SharedPrompt(model, batch.prompt)
        layer = model.get_base_model().model.layers[0]
        layer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        return model

    def test_the_prompt_is_computed_once(
        self, model: Any, batch: Batch, lengths: list[int]
    ) -> None:
        with torch.no_grad():
            first, second = model(**batch.own).logits, model(**batch.own).logits
        assert lengths == [15, 11, 11]
        assert torch.equal(first, second)
        torch.testing.assert_close(first, model(**batch.own).logits, rtol=1e-5, atol=1e-5)

    def test_changed_weights_are_seen(self, model: Any, batch: Batch, lengths: list[int]) -> None:
        with torch.no_grad():
            before = model(**batch.own).logits
            next(p for n, p in model.named_parameters() if "lora_B" in n).add_(1.0)
            after = model(**batch.own).logits
        assert lengths == [15, 11, 15, 11]
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, model(**batch.own).logits, rtol=1e-5, atol=1e-5)

    def test_another_precision_is_seen(self, model: Any, batch: Batch, lengths: list[int]) -> None:
        with torch.no_grad():
            model(**batch.own)
            with autocast(torch.device("cpu"), "bfloat16"):
                model(**batch.own)
        assert lengths == [15, 11, 15, 11]

    def test_training_drops_it(self, model: Any, batch: Batch, lengths: list[int]) -> None:
        """An optimiser may change weights behind a tensor's back, as ZeRO does."""
        with torch.no_grad():
            model(**batch.own)
        model(**batch.own)
        with torch.no_grad():
            model(**batch.own)
        assert lengths == [15, 11, 26, 15, 11]


def test_a_detached_model_is_as_it_was() -> None:
    batch = make_batch(8, [3, 5])
    model = make_model()
    names, expected = list(model.state_dict()), model(**batch.whole).logits
    sharing = SharedPrompt(model, batch.prompt)
    assert list(model.state_dict()) == names
    sharing.detach()
    assert torch.equal(model(**batch.whole).logits, expected)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(), "a bert base is not one of"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1), "window"),
        (MistralConfig(sliding_window=4096), "sliding window"),
        (Qwen2Config(attention_dropout=0.1), "attention dropout"),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "dynamic position embedding",
        ),
        (Qwen2Config(is_causal=False), "attention is bidirectional"),
    ],
)
def test_l3_bases_that_cannot_share_are_told(config: Any, reason: str) -> None:
    assert reason in str(explain_unshared(config))


@pytest.mark.parametrize(
    "config",
    [Qwen2Config(), Qwen3Config(), LlamaConfig(), MistralConfig(sliding_window=None)],
)
def test_known_decoders_have_no_obstacle(config: Any) -> None:
    assert explain_unshared(config) is None
