"""The prompt computed once for all rows of a batch: same outputs, same gradients, less work.

A batch becomes one packed row: the shared prompt, then the rows' own tokens one after another,
without padding. The positions of each row continue where the prompt ends. Attention keeps the rows
apart (`attend_packed`); all other layers treat tokens one by one anyway. Training uses no
key-value cache, so gradient checkpointing and hooks on layers work as ever. Without gradients
the prompt's keys and values are cached until the weights change.

Dropout draws one mask for the prompt, which all rows of a batch then share.

Shapes: B rows, A tokens of the longest, N tokens of all rows, P of the prompt, T of the packed
row, H query heads, K key-value heads, D width of a head.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.models.acceleration.precision import cast_up_at_use
from llmft.models.acceleration.private_apis import (
    attend_with_flash,
    count_changes,
    differentiate_flash,
    explain_untested,
    read_attention,
    switch_attention,
)
from llmft.models.pooling import PooledModel

PACKED_ATTENTION = "llmft_packed"
EAGER_ATTENTION = "llmft_eager"
"""Names of attention functions. No mask is registered under them, so transformers makes none."""
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # these do not depend on the input's length


class PackedRows(NamedTuple):
    """Layout of a packed row, and how its tokens map to the padded batch."""

    num_prompt: int
    """Tokens of the prompt at the start of the packed row; 0 if there is none or it is cached."""
    grid_N: Tensor
    """Index of each token after the prompt in the flattened padded batch, [B * A]."""
    num_rows: int
    longest: int
    cache: list[tuple[Tensor, Tensor]] | None = None
    """Keys and values of the prompt in each layer, [1, K, P, D]: written if the packed row contains
    the prompt, else read."""

    def pad(self, packed_1HND: Tensor) -> Tensor:
        """Return rows as a padded batch, [B, H, A, D]; padding is 0."""
        _, num_heads, num_tokens, width = packed_1HND.shape
        rows = packed_1HND.transpose(1, 2).reshape(num_tokens, num_heads * width)
        size = self.num_rows * self.longest
        if num_tokens < size:
            rows = rows.new_zeros(size, num_heads * width).index_copy(0, self.grid_N, rows)
        return rows.view(self.num_rows, self.longest, num_heads, width).transpose(1, 2)

    def pack(self, padded_BHAD: Tensor) -> Tensor:
        """Return a padded batch as concatenated rows without padding, [1, H, N, D]."""
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
    if torch.is_autocast_enabled(device):  # autocast does not cover the private operator
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

    Each head is checkpointed, so that only one matrix of scores is in memory at a time.

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
    """`attend_rows` for CPUs, without a copy of the prompt's keys per row and without a mask.

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


def explain_unshared(config: Any) -> str | None:
    """Return why a base with this configuration cannot share its prompt; None if it can."""
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if config.model_type not in _DECODERS:
        return f"a {config.model_type} base is not one of {', '.join(_DECODERS)}"
    if not getattr(config, "is_causal", True):
        return "its attention is bidirectional"
    if layer_types or getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if rope_type not in _ROPE_TYPES:
        return f"its {rope_type} position embedding depends on the length of the input"
    if getattr(config, "attention_dropout", 0):
        return "it has attention dropout"
    return explain_untested()


class _PromptCache(NamedTuple):
    """Keys and values of the prompt, valid for the weights and the precision in `key`."""

    key: object
    keys_and_values: list[tuple[Tensor, Tensor]]
    """Of each layer, [1, K, P, D]."""


