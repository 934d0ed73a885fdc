"""A small Qwen2 with random weights, so that the LoRA path runs on a laptop and without a network.

Its weights are random, so that a run on it learns in the adapter and the head only.
"""

import json
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from llmft.sample.articles import make_articles

_PAD_TOKEN = "<|endoftext|>"
_SPECIAL_TOKENS = (_PAD_TOKEN, "<|im_start|>", "<|im_end|>")
_PROMPT_FILE = "files/recipes/prompts/market_news.md"
_MAX_POSITIONS = 8192
_VOCAB_SIZE = 2048
_SEED = 0
# Found by trial: with the library's 0.02 throughout, runs with the prompt learn little. Flat
# attention (small queries and keys) makes the last token an average of all words, which LoRA can
# then sharpen, and a small embedding keeps that token's own word from drowning the average out.
_WEIGHT_STD = 0.06
_EMBEDDING_SCALE = 0.05
_QUERY_KEY_SCALE = 0.3


def build_tiny_qwen2(directory: Path) -> None:
    """Write a complete Hugging Face folder of a seeded random Qwen2.

    Two calls write the same bytes, and the caller's random state stays as it is.

    Args:
        directory: Folder to write to; made if missing, files of the same name are replaced.
    """
    tokenizer = _train_tokenizer()
    config = _make_config(tokenizer)
    # fork_rng also covers CUDA by default, which would start a GPU only to seed it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = Qwen2ForCausalLM(config)
    _scale_weights(model)
    # Not by the model's own method, which in a launch writes in the main process only.
    directory.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    weights = {
        name: w for name, w in model.state_dict().items() if name != "lm_head.weight"
    }  # tied
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)


def _make_config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_MAX_POSITIONS,
        initializer_range=_WEIGHT_STD,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


@torch.no_grad()
def _scale_weights(model: Qwen2ForCausalLM) -> None:
    model.model.embed_tokens.weight.mul_(_EMBEDDING_SCALE)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(_QUERY_KEY_SCALE)
        layer.self_attn.k_proj.weight.mul_(_QUERY_KEY_SCALE)


def _train_tokenizer() -> Qwen2Tokenizer:
    """Train Qwen2's byte-level BPE on the sample's articles and prompt."""
    blank = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    blank.train_from_iterator(_read_corpus(), trainer=trainer)
    trained = json.loads(blank.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        extra_special_tokens=list(_SPECIAL_TOKENS[1:]),
        padding_side="right",
        model_max_length=_MAX_POSITIONS,
    )


def _read_corpus() -> list[str]:
    prompt = resources.files("llmft.sample").joinpath(_PROMPT_FILE).read_text(encoding="utf-8")
    return [prompt, *(f"{row['title']}\n{row['content']}" for row in make_articles())]
