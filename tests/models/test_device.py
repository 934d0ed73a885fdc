"""Where the default precision stands, and how much is computed at once."""

import os

import pytest
import torch
from transformers import Qwen2Config

from llmft.models.device import choose_max_tokens, choose_precision, list_precisions


def test_the_default_precision_comes_first() -> None:
    precisions = list_precisions()
    assert precisions[0] == choose_precision("auto")
    assert "float32" in precisions


def test_larger_models_get_smaller_batches_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def choose(gib: float, **config) -> int:
        monkeypatch.setattr(os, "sysconf", lambda name: gib * 2**30 if "PHYS" in name else 1)
        return choose_max_tokens(Qwen2Config(**config), torch.device("cpu"))

    small = {"hidden_size": 384, "intermediate_size": 1_536, "num_attention_heads": 12}
    large = {"hidden_size": 3_584, "intermediate_size": 18_944, "num_attention_heads": 28}
    assert choose(24, **small) == choose(24, **large) == 1_024
    assert 200 < choose(0.5, **large) < 500
    assert choose(0.1, **small, attn_implementation="eager") < choose(0.1, **small)
