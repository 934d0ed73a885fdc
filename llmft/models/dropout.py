"""Dropout that is fast on a CPU: the same function, from cheaper random bits.

PyTorch draws a float for every element there, on one core, which takes a third of a training step
of a small model. Here an element takes 15 bits of PyTorch's default generator, so a resumed run
and a recomputed layer draw the same masks again. A GPU goes on with PyTorch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmft.models.dropout_mask import DropoutMask, draw_mask
from llmft.models.dropped_attention import dropped_attention


class FastDropout(nn.Dropout):
    """`nn.Dropout` with the masks of `draw_mask`, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements, in training."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        return cast(Tensor, _Drop.apply(input, self.p))  # type: ignore[no-untyped-call]


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, share: float) -> Tensor:
        mask = draw_mask(input.shape, share=share)
        ctx.save_for_backward(mask.kept)
        ctx.scale = mask.scale
        return mask.apply(input.contiguous()).mul_(mask.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        mask = DropoutMask(kept, ctx.scale)
        return mask.apply(grad.contiguous()).mul_(mask.scale), None


@contextmanager
def fast_dropout(model: nn.Module) -> Iterator[None]:
    """Let a model drop fast on a CPU, for as long as it trains; its modules keep their names."""
    modules = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in modules:
        module.__class__ = FastDropout
    try:
        with dropped_attention(model):
            yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
