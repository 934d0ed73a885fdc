"""How a verb meets the terminal: plain lines out, one message for an error, an exit status."""

import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

from tqdm import tqdm

from llmft.errors import UserError


def run_verb(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb and return its exit status.

    0 done; 1 done, but what `--require` asked for was not met; 2 the user can mend it; 3 a fault
    of ours; 130 interrupted.
    """
    logger = logging.getLogger("llmft")
    handler = _ConsoleHandler()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know every letter of the data
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # What the libraries will rename one day is not for the people who train a model.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return verb(arguments)
    except UserError as error:
        sys.stderr.write(f"llmft: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nllmft: interrupted; run the same command to go on\n")
        return 130
    except Exception:  # noqa: BLE001 - the last guard: a status, and what to report
        traceback.print_exc()
        sys.stderr.write("llmft: this is a fault of llmft, not yours; please report it\n")
        return 3
    finally:
        logger.removeHandler(handler)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, above the progress bar if there is one."""
        with contextlib.suppress(BrokenPipeError):  # the reader has gone, as in `llmft ... | head`
            tqdm.write(self.format(record))
