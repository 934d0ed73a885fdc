"""Which rows are trained on, for how many steps, and what is refused first."""

import random

import numpy as np
import pytest

from llmft.config.recipe import TrainConfig
from llmft.data.batches import BatchPlan
from llmft.errors import UserError
from llmft.training.inputs import (
    check_warmup,
    count_steps,
    limit_rows,
)

ROWS = [{"id": f"row{i}"} for i in range(50)]
LENGTHS = np.full(50, 10)
PLAN = BatchPlan(LENGTHS, TrainConfig())


def test_a_trial_takes_the_same_rows_in_every_variant_and_keeps_their_order() -> None:
    few = limit_rows(ROWS, 10)
    assert len(few) == 10
    assert few == [row for row in ROWS if row in few]
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert {row["id"] for row in limit_rows(shuffled, 10)} == {row["id"] for row in few}
    more = limit_rows(ROWS, 20)
    assert all(row in more for row in few), "a longer trial holds the shorter one"


@pytest.mark.parametrize("limit", [None, 50, 1000])
def test_without_a_limit_all_rows_are_taken(limit: int | None) -> None:
    assert limit_rows(ROWS, limit) == ROWS


def test_steps_are_counted_with_accumulation_and_parts_of_epochs() -> None:
    def count(**train: object) -> int:
        config = TrainConfig(**train)
        return count_steps(config, BatchPlan(LENGTHS, config))

    assert count(epochs=2, batch_size=8) == 14
    assert count(epochs=2, batch_size=8, gradient_accumulation_steps=2) == 8
    assert count(epochs=0.5, batch_size=8) == 4
    assert count(epochs=9, steps=3) == 3
    assert count(epochs=2, max_tokens_per_batch=100) == 10  # ten rows of ten tokens


def test_a_warm_up_to_the_end_is_refused_unless_there_is_none() -> None:
    with pytest.raises(UserError, match="5 warm-up steps, but the training has 5"):
        check_warmup(TrainConfig(steps=5, warmup_steps=5), PLAN)
    check_warmup(TrainConfig(steps=5, warmup_steps=4), PLAN)
    check_warmup(TrainConfig(steps=5, warmup_steps=5, lr_scheduler="constant"), PLAN)
