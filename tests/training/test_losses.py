"""Losses: label types come from the head, and all is computed in float32 (H4)."""

import pytest
import torch
from torch.nn import functional as F

from llmft.data.batches import make_targets
from llmft.training.losses import compute_loss


def test_h4_scores_stay_float_and_classes_stay_int() -> None:
    scores = make_targets([{"labels": {"b": 2, "a": 1}}], label_names=["a", "b"])
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[1.0, 2.0]]  # in the order of the names, not of the row
    classes = make_targets([{"labels": "no"}, {"labels": "yes"}], label_names=["yes", "no"])
    assert classes.dtype == torch.int64
    assert classes.tolist() == [1, 0]


def test_scores_take_the_mean_squared_error() -> None:
    loss = compute_loss(
        torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    )
    assert loss.item() == pytest.approx((1 + 0 + 0 + 9) / 4)


def test_classes_take_cross_entropy() -> None:
    logits, classes = torch.randn(3, 4), torch.tensor([0, 3, 1])
    assert torch.allclose(compute_loss(logits, classes), F.cross_entropy(logits, classes))


def test_parts_of_an_accumulated_batch_add_up() -> None:
    logits, targets = torch.randn(5, 2), torch.randn(5, 2)
    parts = [
        compute_loss(logits[rows], targets[rows], num_items=10) for rows in (slice(3), slice(3, 5))
    ]
    assert torch.allclose(sum(parts), compute_loss(logits, targets))


def test_bfloat16_logits_give_a_float32_loss() -> None:
    assert compute_loss(torch.ones(2, 2).bfloat16(), torch.zeros(2, 2)).dtype == torch.float32
