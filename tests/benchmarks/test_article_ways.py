"""The ways of article-only: the same rows, as many updates, and honest differences only."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmft.benchmarks import articles as article_ways
from llmft.benchmarks.articles import TrainingSetup, train_in_classic_loop, train_ours
from llmft.config.recipe import BaseConfig, LoraConfig
from llmft.data.encoding import EncodedRow

LENGTHS = [3, 9, 4, 8, 5, 7, 6, 2]


def make_setup(base: Path, *, tuning: str) -> TrainingSetup:
    lora = LoraConfig(rank=2, dropout=0.1) if tuning == "lora" else None
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(6, 40, (n,), generator=generator).tolist() for n in LENGTHS]
    return TrainingSetup(
        base=BaseConfig(model=str(base), tuning=tuning, lora=lora),
        rows=[EncodedRow([], own, len(own), len(own)) for own in ids],
        targets_ND=torch.randn(len(ids), len(article_ways.LABELS.names)),
        batch_size=2,
        max_length=16,
    )


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[int]], torch.Tensor]]:
    """Return a list that fills with the rows and the padded ids of every training batch."""
    seen: list[tuple[list[list[int]], torch.Tensor]] = []
    watch = article_ways.watch_steps

    def note(model: Any, _: Any, inputs: dict[str, Any]) -> None:
        if model.training:
            ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
            seen.append(([i[m].tolist() for i, m in zip(ids, mask, strict=True)], ids))

    def watch_both(model: Any) -> Any:
        model.register_forward_pre_hook(lambda m, a, k: note(m, a, k), with_kwargs=True)
        return watch(model)

    monkeypatch.setattr(article_ways, "watch_steps", watch_both)
    return seen


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("way", ["ours", "trainer", "classic"])
def test_every_way_sees_every_row_once_in_as_many_updates(
    way: str, tuning: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = request.getfixturevalue("tiny_bert" if tuning == "full" else "tiny_qwen")
    setup = make_setup(base, tuning=tuning)
    seen = watch_batches(monkeypatch)
    match way:
        case "ours":
            seconds = train_ours(setup, "float32")
        case "trainer":
            seconds = article_ways.train_with_stock_trainer(setup, "float32")
        case _:
            seconds = train_in_classic_loop(setup)
            assert all(ids.shape[1] == setup.max_length for _, ids in seen)
    assert seconds > 0
    assert len(seen) == setup.num_steps == 4
    rows = sorted(row for batch, _ in seen for row in batch)
    assert rows == sorted(row.input_ids for row in setup.rows)


def test_an_way_that_makes_another_number_of_updates_is_no_way(tiny_bert: Path) -> None:
    setup = make_setup(tiny_bert, tuning="full")
    with pytest.raises(AssertionError):
        train_in_classic_loop(setup._replace(rows=setup.rows[:5], targets_ND=setup.targets_ND[:5]))
