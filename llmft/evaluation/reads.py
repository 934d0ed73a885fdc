"""How often the test rows of a run were looked at: `RUN/evaluation/test_reads.json` (D8)."""

import time
from pathlib import Path
from typing import Literal

from llmft.results.files import read_result, write_result
from llmft.results.run import Read, ReadLog


def record_test_read(run: Path, *, by: Literal["evaluate", "compare"], report: str) -> None:
    """Note that a report has read the test predictions of a run.

    Args:
        run: Run folder.
        by: The verb.
        report: What it writes its results to.

    Raises:
        UserError: If the file is broken or cannot be written.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    reads = [*_list_reads(run), Read(when=when, by=by, report=report)]
    write_result(_find_file(run), ReadLog(reads=reads))


def count_test_reads(run: Path) -> int:
    """Return how many reports have read the test predictions of a run."""
    return len(_list_reads(run))


def _find_file(run: Path) -> Path:
    return run / "evaluation" / "test_reads.json"


def _list_reads(run: Path) -> list[Read]:
    path = _find_file(run)
    return read_result(path, ReadLog, mend="restore it").reads if path.is_file() else []
