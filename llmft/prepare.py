"""`llmft prepare TASK`: clean the data of a task and split it without leakage."""

import argparse
import logging
from pathlib import Path

from llmft.config.loading import Overrides, parse_overrides
from llmft.config.task import Task, load_task
from llmft.files import StrPath
from llmft.results.manifest import Manifest

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Prepare the data; return 0."""
    parser = argparse.ArgumentParser(prog="llmft prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("task", type=Path, help="task file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    args = parser.parse_args(arguments)
    prepare(args.task, overrides=parse_overrides(args.set))
    return 0


def prepare(task: StrPath | Task, *, overrides: Overrides | None = None) -> Manifest:
    """Clean the data of a task, split it without leakage, and log what was rejected.

    Args:
        task: Task file, or a task made in Python, whose sources may be DataFrames.
        overrides: Dotted key -> value that replaces that of the task.

    Returns:
        The manifest, as written to the task's `output`.

    Raises:
        UserError: If the task or a source is faulty, no usable row is left, or a split or class
            would be empty.
    """
    config = load_task(task, overrides=overrides)
    # Imported late, since it takes a while: errors in the task are reported before that.
    from llmft.data.preparation import prepare_task

    manifest = prepare_task(config)
    for kind, count in manifest.rejected.items():
        logger.info("  rejected %d: %s", count, kind)
    logger.info("wrote %s", Path(config.output) / "manifest.json")
    return manifest
