"""A tiny base of every family, saved as the Hub has them: with a head for pretraining."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.conftest import WORDS, make_byte_tokenizer

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_VOCABULARY = [*_SPECIAL, *WORDS, *[f"mood{i}" for i in range(11)]]
_LAYERS: dict[str, Any] = {
    "vocab_size": len(_VOCABULARY), "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_DECODER = {**_LAYERS, "vocab_size": 500, "num_key_value_heads": 2, "pad_token_id": None}
CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**_LAYERS),
    "roberta": RobertaConfig(**_LAYERS, type_vocab_size=1),
    "distilbert": DistilBertConfig(
        vocab_size=len(_VOCABULARY), dim=32, hidden_dim=48, n_layers=2, n_heads=4,
        max_position_embeddings=128, pad_token_id=0, initializer_range=0.2,
    ),
    "deberta-v3": DebertaV2Config(
        **_LAYERS, type_vocab_size=0, relative_attention=True, position_buckets=16,
        max_relative_positions=-1, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        share_att_key=True, norm_rel_ebd="layer_norm",
    ),
    "xlm-roberta": XLMRobertaConfig(**_LAYERS, type_vocab_size=1),
    "modernbert": ModernBertConfig(
        **_LAYERS, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
        local_attention=16, classifier_pooling="mean",
    ),
    "qwen2": Qwen2Config(**_DECODER),
    "llama": LlamaConfig(**_DECODER),
}  # fmt: skip
DECODERS = ("qwen2", "llama")


def build_base(family: str, folder: Path) -> Path:
    """Save a tiny base with its tokenizer."""
    torch.manual_seed(0)
    loader = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    loader.from_config(CONFIGS[family]).save_pretrained(folder)
    tokenizer = make_byte_tokenizer() if family in DECODERS else _make_word_tokenizer()
    tokenizer.save_pretrained(folder)
    return folder


def _make_word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(_VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
