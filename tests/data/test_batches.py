"""Batch plans: rows of similar length, as many in every epoch, a function of seed and epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmft.config.head import HeadConfig, LossConfig
from llmft.config.recipe import TrainConfig
from llmft.data.batches import (
    BatchLimits,
    BatchPlan,
    BatchShape,
    Collator,
    Examples,
    sort_into_batches,
)
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.training.losses import Loss

NONE = torch.zeros(0, 1)
LENGTHS = st.lists(st.integers(1, 3_000), min_size=1, max_size=200).map(np.array)


def make_examples(*own: list[int], shared: list[int] | None = None) -> Examples:
    encoded = [EncodedRow(shared or [], ids, len(ids), len(ids)) for ids in own]
    targets = torch.arange(len(own), dtype=torch.float32)[:, None]
    return Examples(encoded, targets, ids=[f"row{i}" for i in range(len(own))])


@given(
    lengths=LENGTHS,
    batch_size=st.none() | st.integers(1, 40),
    room=st.none() | st.floats(1, 20),
    world_size=st.integers(1, 3),
    accumulated=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_r8_every_epoch_has_each_row_once_in_as_many_batches_within_bounds(
    lengths: np.ndarray,
    batch_size: int | None,
    room: float | None,
    world_size: int,
    accumulated: int,
    seed: int,
) -> None:
    budget = None if room is None else int(room * lengths.max())
    config = TrainConfig(
        batch_size=batch_size, max_tokens_per_batch=budget, seed=seed,
        gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    plan = BatchPlan(lengths, config, world_size=world_size)
    assert sum(plan.global_sizes) == len(lengths)
    for epoch in (0, 1, 7):
        ranks = [plan.arrange(epoch, rank=rank) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(plan) * accumulated}, "no rank waits"
        batches = [batch for rank in ranks for batch in rank]
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in filter(None, batches):
            shape = BatchShape(len(batch), int(lengths[batch].max()))
            assert shape.num_rows <= (config.batch_size or len(lengths))
            assert shape.num_tokens <= (budget or np.inf)
            assert shape.num_tokens <= plan.largest.num_tokens
        assert max(map(len, batches)) <= max(s.num_rows for s in plan.shapes)
        again = BatchPlan(lengths, config, world_size=world_size).arrange(epoch)
        assert ranks[0] == again, "a function of seed and epoch"


@given(
    lengths=LENGTHS,
    batch_size=st.sampled_from([1, 2, 5]),
    micro_batch_divisor=st.sampled_from([1, 2, 4]),
)
def test_r8_the_weights_change_for_the_same_rows_however_the_work_is_shared(
    lengths: np.ndarray, batch_size: int, micro_batch_divisor: int
) -> None:
    def arrange(
        *, batch_size: int, world_size: int = 1, accumulated: int = 1, micro_batch_divisor: int = 1
    ) -> list[list[int]]:
        config = TrainConfig(batch_size=batch_size, gradient_accumulation_steps=accumulated)
        plan = BatchPlan(
            lengths, config, world_size=world_size, micro_batch_divisor=micro_batch_divisor
        )
        assert plan.num_accumulated == accumulated * micro_batch_divisor
        assert plan.largest.num_rows <= -(-batch_size // micro_batch_divisor)
        steps = [plan.arrange(3, rank=rank) for rank in range(world_size)]
        return [
            sorted(
                i
                for rank in steps
                for batch in rank[k * plan.num_accumulated : (k + 1) * plan.num_accumulated]
                for i in batch
            )
            for k in range(len(plan))
        ]

    expected = arrange(batch_size=4 * batch_size)
    for world_size, accumulated in ((4, 1), (2, 2), (1, 4)):
        found = arrange(
            batch_size=batch_size, world_size=world_size, accumulated=accumulated,
            micro_batch_divisor=micro_batch_divisor,
        )  # fmt: skip
        assert found == expected


def test_r8_a_batch_without_rows_counts_for_nothing() -> None:
    targets = {
        "cross_entropy": torch.tensor([0, 1]),
        "focal": torch.tensor([0, 1]),
        "mse": torch.zeros(2, 3),
        "bce": torch.zeros(2, 3, dtype=torch.bool),
    }
    heads = {"mse": "regression", "bce": "multilabel"}
    for name, of_rows in targets.items():
        batch = Collator(pad_token_id=7, targets=of_rows)([])
        assert batch["input_ids"].tolist() == [[7]]
        assert batch["labels"].shape == (0, *of_rows.shape[1:])
        assert batch["labels"].dtype == of_rows.dtype
        logits = torch.ones(1, 3, requires_grad=True)
        head = HeadConfig(type=heads.get(name, "multiclass"), loss=LossConfig(name=name))
        loss = Loss(head)(logits, batch["labels"], num_items=4)
        loss.backward()
        assert loss == 0
        assert logits.grad is not None
        assert not logits.grad.any(), "there is a gradient, for the others to add up, and it is 0"


def test_a_shared_prompt_gives_the_batches_of_a_repeated_one() -> None:
    own = np.random.default_rng(0).integers(1, 400, 300)
    shared = BatchPlan(own, TrainConfig(batch_size=8))
    repeated = BatchPlan(own + 3_400, TrainConfig(batch_size=8), num_shared=3_400)
    assert repeated.arrange(2) == shared.arrange(2)
    assert repeated.largest == BatchShape(8, 3_400 + shared.largest.longest)
    budget = TrainConfig(max_tokens_per_batch=8_000)
    assert BatchPlan(own + 3_400, budget, num_shared=3_400).largest.num_rows == 2


def test_rows_and_order_change_with_the_epoch_and_with_the_seed() -> None:
    lengths = np.random.default_rng(0).integers(100, 109, 200)
    plan = BatchPlan(lengths, TrainConfig(batch_size=8, seed=1))
    other = BatchPlan(lengths, TrainConfig(batch_size=8, seed=2))
    found = [plan.arrange(0), plan.arrange(1), other.arrange(0)]
    sets = [{frozenset(batch) for batch in batches} for batches in found]
    for i, j in ((0, 1), (0, 2)):
        assert len(sets[i] & sets[j]) < 5, "other rows stand together"
    largest_first = [max(lengths[batch]) for batch in plan.arrange(0)]
    assert largest_first != sorted(largest_first, reverse=True), "batches are shuffled too"


def test_little_is_padding() -> None:
    lengths = np.exp(np.random.default_rng(0).normal(5, 1, 5_000)).astype(int) + 1
    for bounds in ({"batch_size": 16}, {"max_tokens_per_batch": int(lengths.max())}):
        plan = BatchPlan(lengths, TrainConfig(**bounds))
        padded = sum(len(batch) * lengths[batch].max() for batch in plan.arrange(0))
        assert padded < 1.1 * lengths.sum()


def test_the_last_two_batches_share_what_is_left_over() -> None:
    def sizes(lengths: list[int], **bounds: int) -> list[int]:
        return [s.num_rows for s in BatchPlan(np.array(lengths), TrainConfig(**bounds)).shapes]

    assert sizes([10] * 17, batch_size=16) == [9, 8]
    assert sizes([10] * 50, batch_size=16) == [16, 16, 9, 9]
    assert sizes([10] * 48, batch_size=16) == [16, 16, 16]
    assert sizes([10] * 21, max_tokens_per_batch=100) == [10, 6, 5]
    # 43 rows in two batches would be 22 of up to 100 tokens.
    assert sizes([100] * 3 + [2] * 40, max_tokens_per_batch=300) == [3, 40]


def test_rows_are_bounded_by_tokens_alone_unless_a_number_is_given_too() -> None:
    lengths = np.full(100, 10)
    for bounds, largest in {
        (): 16,
        (("batch_size", 5),): 5,
        (("max_tokens_per_batch", 400),): 40,
        (("max_tokens_per_batch", 400), ("batch_size", 20)): 20,
    }.items():
        assert BatchPlan(lengths, TrainConfig(**dict(bounds))).largest.num_rows == largest


def test_r8_a_row_longer_than_a_batch_may_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_tokens_per_batch: found 99, but .* has 100 tokens"):
        BatchPlan(np.array([5, 100]), TrainConfig(max_tokens_per_batch=99))


def test_a_batch_is_padded_to_its_longest_row() -> None:
    examples = make_examples([5, 6, 7], [8], shared=[1, 2])
    batch = Collator(pad_token_id=0, targets=NONE)([examples[1], examples[0]])
    assert batch["input_ids"].tolist() == [[1, 2, 8, 0, 0], [1, 2, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[1.0], [0.0]]


def test_rows_without_what_they_share() -> None:
    whole = make_examples([5, 6, 7], [8], shared=[1, 2])
    own = whole.without_shared()
    assert (whole.lengths.tolist(), own.lengths.tolist()) == ([5, 3], [3, 1])
    assert [own[i].encoded.input_ids for i in range(2)] == [[5, 6, 7], [8]]
    assert torch.equal(own.targets, whole.targets)
    batch = Collator(pad_token_id=0, targets=NONE)([own[1], own[0]])
    assert batch["row_index"].tolist() == [1, 0]


@given(
    lengths=LENGTHS,
    num_rows=st.none() | st.integers(1, 40),
    num_tokens=st.none() | st.integers(1, 9_000),
    world_size=st.integers(1, 3),
)
def test_r3_rows_without_gradients_are_all_there_longest_first_within_bounds(
    lengths: np.ndarray, num_rows: int | None, num_tokens: int | None, world_size: int
) -> None:
    limits = BatchLimits(num_rows, num_tokens)
    ranks = [
        sort_into_batches(lengths, limits, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1, "no rank waits for another"
    seen = [i for batches in ranks for batch in batches for i in batch]
    assert set(seen) == set(range(len(lengths)))
    assert len(seen) - len(lengths) <= (world_size - 1) * len(ranks[0]), "few are computed twice"
    for batches in ranks:
        longest = [int(lengths[batch].max()) for batch in batches]
        assert longest == sorted(longest, reverse=True)
        for batch in batches:
            assert len(batch) <= (num_rows or len(lengths))
            tokens = len(batch) * int(lengths[batch].max())
            assert len(batch) == 1 or tokens <= (num_tokens or np.inf)


def test_no_rows_make_no_batches() -> None:
    assert sort_into_batches(np.zeros(0, dtype=np.int64), BatchLimits(num_tokens=9)) == []


def test_short_rows_do_not_wait_for_long_ones_unless_they_are_few() -> None:
    lengths = np.array([500] * 4 + [20] * 300 + [19] * 300 + [8])
    batches = sort_into_batches(lengths, BatchLimits(num_tokens=16_384))
    found = [(len(batch), int(lengths[batch].max())) for batch in batches]
    assert found == [(4, 500), (301, 20), (300, 19)], "the last two share what is left over"
    batches = sort_into_batches(lengths[3:44], BatchLimits(num_tokens=2_048))
    assert [len(batch) for batch in batches] == [2, 39], "a batch of few tokens is filled up"
