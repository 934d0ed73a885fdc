"""Verbs on a terminal: log lines, one message for an error, an exit status."""

import argparse
import contextlib
import io
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable

from llmft.errors import StoppedError, UserError
from llmft.processes import get_world_size, is_main, leave_group

# On import these libraries warn about limits of CPUs, which users who train on one know.
for _name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).addFilter(lambda record: record.levelno >= logging.ERROR)


def run_verb(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb and return its exit status.

    0 done; 1 done, but the decision is worse than `--require`; 2 an error that the user can fix;
    3 a bug of llmft; 130 interrupted; 143 stopped by a signal, with its state saved.
    """
    logger = logging.getLogger("llmft")
    handler = _ConsoleHandler()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main() else logging.WARNING)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters of the data
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # FutureWarnings are for developers of the libraries, not for people who train a model.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        status = verb(arguments)
        leave_group()
        return status
    except UserError as error:
        _wait_for_main()
        sys.stderr.write(f"llmft: {error}\n")
        return error.exit_status
    except StoppedError as error:
        if is_main():
            sys.stderr.write(f"llmft: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        if is_main():
            sys.stderr.write("\nllmft: interrupted; run the same command again to resume\n")
        return 130
    except Exception as error:  # noqa: BLE001 - the last guard: a status, and what to report
        _wait_for_main()
        if get_world_size() > 1 and _is_lost_connection(error):
            sys.stderr.write(
                "llmft: the connection to another process of this launch is lost, perhaps because "
                "that process ended with an error; fix that error, and run the same command again "
                f"to resume. The error here: {error}\n"
            )
            return UserError.exit_status
        traceback.print_exc()
        sys.stderr.write("llmft: this is a bug in llmft; please report it\n")
        return 3
    finally:
        logger.removeHandler(handler)


def _wait_for_main() -> None:
    """Wait in the other processes before they report an error.

    Most errors occur in all of them at once. The main one reports it and ends, and its launcher
    stops the others before they report the same.
    """
    if not is_main():
        time.sleep(10)


def _is_lost_connection(error: Exception) -> bool:
    """Return whether an error means that another process cannot be reached any more."""
    text = str(error)
    signs = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, ConnectionError) or any(sign in text for sign in signs)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, above the progress bar if there is one."""
        with contextlib.suppress(BrokenPipeError):  # the pipe is closed, as in `llmft ... | head`
            line = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(line)
            else:  # there is no bar; importing tqdm takes longer than all the rest of `--help`
                sys.stdout.write(f"{line}\n")


def read_count(text: str) -> int:
    """Return an option's value as an integer above 0, for `argparse`."""
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return count
