"""Peak memory since a reset, and free memory."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
KEPT_BLOCKS = 1.25
"""Peak of a few steps, of several GiB, with the blocks that glibc keeps, relative to without."""
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 2 * 2**20
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)  # fmt: skip
"""Limit and use of a control group, of version 2 and 1."""


def reset_peak_memory() -> None:
    """Reset the measured peak, where the system can, after collecting garbage."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or not glibc
        _return_freed()
        Path("/proc/self/clear_refs").write_text("5")


def return_freed_memory() -> None:
    """Return freed memory that glibc keeps, once less than a third of what is used is free.

    Over many steps with batches of several lengths it keeps ever more: 14.0 GiB after 84 steps of
    LoRA on a Gemma 3 270M that needs 9.0 (docs/results.md).

    Source: `man malloc_trim`.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or not glibc
        if measure_free_memory(torch.device("cpu")) < measure_used_memory() / 3:
            _return_freed()


def measure_used_memory() -> float:
    """Return the memory that this process uses now, in GiB.

    Raises:
        OSError: If the system does not say.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def _return_freed() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def limit_fragmentation() -> None:
    """Make glibc return every large block at once, at the price of time: its pages are made again.

    Otherwise its threshold rises with the blocks that are freed, and what lies between smaller ones
    is kept: up to a quarter more memory (`KEPT_BLOCKS`). LoRA on a Gemma 3 270M took 1.7 times as
    long (docs/results.md).

    Source: `man mallopt`, M_MMAP_THRESHOLD.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


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

    That of a machine or, in a container, what its limit leaves. Processes of one machine are taken
    to share it evenly.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) / 2**30
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    available = int(found.group(1)) / 2**20 if found else float("inf")
    shared = min(available, _measure_free_in_cgroup())
    return shared / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _measure_free_in_cgroup() -> float:
    """Return what the control group of this process, such as its container, leaves it, in GiB.

    Source: the files of version 2 and 1 in the kernel's documentation of control groups.
    """
    free = float("inf")
    for folder in _list_cgroups():
        for limit, used in _CGROUP_FILES:
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = (folder / "memory.stat").read_text()
                # Pages of files are given back when memory is needed; version 1 has the sum of all
                # groups inside as total_*.
                cached = dict(re.findall(r"^(?:total_)?((?:in)?active_file) (\d+)", stat, re.M))
                taken -= sum(map(int, cached.values()))
                free = min(free, max(0, most - taken) / 2**30)
    return free


def _list_cgroups() -> Iterator[Path]:
    """Yield the folders of this process's control group and of all groups that it is in."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / ("memory" if controllers else "")
        inner = root / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))
