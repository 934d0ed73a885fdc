"""Frozen weights in bfloat16: the same values as autocast's, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

import llmft
from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.models import loading
from llmft.models.acceleration.precision import cast_frozen_weights, cast_up_at_use
from llmft.models.bases import is_stored_in_bfloat16
from llmft.models.device import autocast
from llmft.models.heads import LabelSpace, find_head
from llmft.models.loading import load_model
from tests.families import CONFIGS, build_base
from tests.training.test_probe import make_frame, make_recipe

IDS = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def load(base: Path, *, tuning: str) -> nn.Module:
    lora = LoraConfig(rank=4, dropout=0.1) if tuning != "full" else None
    config = BaseConfig(model=str(base), tuning=tuning, lora=lora)
    labels = LabelSpace("regression", ["risk", "calm"])
    return load_model(config, labels=labels, pad_token_id=0, seed=0, precision="bfloat16").model


def compute(model: nn.Module) -> list[torch.Tensor]:
    """Return logits and all gradients."""
    torch.manual_seed(1)
    device = next(model.parameters()).device
    with autocast(device, "bfloat16"):
        logits = model.train()(input_ids=IDS.to(device), attention_mask=MASK.to(device)).logits
    logits.square().sum().backward()
    return [logits, *[p.grad for p in model.parameters() if p.requires_grad]]


@pytest.mark.parametrize("family", ["tiny_qwen", "tiny_bert"])
@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_outputs_and_gradients_are_bit_equal_to_those_of_autocast(
    family: str, tuning: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    expected = compute(load(base, tuning=tuning))
    model = load(base, tuning=tuning)
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    cast_frozen_weights(model)
    assert bool(packed) == (tuning == "qlora")
    assert packed == [p for p in model.parameters() if p.dtype == torch.uint8]
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())
    found = compute(model)
    assert len(found) == len(expected) > 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_h2_what_is_trained_and_head_norms_and_embeddings_stay_in_float32(tiny_qwen: Path) -> None:
    model = load(tiny_qwen, tuning="lora")
    cast_frozen_weights(model)
    rounded = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert rounded
    assert all(".base_layer." in name for name in rounded)
    assert all(p.dtype == torch.float32 for p in find_head(model).parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_model_that_is_trained_in_full_is_left_alone(tiny_bert: Path) -> None:
    model = load(tiny_bert, tuning="full")
    cast_frozen_weights(model)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_output_layer_tied_to_an_embedding_stays_in_float32() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.score = nn.Embedding(6, 4), nn.Linear(4, 2)
            self.inner, self.output = nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
            self.output.weight = self.embedding.weight

    model = Tied().requires_grad_(False)
    cast_frozen_weights(model)
    assert model.embedding.weight.dtype == torch.float32
    assert model.inner.weight.dtype == torch.bfloat16
    assert model.score.weight.dtype == torch.float32


@pytest.mark.parametrize("family", ["tiny_qwen", "tiny_bert"])
def test_weights_cast_up_at_use_give_what_a_float32_model_gives(
    family: str, request: pytest.FixtureRequest
) -> None:
    def compute_in_float32(model: nn.Module) -> list[torch.Tensor]:
        logits = model.eval()(input_ids=IDS, attention_mask=MASK).logits
        trained = [p for p in model.parameters() if p.requires_grad]
        return [logits, *torch.autograd.grad(logits.square().sum(), trained)]

    model = load(request.getfixturevalue(family), tuning="lora")
    cast_frozen_weights(model)
    with cast_up_at_use(model):
        found = compute_in_float32(model)
    for a, b in zip(compute_in_float32(model.float()), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weights_cast_up_at_use_stay_the_same_tensors_even_if_it_fails(tiny_qwen: Path) -> None:
    model = load(tiny_qwen, tuning="lora")
    cast_frozen_weights(model)
    before = [(p, p.data_ptr(), p.dtype, p._version) for p in model.parameters()]
    members = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(KeyError), cast_up_at_use(model):
        raise KeyError
    found = [(p, p.data_ptr(), p.dtype, p._version) for p in model.parameters()]
    assert all(a is b and x == y for (a, *x), (b, *y) in zip(before, found, strict=True))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == members


def save_in_bfloat16(base: Path, folder: Path) -> Path:
    """Copy a base, with its weights in bfloat16."""
    shutil.copytree(base, folder)
    AutoModel.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_that_are_in_bfloat16_on_disk_are_never_made_float32(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_in_bfloat16(build_base(family, tmp_path / family), tmp_path / "bfloat16")
    found = load(base, tuning="lora")
    rounded = {n for n, p in found.named_parameters() if p.dtype == torch.bfloat16}
    assert rounded
    assert all(p.dtype == torch.float32 for p in found.parameters() if p.requires_grad)
    cast_frozen_weights(found)
    monkeypatch.setattr(loading, "stays_in_bfloat16", lambda *_: False)
    expected = load(base, tuning="lora")
    assert all(p.dtype == torch.float32 for p in expected.parameters())
    cast_frozen_weights(expected)
    assert [p.dtype for p in found.parameters()] == [p.dtype for p in expected.parameters()]
    trained = {name: p for name, p in found.named_parameters() if p.requires_grad}
    expected.load_state_dict(trained, strict=False)
    assert all(map(torch.equal, compute(found), compute(expected)))


@pytest.mark.parametrize("said", ["bfloat16", "float16"])
def test_what_config_json_says_of_float32_weights_does_not_matter(
    said: str, tiny_qwen: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_qwen, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    assert not is_stored_in_bfloat16(BaseConfig(model=str(folder)))
    found, expected = (load(base, tuning="lora") for base in (folder, tiny_qwen))
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_a_base_in_bfloat16_goes_the_whole_way(
    tuning: str, precision: str, workspace: Path, tiny_qwen: Path
) -> None:
    base = save_in_bfloat16(tiny_qwen, workspace / "bfloat16")
    train = {"steps": 2, "precision": precision}
    recipe = make_recipe(base, base={"model": base, "tuning": tuning}, train=train)
    assert llmft.check(recipe).memory_gib is not None
    run = llmft.train(recipe)
    assert run.record.precision == precision
    assert len(llmft.load(run).predict(make_frame().tail(5))) == 5
