"""Measuring a base: its figures for every precision."""

from pathlib import Path

import pytest

from llmft.benchmarks.articles import measure_base
from llmft.benchmarks.plans import Plan
from llmft.models.device import list_precisions
from tests.benchmarks.test_article_ways import make_setup


@pytest.mark.launched
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_base_is_measured_in_every_precision(tuning: str, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue("tiny_bert" if tuning == "full" else "tiny_qwen")
    setup = make_setup(base, tuning=tuning)
    found = measure_base("tiny", setup, Plan(batch_size=2, max_length=16, num_rounds=1))
    assert [entry["dtype"] for entry in found] == list_precisions()
    for entry in found:
        assert entry["num_tokens"] == sum(row.num_tokens for row in setup.rows)
        assert entry["speedup_vs_trainer"] == pytest.approx(
            entry["seconds_trainer"] / entry["seconds_ours"]
        )
        assert entry["speedup_vs_classic_loop"] == pytest.approx(
            entry["seconds_classic_loop"] / entry["seconds_ours"]
        )
        assert entry["flop_utilisation"] > 0
    assert len({entry["seconds_classic_loop"] for entry in found}) == 1  # float32 for both
