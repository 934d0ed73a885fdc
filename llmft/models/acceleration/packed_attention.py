"""Attention over a packed row: a prompt, then the rows of a batch, each of which sees the prompt.

Shapes: B rows, A tokens of the longest, N tokens of all rows, P of the prompt, T of the packed
row, H query heads, K key-value heads, D width of a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.models.acceleration.private_apis import attend_with_flash, differentiate_flash

PACKED_ATTENTION = "llmft_packed"
EAGER_ATTENTION = "llmft_eager"
"""Names of attention functions. No mask is registered under them, so transformers makes none."""


class PackedRows(NamedTuple):
    """Where the rows of a batch stand in a packed row."""

    num_prompt: int
    """Tokens of the prompt at the start of the packed row; 0 if there is none or it is cached."""
    grid_N: Tensor
    """Place of each own token in the padded batch, read row by row."""
    num_rows: int
    longest: int
    cache: list[tuple[Tensor, Tensor]] | None = None
    """Keys and values of the prompt in each layer, [1, K, P, D]: written by a row that holds the
    prompt, read by one that does not."""

    def pad(self, packed_1HND: Tensor) -> Tensor:
        """Return rows as a padded batch, [B, H, A, D]; padding is 0."""
        _, num_heads, num_tokens, width = packed_1HND.shape
        rows = packed_1HND.transpose(1, 2).reshape(num_tokens, num_heads * width)
        size = self.num_rows * self.longest
        if num_tokens < size:
            rows = rows.new_zeros(size, num_heads * width).index_copy(0, self.grid_N, rows)
        return rows.view(self.num_rows, self.longest, num_heads, width).transpose(1, 2)

    def pack(self, padded_BHAD: Tensor) -> Tensor:
        """Return a padded batch as rows behind each other, [1, H, N, D]."""
        _, num_heads, _, width = padded_BHAD.shape
        rows = padded_BHAD.transpose(1, 2).reshape(-1, num_heads * width)
        if len(self.grid_N) < len(rows):
            rows = rows.index_select(0, self.grid_N)
        return rows.view(1, -1, num_heads, width).transpose(1, 2)


def attend_packed(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: None,
    *,
    packed_rows: PackedRows,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend from the prompt to itself and from each row to the prompt and itself, causally.

    Called by the layers of transformers' decoders.

    Returns:
        The output, shape [1, T, H, D], and no weights.
    """
    device = query_1HTD.device.type
    if torch.is_autocast_enabled(device):  # the flash kernel's own name is unknown to autocast
        dtype = torch.get_autocast_dtype(device)
        query_1HTD, key_1KTD, value_1KTD = (x.to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    sizes = [packed_rows.num_prompt, query_1HTD.shape[2] - packed_rows.num_prompt]
    prompt_query, query = torch.split(query_1HTD, sizes, dim=2)
    prompt_key, key = torch.split(key_1KTD, sizes, dim=2)
    prompt_value, value = torch.split(value_1KTD, sizes, dim=2)
    outputs = []
    if packed_rows.num_prompt:
        outputs.append(_attend(prompt_query, prompt_key, prompt_value, scaling))
        if packed_rows.cache is not None:
            packed_rows.cache.append((prompt_key, prompt_value))
    elif packed_rows.cache is not None:
        prompt_key, prompt_value = packed_rows.cache[module.layer_idx]  # type: ignore[index]
    if sizes[1]:
        attend = attend_rows if device != "cpu" or not prompt_key.shape[2] else _FlashRows.apply
        outputs.append(attend(query, prompt_key, prompt_value, key, value, packed_rows, scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def attend_eagerly(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally with a matrix of scores, as transformers' `eager`, to rows without padding.

    There is one head's matrix at a time, since it is computed again in the backward pass.

    Returns:
        The output, shape [B, T, H, D], and no weights.
    """
    num_heads, group = query_BHTD.shape[1], query_BHTD.shape[1] // key_BKTD.shape[1]
    heads = [
        checkpoint(
            _attend_with_scores,
            query_BHTD[:, head],
            key_BKTD[:, head // group],
            value_BKTD[:, head // group],
            scaling,
            use_reentrant=False,
        )
        for head in range(num_heads)
    ]
    return torch.stack(heads, dim=2), None


def _attend_with_scores(
    query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, scaling: float
) -> Tensor:
    scores_BTT = query_BTD @ key_BTD.transpose(1, 2) * scaling
    is_ahead_TT = torch.ones_like(scores_BTT[0], dtype=torch.bool).triu(diagonal=1)
    weights_BTT = scores_BTT.masked_fill(is_ahead_TT, -torch.inf).softmax(-1, torch.float32)
    return weights_BTT.to(query_BTD.dtype) @ value_BTD


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, attend_packed)
ALL_ATTENTION_FUNCTIONS.register(EAGER_ATTENTION, attend_eagerly)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend causally; with more keys than queries, the last query sees all of them."""
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(query.shape[2], key.shape[2]),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_rows(
    query_1HND: Tensor,
    prompt_key_1KPD: Tensor,
    prompt_value_1KPD: Tensor,
    key_1KND: Tensor,
    value_1KND: Tensor,
    rows: PackedRows,
    scaling: float,
) -> Tensor:
    """Attend from each row to the prompt and itself, [1, H, N, D], by padding; on any device."""
    key, value = (
        torch.cat([prompt.expand(rows.num_rows, -1, -1, -1), rows.pad(own)], dim=2)
        for prompt, own in ((prompt_key_1KPD, key_1KND), (prompt_value_1KPD, value_1KND))
    )
    return rows.pack(_attend(rows.pad(query_1HND), key, value, scaling))


class _FlashRows(torch.autograd.Function):
    """The same on CPU, without a copy of the prompt's keys for each row and without a mask.

    All rows attend to the prompt in one call of the flash kernel, and to themselves in another.
    The two outputs are weighted by the sums of exponentials of their scores. In the backward pass
    each call is given the joint output and the joint log-sum-exp, and so returns its part of the
    true gradient.

    Source:
        Dao 2023, arXiv:2307.08691, sec. 3.1 (how parts of a softmax are joined).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        key: Tensor,
        value: Tensor,
        rows: PackedRows,
        scaling: float,
    ) -> Tensor:
        seen, seen_lse = attend_with_flash(
            query, prompt_key, prompt_value, is_causal=False, scale=scaling
        )
        own, own_lse = attend_with_flash(
            *map(rows.pad, (query, key, value)), is_causal=True, scale=scaling
        )
        own, own_lse = rows.pack(own), rows.pack(own_lse[..., None])[..., 0]
        weight = torch.sigmoid(own_lse - seen_lse)[..., None]
        output = torch.lerp(seen.to(weight.dtype), own.to(weight.dtype), weight).to(query.dtype)
        lse = torch.logaddexp(own_lse, seen_lse)
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, output, lse)
        ctx.rows, ctx.scaling = rows, scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, prompt_key, prompt_value, key, value, output, lse = ctx.saved_tensors
        rows: PackedRows = ctx.rows
        grad_query, grad_prompt_key, grad_prompt_value = differentiate_flash(
            grad, query, prompt_key, prompt_value, output, lse, is_causal=False, scale=ctx.scaling
        )
        own_lse = rows.pad(lse[..., None])[..., 0]
        own = [rows.pad(x) for x in (grad, query, key, value, output)]
        own_grads = differentiate_flash(*own, own_lse, is_causal=True, scale=ctx.scaling)
        own_query, grad_key, grad_value = map(rows.pack, own_grads)
        return (
            grad_query + own_query, grad_prompt_key, grad_prompt_value, grad_key, grad_value,
            None, None,
        )  # fmt: skip
