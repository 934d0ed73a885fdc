"""The prompt computed once for all rows of a batch: same outputs, same gradients, less work.

A batch becomes one packed row: the shared prompt, then the rows' own tokens one after another,
without padding. The positions of each row go on where the prompt ends. Attention keeps the rows
apart (`packed_attention`); all other layers treat tokens one by one anyway. Training uses no
key-value cache, so gradient checkpointing and hooks on layers work as ever. Without gradients
the prompt's keys and values are kept until the weights change.

Dropout draws one mask for the prompt, which all rows of a batch then share.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from llmft.models.acceleration.packed_attention import PACKED_ATTENTION, PackedRows
from llmft.models.acceleration.precision import cast_up_at_use
from llmft.models.acceleration.private_apis import (
    count_changes,
    find_untested,
    read_attention,
    switch_attention,
)

_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # these do not depend on the input's length


def find_obstacle(config: Any) -> str | None:
    """Return why a base with this configuration cannot share its prompt; None if it can."""
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if config.model_type not in _DECODERS:
        return f"a {config.model_type} base is none of {', '.join(_DECODERS)}"
    if not getattr(config, "is_causal", True):
        return "its attention looks both ways"
    if layer_types or getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if rope_type not in _ROPE_TYPES:
        return f"its {rope_type} position embedding depends on the length of the input"
    if getattr(config, "attention_dropout", 0):
        return "it has attention dropout"
    return find_untested()


class _PromptCache(NamedTuple):
    """The prompt as it was computed with certain weights in a certain precision."""

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
            model: A decoder with a head, adapted or not, whose configuration has no obstacle.
            shared_ids: What every input begins with; if empty, rows are only packed.
        """
        self._shared_ids = list(shared_ids)
        self._model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._cache: _PromptCache | None = None
        self._attention = read_attention(self._model.config)
        self._compute_whole = self._model.forward
        self._is_unshared = False
        self._is_in_float32 = False
        # Of each thread, since a server has several: where the rows of its batch end.
        self._ends = threading.local()
        self._norm_hook = self._model.model.norm.register_forward_pre_hook(self._take_ends)
        # The function stays until `detach`, since checkpointing calls it in the backward pass too.
        switch_attention(self._model.config, PACKED_ATTENTION)
        self._model.forward = _bind(self._forward, self._model)

    @property
    def keeps_prompt(self) -> bool:
        """Whether there is a prompt to keep."""
        return bool(self._shared_ids)

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
        """Let the model take unshared inputs within the context.

        Args:
            attention: Name of an attention function, other than the model's own.
        """
        switch_attention(self._model.config, attention or self._attention)
        self._is_unshared = True
        try:
            yield
        finally:
            self._is_unshared = False
            switch_attention(self._model.config, PACKED_ATTENTION)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Let the model compute in float32 within the context, even under autocast.

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
        # Like transformers, which pools the last token that does not pad.
        is_text_BA = (input_ids != self._model.config.pad_token_id).int()
        last_B = (is_text_BA * torch.arange(longest, device=input_ids.device)).argmax(dim=1)
        ends_B = rows.num_prompt + lengths_B.cumsum(dim=0) - lengths_B + last_B
        hidden_1BE = self._run(input_ids[mask_BA], rows.grid_N % longest, rows, ends_B=ends_B)
        return SequenceClassifierOutputWithPast(logits=self._model.score(hidden_1BE[0]))

    def _run(
        self, own_ids_N: Tensor, own_positions_N: Tensor, rows: PackedRows, *, ends_B: Tensor
    ) -> Tensor:
        """Return the final hidden states at places of the packed row, [1, B, E]."""
        num_shared, device = len(self._shared_ids), own_ids_N.device
        prompt_P = torch.tensor(
            self._shared_ids[: rows.num_prompt], dtype=torch.long, device=device
        )
        positions_T = torch.cat(
            [torch.arange(rows.num_prompt, device=device), num_shared + own_positions_N]
        )
        self._ends.places_B = ends_B
        output = self._model.model(
            input_ids=torch.cat([prompt_P, own_ids_N])[None],
            position_ids=positions_T[None],
            use_cache=False,
            packed_rows=rows,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _take_ends(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Let only the pooled tokens through the final norm."""
        return None if self._is_unshared else (inputs[0][:, self._ends.places_B],)

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
            self._run(none, none, rows, ends_B=none)
            self._cache = cache
        return cache.keys_and_values


def _bind(forward: Callable[..., Any], model: Any) -> MethodType:
    """Return a method of the model, as accelerate expects where it wraps one for autocast."""
    return MethodType(lambda _, *args, **kwargs: forward(*args, **kwargs), model)
