"""Balancing changes train only, after the split (D5)."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.config.task import BalanceConfig
from llmft.data.splitting import plan_balance
from tests.data.conftest import SCORES_LABELS, number_rows

CLASSES = ["common"] * 10 + ["middle"] * 4 + ["rare"] * 2


def balance(classes: list[str], seed: int = 1, **settings: float) -> tuple[Counter[str], set[int]]:
    """Return how often each class stands in the balanced rows, and what was left out."""
    plan = plan_balance(classes, config=BalanceConfig(**settings), seed=seed)
    kept = [name for i, name in enumerate(classes) if i not in plan.left_out]
    return Counter(kept + [classes[i] for i in plan.repeated]), plan.left_out


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"reduce_majority_to": 1.0}, {"common": 4, "middle": 4, "rare": 2}),
        ({"reduce_majority_to": 2.0}, {"common": 8, "middle": 4, "rare": 2}),
        ({"reduce_majority_to": 3.0}, {"common": 10, "middle": 4, "rare": 2}),
        ({"oversample": 1.0}, {"common": 10, "middle": 10, "rare": 10}),
        ({"oversample": 0.3}, {"common": 10, "middle": 4, "rare": 3}),
        ({"reduce_majority_to": 1.5, "oversample": 1.0}, {"common": 6, "middle": 6, "rare": 6}),
        ({}, {"common": 10, "middle": 4, "rare": 2}),
    ],
)
def test_frequent_classes_shrink_and_rare_ones_grow(
    settings: dict[str, float], counts: dict[str, int]
) -> None:
    assert balance(CLASSES, **settings)[0] == counts


def test_the_seed_chooses_which_rows_are_left_out() -> None:
    first, again, other = (balance(CLASSES, s, reduce_majority_to=1.0)[1] for s in (1, 1, 2))
    assert first == again != other


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    st.none() | st.floats(1, 5),
    st.none() | st.floats(0, 1, exclude_min=True),
)
def test_d5_no_row_is_both_left_out_and_repeated_and_no_class_vanishes(
    classes: list[str], reduce_to: float | None, oversample: float | None
) -> None:
    config = BalanceConfig(reduce_majority_to=reduce_to, oversample=oversample)
    plan = plan_balance(classes, config=config, seed=0)
    assert not plan.left_out & set(plan.repeated)
    assert len({classes[i] for i in plan.left_out}) <= 1, "only the majority shrinks"
    before = Counter(classes)
    after = Counter(name for i, name in enumerate(classes) if i not in plan.left_out)
    after.update(classes[i] for i in plan.repeated)
    assert set(after) == set(before)
    if oversample is not None:
        assert min(after.values()) >= round(oversample * max(after.values())) - 1
    for name in before:
        times = Counter(i for i in plan.repeated if classes[i] == name)
        assert max(times.values(), default=0) - min(times.values(), default=0) <= 1, "fair turns"


def make_rows(num_rows: int = 100) -> list[dict[str, Any]]:
    rows = number_rows(num_rows)
    for i, row in enumerate(rows):
        row["mood"] = "rare" if i < 20 else "common"
    return rows


def test_d5_val_and_test_are_the_same_with_and_without_balancing(prepare) -> None:
    rows = make_rows()
    plain = prepare(rows).bytes
    balanced = prepare(rows, "balance={reduce_majority_to: 2, oversample: 1}").bytes
    assert balanced["val.jsonl"] == plain["val.jsonl"]
    assert balanced["test.jsonl"] == plain["test.jsonl"]
    assert balanced["train.jsonl"] != plain["train.jsonl"]


def test_d5_copies_have_ids_of_their_own_and_the_counts_add_up(prepare) -> None:
    outcome = prepare(make_rows(), "balance={reduce_majority_to: 2, oversample: 1}")
    manifest = outcome.manifest
    assert manifest["counts"] == {
        "input": 100, "repeated": 16, "train": 64, "val": 10, "test": 10, "rejected": 32,
    }  # fmt: skip
    assert manifest["label_stats"]["train"] == {"common": 32, "rare": 32}
    assert manifest["rejected"] == {"balanced": 32}
    ids = [row["id"] for rows in outcome.splits.values() for row in rows]
    assert len(set(ids)) == len(ids) == 84
    copies = [row for row in outcome.splits["train"] if "+" in row["id"]]
    assert len(copies) == 16
    for copy in copies:
        origin = copy["id"].partition("+")[0]
        assert {**copy, "id": origin} == outcome.rows[origin]
    assert {r["reason"] for r in outcome.read("rejected")} == {
        "balanced: left out of the most frequent class"
    }


def test_a_copy_takes_no_id_that_is_taken(prepare) -> None:
    rows = make_rows(40)
    for i, row in enumerate(rows):
        row["id"], row["mood"] = f"x+{i}" if i % 2 else f"x+{i}+2", "rare" if i < 4 else "common"
    outcome = prepare(rows, "balance={oversample: 1}")
    assert outcome.status == 0
    ids = [row["id"] for rows in outcome.splits.values() for row in rows]
    assert len(set(ids)) == len(ids) == 40 + outcome.manifest["counts"]["repeated"]


def test_a_class_of_few_rows_is_copied_in_linear_time(prepare) -> None:
    rows = make_rows(6000)
    for i, row in enumerate(rows):
        row["text"] = f"w{i}"
        row["mood"] = "rare" if i < 3 else "common"
    outcome = prepare(rows, "balance={oversample: 1}")
    assert outcome.manifest["label_stats"]["train"]["rare"] > 4000


def test_scores_are_balanced_by_tier(prepare) -> None:
    labels = SCORES_LABELS[:-1] + ", tiers: {low: 0, high: 5}, weights: {risk: 1}}"
    rows = number_rows(60)
    for i, row in enumerate(rows):
        row["scores"]["risk"] = 9 if i % 4 == 0 else i % 4
    outcome = prepare(rows, "balance={oversample: 1}", labels=labels)
    stats = outcome.manifest["label_stats"]
    assert stats["train"]["tiers"]["low"] == stats["train"]["tiers"]["high"]
    assert stats["test"]["tiers"]["low"] > stats["test"]["tiers"]["high"]
    assert outcome.manifest["split"]["strata"] == "tier"


def test_scores_without_tiers_cannot_be_balanced(prepare) -> None:
    outcome = prepare(number_rows(30), "balance={oversample: 1}", labels=SCORES_LABELS)
    assert outcome.status == 2
    assert "balance: needs labels of type class, or scores with tiers" in outcome.message
