"""Sizes that are told from a configuration are those of the model that is then loaded."""

from pathlib import Path

import pytest

from llmft.config.recipe import BaseConfig, LoraConfig, TrainConfig
from llmft.data.batches import BatchShape
from llmft.models.bases import read_config
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.memory import ParameterCount, count_parameters, estimate_memory

SCORES = LabelSpace("regression", ["risk", "calm"])


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_parameters_are_counted_without_weights(
    base: str, tuning: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(base)
    lora = LoraConfig(rank=4) if tuning == "lora" else None
    config = BaseConfig(model=str(folder), tuning=tuning, lora=lora)
    model = load_model(config, labels=SCORES, pad_token_id=0, seed=0).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counted = count_parameters(config, labels=SCORES)
    assert counted.trainable == trained
    total = sum(p.numel() for p in model.parameters())
    assert counted.total == pytest.approx(total, rel=0.02)  # PEFT keeps the untrained head as well


def test_memory_grows_with_what_it_depends_on(tiny_bert: Path) -> None:
    config = read_config(BaseConfig(model=str(tiny_bert)))
    size = ParameterCount(10**6, 10**6)

    def estimate(longest: int = 64, *, num_rows: int = 16, **train: object) -> float:
        batch = BatchShape(num_rows, longest)
        return estimate_memory(size, config, TrainConfig(**train), batch=batch).activations_gib

    assert estimate(num_rows=32) == pytest.approx(2 * estimate(num_rows=16))
    assert estimate(longest=128) > 2 * estimate(longest=64)
    assert estimate(gradient_checkpointing=True) < estimate()
    shared, repeated = (
        estimate_memory(size, config, TrainConfig(), batch=BatchShape(16, n), num_shared=shared)
        for n, shared in ((64, 512), (64 + 512, 0))
    )
    assert shared.activations_gib < repeated.activations_gib / 4
    found = estimate_memory(size, config, TrainConfig(), batch=BatchShape(16, 64))
    assert found.weights_gib == pytest.approx(4e6 / 2**30)
    assert found.optimiser_gib == pytest.approx(12e6 / 2**30)
    assert found.total_gib == pytest.approx(sum(found))
