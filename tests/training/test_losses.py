"""Losses: label types come from the head, and all is computed in float32 (H4)."""

import pytest
import torch
from torch.nn import functional as F

from llmft.config.head import HeadConfig
from llmft.data.batches import make_targets
from llmft.errors import UserError
from llmft.training.losses import Loss, make_loss, read_row_weights


def test_h4_scores_stay_float_and_classes_stay_int() -> None:
    scores = make_targets([{"labels": {"b": 2, "a": 1}}], label_names=["a", "b"])
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[1.0, 2.0]]  # in the order of the names, not of the row
    classes = make_targets([{"labels": "no"}, {"labels": "yes"}], label_names=["yes", "no"])
    assert classes.dtype == torch.int64
    assert classes.tolist() == [1, 0]


def make_head(kind: str, **loss: object) -> HeadConfig:
    return HeadConfig.model_validate({"type": kind, "loss": loss})


LOGITS = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
SCORES = torch.tensor([[0.0, 2.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", (1 + 0 + 0 + 9) / 4), ("mae", (1 + 3) / 4), ("huber", (0.5 + 2.5) / 4)],
)
def test_scores_take_the_loss_of_the_recipe(name: str, expected: float) -> None:
    loss = Loss(make_head("regression", name=name))
    assert loss(LOGITS, SCORES).item() == pytest.approx(expected)


def test_dimensions_weigh_in_proportion_with_a_mean_of_one() -> None:
    head = make_head("regression", dimension_weights={"a": 3.0})
    loss = make_loss(head, targets=SCORES, label_names=["a", "b"])
    assert loss(LOGITS, SCORES).item() == pytest.approx((1.5 * 1 + 0.5 * 9) / 4)


def test_rows_weigh_what_they_are_told() -> None:
    loss = Loss(make_head("regression"))
    weighed = loss(LOGITS, SCORES, row_weights_B=torch.tensor([2.0, 0.0]))
    assert weighed.item() == pytest.approx(2 * 1 / 4)


def test_classes_take_cross_entropy() -> None:
    logits, classes = torch.randn(3, 4), torch.tensor([0, 3, 1])
    loss = Loss(make_head("multiclass"))
    assert torch.allclose(loss(logits, classes), F.cross_entropy(logits, classes))
    smoothed = Loss(make_head("multiclass", label_smoothing=0.1))
    expected = F.cross_entropy(logits, classes, label_smoothing=0.1)
    assert torch.allclose(smoothed(logits, classes), expected)


def test_balanced_classes_weigh_the_same_in_sum() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    loss = make_loss(
        make_head("multiclass", class_weights="balanced"), targets=targets, label_names=["a", "b"]
    )
    even = torch.zeros(4, 2)
    parts = [loss(even[targets == c], targets[targets == c], num_items=4) for c in (0, 1)]
    assert parts[0].item() == pytest.approx(parts[1].item())
    assert (parts[0] + parts[1]).item() == pytest.approx(F.cross_entropy(even, targets).item())


def test_focal_turns_to_the_rows_that_are_wrong() -> None:
    logits, classes = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = Loss(make_head("multiclass", name="focal", gamma=0.0))(logits, classes)
    assert torch.allclose(plain, F.cross_entropy(logits, classes))
    right = logits.softmax(-1)[torch.arange(5), classes]
    expected = (-((1 - right) ** 2) * right.log()).mean()
    found = Loss(make_head("multiclass", name="focal"))(logits, classes)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_labels_take_binary_cross_entropy_with_weights_for_what_is_rare(kind: str) -> None:
    targets = torch.tensor([1, 0, 0, 0]) if kind == "binary" else torch.eye(4)[:, :3].bool()
    logits = torch.randn(4, 1 if kind == "binary" else 3)
    names = ["no", "yes"] if kind == "binary" else ["a", "b", "c"]
    loss = make_loss(
        make_head(kind, positive_weights="balanced"), targets=targets, label_names=names
    )
    expected = F.binary_cross_entropy_with_logits(
        logits.view(targets.shape), targets.float(), pos_weight=torch.tensor(3.0)
    )
    assert torch.allclose(loss(logits, targets), expected)


def test_a_list_of_weights_has_to_fit_the_classes() -> None:
    head = make_head("multiclass", class_weights=[1.0, 2.0])
    with pytest.raises(UserError, match="found 2 weights, expected 3, for a, b, c"):
        make_loss(head, targets=torch.tensor([0, 1, 2]), label_names=["a", "b", "c"])


def test_row_weights_are_scaled_by_the_training_rows() -> None:
    rows = [{"id": "x", "trust": "1"}, {"id": "y", "trust": "3"}]
    assert read_row_weights(rows, field="trust", train_rows=rows) == [0.5, 1.5]
    assert read_row_weights(rows[1:], field="trust", train_rows=rows) == [1.5]


@pytest.mark.parametrize("weight", ["", "much", "-1", "nan", "inf"])
def test_a_row_weight_that_is_no_number_names_the_row(weight: str) -> None:
    rows = [{"id": "x", "trust": "1"}, {"id": "y", "trust": weight}]
    with pytest.raises(UserError, match="trust of row 'y'"):
        read_row_weights(rows, field="trust", train_rows=rows)


def test_parts_of_an_accumulated_batch_add_up() -> None:
    logits, targets = torch.randn(5, 2), torch.randn(5, 2)
    loss = Loss(make_head("regression"))
    parts = [loss(logits[rows], targets[rows], num_items=10) for rows in (slice(3), slice(3, 5))]
    assert torch.allclose(sum(parts), loss(logits, targets))


def test_bfloat16_logits_give_a_float32_loss() -> None:
    loss = Loss(make_head("regression"))
    assert loss(torch.ones(2, 2).bfloat16(), torch.zeros(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_finite_gradients_where_a_row_is_certain(gamma: float) -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 1.0]], requires_grad=True)
    Loss(make_head("multiclass", name="focal", gamma=gamma))(
        logits, torch.tensor([0, 0])
    ).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_class_weights_that_are_all_alike_change_nothing() -> None:
    logits, targets = torch.randn(3, 2), torch.tensor([0, 1, 1])
    head = make_head("multiclass", class_weights=[10.0, 10.0])
    weighed = make_loss(head, targets=targets, label_names=["a", "b"])
    assert torch.allclose(weighed(logits, targets), F.cross_entropy(logits, targets))
