"""Measuring training on a GPU: the same functions on a CPU with a tiny base; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from llmft.bench import main
from llmft.benchmarks.gpu import Trial, build_base, make_qwen_config, measure_trial
from llmft.benchmarks.plans import SIZES
from llmft.benchmarks.timing import find_flop_rates
from llmft.data.batches import BatchShape
from llmft.errors import UserError

BILLIONS = {"0.5B": 0.494, "1.5B": 1.544, "7B": 7.616}
"""Parameters as the models' cards say; those of 7B have an output layer of their own."""


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_are_the_published_ones(size: str) -> None:
    config = make_qwen_config(size)
    with torch.device("meta"):
        model = Qwen2ForSequenceClassification(config)
    found = sum(p.numel() for p in model.model.parameters())
    if size == "7B":
        found += config.vocab_size * config.hidden_size
    assert found / 1e9 == pytest.approx(BILLIONS[size], abs=5e-4)


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_a_trial_is_measured_whole(tmp_path: Path, tuning: Any) -> None:
    if tuning == "qlora":
        pytest.importorskip("bitsandbytes")
    config = Qwen2Config(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    build_base(config, tmp_path, seed=0)
    trial = Trial(tuning, BatchShape(2, 16), precision="float32", num_steps=2)
    found = measure_trial(str(tmp_path), trial)
    assert found["tokens_per_second"] == pytest.approx(32 / found["seconds_per_step"])
    assert found["flop_utilisation"] > 0
    assert 0 < found["estimated_memory_gib"] < found["peak_memory_gib"]  # the whole process
    assert (
        found["device"] == "CPU" if not torch.cuda.is_available() else "CPU" not in found["device"]
    )


def test_weights_in_4_bit_count_as_many_flops(tiny_qwen: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = Qwen2ForSequenceClassification.from_pretrained(tiny_qwen, pad_token_id=0)
    expected = find_flop_rates(model.requires_grad_(False))
    mlp = model.model.layers[0].mlp
    packed = bitsandbytes.nn.Linear4bit(32, 64, bias=False)
    packed.load_state_dict(mlp.up_proj.state_dict())
    mlp.up_proj = packed.to("cpu").requires_grad_(False)
    assert packed.weight.numel() < 32 * 64
    assert find_flop_rates(model) == expected


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds no GPU"):
        main(["gpu"])


def test_an_unknown_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gpu", "--size", "3B"])
    assert "invalid choice: '3B'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_smallest_base_on_a_gpu(workspace: Path) -> None:
    assert main(["gpu", "--size", "0.5B", "--num-steps", "2", "--json", "gpu.json"]) == 0
    assert Path("gpu.json").stat().st_size