class SharedPrompt:
    """Makes a sequence classification model compute the prompt once for all rows of a batch.

    The model keeps its modules and their names. While this is attached it takes rows without the
    shared tokens: input_ids and attention_mask, both [B, A], padded on the right; its logits are
    [B, C] as before.
    """

    def __init__(self, model: Any, shared_ids: Sequence[int]) -> None:
        """Attach to a model, in place.

        Args:
            model: A decoder with a head, with or without adapters, that can share its prompt.
            shared_ids: Token ids that every input begins with; if empty, rows are only packed.
        """
        self._shared_ids = list(shared_ids)
        self._model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._cache: _PromptCache | None = None
        self._attention = read_attention(self._model.config)
        self._compute_whole = self._model.forward
        self._is_unshared = False
        self._is_in_float32 = False
        # Places of the pooled tokens, per thread, since a server has several threads.
        self._pooled = threading.local()
        self._norm_hook = self._model.model.norm.register_forward_pre_hook(self._select_pooled)
        # The function stays until `detach`, since checkpointing calls it in the backward pass too.
        switch_attention(self._model.config, PACKED_ATTENTION)
        self._model.forward = _bind(self._forward, self._model)

    @property
    def keeps_prompt(self) -> bool:
        """Whether there is a prompt to keep."""
        return bool(self._shared_ids)

    @property
    def shared_ids(self) -> list[int]:
        """Token ids that every input begins with."""
        return self._shared_ids

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the base, which the packed row goes through."""
        layers: nn.ModuleList = self._model.model.layers
        return layers

    def forget(self) -> None:
        """Clear the cache: the next batch computes the prompt again."""
        self._cache = None

    def detach(self) -> None:
        """Restore the model's forward, which takes unshared inputs."""
        del self._model.forward
        self._norm_hook.remove()
        switch_attention(self._model.config, self._attention)
        self._cache = None

    @contextmanager
    def unshared(self, *, attention: str | None = None) -> Iterator[None]:
        """Use the model's original forward, on unshared inputs, within the context.

        Args:
            attention: Name of an attention function; None: the model's own.
        """
        switch_attention(self._model.config, attention or self._attention)
        self._is_unshared = True
        try:
            yield
        finally:
            self._is_unshared = False
            switch_attention(self._model.config, PACKED_ATTENTION)

    @contextmanager
    def shortened(self, num_tokens: int) -> Iterator[None]:
        """Share the first tokens of the prompt only, within the context."""
        whole, model = self._shared_ids, self._model
        self._shared_ids, num_prompt = whole[:num_tokens], getattr(model, "num_prompt", None)
        if num_prompt is not None:  # of a `PooledModel`, which does not pool them
            model.num_prompt = min(num_prompt, num_tokens)
        self.forget()
        try:
            yield
        finally:
            self._shared_ids = whole
            if num_prompt is not None:
                model.num_prompt = num_prompt
            self.forget()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 within the context, even under autocast.

        The accelerator wraps a model's `forward` in autocast, so that is disabled inside it too.
        """
        device = next(self._model.parameters()).device.type
        matmul_precision = torch.get_float32_matmul_precision()
        self._is_in_float32 = True
        try:
            torch.set_float32_matmul_precision("highest")  # on GPUs "high" is TF32, of 10 bits
            with torch.autocast(device, enabled=False), cast_up_at_use(self._model):
                yield
        finally:
            torch.set_float32_matmul_precision(matmul_precision)
            self._is_in_float32 = False

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> SequenceClassifierOutputWithPast:
        compute = self._compute_whole if self._is_unshared else self._compute_shared
        lifted = torch.autocast(input_ids.device.type, enabled=False)
        with lifted if self._is_in_float32 else nullcontext():
            output: SequenceClassifierOutputWithPast = compute(
                input_ids=input_ids, attention_mask=attention_mask
            )
        return output

    def _compute_shared(
        self, *, input_ids: Tensor, attention_mask: Tensor
    ) -> SequenceClassifierOutputWithPast:
        mask_BA = attention_mask.bool()
        num_rows, longest = mask_BA.shape
        rows = PackedRows(
            num_prompt=len(self._shared_ids),
            grid_N=mask_BA.flatten().nonzero()[:, 0],
            num_rows=num_rows,
            longest=longest,
        )
        if torch.is_grad_enabled():
            self._cache = None  # the weights are about to change
        elif self._shared_ids:
            rows = rows._replace(num_prompt=0, cache=self._get_cache(input_ids.device))
        lengths_B = mask_BA.sum(dim=1)
        # Like transformers, which pools the last token that is not padding.
        is_text_BA = (input_ids != self._model.config.pad_token_id).int()
        last_B = (is_text_BA * torch.arange(longest, device=input_ids.device)).argmax(dim=1)
        ends_B = rows.num_prompt + lengths_B.cumsum(dim=0) - lengths_B + last_B
        own_ids_N, positions_N = input_ids[mask_BA], rows.grid_N % longest
        if isinstance(self._model, PooledModel):
            places_N = rows.num_prompt + torch.arange(len(own_ids_N), device=input_ids.device)
            logits_BC = self._model.pool_packed(
                lambda: self._run(own_ids_N, positions_N, rows, places=places_N), lengths_B
            )
        else:
            hidden_BE = self._run(own_ids_N, positions_N, rows, places=ends_B)
            logits_BC = self._model.score(hidden_BE)
        return SequenceClassifierOutputWithPast(logits=logits_BC)

    def _run(
        self, own_ids_N: Tensor, own_positions_N: Tensor, rows: PackedRows, *, places: Tensor
    ) -> Tensor:
        """Return the final hidden states at some places of the packed row, [places, E]."""
        num_shared, device = len(self._shared_ids), own_ids_N.device
        prompt_P = torch.tensor(
            self._shared_ids[: rows.num_prompt], dtype=torch.long, device=device
        )
        positions_T = torch.cat(
            [torch.arange(rows.num_prompt, device=device), num_shared + own_positions_N]
        )
        self._pooled.places = places
        output = self._model.model(
            input_ids=torch.cat([prompt_P, own_ids_N])[None],
            position_ids=positions_T[None],
            use_cache=False,
            packed_rows=rows,
        )
        hidden_1NE: Tensor = output.last_hidden_state
        return hidden_1NE[0]

    def _select_pooled(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Pass only the pooled tokens to the final norm."""
        return None if self._is_unshared else (inputs[0][:, self._pooled.places],)

    def _get_cache(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the prompt, computed again if weights or precision changed."""
        weights = tuple((p.data_ptr(), count_changes(p)) for p in self._model.parameters())
        is_autocast = torch.is_autocast_enabled(device.type)
        key = (weights, is_autocast and torch.get_autocast_dtype(device.type))
        cache = self._cache
        if cache is None or key != cache.key:
            none = torch.empty(0, dtype=torch.long, device=device)
            cache = _PromptCache(key, [])
            rows = PackedRows(
                len(self._shared_ids), none, num_rows=0, longest=0, cache=cache.keys_and_values
            )
            self._run(none, none, rows, places=none)
            self._cache = cache
        return cache.keys_and_values


def _bind(forward: Callable[..., Any], model: Any) -> MethodType:
    """Return a method of the model, as accelerate expects where it wraps one for autocast."""
    return MethodType(lambda _, *args, **kwargs: forward(*args, **kwargs), model)
