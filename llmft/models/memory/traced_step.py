"""A training step on tensors without content: how much memory it holds at its peak.

The model is the one that is trained, with its adapters, precision, dropout and checkpointing; only
attention is replaced by what the fast kernels keep of it. Nothing is computed and no memory is
taken, so that a large base can be traced on a small machine.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.data.batches import BatchShape
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.packed_attention import PackedRows
from llmft.models.acceleration.private_apis import (
    empty_tensors,
    find_untested,
    identify_storage,
    read_attention,
    switch_attention,
)
from llmft.models.device import Precision, autocast

_ATTENTION = {False: "llmft_traced_cpu", True: "llmft_traced_gpu"}
"""Names of the attention functions, for which no mask is registered: transformers makes none."""


class Step(NamedTuple):
    """What a training step computes on one device."""

    batch: BatchShape
    """The largest batch."""
    num_shared: int | None
    """Tokens of a shared prompt, which the batch leaves out; None if rows are computed whole."""
    precision: Precision
    gradient_checkpointing: bool
    accumulates: bool
    """Whether gradients of the step before are still there."""
    on_gpu: bool


class StepPeak(NamedTuple):
    """What a training step holds at most in addition to the weights, in bytes."""

    num_bytes: int
    """Gradients and activations together; gradients come as activations go."""
    num_activation_bytes: int
    """Activations alone, where each gradient leaves the device when it is done."""


def trace_step(model: Any, step: Step) -> StepPeak:
    """Return the peak of gradients and activations; weights are not counted.

    Args:
        model: A sequence classification model on the meta device, adapted or not, with its frozen
            weights in the precision of the training. It is of no use afterwards.
        step: What to compute.

    Raises:
        RuntimeError: If what the model computes depends on the content of tensors, or with
            untested versions of the libraries.
    """
    untested = find_untested()
    if untested is not None:
        raise RuntimeError(untested)
    if step.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # since transformers 5.2x
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.train()
    peak = _Peak()
    with empty_tensors(peak.count):
        _move_from_meta(model)
        num_weight_bytes = peak.num_live_bytes
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(peak.note_gradient)
        with _traced_attention(model, on_gpu=step.on_gpu):
            for _ in range(1 + step.accumulates):
                peak.reset()
                with autocast(torch.device("cpu"), step.precision):
                    logits_BC = _compute(model, step)
                torch.autograd.backward(logits_BC.sum())
    return StepPeak(*(found - num_weight_bytes for found in (peak.peak, peak.peak_of_activations)))


class _Peak:
    """Counts the bytes of all tensors that are made, until nothing refers to them."""

    def __init__(self) -> None:
        self.num_live_bytes = 0
        self._num_gradient_bytes = 0
        self._known: set[int] = set()
        self._gradients: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Reset the peaks."""
        self.peak = self.num_live_bytes
        self.peak_of_activations = self.num_live_bytes - self._num_gradient_bytes

    def note_gradient(self, parameter: Tensor) -> None:
        """Take the gradient of a parameter, which stays, for what it is."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        key = identify_storage(storage)
        if key not in self._gradients:
            self._gradients.add(key)
            self._num_gradient_bytes += storage.nbytes()

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count the storage of a tensor, unless that of another one was the same."""
        key, size = identify_storage(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.num_live_bytes += size
            self.peak = max(self.peak, self.num_live_bytes)
            activations = self.num_live_bytes - self._num_gradient_bytes
            self.peak_of_activations = max(self.peak_of_activations, activations)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.num_live_bytes -= size


def _move_from_meta(model: nn.Module) -> None:
    """Put tensors without content in the place of parameters and buffers; ties stay."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        for name, old in list(own):
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(module, name, made[id(old)])
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, buffer in list(buffers):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@contextmanager
def _traced_attention(model: Any, *, on_gpu: bool) -> Iterator[None]:
    """Replace PyTorch's attention; on a CPU, encoders with dropout have one of their own."""
    config = model.config

    def replace() -> None:
        if read_attention(config) == "sdpa":
            switch_attention(config, _ATTENTION[on_gpu])

    if on_gpu:
        replace()
    with fast_dropout(model):
        replace()
        yield


def _compute(model: Any, step: Step) -> Tensor:
    """Return the logits [B, C] of the batch, computed as in training."""
    num_rows, longest = step.batch
    if step.num_shared is None:
        logits_BC: Tensor = model(input_ids=_make_ids(num_rows, longest)).logits
        return logits_BC
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    num_own = step.batch.num_tokens
    rows = PackedRows(step.num_shared, _make_ids(num_own), num_rows=num_rows, longest=longest)
    ids_1T = _make_ids(1, step.num_shared + num_own)
    output = inner.model(input_ids=ids_1T, position_ids=ids_1T, use_cache=False, packed_rows=rows)
    return cast(Tensor, inner.score(output.last_hidden_state[0, :num_rows]))


def _make_ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def _attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: None,
    *,
    on_gpu: bool,
    packed_rows: PackedRows | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return an output of the right shape, [B, T, H, D], and keep what the real functions keep."""
    query, key, value = query_BHTD, key_BKTD, value_BKTD
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    if packed_rows is None:  # beside a mask, keys and values are repeated for every head
        num_queries = query.shape[1] // key.shape[1]
        if num_queries > 1:
            key, value = (x.repeat_interleave(num_queries, dim=1) for x in (key, value))
        output = _keep(query, key, value)
    elif not on_gpu:
        output = _keep(query, key, value)
    else:
        sizes = [packed_rows.num_prompt, len(packed_rows.grid_N)]
        (prompt_query, query), (prompt_key, key), (prompt_value, value) = (
            torch.split(x, sizes, dim=2) for x in (query, key, value)
        )
        key, value = (
            torch.cat([x.expand(packed_rows.num_rows, -1, -1, -1), packed_rows.pad(own)], dim=2)
            for x, own in ((prompt_key, key), (prompt_value, value))
        )
        rows = packed_rows.pack(_keep(packed_rows.pad(query), key, value))
        output = torch.cat([_keep(prompt_query, prompt_key, prompt_value), rows], dim=2)
    return output.transpose(1, 2).contiguous(), None


class _Keep(torch.autograd.Function):
    """What flash attention keeps for its backward pass: its inputs, output and a sum a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:3])
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _keep(*tensors: Tensor) -> Tensor:
    return cast(Tensor, _Keep.apply(*tensors))  # type: ignore[no-untyped-call]


for _on_gpu, _name in _ATTENTION.items():
    ALL_ATTENTION_FUNCTIONS.register(_name, partial(_attend, on_gpu=_on_gpu))
