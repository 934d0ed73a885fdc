"""Fast dropout on CPUs: cheap random masks, and attention computed by groups of rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.models.acceleration.private_apis import (
    differentiate_softmax,
    explain_untested,
    read_attention,
    switch_attention,
)

_NUM_VALUES = 2**15
_NAME = "llmft_dropped"
_ENCODERS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
_WEIGHTS_AT_ONCE = 2**18
"""Attention weights of a group of rows, unless a single row has more: 1 MiB in float32."""


class DropoutMask(NamedTuple):
    """A dropout mask, stored as bit masks, and its scale."""

    kept: Tensor
    """Int16, all bits set where an element stays, else 0."""
    scale: float
    """Factor of kept elements, 1 / (1 - p), which preserves the expectation."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor with dropped elements set to 0, without scaling."""
        if tensor.element_size() == 2:
            return tensor.view(torch.int16).bitwise_and(self.kept).view(tensor.dtype)
        return self.kept.to(tensor.dtype).mul_(tensor).neg_()  # all bits set is -1


def draw_mask(shape: Sequence[int], *, probability: float) -> DropoutMask:
    """Draw which elements to keep, on the CPU, from PyTorch's default generator.

    Args:
        shape: Shape of the mask.
        probability: Dropout probability in (0, 1), rounded to a multiple of 1/32768.
    """
    num_dropped = min(max(round(probability * _NUM_VALUES), 1), _NUM_VALUES - 1)
    num_elements = math.prod(shape)
    # One int64 gives four 16-bit values. Their sign bits are cleared, since random_() leaves
    # that of the int64 at 0.
    numbers = torch.empty(math.ceil(num_elements / 4), dtype=torch.int64).random_()
    values = numbers.view(torch.int16)[:num_elements].bitwise_and_(_NUM_VALUES - 1)
    # Values from num_dropped on become negative; the shift copies their sign to all 16 bits.
    kept = values.neg_().add_(num_dropped - 1).bitwise_right_shift_(15)
    return DropoutMask(kept.view(*shape), _NUM_VALUES / (_NUM_VALUES - num_dropped))


@contextmanager
def dropped_attention(model: Any) -> Iterator[None]:
    """Use `attend_with_dropout` in a supported encoder within the context.

    It takes effect in training on a CPU with dropout. Rows have to be padded on the right.
    """
    config = model.config
    wanted = read_attention(config) == "sdpa" and config.model_type in _ENCODERS
    if wanted and not getattr(config, "is_decoder", False):
        switch_attention(config, _NAME)
    try:
        yield
    finally:
        if read_attention(config) == _NAME:
            switch_attention(config, "sdpa")


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
    """Attend like `sdpa_attention_forward` of transformers, but with outputs of 0 at padding.

    Args:
        module: The attention layer.
        query_BHTD: Queries.
        key_BHTD: Keys, as many as queries.
        value_BHTD: Values.
        attention_mask: Padding mask [B, 1, T, T] bool; queries see the first tokens of their row.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; by default 1 / sqrt(D).
        options: Passed to `sdpa_attention_forward`.

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


class _Group(NamedTuple):
    """Rows that are computed together."""

    rows: slice | Tensor
    """Positions of the rows in the batch."""
    longest: int
    is_padding_RN: Tensor | None
    """None if all of them have the same length."""

    def take(self, *tensors_BHTD: Tensor) -> list[Tensor]:
        """Return the group's rows of each tensor, [G, N, D], in float32 or a wider dtype."""
        dtype = torch.promote_types(tensors_BHTD[0].dtype, torch.float32)
        taken = [tensor[self.rows, :, : self.longest] for tensor in tensors_BHTD]
        return [tensor.to(dtype).flatten(0, 1) for tensor in taken]

    def put(self, values_GND: Tensor, *, into_BHTD: Tensor) -> None:
        """Write values shaped like those of `take` back into a tensor, with 0 at padding."""
        num_heads = into_BHTD.shape[1]
        values_RHND = values_GND.view(
            len(values_GND) // num_heads, num_heads, *values_GND.shape[1:]
        )
        into_BHTD[self.rows, :, : self.longest] = values_RHND.to(into_BHTD.dtype)
        into_BHTD[self.rows, :, self.longest :] = 0

    def hide_padding(self, scores_GNN: Tensor) -> None:
        """Mask the scores of padding keys, in place."""
        if self.is_padding_RN is not None:
            scores_RHNN = scores_GNN.view(len(self.is_padding_RN), -1, *scores_GNN.shape[1:])
            least = torch.finfo(scores_GNN.dtype).min  # finite, for a row without a token
            scores_RHNN.masked_fill_(self.is_padding_RN[:, None, None, :], least)

    def clear_padding(self, values_GND: Tensor) -> Tensor:
        """Set the values at padding positions to 0, in place."""
        if self.is_padding_RN is not None:
            values_RHND = values_GND.view(len(self.is_padding_RN), -1, *values_GND.shape[1:])
            values_RHND.masked_fill_(self.is_padding_RN[:, None, :, None], 0)
        return values_GND


