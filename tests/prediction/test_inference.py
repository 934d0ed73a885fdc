"""A row scores the same alone, in any batch, at any padding, in any order (H3, D11)."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmft.config.recipe import BaseConfig, LoraConfig, Precision
from llmft.config.task import FieldsConfig
from llmft.data.fields import RowFaultError
from llmft.data.prompts import split_prompt
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer
from llmft.models.device import autocast
from llmft.models.forward import prepare_for_prediction
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.saved import SavedModel
from llmft.prediction.inference import Predictor
from tests.conftest import make_spec, make_text

FIELDS = FieldsConfig()


def make_predictor(base: BaseConfig, *, head: str, prompt: str | None = None) -> Predictor:
    labels = LabelSpace(head, ["risk", "calm", "proof"])
    tokenizer = load_tokenizer(base)
    model = load_model(base, labels=labels, pad_token_id=tokenizer.pad_token_id, seed=1).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    spec = make_spec(
        base, labels, prompt=split_prompt(prompt, fields=FIELDS)._asdict() if prompt else None
    )
    return Predictor(SavedModel(model.eval(), tokenizer, spec))


@pytest.fixture(params=["bert", "qwen lora", "qwen lora prompt"])
def predictor(request: pytest.FixtureRequest, tiny_bert: Path, tiny_qwen: Path) -> Predictor:
    if request.param == "bert":
        return make_predictor(BaseConfig(model=str(tiny_bert)), head="regression")
    base = BaseConfig(model=str(tiny_qwen), tuning="lora", lora=LoraConfig(rank=4))
    prompt = "task : {text} ." if "prompt" in request.param else None
    return make_predictor(base, head="regression", prompt=prompt)


@pytest.fixture
def rows() -> list[dict[str, str]]:
    generator = random.Random(5)
    lengths = [1, 40, 7, 25, 3, 60, 12, 33]
    return [
        {"id": str(i), "text": make_text(generator, mood=f"mood{i}", num_words=n)}
        for i, n in enumerate(lengths)
    ]


def test_h3_a_row_scores_the_same_alone_and_in_any_batch(predictor, rows) -> None:
    together = predictor.predict(rows).outputs
    alone = np.concatenate([predictor.predict([row]).outputs for row in rows])
    assert np.ptp(together, axis=0).min() > 1e-3  # else equality would prove nothing
    assert together == pytest.approx(alone, abs=1e-4)


def test_d11_predictions_come_back_in_the_order_of_the_rows(predictor, rows) -> None:
    forward = predictor.predict(rows).outputs
    backward = predictor.predict(rows[::-1]).outputs
    assert forward == pytest.approx(backward[::-1], abs=1e-4)


def test_h3_an_article_that_spells_the_pad_token_is_not_cut_short(predictor, rows) -> None:
    plain = predictor.predict([{"text": "market crisis"}]).outputs
    for token in ("<|endoftext|>", "[PAD]", "[SEP]"):
        spelled = predictor.predict([{"text": f"market crisis {token} {token}"}]).outputs
        assert not np.allclose(plain, spelled, atol=1e-5)


def test_classes_come_as_probabilities(tiny_bert: Path, rows) -> None:
    predictor = make_predictor(BaseConfig(model=str(tiny_bert)), head="multiclass")
    outputs = predictor.predict(rows).outputs
    assert outputs.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)


def test_a_row_without_text_is_a_fault(predictor) -> None:
    with pytest.raises(RowFaultError, match="empty text"):
        predictor.predict([{"id": "1", "text": " "}])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_a_model_prepared_for_prediction_says_the_same(
    tiny_qwen: Path, precision: Precision, tuning: str
) -> None:
    """H6: adapters are merged in float32 only, where nothing is rounded by it."""
    lora = LoraConfig(rank=4) if tuning != "full" else None
    base = BaseConfig(model=str(tiny_qwen), tuning=tuning, lora=lora)
    space = LabelSpace("regression", ["risk"])
    loaded = load_model(base, labels=space, pad_token_id=0, seed=1, precision=precision)
    model = loaded.model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(5, 45, device=next(model.parameters()).device).reshape(4, 10)
    with torch.no_grad(), autocast(ids.device, precision):
        expected = model(ids).logits
        prepared = prepare_for_prediction(model, precision)
        found = prepared(ids).logits
    is_merged = not any("lora" in name for name, _ in prepared.named_parameters())
    assert is_merged == (tuning == "full" or (precision, tuning) == ("float32", "lora"))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 if is_merged else 0)


def test_a_batch_is_bounded_by_the_tokens_that_were_asked_for(predictor, rows, monkeypatch) -> None:
    sizes, compute = [], predictor.forward.model.forward

    def record(*args, input_ids, **kwargs):
        sizes.append(input_ids.shape)
        return compute(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(predictor.forward.model, "forward", record)
    whole = predictor.predict(rows).outputs
    assert [size[0] for size in sizes] == [len(rows)], "few rows are one batch"
    sizes.clear()
    predictor.forward.max_tokens_per_batch = 90
    assert predictor.predict(rows).outputs == pytest.approx(whole, abs=1e-4)
    assert len(sizes) > 2
    assert all(size.numel() <= 90 or size[0] == 1 for size in sizes)


def test_a_batch_that_memory_does_not_suffice_for_is_halved(predictor, rows, monkeypatch) -> None:
    compute, refused = predictor.forward.model.forward, []

    def fail(*args, input_ids, **kwargs):
        if len(input_ids) > 2:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(*args, input_ids=input_ids, **kwargs)

    expected = predictor.predict(rows).outputs
    monkeypatch.setattr(predictor.forward.model, "forward", fail)
    assert predictor.predict(rows).outputs == pytest.approx(expected, abs=1e-4)
    assert refused == [8, 4, 4]
    refused.clear()
    predictor.predict(rows)
    assert 8 not in refused, "what did not fit is not tried again"

    refused.clear()
    same = [rows[0]] * 24
    num_shared = len(predictor.encoder.shared_ids) if predictor.keeps_prompt else 0
    num_own = predictor.encoder.encode(same)[0].num_tokens - num_shared
    predictor.forward.max_tokens_per_batch = 8 * num_own
    assert predictor.predict(same).outputs == pytest.approx(
        np.repeat(expected[:1], 24, 0), abs=1e-4
    )
    assert refused[:2] == [8, 4]
    assert len(refused) == 2, "batches that were planned before are not tried as they were planned"

    def always_fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor.forward.model, "forward", always_fail)
    with pytest.raises(UserError, match=r"out of memory for a single row of \d+ tokens"):
        predictor.predict(rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_an_error_with_the_id(
    tiny_bert: Path, rows: list[dict[str, str]], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make_predictor(BaseConfig(model=str(tiny_bert)), head="regression")
    compute = predictor.forward.compute

    def break_one(encoded: Any) -> Iterator[tuple[Any, torch.Tensor]]:
        for batch, logits_BC in compute(encoded):
            logits_BC = logits_BC.clone()
            logits_BC[[i for i, position in enumerate(batch) if position == 2]] = value
            yield batch, logits_BC

    monkeypatch.setattr(predictor.forward, "compute", break_one)
    named = [{**row, "id": f"n{i}"} for i, row in enumerate(rows[:4])]
    with pytest.raises(UserError, match=r"1 of 4 rows with NaN, first the row with the id 'n2'"):
        predictor.predict(named)
    with pytest.raises(UserError, match=r"first the row that begins"):
        predictor.predict([{"text": row["text"]} for row in rows[:4]])
