"""A Qwen2 of 6 layers, 384 wide, with random weights: as large as MiniLM, and fast to measure."""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from llmft.config.recipe import BaseConfig
from llmft.models.bases import load_tokenizer

_MAX_POSITIONS = 16_384


def make_small_qwen2_config() -> Qwen2Config:
    """Return its configuration, for MiniLM's vocabulary."""
    return Qwen2Config(
        vocab_size=30_522,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=_MAX_POSITIONS,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=102,
    )


def build_small_qwen2(folder: Path) -> None:
    """Write it as a Hugging Face folder, with MiniLM's tokenizer.

    A vocabulary learned from real text gives inputs of real lengths.

    Raises:
        UserError: If MiniLM is not installed.
    """
    tokenizer = load_tokenizer(BaseConfig(model="builtin:minilm"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(make_small_qwen2_config())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
