"""Where to compute and in which precision."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

from llmft.config.recipe import Precision
from llmft.models.acceleration.private_apis import read_attention

_MAX_CPU_TOKENS = 1_024
"""Larger batches exceed the processor's cache and have more padding (docs/benchmarks.md)."""
_MAX_GPU_TOKENS = 16_384


def choose_device() -> "torch.device":
    """Return this process's GPU, else the CPU; more processes than GPUs share them."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", rank % torch.cuda.device_count())


def choose_precision(wanted: Literal["auto", "float32", "bfloat16"]) -> Precision:
    """Return the precision of matrix products; auto is bfloat16 where the hardware has it."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if _computes_in_bfloat16() else "float32"


def list_precisions() -> list[Precision]:
    """Return the precisions that the hardware computes in, the default first."""
    return ["bfloat16", "float32"] if _computes_in_bfloat16() else ["float32"]


def choose_max_tokens(config: Any, device: "torch.device") -> int:
    """Return how many tokens to compute at once without gradients, padding counted.

    This is the fastest number, unless it may need more than a quarter of the device's memory. It is
    computed from total, not free memory, so that a resumed prediction makes the same batches and
    writes the same bytes.

    Args:
        config: Configuration of the base.
        device: Where the model is.
    """
    if device.type == "cpu":
        num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        import torch

        num_bytes = torch.cuda.get_device_properties(device).total_memory
    width, num_heads = config.hidden_size, config.num_attention_heads
    # In float32: inputs, outputs and intermediate tensors of a layer, and those of its wider MLP.
    per_token = 4 * (8 * width + 3 * getattr(config, "intermediate_size", 4 * width))
    if read_attention(config) == "eager":  # scores, weights and a copy, for every other token
        per_token += 12 * num_heads * config.max_position_embeddings
    most = _MAX_CPU_TOKENS if device.type == "cpu" else _MAX_GPU_TOKENS
    return int(min(most, max(1, num_bytes / 4 / per_token)))


def name_device() -> str:
    """Return the name of the GPU or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "CPU")


def autocast(device: "torch.device", precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which matrix products run in the given precision."""
    if precision == "float32":
        return nullcontext()
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16)


def _computes_in_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("amx_tile"))
