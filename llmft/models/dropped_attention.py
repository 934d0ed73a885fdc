"""Attention with dropout for encoders on a CPU, row by row, so that padding costs nothing.

PyTorch's fast kernel there knows no dropout; with dropout it falls back to one that makes several
matrices of all rows, heads, queries and keys. Here those of one row stay in the processor's cache.
As there, numbers of 16 bits are computed with as float32, and only the results are rounded.

Shapes: B rows, T tokens of the longest, N tokens of one row, H heads, D width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.models.dropout_mask import DropoutMask, draw_mask

_NAME = "llmft_dropped"
_ENCODERS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")


@contextmanager
def dropped_attention(model: Any) -> Iterator[None]:
    """Let an encoder that it knows attend row by row, where it trains on a CPU with dropout.

    Rows have to be padded on the right.
    """
    config = model.config
    wanted = config._attn_implementation == "sdpa" and config.model_type in _ENCODERS
    if wanted and not getattr(config, "is_decoder", False):
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        if config._attn_implementation == _NAME:
            config._attn_implementation = "sdpa"


def attend_with_dropout(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the function `sdpa` of transformers; what stands on padding is 0.

    Args:
        module: The attention layer.
        query_BHTD: Queries.
        key_BHTD: Keys, as many as queries.
        value_BHTD: Values.
        attention_mask: What every query sees, [B, 1, T, T] bool: the first tokens of its row.
        dropout: Share of the attention weights to drop.
        scaling: What scores are multiplied by.
        options: For `sdpa`.

    Returns:
        The outputs [B, T, H, D], and no weights.
    """
    if dropout == 0 or query_BHTD.device.type != "cpu":
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BHTD, value_BHTD, attention_mask,
            dropout=dropout, scaling=scaling, **options,
        )  # fmt: skip
        return found
    num_rows, _, longest, width = query_BHTD.shape
    lengths = [longest] * num_rows
    if attention_mask is not None:
        lengths = attention_mask[:, 0, 0].sum(dim=-1).tolist()
    scaling = width**-0.5 if scaling is None else scaling
    inputs = (query_BHTD, key_BHTD, value_BHTD, lengths, dropout, scaling)
    with torch.autocast("cpu", enabled=False):  # which would round the scores
        return _Attend.apply(*inputs), None  # type: ignore[no-untyped-call]


def _take_row(row: int, num_tokens: int, *tensors_BHTD: Tensor) -> list[Tensor]:
    """Return what tensors hold of one row [H, N, D], no less exact than float32."""
    dtype = torch.promote_types(tensors_BHTD[0].dtype, torch.float32)
    return [tensor[row, :, :num_tokens].to(dtype) for tensor in tensors_BHTD]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        lengths: list[int],
        share: float,
        scaling: float,
    ) -> Tensor:
        num_rows, num_heads, longest, width = query_BHTD.shape
        out_BTHD = query_BHTD.new_zeros(num_rows, longest, num_heads, width)
        saved = []
        for row, n in enumerate(lengths):
            query_HND, key_HND, value_HND = _take_row(row, n, query_BHTD, key_BHTD, value_BHTD)
            scores_HNN = torch.bmm(query_HND, key_HND.transpose(1, 2)).mul_(scaling)
            weights_HNN = scores_HNN.softmax(dim=-1)
            mask = draw_mask(weights_HNN.shape, share=share)
            out_HND = torch.bmm(mask.apply(weights_HNN), value_HND)
            out_BTHD[row, :n] = out_HND.transpose(0, 1).mul_(mask.scale)
            saved += [weights_HNN, mask.kept]
            ctx.scale = mask.scale
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD, *saved)
        ctx.lengths, ctx.scaling = lengths, scaling
        return out_BTHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        query_BHTD, key_BHTD, value_BHTD, *saved = ctx.saved_tensors
        # As the inputs lie in memory, so that what follows needs no copies.
        grads = [torch.empty_like(t) for t in (query_BHTD, key_BHTD, value_BHTD)]
        for row, n in enumerate(ctx.lengths):
            weights_HNN, mask = saved[2 * row], DropoutMask(saved[2 * row + 1], ctx.scale)
            query_HND, key_HND, value_HND, out_grad_HND = _take_row(
                row, n, query_BHTD, key_BHTD, value_BHTD, grad_BTHD.transpose(1, 2)
            )
            out_grad_HND = out_grad_HND * ctx.scale
            weights_grad_HNN = mask.apply(torch.bmm(out_grad_HND, value_HND.transpose(1, 2)))
            scores_grad_HNN = torch._softmax_backward_data(
                weights_grad_HNN, weights_HNN, -1, weights_HNN.dtype
            ).mul_(ctx.scaling)
            query_grad, key_grad, value_grad = (grad[row, :, :n] for grad in grads)
            query_grad.copy_(torch.bmm(scores_grad_HNN, key_HND))
            key_grad.copy_(torch.bmm(scores_grad_HNN.transpose(1, 2), query_HND))
            value_grad.copy_(torch.bmm(mask.apply(weights_HNN).transpose(1, 2), out_grad_HND))
            for grad in grads:
                grad[row, :, n:] = 0
        return *grads, None, None, None


ALL_ATTENTION_FUNCTIONS.register(_NAME, attend_with_dropout)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)
