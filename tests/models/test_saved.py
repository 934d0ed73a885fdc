"""What is saved says the same when it is opened again, by us and by plain tools (H1, H5, H7)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer
from llmft.models.heads import LabelSpace, TargetScale, find_output_layer, fold_scale
from llmft.models.loading import load_model
from llmft.models.saved import ModelSpec, hash_model, load_saved, save_model
from tests.conftest import make_spec

INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9]])


class Saved(NamedTuple):
    folder: Path
    logits: list[float]


def make_base(folder: Path, *, tuning: str) -> BaseConfig:
    lora = LoraConfig(rank=4) if tuning == "lora" else None
    return BaseConfig(model=str(folder), tuning=tuning, lora=lora)


def save_changed(base: BaseConfig, labels: LabelSpace, folder: Path) -> Saved:
    """Save a model whose every trainable weight has moved away from its start."""
    tokenizer = load_tokenizer(base)
    model = load_model(base, labels=labels, pad_token_id=tokenizer.pad_token_id, seed=3).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    scale = TargetScale(torch.zeros(len(labels.names)), torch.full((len(labels.names),), 2.5))
    if labels.head == "regression":
        fold_scale(model, scale)
    spec = make_spec(base, labels)
    save_model(model, tokenizer=tokenizer, spec=spec, folder=folder)
    with torch.inference_mode():
        return Saved(folder, model.eval()(input_ids=INPUT_IDS).logits[0].tolist())


@pytest.fixture(scope="module")
def saved(
    tiny_bert: Path, tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("saved")
    scores = LabelSpace("regression", ["risk", "calm", "proof"])
    classes = LabelSpace("multiclass", ["no", "yes"])
    return {
        "bert scores": save_changed(make_base(tiny_bert, tuning="full"), scores, root / "a"),
        "bert classes": save_changed(make_base(tiny_bert, tuning="full"), classes, root / "b"),
        "qwen lora scores": save_changed(make_base(tiny_qwen, tuning="lora"), scores, root / "c"),
        "qwen lora classes": save_changed(make_base(tiny_qwen, tuning="lora"), classes, root / "d"),
        "qwen full scores": save_changed(make_base(tiny_qwen, tuning="full"), scores, root / "e"),
    }


@pytest.mark.launched
def test_h1_h5_h7_fresh_process_gives_equal_logits(saved: dict[str, Saved], tmp_path: Path) -> None:
    script = Path(__file__).with_name("reload_folders.py")
    folders = [str(s.folder) for s in saved.values()]
    output = tmp_path / "found.json"
    subprocess.run([sys.executable, str(script), str(output), *folders], check=True, timeout=300)
    found = json.loads(output.read_text())
    for name, (folder, logits) in saved.items():
        for way in ("plain", "llmft"):
            got = found[str(folder)][way]
            assert got == pytest.approx(logits, abs=1e-5), f"{name}, opened by {way}"


def test_h1_the_head_was_not_left_at_its_start(saved: dict[str, Saved]) -> None:
    folder = saved["qwen lora scores"].folder
    layer = find_output_layer(load_saved(folder).model)
    assert layer.weight.std() > 0.1  # initialised with 0.02 or 0.2, then moved and scaled by 2.5
    assert layer.weight.dtype == torch.float32


def test_h5_label_names_are_in_the_config(saved: dict[str, Saved]) -> None:
    for name in ("bert classes", "qwen lora classes"):
        config = json.loads((saved[name].folder / "config.json").read_text())
        assert config["id2label"] == {"0": "no", "1": "yes"}
        assert config["problem_type"] == "single_label_classification"


def test_h3_the_saved_config_names_the_tokenizers_pad_token(saved: dict[str, Saved]) -> None:
    opened = load_saved(saved["qwen lora scores"].folder)
    inner = opened.model.get_base_model()
    assert opened.tokenizer.pad_token == "<|endoftext|>"
    assert inner.config.pad_token_id == opened.tokenizer.pad_token_id
    assert opened.tokenizer.padding_side == "right"


def test_r1_an_empty_tensor_is_refused_and_nothing_is_left(tiny_bert: Path, tmp_path: Path) -> None:
    base = make_base(tiny_bert, tuning="full")
    labels = LabelSpace("regression", ["risk"])
    tokenizer = load_tokenizer(base)
    model = load_model(base, labels=labels, pad_token_id=0, seed=0).model
    find_output_layer(model).weight.data = torch.empty(0, 32)
    spec = ModelSpec.model_construct(name="variant", base=base)
    with pytest.raises(UserError, match=r"classifier\.weight would be saved empty"):
        save_model(model, tokenizer=tokenizer, spec=spec, folder=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_hash_follows_the_weights(saved: dict[str, Saved], tmp_path: Path) -> None:
    names = list(saved)
    hashes = {hash_model(saved[name].folder) for name in names}
    assert len(hashes) == len(names)


def test_a_folder_without_a_card_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llmft\.json: no such file"):
        load_saved(tmp_path / "model")


def test_h1_an_adapter_is_not_put_on_a_base_that_changed(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_qwen, tmp_path / "base")
    labels = LabelSpace("regression", ["risk", "calm"])
    saved = save_changed(make_base(folder, tuning="lora"), labels, tmp_path / "run")
    load_saved(saved.folder)
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights changed"):
        load_saved(saved.folder)
