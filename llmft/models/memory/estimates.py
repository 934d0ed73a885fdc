"""Memory estimates of a training, from one step that is traced with fake tensors.

The traced model has the adapters, precision, dropout and checkpointing of the training; only
attention is replaced by a stub that saves what the fast kernels save for the backward pass. Nothing
is computed and no memory is used, so that a large base can be traced on a small machine.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmft.config.recipe import BaseConfig, Precision
from llmft.data.batches import BatchShape
from llmft.data.fields import Row
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.private_apis import (
    empty_tensors,
    explain_untested,
    identify_storage,
    read_attention,
    switch_attention,
)
from llmft.models.acceleration.shared_prompt import PackedRows
from llmft.models.device import autocast
from llmft.models.heads import LabelSpace, compute_head_in_float32, find_head
from llmft.models.loading import add_adapters, stays_in_bfloat16
from llmft.models.pooling import choose_pooling, make_pooled_model, take_base

_ATTENTION = {False: "llmft_traced_cpu", True: "llmft_traced_gpu"}
"""Names of the attention functions, for which no mask is registered: transformers makes none."""
Layout = Literal["one device", "DDP", "ZeRO-2", "ZeRO-3", "ZeRO-3 with offload", "FSDP2"]
"""How a training is distributed over devices."""
_COPIES_OF_LOGITS = 4  # in a step of L-BFGS
ROWS_PER_BLOCK, _COPIES_OF_BLOCKS = 8_192, 3
"""Rows that ridge regression has in memory in double precision at once, and in how many copies."""
_ROWS_MEASURED = 1_000
ESTIMATE_ERROR = 0.10
"""Largest relative error against measured peaks: small models, on a CPU, in one process."""
GPU_LIBRARIES_GIB = 1.0
"""Assumed memory of CUDA, kernel workspaces and NCCL on a GPU; not measured."""
_GIB = 2**30
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per 4-bit weight: 0.5, 1 per block of 64, and 4 per 256 blocks (double quantisation).

Source: Dettmers et al. 2023, arXiv:2305.14314, sec. 3.
"""
_LIVE_PARAMETERS = 300_000_000
"""`stage3_max_live_parameters` of our DeepSpeed files."""


class Step(NamedTuple):
    """What a training step computes on one device."""

    batch: BatchShape
    """The largest batch."""
    num_shared: int | None
    """Tokens of a shared prompt, which the batch excludes; None for the unshared forward."""
    precision: Precision
    gradient_checkpointing: bool
    accumulates: bool
    """Whether gradients of an earlier micro-batch exist already."""
    on_gpu: bool


class StepPeak(NamedTuple):
    """Peak memory of a training step, without the weights, in bytes."""

    num_bytes: int
    """Gradients and activations together; activations are freed as gradients are computed."""
    num_activation_bytes: int
    """Activations alone, for layouts in which each gradient leaves the device when it is done."""


def trace_step(model: Any, step: Step) -> StepPeak:
    """Return the peak of gradients and activations; weights are not counted.

    Args:
        model: A sequence classification model on the meta device, adapted or not, with its frozen
            weights in the precision of the training. It cannot be used afterwards.
        step: What to compute.

    Raises:
        RuntimeError: If what the model computes depends on the content of tensors, or with
            untested versions of the libraries.
    """
    untested = explain_untested()
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
    """Tracks the bytes of all live tensors, and their peak."""

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
        """Count the gradient of a parameter as a gradient, not as an activation."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        key = identify_storage(storage)
        if key not in self._gradients:
            self._gradients.add(key)
            self._num_gradient_bytes += storage.nbytes()

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count the storage of a tensor once, even if several tensors share it."""
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
    """Replace meta parameters and buffers by fake tensors, in place; tied weights stay tied."""
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
    """Replace sdpa by the stub, except in CPU encoders, where `fast_dropout` has its own."""
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
    """Return an output of shape [B, T, H, D], and save what the real kernels save for backward."""
    query, key, value = query_BHTD, key_BKTD, value_BKTD
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    if packed_rows is None:  # with a mask, keys and values are repeated for every head
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
    """Saves what flash attention saves: its inputs, its output and one log-sum-exp per query."""

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


class Footprint(NamedTuple):
    """Numbers of parameters, and sizes in bytes, that the memory of a training depends on."""

    total: int
    """All parameters, adapters included."""
    trainable: int
    in_layer: int
    """In the largest of the repeated layers."""
    in_module: int
    """In the largest single module, such as an embedding."""
    frozen_bytes: float
    """Size of the frozen weights where they are not sharded."""
    step_bytes: int
    """Peak of gradients and activations in a training step."""
    activation_bytes: int
    """Peak of activations alone."""
    loading_bytes: float = 0.0
    """Size of the weights in the machine's memory when they are loaded, before some are rounded."""
    on_gpu: bool = False
    """Whether they are moved into another memory then."""


