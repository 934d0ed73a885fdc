"""How a verb meets the terminal: plain lines out, one message for an error, an exit status."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import TextIO

from llmft.errors import UserError


def run_verb(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb and return its exit status.

    0 done; 1 done, but what `--require` asked for was not met; 2 the user can mend it; 3 a fault
    of ours; 130 interrupted.
    """
    logger = logging.getLogger("llmft")
    handler = _ConsoleHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
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


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing: the reader has gone, as in `llmft ... | head`."""
