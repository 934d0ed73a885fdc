"""What a call changes in its process is restored when it returns: seeds, environment, logging."""

import functools
import logging
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from llmft.console import quieten

_logger = logging.getLogger(__name__)
_LOCK = threading.RLock()
_PATIENCE_S = 5


@contextmanager
def isolated() -> Iterator[None]:
    """Restore random states, environment variables and warning filters at the end.

    Within the context libraries log errors only: tables of missing keys, progress bars of files and
    warnings for their developers would bury the log of a run. One thread is in it at a time.
    """
    with _LOCK, _restored_environment(), _restored_hub():  # imports change it too
        import numpy as np
        import torch

        python_state, numpy_state = random.getstate(), np.random.get_state()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices), warnings.catch_warnings(), _quiet_libraries():
            warnings.simplefilter("ignore", FutureWarning)
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)


def go_offline_if_unreachable() -> None:
    """Use only what is on this machine, as HF_HUB_OFFLINE=1 does, if the Hub cannot be reached.

    Otherwise each file is asked for six times, which takes half a minute. `isolated` restores it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or {"HTTPS_PROXY", "https_proxy", "ALL_PROXY"} & os.environ.keys():
        return
    constants.HF_HUB_OFFLINE = not _is_reachable(constants.ENDPOINT, minute=int(time.time() // 60))


@functools.lru_cache(maxsize=1)
def _is_reachable(address: str, *, minute: int) -> bool:
    """Return whether a host accepts connections; the answer is kept for the minute."""
    found = urlsplit(address)
    try:
        with socket.create_connection((found.hostname, found.port or 443), timeout=_PATIENCE_S):
            return True
    except OSError as error:
        _logger.warning("%s cannot be reached (%s): only this machine is searched", address, error)
        return False


@contextmanager
def _restored_hub() -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with quieten():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()
