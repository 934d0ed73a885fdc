"""How a verb meets the terminal: plain lines out, one message for an error, an exit status."""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from llmft.errors import UserError


def run_verb(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb and return its exit status.

    0 done; 1 done, but what `--require` asked for was not met; 2 the user can mend it; 3 a fault
    of ours; 130 interrupted.
    """
    _set_up_logging()
    try:
        return verb(arguments)
    except UserError as error:
        sys.stderr.write(f"llmft: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nllmft: interrupted; run the same command to go on\n")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `llmft ... | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 0
    except Exception:  # noqa: BLE001 - the last guard: a status, and what to report
        traceback.print_exc()
        sys.stderr.write("llmft: this is a fault of llmft, not yours; please report it\n")
        return 3


def _set_up_logging() -> None:
    logger = logging.getLogger("llmft")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
