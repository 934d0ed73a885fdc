"""What a call changes in its process is restored when it returns: seeds, environment, logging."""

import os
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from llmft.console import quieten

_LOCK = threading.RLock()


@contextmanager
def isolated() -> Iterator[None]:
    """Restore random states, environment variables and warning filters at the end.

    Within the context libraries log errors only: tables of missing keys, progress bars of files and
    warnings for their developers would bury the log of a run. One thread is in it at a time.
    """
    with _LOCK, _restored_environment():  # imports change it too
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
