"""Verbs on a terminal: log lines, one message for an error, an exit status."""

import argparse
import contextlib
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from llmft.errors import StoppedError, UserError
from llmft.processes import get_world_size, is_main, leave_group
from llmft.wording import escape_controls

_logger = logging.getLogger(__name__)

_NOISY = ("DeepSpeed", "bitsandbytes.backends.cpu", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn about limits of CPUs, which users who train on one know, and about packages
that would fetch faster kernels from the Hub (H7)."""
_SILENCE_S = 60
"""Longest time without a line, if a unit takes less."""


def run_verb(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb and return its exit status.

    0 done; 1 done, but the decision is worse than `--require`; 2 an error that the user can fix;
    3 a bug of llmft; 130 interrupted; 143 stopped by a signal, with its state saved.
    """
    handler = _set_up_process()
    try:
        with quieten():  # before a verb is isolated, since it imports first
            status = verb(arguments)
        leave_group()
        return status
    except UserError as error:
        _wait_for_main()
        sys.stderr.write(f"llmft: {escape_controls(str(error))}\n")
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
        logging.getLogger("llmft").removeHandler(handler)


def _set_up_process() -> logging.Handler:
    """Set what belongs to the process of a command, and return the handler that shows its log."""
    # Threads that wait by spinning make a step several times slower as soon as another program
    # wants a core, and gain nothing measurable on an idle machine. torch reads it when loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters of the data
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger, handler = logging.getLogger("llmft"), _ConsoleHandler()
    handler.setFormatter(LineFormatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return handler


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


class LineFormatter(logging.Formatter):
    """Marks warnings as such, and shows control characters, which a terminal would follow."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - a name of logging
        """Put `warning: ` in front of the message of a warning."""
        if not getattr(record, "has_colours", False):
            record.message = escape_controls(record.message)
        if record.levelno >= logging.WARNING:
            record.message = f"warning: {record.message}"
        return super().formatMessage(record)


class _ConsoleHandler(logging.Handler):
    def filter(self, record: logging.LogRecord) -> bool:
        """Show the lines of the main process, and those that any process may write."""
        return is_main() or getattr(record, "any_process", False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, above the progress bar if there is one."""
        with contextlib.suppress(BrokenPipeError):  # the pipe is closed, as in `llmft ... | head`
            line = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(line)
            else:  # there is no bar; importing tqdm takes longer than all the rest of `--help`
                sys.stdout.write(f"{line}\n")


@contextlib.contextmanager
def shown_from(level: int) -> Iterator[None]:
    """Show only log lines from a level on within the context; log files of runs still have all."""
    logger = logging.getLogger("llmft")
    before = logger.level
    logger.setLevel(max(level, before))
    try:
        yield
    finally:
        logger.setLevel(before)


class Progress:
    """A progress bar on a terminal or in a notebook; elsewhere a log line a minute."""

    def __init__(
        self, description: str, total: int, *, unit: str = "row", initial: int = 0,
        tokens_per_unit: float | None = None, is_shown: bool = True,
    ) -> None:  # fmt: skip
        """Open the bar.

        Args:
            description: What is done.
            total: Units to do.
            unit: What is counted.
            initial: Units that are done already.
            tokens_per_unit: To report tokens a second, not units.
            is_shown: False shows nothing.
        """
        from tqdm.auto import tqdm  # importing it takes longer than all the rest of `--help`

        get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
        in_notebook = type(get_shell()).__name__ == "ZMQInteractiveShell"
        has_bar = is_main() and (in_notebook or sys.stderr.isatty())
        self._bar = tqdm(
            desc=description, total=total, unit=unit, initial=initial,
            disable=not (is_shown and has_bar),
        )  # fmt: skip
        self._logs = is_shown and not has_bar
        self._what, self._unit, self._total = description, unit, total
        self._tokens_per_unit = tokens_per_unit
        self._values: dict[str, str] = {}
        self._initial = self._done = initial
        self._started = self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        self.close()

    def show(self, **values: str) -> None:
        """Show values by name next to the count, from now on."""
        self._values = values
        self._bar.set_postfix(values, refresh=False)

    def update(self, count: int = 1) -> None:
        """Count units that were done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._logs and now - self._told > _SILENCE_S and self._done < self._total:
            self._told = now
            speed = (self._done - self._initial) / (now - self._started)
            rate = f"{speed:.3g} {self._unit}s/s"
            if self._tokens_per_unit is not None:
                rate = f"{speed * self._tokens_per_unit:,.0f} tokens/s"
            values = "".join(f", {name} {value}" for name, value in self._values.items())
            minutes = (self._total - self._done) / speed / 60
            _logger.info(
                "%s: %s %s of %s%s, %s, %s left",
                self._what, self._unit, f"{self._done:,}", f"{self._total:,}", values, rate,
                f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute",
            )  # fmt: skip

    def note(self) -> None:
        """Count the silence from now on, since another line was logged."""
        self._told = time.monotonic()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


@contextlib.contextmanager
def quieten() -> Iterator[None]:
    """Let noisy libraries log errors only; a level would be reset when they are imported."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    added = [logger for logger in loggers if _is_error not in logger.filters]
    for logger in added:
        logger.addFilter(_is_error)
    try:
        yield
    finally:
        for logger in added:
            logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def read_count(text: str) -> int:
    """Return an option's value as an integer above 0, for `argparse`."""
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return count
