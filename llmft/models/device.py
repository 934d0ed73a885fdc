"""Where to compute and in which precision."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from llmft.config.recipe import Precision as Precision


def choose_device() -> torch.device:
    """Return this process's GPU, else the CPU; more processes than GPUs share them."""
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


def name_device() -> str:
    """Return the name of the GPU or the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "CPU")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which matrix products run in the given precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _computes_in_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("amx_tile"))
