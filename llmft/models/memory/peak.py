"""Peak memory since a reset, and free memory."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Reset the measured peak, where the system can, after collecting garbage."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def measure_peak_memory() -> float:
    """Return the peak in GiB: of the GPU's allocated memory, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found.group(1)) / 2**20
    unit = 2**30 if platform.system() == "Darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_free_memory(device: torch.device) -> float:
    """Return the free memory of a device for this process, in GiB; infinity if it is unknown.

    Processes of one machine are taken to share its memory evenly.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) / 2**30
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    if found is None:
        return float("inf")
    return int(found.group(1)) / 2**20 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
