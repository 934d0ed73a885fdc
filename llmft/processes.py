"""The processes of a launch: rank, world size, barriers, and the signal that stops them.

`torchrun` and `accelerate launch` set the rank of each process in its environment.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)
"""Timeout of barriers, for long work in one process such as tokenising; NCCL's is 10 minutes."""
# Read on import: the launcher may die during the slow imports that follow.
_PARENT = os.getppid()


def _is_launcher(process: int) -> bool:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # not Linux, or gone already
        return "TORCHELASTIC_RUN_ID" in os.environ
    return any(name in command for name in (b"torchrun", b"torch.distributed", b"accelerate"))


_IS_LAUNCHED = _is_launcher(_PARENT)


def get_rank() -> int:
    """Return the rank of this process; 0 is the main one, which writes and logs."""
    return int(os.environ.get("RANK", "0"))


def get_world_size() -> int:
    """Return the number of processes, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this is the process that writes and logs."""
    return get_rank() == 0


def has_launcher() -> bool:
    """Return whether a launcher started this process, even as the only one."""
    return "RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def is_orphan() -> bool:
    """Return whether the launcher that started this process is gone (R9).

    A shell does not count: its background jobs are meant to outlive it.
    """
    return _IS_LAUNCHED and os.getppid() != _PARENT


def wait_for_all() -> None:
    """Barrier: return when all processes have called this."""
    if get_world_size() > 1:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        state.wait_for_everyone()


def is_any(flag: bool) -> bool:
    """Return whether the flag is set in any process; all have to call this."""
    if get_world_size() == 1:
        return flag
    import torch
    from torch import distributed

    device = "cpu" if distributed.get_backend() == "gloo" else "cuda"
    flags = torch.tensor([flag], dtype=torch.int32, device=device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags.item())


def ask_main(compute: Callable[[], T]) -> T:
    """Broadcast the result of the main process to all, which wait for it."""
    if get_world_size() == 1:
        return compute()
    from accelerate.utils import broadcast_object_list

    found: list[T | None] = [compute() if is_main() else None]
    wait_for_all()
    answer: T = broadcast_object_list(found)[0]
    return answer


@contextmanager
def on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """Call a function on SIGTERM within the context, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_group() -> None:
    """Destroy the process group at the end.

    Threads of gloo that still run when the interpreter ends may abort the process (status -6).
    """
    if get_world_size() > 1 and "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in the main process first, so that the others find its files on disk.

    If it fails, they wait until their launcher stops them, so that there is one message only.
    """
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()
