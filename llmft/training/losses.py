"""What is minimised, in float32."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from llmft.data.batches import Examples
from llmft.errors import UserError


def compute_loss(
    logits_BC: Tensor, targets: Tensor, *, num_items: Tensor | int | None = None
) -> Tensor:
    """Return the loss, a scalar in float32: mean squared error, or cross-entropy.

    Args:
        logits_BC: Outputs, shape [B, C].
        targets: Scores [B, C] in floating point, or classes [B] in int64.
        num_items: Number of targets to average over, where gradients are accumulated over more
            than this batch; by default those of this batch.
    """
    if targets.is_floating_point():
        total = F.mse_loss(logits_BC.float(), targets.float(), reduction="sum")
    else:
        total = F.cross_entropy(logits_BC.float(), targets, reduction="sum")
    return total / (targets.numel() if num_items is None else num_items)


class GuardedLoss:
    """The loss, as `transformers.Trainer` calls it, that stops the run when it is not finite."""

    def __init__(self, model: nn.Module, *, examples: Sequence[Examples]) -> None:
        self._examples = examples
        self._last_inputs: dict[str, Any] = {}
        self._handle = model.register_forward_pre_hook(self._remember, with_kwargs=True)
        self.get_step: Callable[[], int] = lambda: 0
        """Set by the trainer: steps done so far."""

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of a batch.

        Raises:
            UserError: If it is NaN or infinite: with the step, the rows and what to try.
        """
        loss = compute_loss(outputs.logits, labels, num_items=num_items_in_batch)
        if not torch.isfinite(loss):
            ids, mask = self._last_inputs["input_ids"], self._last_inputs["attention_mask"]
            rows = [row_id for e in self._examples for row_id in e.find_ids(ids, mask)]
            raise UserError(
                f"the loss is {loss.item()} at step {self.get_step() + 1}, in the batch with the "
                f"rows {', '.join(rows)}\n  Try a lower train.learning_rate, a longer warm-up, "
                "train.max_grad_norm 0.3 or train.precision float32, and look at these rows"
            )
        return loss

    def detach(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def _remember(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        self._last_inputs = inputs