def _group_rows(lengths: list[int], *, num_heads: int) -> list[_Group]:
    """Return groups of all rows, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups = []
    while order:
        longest = lengths[order[0]]
        size = max(1, _WEIGHTS_AT_ONCE // (num_heads * max(1, longest) ** 2))
        rows, order = sorted(order[:size]), order[size:]
        own = [lengths[i] for i in rows]
        is_padding_RN = None
        if min(own) < longest:
            is_padding_RN = torch.arange(longest) >= torch.tensor(own)[:, None]
        is_run = rows[-1] - rows[0] == len(rows) - 1  # a slice is a view, without a copy
        places = slice(rows[0], rows[-1] + 1) if is_run else torch.tensor(rows)
        groups.append(_Group(places, longest, is_padding_RN))
    return groups


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        lengths: list[int],
        probability: float,
        scaling: float,
    ) -> Tensor:
        num_rows, num_heads, longest, width = query_BHTD.shape
        out_BTHD = query_BHTD.new_empty(num_rows, longest, num_heads, width)
        groups, saved = _group_rows(lengths, num_heads=num_heads), []
        for group in groups:
            query_GND, key_GND, value_GND = group.take(query_BHTD, key_BHTD, value_BHTD)
            scores_GNN = torch.bmm(query_GND, key_GND.transpose(1, 2)).mul_(scaling)
            group.hide_padding(scores_GNN)
            weights_GNN = scores_GNN.softmax(dim=-1)
            mask = draw_mask(weights_GNN.shape, probability=probability)
            out_GND = torch.bmm(mask.apply(weights_GNN), value_GND).mul_(mask.scale)
            group.put(group.clear_padding(out_GND), into_BHTD=out_BTHD.transpose(1, 2))
            saved += [weights_GNN, mask.kept]
            ctx.scale = mask.scale
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD, *saved)
        ctx.groups, ctx.scaling = groups, scaling
        return out_BTHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        query_BHTD, key_BHTD, value_BHTD, *saved = ctx.saved_tensors
        # With the memory layout of the inputs, so that later operations need no copies.
        grads = [torch.empty_like(t) for t in (query_BHTD, key_BHTD, value_BHTD)]
        for i, group in enumerate(ctx.groups):
            weights_GNN, mask = saved[2 * i], DropoutMask(saved[2 * i + 1], ctx.scale)
            query_GND, key_GND, value_GND, out_grad_GND = group.take(
                query_BHTD, key_BHTD, value_BHTD, grad_BTHD.transpose(1, 2)
            )
            out_grad_GND = group.clear_padding(out_grad_GND * ctx.scale)
            weights_grad_GNN = mask.apply(torch.bmm(out_grad_GND, value_GND.transpose(1, 2)))
            scores_grad_GNN = differentiate_softmax(weights_grad_GNN, weights=weights_GNN)
            scores_grad_GNN.mul_(ctx.scaling)
            found = (
                torch.bmm(scores_grad_GNN, key_GND),
                torch.bmm(scores_grad_GNN.transpose(1, 2), query_GND),
                torch.bmm(mask.apply(weights_GNN).transpose(1, 2), out_grad_GND),
            )
            for grad_BHTD, found_GND in zip(grads, found, strict=True):
                group.put(found_GND, into_BHTD=grad_BHTD)
        return *grads, None, None, None


ALL_ATTENTION_FUNCTIONS.register(_NAME, attend_with_dropout)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)


class FastDropout(nn.Dropout):
    """`nn.Dropout` with the masks of `draw_mask`, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements, in training."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        return cast(Tensor, _Drop.apply(input, self.p))  # type: ignore[no-untyped-call]


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, probability: float) -> Tensor:
        mask = draw_mask(input.shape, probability=probability)
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
    """Replace a model's dropout by `FastDropout` and `attend_with_dropout` within the context.

    Module names stay the same. With untested library versions nothing is replaced.
    """
    if explain_untested() is not None:
        yield
        return
    modules = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in modules:
        module.__class__ = FastDropout
    try:
        with dropped_attention(model):
            yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
