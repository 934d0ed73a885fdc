"""How often the test rows of a run were looked at: `RUN/evaluation/test_reads.json` (D8)."""

import json
import time
from pathlib import Path
from typing import Any, Literal

from llmft.errors import UserError
from llmft.files import write_json


def record_test_read(run: Path, *, by: Literal["evaluate", "compare"], report: str) -> int:
    """Note that a report reads the test predictions of a run.

    Args:
        run: Run folder.
        by: The verb.
        report: What it writes its results to.

    Returns:
        How many reads there were, this one included.

    Raises:
        UserError: If the file is broken or cannot be written.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    reads = [*_list_reads(run), {"when": when, "by": by, "report": report}]
    write_json(_find_file(run), reads)
    return len(reads)


def count_test_reads(run: Path) -> int:
    """Return how many reports have read the test predictions of a run."""
    return len(_list_reads(run))


def _find_file(run: Path) -> Path:
    return run / "evaluation" / "test_reads.json"


def _list_reads(run: Path) -> list[dict[str, Any]]:
    path = _find_file(run)
    if not path.is_file():
        return []
    try:
        reads = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}; restore it") from error
    if not isinstance(reads, list):
        raise UserError(f"{path}: expected a JSON list; restore it")
    return reads
