"""The shared prompt is compared with whole inputs when a training begins."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.data.batches import Collator, Example
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.device import Precision, autocast
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.packed_attention import PACKED_ATTENTION, attend_packed
from llmft.models.shared_prompt import SharedPrompt
from llmft.training.losses import Loss
from llmft.training.sharing import SharingCheck

PROMPT_IDS = list(range(20, 60))
ROWS = [
    Example(i, EncodedRow([], own, len(own), len(own)), torch.tensor([1.0, -1.0]), None)
    for i, own in enumerate([[3, 4, 5, 6, 7], [9, 8]])
]


@pytest.fixture(params=["lora", "full"])
def model(request: pytest.FixtureRequest, tiny_qwen: Path) -> nn.Module:
    lora = LoraConfig(rank=4, dropout=0.5) if request.param == "lora" else None
    base = BaseConfig(model=str(tiny_qwen), tuning=request.param, lora=lora)
    space = LabelSpace("regression", ["risk", "calm"])
    return load_model(base, labels=space, pad_token_id=0, seed=0).model


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> Iterator[Precision]:
    """The precision of the training, which the trainer puts around the model."""
    with autocast(torch.device("cpu"), request.param):
        yield request.param


def check(model: nn.Module, sharing: Any, precision: Precision) -> None:
    loss = Loss(HeadConfig(type="regression"))
    checked = SharingCheck(
        sharing,
        ROWS,
        collator=Collator(pad_token_id=0, targets=torch.zeros(1, 2)),
        loss=loss,
        precision=precision,
    )
    checked.on_train_begin(model=model)


def test_a_right_prompt_passes_and_leaves_no_trace(model: nn.Module, precision: Precision) -> None:
    sharing = SharedPrompt(model, PROMPT_IDS)
    training = {name: module.training for name, module in model.train().named_modules()}
    state = torch.get_rng_state()
    check(model, sharing, precision)
    assert {name: module.training for name, module in model.named_modules()} == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_l2_it_passes_with_checkpointing_and_uses_it(
    model: nn.Module, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whole inputs would take more memory than the training itself."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    sharing = SharedPrompt(model, PROMPT_IDS)
    calls = []
    layer = next(m for m in model.modules() if hasattr(m, "self_attn"))
    monkeypatch.setattr(
        layer.self_attn, "forward", _count(calls, type(layer.self_attn).forward, layer.self_attn)
    )
    check(model, sharing, precision)
    without_gradients = (2 + 2) + 1  # two rows plainly, once each; shared: the prompt and the rows
    assert len(calls) > without_gradients + 3, "computed again in the backward pass"


def _count(calls: list[int], forward: Any, module: nn.Module) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(module, *args, **kwargs)

    return counted


def test_l3_attention_across_rows_stops_the_run(
    model: nn.Module, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed rows under the library's own causal attention see the rows before them."""

    def attend_across(module: Any, *tensors: Any, packed_rows: Any, **kwargs: Any) -> Any:
        if packed_rows.num_prompt and packed_rows.cache is not None:
            return attend_packed(module, *tensors, packed_rows=packed_rows, **kwargs)
        return sdpa_attention_forward(module, *tensors, is_causal=True, **kwargs)

    sharing = SharedPrompt(model, PROMPT_IDS)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_ATTENTION, attend_across)
    with pytest.raises(UserError, match=r"prompt.share: .* \(\w+( gradient)?: \d+.*share: false"):
        check(model, sharing, precision)


class OtherPrompt(SharedPrompt):
    """Whole inputs begin with another prompt than shared ones."""

    @contextmanager
    def plainly(self) -> Iterator[None]:
        self._shared_ids = PROMPT_IDS[:-1]
        with super().plainly():
            yield
        self._shared_ids = PROMPT_IDS


def test_another_prompt_stops_the_run(model: nn.Module, precision: Precision) -> None:
    with pytest.raises(UserError, match="must not be used with this base"):
        check(model, OtherPrompt(model, PROMPT_IDS), precision)


def test_weights_that_are_broken_already_are_left_to_the_first_step(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    check(model, SharedPrompt(model, PROMPT_IDS), "float32")
