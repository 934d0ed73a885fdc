"""The tiny Qwen2: a whole Hugging Face folder, the same bytes each time."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmft.models.tiny_qwen2 import build_tiny_qwen2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases") / "tiny-qwen2"
    build_tiny_qwen2(directory)
    return directory


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_builds_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    build_tiny_qwen2(tmp_path)
    assert read_bytes(tmp_path) == read_bytes(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read_bytes(folder))


def test_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build_tiny_qwen2(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokenizer_and_config_agree(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen2"
    assert config["vocab_size"] == len(tokenizer)
    assert config["max_position_embeddings"] >= 4096
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id == config["pad_token_id"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    "text", ["Panic selling, 28 per cent.", "naïve café\n\t汉字 🙂", " two  spaces"]
)
def test_tokenizer_keeps_any_text(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_only_the_head_is_new(folder: Path) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=4, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ids = torch.tensor([[5, 6, 7], [5, 6, model.config.pad_token_id]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (2, 4)
    assert torch.isfinite(logits).all()


def test_last_token_sees_the_words_before_it(folder: Path) -> None:
    """What LoRA has to work with: other words must give another final state."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, model.config.vocab_size, (8, 80), generator=generator)
    ids[:, -1] = 300
    with torch.no_grad():
        states = model.model(input_ids=ids).last_hidden_state[:, -1]
    share = states.std(dim=0).mean() / states.abs().mean()
    assert share > 0.5
