"""The shared prompt has to give what whole inputs give: looked at when a training begins."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from llmft.data.batches import Collator, Example
from llmft.errors import UserError
from llmft.models.device import Precision
from llmft.models.heads import find_output_layer
from llmft.models.shared_prompt import SharedPrompt
from llmft.training.losses import Loss

# Rounding makes 1e-6 in float32. In bfloat16 it makes 0.01 on 6 layers and up to 0.1 on 24.
_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}


class _Measured(NamedTuple):
    """What two ways to compute the same rows have to agree in."""

    loss: Tensor
    logits: Tensor
    """Computed without gradients, so with the cached prompt."""
    first_gradient: Tensor
    """Of the first trained tensor, which all layers take part in."""
    last_gradient: Tensor
    """Of the output layer."""


class SharingCheck(TrainerCallback):  # type: ignore[misc]
    """Compares both ways on two rows, in the precision of the training, before its first step."""

    def __init__(
        self,
        sharing: SharedPrompt,
        rows: list[Example],
        *,
        collator: Collator,
        loss: Loss,
        precision: Precision,
        has_whole_weights: bool = True,
    ) -> None:
        """Take what is compared.

        Args:
            sharing: The shared prompt, attached to the model that is trained.
            rows: Two training rows, without the shared tokens.
            collator: Makes batches.
            loss: The loss of the training.
            precision: Precision of the training.
            has_whole_weights: Whether this process holds all weights. Where it does not, gradients
                cannot be taken aside from a step, and only loss and outputs are compared.
        """
        self._sharing = sharing
        self._rows = rows
        self._collator = collator
        self._loss = loss
        self._precision = precision
        self._has_whole_weights = has_whole_weights

    def on_train_begin(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compare.

        Raises:
            UserError: If loss, outputs or gradients differ by more than rounding.
        """
        with self._sharing.plainly():  # one by one: without padding, and with less memory
            expected = self._measure(model, [self._collator([row]) for row in self._rows])
        found = self._measure(model, [self._collator(self._rows)])
        if not all(bool(x.isfinite().all()) for x in expected):
            return  # the first step says what is wrong
        for name, a, b in zip(_Measured._fields, expected, found, strict=True):
            error = ((a - b).norm() / a.norm().clamp(min=1e-6)).item()
            if not error <= _TOLERANCE[self._precision]:
                raise UserError(
                    "prompt.share: on the first rows of train the shared prompt does not give what "
                    f"whole inputs give ({name.replace('_', ' ')}: {error:.1%} off), so it must "
                    "not be used with this base; say `prompt: {share: false}`, and please report "
                    "it with the package versions"
                )

    def _measure(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> _Measured:
        head = find_output_layer(model).weight
        # An adapter's A has no gradient before the first step, since its B is 0.
        named = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        first = next(p for name, p in named if "lora_A" not in name)
        num_items = sum(batch["labels"].numel() for batch in batches)
        losses, logits, gradients = [], [], []
        with _without_dropout(model):
            for batch in batches:
                inputs = {k: x.to(head.device) for k, x in batch.items() if k != "row_weights"}
                labels = inputs.pop("labels")
                with torch.no_grad():
                    logits.append(model(**inputs).logits)
                losses.append(self._loss(model(**inputs).logits, labels, num_items=num_items))
                if self._has_whole_weights:
                    gradients.append(torch.autograd.grad(losses[-1], [first, head]))
                else:
                    gradients.append((losses[-1].detach(),) * 2)
        first_gradients, last_gradients = zip(*gradients, strict=True)
        return _Measured(
            torch.stack(losses).sum().detach(),
            torch.cat(logits),
            torch.stack(first_gradients).sum(dim=0),
            torch.stack(last_gradients).sum(dim=0),
        )


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Let a model train, which its gradient checkpointing asks for, but drop nothing."""
    was_training = model.training
    dropping = [m for m in model.train().modules() if isinstance(m, nn.Dropout)]
    for module in dropping:
        module.eval()
    try:
        yield
    finally:
        for module in dropping:
            module.train()
        model.train(was_training)
