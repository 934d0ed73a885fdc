"""Loss functions, computed in float32, with weights for rows and outputs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from llmft.config.head import HeadConfig
from llmft.data.batches import Examples
from llmft.data.fields import Row
from llmft.errors import UserError


class Loss:
    """The loss of a head: weighted losses of all targets, divided by the number of targets.

    Weights are meant to have a mean of about 1, so that their sum need not be known in advance
    and parts of an accumulated batch add up exactly.
    """

    def __init__(self, config: HeadConfig, *, weights_C: Tensor | None = None) -> None:
        """Select the loss function by name, with its weights.

        Args:
            config: The head with its loss.
            weights_C: Weight of each dimension, class, or of the rows that have a label.
        """
        self._name = config.loss_name
        self._settings = config.loss
        self._weights_C = weights_C

    def __call__(
        self,
        logits_BC: Tensor,
        targets: Tensor,
        *,
        row_weights_B: Tensor | None = None,
        num_items: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss, a scalar in float32.

        Args:
            logits_BC: Outputs, shape [B, C]; [B, 1] for two classes with bce. Rows after the
                last target are ignored.
            targets: Scores [B, C] in floating point, labels [B, C] bool, or classes [B] int64.
            row_weights_B: Weight of each row, shape [B].
            num_items: Number of targets to average over, where gradients are accumulated over
                more than this batch; by default those of this batch.
        """
        logits_BC = logits_BC.float()[: len(targets)]
        if self._weights_C is not None:
            self._weights_C = self._weights_C.to(logits_BC.device)
        losses = self._compute(logits_BC, targets)
        if row_weights_B is not None:
            losses = losses * row_weights_B.reshape(-1, *[1] * (losses.dim() - 1))
        return losses.sum() / (targets.numel() if num_items is None else num_items)

    def weigh(self, targets: Tensor, row_weights_N: Tensor | None) -> Tensor:
        """Return the weight of each row in the loss, float64 [N, 1], or of its labels [N, L].

        Args:
            targets: Scores [N, D], labels [N, L] bool, or classes [N] int64.
            row_weights_N: Weight of each row.
        """
        weights_N1 = torch.ones(len(targets), 1, dtype=torch.float64)
        if row_weights_N is not None:
            weights_N1 *= row_weights_N[:, None]
        if self._weights_C is None or self._name == "mse":
            return weights_N1 if targets.dtype != torch.bool else weights_N1.expand(targets.shape)
        if self._name == "cross_entropy":
            return weights_N1 * self._weights_C[targets][:, None]
        is_positive = targets if targets.dim() == 2 else targets[:, None]
        return weights_N1 * torch.where(is_positive.bool(), self._weights_C, 1.0)

    def _compute(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target, in the targets' shape."""
        match self._name:
            case "cross_entropy" | "focal":
                return self._compute_cross_entropy(logits_BC, targets)
            case "bce":
                return F.binary_cross_entropy_with_logits(
                    logits_BC.view(targets.shape),
                    targets.float(),
                    pos_weight=self._weights_C,
                    reduction="none",
                )
            case "mse":
                losses = F.mse_loss(logits_BC, targets.float(), reduction="none")
            case "mae":
                losses = F.l1_loss(logits_BC, targets.float(), reduction="none")
            case "huber":
                losses = F.huber_loss(logits_BC, targets.float(), reduction="none")
            case name:
                raise AssertionError(name)
        return losses if self._weights_C is None else losses * self._weights_C

    def _compute_cross_entropy(self, logits_BC: Tensor, targets_B: Tensor) -> Tensor:
        losses_B = F.cross_entropy(
            logits_BC,
            targets_B,
            weight=self._weights_C,
            label_smoothing=self._settings.label_smoothing,
            reduction="none",
        )
        if self._name == "cross_entropy":
            return losses_B
        right_B = logits_BC.softmax(dim=-1).gather(1, targets_B[:, None])[:, 0]
        # At 0 a power below 1 has no finite gradient.
        return (1 - right_B).clamp(min=1e-6) ** self._settings.gamma * losses_B


def make_loss(config: HeadConfig, *, targets: Tensor, label_names: list[str]) -> Loss:
    """Return the loss of a head, balanced on training targets where the recipe says so.

    Args:
        config: The head with its loss.
        targets: All training targets, shape [N] or [N, C].
        label_names: Dimensions, classes or labels, in the order of the outputs.

    Raises:
        UserError: If the recipe does not list one weight per name.
    """
    settings = config.loss
    if settings.dimension_weights is not None:
        weights_C = torch.tensor([settings.dimension_weights.get(n, 1.0) for n in label_names])
        return Loss(config, weights_C=weights_C / weights_C.mean())
    if settings.class_weights is not None:
        if settings.class_weights == "balanced":
            weights_C = 1 / torch.bincount(targets, minlength=len(label_names)).clamp(min=1)
        else:
            weights_C = _take_weights(settings.class_weights, label_names, key="class_weights")
        return Loss(config, weights_C=weights_C / weights_C[targets].mean())
    if settings.positive_weights == "balanced":
        positive_C = targets.float().sum(dim=0).clamp(min=1)
        return Loss(config, weights_C=(len(targets) - positive_C).clamp(min=1) / positive_C)
    if settings.positive_weights is not None:
        names = label_names[-1:] if config.type == "binary" else label_names
        weights_C = _take_weights(settings.positive_weights, names, key="positive_weights")
        return Loss(config, weights_C=weights_C)
    return Loss(config)


def _take_weights(weights: list[float], names: list[str], *, key: str) -> Tensor:
    if len(weights) != len(names):
        raise UserError(
            f"head.loss.{key}: found {len(weights)} weights, expected {len(names)}, for "
            f"{', '.join(names)}; write one each"
        )
    return torch.tensor(weights)


def read_row_weights(rows: Sequence[Row], *, field: str, train_rows: Sequence[Row]) -> list[float]:
    """Return the weights of rows, scaled to a mean of 1 over the training rows.

    Args:
        rows: Prepared rows.
        field: Field that holds the weight.
        train_rows: The rows to scale by.

    Raises:
        UserError: If a weight is not a number or is negative, or all are 0.
    """
    mean = sum(_read_weight(row, field) for row in train_rows) / len(train_rows)
    if mean == 0:
        raise UserError(f"head.loss.row_weights: {field} is 0 in every row of train")
    return [_read_weight(row, field) / mean for row in rows]


def _read_weight(row: Row, field: str) -> float:
    try:
        weight = float(row[field])
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(
            f"head.loss.row_weights: {field} of row {row['id']!r} is {row[field]!r}, but "
            "expected a number of at least 0; fix the field"
        )
    return weight


class FiniteLoss:
    """`compute_loss_func` of the trainer; stops the run if the loss is not finite."""

    def __init__(self, loss: Loss, model: nn.Module, *, train: Examples, val: Examples) -> None:
        self._loss = loss
        self._train = train
        self._val = val
        self._row_ids: list[str] = []  # of the split that the last batch is from
        self._row_index_B: Tensor = torch.zeros(0, dtype=torch.long)
        self._row_weights_B: Tensor | None = None
        self._handle = model.register_forward_pre_hook(self._pop_loss_inputs, with_kwargs=True)
        self.get_step: Callable[[], int] = lambda: 0
        """Set by the trainer: steps done so far."""

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of a batch.

        Raises:
            UserError: If it is NaN or infinite: with the step, the rows and what to try.
        """
        loss = self._loss(
            outputs.logits, labels, row_weights_B=self._row_weights_B, num_items=num_items_in_batch
        )
        if not torch.isfinite(loss):
            rows = ", ".join(self._row_ids[i] for i in self._row_index_B.tolist())
            raise UserError(
                f"the loss is {loss.item()} at step {self.get_step() + 1}, in the batch with the "
                f"rows {rows}\n  Try a lower train.learning_rate, a longer warm-up, "
                "train.max_grad_norm 0.3 or train.precision float32, and look at these rows"
            )
        return loss

    def detach(self) -> None:
        """Remove the hook from the model."""
        self._handle.remove()

    def _pop_loss_inputs(
        self, model: nn.Module, arguments: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Remove row_index and row_weights from the model's inputs, and keep them for the loss."""
        self._row_ids = (self._train if model.training else self._val).ids
        self._row_index_B = inputs["row_index"]
        self._row_weights_B = inputs.get("row_weights")
        own = ("row_index", "row_weights")
        return arguments, {key: value for key, value in inputs.items() if key not in own}
