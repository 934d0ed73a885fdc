"""What a call changes in its process is restored when it returns: seeds, environment, logging."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

_NOISY = ("DeepSpeed", "bitsandbytes.backends.cpu", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn about limits of CPUs, which users who train on one know, and about packages
that would fetch faster kernels from the Hub (H7)."""


@contextmanager
def isolated() -> Iterator[None]:
    """Restore random states, environment variables and warning filters at the end.

    Within the context libraries log errors only: tables of missing keys, progress bars of files and
    warnings for their developers would bury the log of a run.
    """
    environment = dict(os.environ)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), warnings.catch_warnings(), _quiet_libraries():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    noisy = [logging.getLogger(name) for name in _NOISY]
    for logger in noisy:  # a level would be reset when its library is imported
        logger.addFilter(_is_error)
    try:
        yield
    finally:
        for logger in noisy:
            logger.removeFilter(_is_error)
        transformers_logging.set_verbosity(verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()
