"""How much memory a training will take, estimated from the base's configuration alone."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from llmft.config.recipe import BaseConfig
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.heads import LabelSpace, compute_head_in_float32, find_head
from llmft.models.loading import add_adapters
from llmft.models.memory.traced_step import Step, trace_step

Layout = Literal["one device", "DDP", "ZeRO-2", "ZeRO-3", "ZeRO-3 with offload", "FSDP2"]
"""How processes share a training."""

ESTIMATE_ERROR = 0.10
"""How far estimates were from measured peaks at most: small models, on a CPU, in one process."""
GPU_LIBRARIES_GIB = 1.0
"""What CUDA, the kernels' workspaces and NCCL are taken to need on a GPU; not measured."""

_GIB = 2**30
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bit: a byte a block of 64, and four bytes a 256 of these (double quantisation).

Source: Dettmers et al. 2023, arXiv:2305.14314, sec. 3.
"""
_LIVE_PARAMETERS = 300_000_000
"""`stage3_max_live_parameters` of our DeepSpeed files."""


class Footprint(NamedTuple):
    """What a training needs memory for; numbers of parameters, but for the bytes."""

    total: int
    """All parameters, adapters included."""
    trainable: int
    in_layer: int
    """In the largest of the repeated layers."""
    in_module: int
    """In the largest single module, such as an embedding."""
    frozen_bytes: float
    """Frozen weights as they are kept where they are not split over devices."""
    step_bytes: int
    """Peak of gradients and activations in a training step."""
    activation_bytes: int
    """Peak of activations alone."""


class MemoryEstimate(NamedTuple):
    """Memory of a training step on one device, in GiB."""

    weights_gib: float
    """Those that lie on the device, and what is gathered of the others meanwhile."""
    optimiser_gib: float
    """Gradients and the two moments of AdamW, of what is trained, in float32."""
    activations_gib: float
    """What the forward pass keeps for the backward pass, with the prompt."""

    @property
    def total_gib(self) -> float:
        """All of it; what the libraries take comes on top."""
        return sum(self)


def measure_footprint(
    model_config: Any, base: BaseConfig, *, labels: LabelSpace, step: Step
) -> Footprint:
    """Tell what a training needs, without weights and without computing anything.

    Args:
        model_config: Configuration of the base; changed in place.
        base: For its tuning.
        labels: What the head puts out.
        step: The largest step of the training.

    Raises:
        UserError: If a target of the adapters is not there, or the head is not supported.
        RuntimeError: If the model is of a kind, or the libraries of versions, that cannot be
            traced.
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
    )


def list_layouts(base: BaseConfig) -> list[Layout]:
    """Return how a training can be shared: weights in 4 bit cannot be split (R2)."""
    layouts: list[Layout] = list(get_args(Layout))
    return layouts[:3] if base.tuning == "qlora" else layouts


def estimate_memory(
    footprint: Footprint, *, layout: Layout = "one device", num_devices: int = 1
) -> MemoryEstimate:
    """Estimate the peak memory of a training step on one of several devices.

    Args:
        footprint: What the training needs.
        layout: How the devices share it.
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
        case "FSDP2":  # a layer is gathered ahead, and what is in no layer stays
            weights = split + 4 * (footprint.in_module + 2 * footprint.in_layer)
            optimiser = 3 * trained * own
    return MemoryEstimate(weights / _GIB, optimiser / _GIB, activations / _GIB)


def _build_without_weights(model_config: Any, base: BaseConfig, *, labels: LabelSpace) -> Any:
    """Return the model that is trained, on the meta device; layers in 4 bit are plain ones.

    What stands outside of the base is taken to be new, and so trained in full (H8).
    """
    from transformers import AutoModelForSequenceClassification

    model_config.num_labels = len(labels.logit_names)
    if model_config.pad_token_id is None:
        model_config.pad_token_id = 0
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(model_config)
    if base.tuning != "full":
        new = [
            name
            for name, child in model.named_children()
            if name != model.base_model_prefix and any(True for _ in child.parameters())
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
    """Put out what came in, as layers in 4 bit do, and not what autocast computes in."""
    return output.to(inputs[0].dtype)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