class MemoryEstimate(NamedTuple):
    """Memory of a training on one device, in GiB."""

    weights_gib: float
    """Weights on the device, and those gathered from other devices during a step."""
    optimiser_gib: float
    """Gradients and the two moments of AdamW, of the trainable parameters, in float32."""
    activations_gib: float
    """What the forward pass saves for the backward pass, the prompt included."""
    loading_gib: float = 0.0
    """Most memory while the weights are loaded, before the first step."""

    @property
    def peak_gib(self) -> float:
        """Most memory of loading and training, without that of the libraries."""
        return max(self._step_gib, self.loading_gib)

    @property
    def _step_gib(self) -> float:
        return self.weights_gib + self.optimiser_gib + self.activations_gib

    def describe(self) -> str:
        """Return what takes most of it, in words."""
        if self.loading_gib > self._step_gib:
            return f"while the weights are loaded, {self._step_gib:.2f} in a step"
        return (
            f"weights {self.weights_gib:.2f}, gradients and optimiser {self.optimiser_gib:.2f}, "
            f"activations {self.activations_gib:.2f}"
        )


def measure_footprint(
    model_config: Any, base: BaseConfig, *, labels: LabelSpace, step: Step
) -> Footprint:
    """Measure the footprint of a training, without loading weights or computing anything.

    Args:
        model_config: Configuration of the base; changed in place.
        base: The base, for its tuning and adapters.
        labels: The outputs of the head.
        step: The largest step of the training.

    Raises:
        UserError: If a target of the adapters is not there, or the head is not supported.
        RuntimeError: If this model, or a model with these library versions, cannot be traced.
    """
    model = _build_without_weights(model_config, base, labels=labels)
    frozen_linear = _find_frozen_linear(model)
    is_rounded = step.precision == "bfloat16"
    num_linear = sum(_count(layer) for layer in frozen_linear)
    largest = max((_count(layer) for layer in frozen_linear), default=0)
    total, trainable = _count(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    in_layer = max((_count(layer) for stack in stacks for layer in stack), default=0)
    in_module = max(
        sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()
    )
    is_quantised = base.tuning == "qlora"
    stays_rounded = stays_in_bfloat16(base, step.precision)
    bytes_per_linear = _NF4_BYTES if is_quantised else 2 if is_rounded else 4
    if is_rounded:
        cast_frozen_weights(model)
    if is_quantised:
        for layer in frozen_linear:
            layer.register_forward_hook(_restore_dtype)
    dequantised = 2 * largest * is_quantised  # when they are used
    peak = trace_step(model, step)
    return Footprint(
        total=total,
        trainable=trainable,
        in_layer=in_layer,
        in_module=in_module,
        frozen_bytes=bytes_per_linear * num_linear + 4 * (total - trainable - num_linear),
        step_bytes=peak.num_bytes + dequantised,
        activation_bytes=peak.num_activation_bytes + dequantised,
        # Weights in 4 bit are loaded onto their device, layer by layer.
        loading_bytes=0.0 if is_quantised else 4 * total - 2 * num_linear * stays_rounded,
        on_gpu=step.on_gpu,
    )


class FrozenMemory(NamedTuple):
    """Memory of a frozen base and its head, in GiB."""

    weights_gib: float
    vectors_gib: float
    """One vector of each row of train and val, two where a pooling is chosen."""
    fitting_gib: float
    """What fitting the head needs in addition: logits, and some vectors in double precision."""
    rows_gib: float
    """The prepared rows of all splits."""
    states_gib: float
    """Of all poolings, on disk."""

    @property
    def peak_gib(self) -> float:
        """Most memory, without that of the libraries."""
        return self.weights_gib + self.vectors_gib + self.fitting_gib + self.rows_gib


def estimate_frozen(
    model_config: Any, base: BaseConfig, *, labels: LabelSpace, rows: Mapping[str, Sequence[Row]],
    num_poolings: int, precision: Precision,
) -> FrozenMemory:  # fmt: skip
    """Estimate the memory of a frozen base and its head, the batches aside.

    Args:
        model_config: Configuration of the base; changed in place.
        base: The base.
        labels: The outputs of the head.
        rows: Split -> prepared rows.
        num_poolings: How many are chosen from; the best one and another are in memory.
        precision: Dtype of the matrix products.
    """
    num_rows = len(rows["train"]) + len(rows["val"])
    model = _build_without_weights(model_config, base, labels=labels)
    weights: float = 4 * _count(model)
    if stays_in_bfloat16(base, precision):
        weights -= 2 * sum(map(_count, _find_frozen_linear(model.requires_grad_(False))))
    states = 4 * num_rows * model_config.hidden_size
    vectors = states * min(2, num_poolings)
    logits = 4 * num_rows * len(labels.logit_names) * _COPIES_OF_LOGITS
    logits += 8 * min(num_rows, ROWS_PER_BLOCK) * _COPIES_OF_BLOCKS * model_config.hidden_size
    prepared = sum(map(_measure_rows, rows.values()))
    return FrozenMemory(
        *(n / _GIB for n in (weights, vectors, logits, prepared, states * num_poolings))
    )


def _measure_rows(rows: Sequence[Row]) -> float:
    """Return the size of rows in bytes, from some of them."""
    some = rows[:: max(1, len(rows) // _ROWS_MEASURED)]
    each = [sys.getsizeof(row) + sum(map(sys.getsizeof, row.values())) for row in some]
    return len(rows) * sum(each) / max(1, len(each))


def can_recompute(model_config: Any) -> bool:
    """Return whether the classes of transformers for a base have gradient checkpointing."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model_config), None)
    return kind is not None and bool(kind.supports_gradient_checkpointing)


def list_layouts(base: BaseConfig) -> list[Layout]:
    """Return the layouts that a base supports: 4-bit weights cannot be sharded (R2)."""
    layouts: list[Layout] = list(get_args(Layout))
    return layouts[:3] if base.tuning == "qlora" else layouts


def estimate_memory(
    footprint: Footprint, *, layout: Layout = "one device", num_devices: int = 1
) -> MemoryEstimate:
    """Estimate the peak memory of a training step on one of several devices.

    Args:
        footprint: What the training needs.
        layout: How the training is distributed over the devices.
        num_devices: Number of devices.

    Source:
        What each stage of ZeRO splits: Rajbhandari et al. 2020, arXiv:1910.02054, sec. 5.
    """
    own = 1 / num_devices
    trained = 4 * footprint.trainable  # bytes of these weights in float32, as of their gradients
    whole, split = footprint.frozen_bytes + trained, 4 * footprint.total * own
    gathered = 4 * min(footprint.total, _LIVE_PARAMETERS + footprint.in_module)
    weights, optimiser, activations = whole, 3.0 * trained, footprint.activation_bytes
    match layout:
        case "one device":
            activations = max(0, footprint.step_bytes - trained)
        case "DDP":  # and the buckets in which gradients are sent
            optimiser = 4 * trained
            activations = max(0, footprint.step_bytes - trained)
        case "ZeRO-2":  # and another copy of the weights that the device updates
            optimiser = 4 * trained * own
        case "ZeRO-3":
            weights, optimiser = split + gathered, 4 * trained * own
        case "ZeRO-3 with offload":
            weights, optimiser = gathered, 0
        case "FSDP2":  # one layer is prefetched; modules outside the layers stay gathered
            weights = split + 4 * (footprint.in_module + 2 * footprint.in_layer)
            optimiser = 3 * trained * own
    is_here = layout in ("one device", "DDP") and not footprint.on_gpu
    loading = footprint.loading_bytes if is_here else 0
    return MemoryEstimate(*(n / _GIB for n in (weights, optimiser, activations, loading)))


def _build_without_weights(model_config: Any, base: BaseConfig, *, labels: LabelSpace) -> Any:
    """Return the model to train, on the meta device, with plain linear layers for 4-bit ones.

    Modules outside of the base are taken to be new, and so trained in full (H8).
    """
    from transformers import AutoModelForSequenceClassification

    model_config.num_labels = len(labels.logit_names)
    if model_config.pad_token_id is None:
        model_config.pad_token_id = 0
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(model_config)
        pooling = choose_pooling(base, model_config)
        if base.tuning != "frozen" and pooling is not None:
            num_outputs = len(labels.logit_names)
            model = make_pooled_model(
                take_base(model), pooling, num_outputs=num_outputs, num_prompt=0
            )
    if base.tuning in ("lora", "qlora"):
        inside = getattr(model, "base_model_prefix", "model")
        new = [
            name
            for name, child in model.named_children()
            if name != inside and any(True for _ in child.parameters())
        ]
        model = add_adapters(model, base, new)
    compute_head_in_float32(model)
    return model


def _find_frozen_linear(model: nn.Module) -> list[nn.Linear]:
    """Return the layers that are rounded to bfloat16, or to 4 bit."""
    in_head = {id(module) for module in find_head(model).modules()}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and not module.weight.requires_grad
        and id(module) not in in_head
    ]


def _restore_dtype(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Return the output in the input's dtype, as 4-bit layers do, not in that of autocast."""
    return output.to(inputs[0].dtype)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
